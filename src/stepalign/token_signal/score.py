"""A_t: a completion scored with and without each context. No training involved.

The student is scored once per completion, however many contexts there are, and prompts that read the same are scored
once; so a context that changes nothing gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stepalign.models.load import Solver
from stepalign.models.packing import micro_batches
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.fused import fused_linear_divergence

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids, Ids, float, int]
"""Prompts of student and self-teacher, the completion, temperature, alternatives: all that its numbers depend on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringJob:
    """One completion behind the student's prompt and behind the self-teacher's prompt of every context."""

    completion_ids: Ids
    student_prompt_ids: Ids
    teacher_prompt_ids: Mapping[str, Ids]


@dataclass(frozen=True, kw_only=True, slots=True)
class SideScores:
    """The numbers of one side at every completion token; float32, nats."""

    log_probs: np.ndarray
    """[T], log p(y_t)."""
    entropy: np.ndarray
    """[T]."""
    top_ids: np.ndarray
    """[T, K], the likeliest tokens, strongest first."""
    top_log_probs: np.ndarray
    """[T, K]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextScores:
    """The self-teacher under one context beside the student; float32, nats."""

    log_ratio: np.ndarray
    """[T], A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)."""
    forward_kl: np.ndarray
    """[T], KL(self-teacher || student) over the full vocabulary."""
    teacher: SideScores


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One completion, scored."""

    student: SideScores
    contexts: Mapping[str, ContextScores]


@torch.no_grad()
def score(
    solver: Solver,
    jobs: Iterable[ScoringJob],
    *,
    temperature: float,
    top_k: int = 0,
    max_micro_batch_tokens: int = 16384,
    kept: dict[Pair, tuple[SideScores, ContextScores]] | None = None,
) -> Iterator[Scores]:
    """Score every job, in order. Jobs are taken as they are needed, so memory does not grow with their number.

    Args:
        temperature: divides the logits of both sides, the rule of training; use the sampling temperature.
        top_k: alternatives per token and side.
        max_micro_batch_tokens: tokens of one forward pass, and of the hidden states held at a time.
        kept: the pairs of an earlier call, which are not scored again; afterwards those of this one.
    """
    top_k = min(top_k, len(solver.head_VH))
    for window in windows(jobs, _num_tokens, max_micro_batch_tokens):
        known = kept or {}
        pairs = [_pairs(job, temperature, top_k) for job in window]
        new = dict.fromkeys(pair for of_job in pairs for pair in of_job.values() if pair not in known)
        hidden = _hidden_states(solver, new, max_micro_batch_tokens)
        found = {pair: _compare(solver.head_VH, hidden, pair) for pair in new} | known
        for job, of_job in zip(window, pairs, strict=True):
            student = next(found[pair][0] for pair in of_job.values())
            yield Scores(student=student, contexts={name: found[of_job[name]][1] for name in job.teacher_prompt_ids})
        if kept is not None:
            kept.clear()
            kept.update({pair: found[pair] for of_job in pairs for pair in of_job.values()})


def _pairs(job: ScoringJob, temperature: float, top_k: int) -> dict[str, Pair]:
    """The pair of every context; of the student with itself where there is none."""
    prompts = job.teacher_prompt_ids or {"": job.student_prompt_ids}
    shared = (job.completion_ids, temperature, top_k)
    return {name: (job.student_prompt_ids, prompt, *shared) for name, prompt in prompts.items()}


def _num_tokens(job: ScoringJob) -> int:
    prompts = {job.student_prompt_ids, *job.teacher_prompt_ids.values()}
    return sum(len(prompt) + len(job.completion_ids) for prompt in prompts)


Item = TypeVar("Item")


def windows(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Consecutive items of at most so much size together; a larger one makes a window of its own."""
    window: list[Item] = []
    held = 0
    for item in items:
        if window and held + size(item) > most:
            yield window
            window, held = [], 0
        window.append(item)
        held += size(item)
    if window:
        yield window


def _hidden_states(solver: Solver, pairs: Iterable[Pair], max_tokens: int) -> dict[tuple[Ids, Ids], Tensor]:
    """The hidden states [T, H] that predict each completion, by (prompt, completion)."""
    sequences = list(dict.fromkeys((prompt, pair[2]) for pair in pairs for prompt in pair[:2]))
    found = {}
    for batch in micro_batches(sequences, max_tokens=max_tokens):
        chosen = [sequences[i] for i in batch]
        hidden_NH = completion_hidden(solver, chosen)
        found.update(zip(chosen, hidden_NH.split([len(ids) for _, ids in chosen]), strict=True))
    return found


def _compare(head_VH: Tensor, hidden: Mapping[tuple[Ids, Ids], Tensor], pair: Pair) -> tuple[SideScores, ContextScores]:
    """The student, and the self-teacher beside it."""
    student_prompt, teacher_prompt, completion, temperature, top_k = pair
    student_TH = hidden[student_prompt, completion]
    found = fused_linear_divergence(
        student_TH,
        head_VH,
        hidden[teacher_prompt, completion],
        head_VH,
        weights=student_TH.new_zeros(len(student_TH)),
        temperature=temperature,
        token_ids=torch.tensor(completion, dtype=torch.long, device=head_VH.device),
        alternatives=top_k,
    )
    return (
        _side_scores(found.student_log_probs, found.student_entropy, found.student_top),
        ContextScores(
            log_ratio=_array(found.log_ratio),
            forward_kl=_array(found.per_token.clamp(min=0)),  # rounding may leave a negative hair
            teacher=_side_scores(found.teacher_log_probs, found.teacher_entropy, found.teacher_top),
        ),
    )


def _side_scores(log_probs: Tensor | None, entropy: Tensor | None, top: tuple[Tensor, Tensor] | None) -> SideScores:
    ids, top_log_probs = top or (None, None)
    return SideScores(
        log_probs=_array(log_probs), entropy=_array(entropy), top_ids=_array(ids), top_log_probs=_array(top_log_probs)
    )


def _array(values: Tensor | None) -> np.ndarray:
    assert values is not None  # token ids were given
    return values.cpu().numpy()
