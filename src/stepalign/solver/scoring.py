"""Hidden states of a completion under a prompt: one forward pass, the head on completion positions only.

Student and self-teacher score the *same* completion ids behind different prompts, so row i of one side is always the
same token as row i of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stepalign.solver.model import Solver

Scored = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, completion ids)."""


def completion_hidden(solver: Solver, sequences: Sequence[Scored]) -> torch.Tensor:
    """The hidden states that predict each completion token.

    Args:
        sequences: (prompt ids, completion ids); prompts must not be empty.

    Returns:
        hidden_NH, where N is the number of completion tokens of all sequences, in order.
    """
    rows = [[*prompt, *completion] for prompt, completion in sequences]
    width = max(map(len, rows)) - 1  # the last token predicts nothing that we score
    ids_BS = torch.zeros((len(rows), width), dtype=torch.long)
    scored_BS = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (prompt, completion) in enumerate(sequences):
        if not prompt:
            raise ValueError("a completion cannot be scored behind an empty prompt")
        ids = rows[row][:-1]
        ids_BS[row, : len(ids)] = torch.tensor(ids)
        scored_BS[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    # Right padding under causal attention: no real token ever attends to a pad, so no mask is needed and the fast
    # causal kernel applies.
    output = solver.decoder(input_ids=ids_BS.to(solver.device), use_cache=False)
    return output.last_hidden_state[scored_BS.to(solver.device)]


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``max_tokens`` tokens, padding included; similar lengths together.

    A sequence longer than the budget gets a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
