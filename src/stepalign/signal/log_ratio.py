"""A_t: stored rollouts scored with and without a context. No training involved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stepalign.objectives.fused_linear import fused_linear_divergence
from stepalign.records import Problem, Rollout, TokenSignal
from stepalign.solver.model import Solver
from stepalign.solver.scoring import completion_hidden, micro_batches
from stepalign.solver.tokens import PromptBuilder, decode

Alternatives = list[list[tuple[str, float]]]
"""Per token: the likeliest tokens with their log-probabilities, strongest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One rollout under one context."""

    problem: Problem
    rollout: Rollout
    design: str
    text: str
    """What the self-teacher is shown."""
    introduction: str = ""
    """The sentence in front of it."""


@torch.no_grad()
def score_signals(
    solver: Solver,
    prompts: PromptBuilder,
    items: Sequence[Shown],
    *,
    temperature: float,
    max_micro_batch_tokens: int = 16384,
) -> Iterator[tuple[int, TokenSignal]]:
    """Score every item; yields (index into items, signal) batch by batch, so memory does not grow with the items.

    Both sides are divided by ``temperature``, the rule of training; use the sampling temperature.
    """
    pairs = [(prompts.student(i.problem), teacher_ids(prompts, i)) for i in items]
    lengths = [
        max(len(student), len(teacher)) + len(item.rollout.completion.ids)
        for (student, teacher), item in zip(pairs, items, strict=True)
    ]
    head_VH = solver.head_VH
    for batch in micro_batches(lengths, max_micro_batch_tokens):
        completions = [items[i].rollout.completion.ids for i in batch]
        student_NH, teacher_NH = (
            completion_hidden(solver, [(pairs[i][side], ids) for i, ids in zip(batch, completions, strict=True)])
            for side in (0, 1)
        )
        result = fused_linear_divergence(
            student_NH,
            head_VH,
            teacher_NH,
            head_VH,
            weights=torch.ones(len(student_NH), device=student_NH.device),
            temperature=temperature,
            token_ids=torch.tensor([t for ids in completions for t in ids], device=student_NH.device),
        )
        columns = {
            "log_ratio": result.log_ratio,
            "student_log_probs": result.student_log_probs,
            "teacher_log_probs": result.teacher_log_probs,
            "forward_kl": result.per_token,
            "student_entropy": result.student_entropy,
            "teacher_entropy": result.teacher_entropy,
        }
        start = 0
        for index, ids in zip(batch, completions, strict=True):
            span = slice(start, start + len(ids))
            start += len(ids)
            values = {name: tuple(column[span].tolist()) for name, column in columns.items() if column is not None}
            item = items[index]
            yield index, TokenSignal(rollout_id=item.rollout.rollout_id, design=item.design, **values)


@torch.no_grad()
def alternatives(
    solver: Solver, prompt_ids: Sequence[int], completion_ids: Sequence[int], *, temperature: float, k: int
) -> Alternatives:
    """The k likeliest tokens at each position of a completion."""
    hidden_NH = completion_hidden(solver, [(prompt_ids, completion_ids)])
    rows: Alternatives = []
    for chunk_CH in hidden_NH.split(256):
        log_probs_CV = (solver.logits(chunk_CH) / temperature).log_softmax(-1)
        values_CK, ids_CK = log_probs_CV.topk(min(k, log_probs_CV.shape[-1]))
        for values, ids in zip(values_CK.tolist(), ids_CK.tolist(), strict=True):
            rows.append([(_name(solver, i), v) for i, v in zip(ids, values, strict=True)])
    return rows


def teacher_ids(prompts: PromptBuilder, item: Shown) -> tuple[int, ...]:
    """Prompt ids of the self-teacher under an item's context."""
    return prompts.self_teacher(item.problem, item.text, introduction=item.introduction).ids


def _name(solver: Solver, token_id: int) -> str:
    """A token as text; special tokens by their own name."""
    return decode(solver.tokenizer, [token_id]) or str(solver.tokenizer.convert_ids_to_tokens(token_id))
