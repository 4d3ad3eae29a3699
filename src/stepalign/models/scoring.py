"""Hidden states of completions under their prompts: one forward pass over a packed row, no padding, no head.

Student and self-teacher score the *same* completion ids behind different prompts, so row i of one side is always the
same token as row i of the other. Equal prompts on both sides make equal rows, and so the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache

import torch

from stepalign.models import packed_attention
from stepalign.models.load import Solver, on_device
from stepalign.models.packing import Scored, pack

LEAST_FILLED = 0.75
"""Padded batches, where there must be some: no sequence is shorter than this share of the longest beside it."""


def completion_hidden(solver: Solver, sequences: Sequence[Scored]) -> torch.Tensor:
    """The (scaled) hidden states that predict each completion token, with gradients where they are enabled.

    Args:
        sequences: (prompt ids, completion ids); prompts must not be empty. A prompt that several sequences share is
            computed once. Models that cannot compute on packed rows score padded batches, with one warning.

    Returns:
        hidden_NH, where N is the number of completion tokens of all sequences, in order.

    Raises:
        ValueError: a prompt is empty.
    """
    decoder, device = solver.decoder, solver.device
    packing = pack(sequences)
    if reason := packed_attention.unpackable(decoder):
        _say_once(type(decoder).__name__, reason)
        return padded_hidden(solver, sequences)
    packed_attention.enable(decoder)
    with solver.computing():
        hidden_1SH = solver.hidden_states(
            input_ids=on_device([packing.ids], device),
            position_ids=on_device([packing.positions], device),
            # A mask with four dimensions is taken as it is, and ours is ignored: none is built for the whole row.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            packed_attention=packed_attention.build_attention(packing, device=device, dtype=solver.model.dtype),
        )
    predictors = on_device(packing.predictors, device, torch.long)  # none where completions are empty
    return solver.scaled(hidden_1SH[0].index_select(0, predictors))


def padded_hidden(solver: Solver, sequences: Sequence[Scored]) -> torch.Tensor:
    """``completion_hidden`` for any causal model: sequences of similar length side by side, padded."""
    hidden: dict[int, torch.Tensor] = {}
    contexts = [[*prompt, *completion[:-1]] for prompt, completion in sequences]
    for batch in _similar([len(row) for row in contexts]):
        ids_BS = torch.zeros((len(batch), len(contexts[batch[0]])), dtype=torch.long)
        for ids_S, index in zip(ids_BS, batch, strict=True):
            ids_S[: len(contexts[index])] = torch.tensor(contexts[index])
        # Right padding under causal attention: no real token ever attends to a pad, so no mask is needed.
        with solver.computing():
            hidden_BSH = solver.hidden_states(input_ids=on_device(ids_BS, solver.device))
        for index, hidden_SH in zip(batch, hidden_BSH, strict=True):
            prompt, completion = sequences[index]
            hidden[index] = hidden_SH[len(prompt) - 1 : len(prompt) + len(completion) - 1]
    return solver.scaled(torch.cat([hidden[index] for index in range(len(sequences))]))


def _similar(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[index] < LEAST_FILLED * lengths[batch[0]]:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@cache
def _say_once(model: str, reason: str) -> None:
    warnings.warn(
        f"{model} is scored in padded batches, not in packed rows: {reason}. Shared prompts are computed for each of "
        "their completions; a smaller training.max_micro_batch_tokens saves memory",
        stacklevel=3,
    )
