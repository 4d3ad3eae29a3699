"""A_t: a completion scored with and without each context. No training involved.

The student is scored once per completion, however many contexts there are, and prompts that read the same are scored
once; so a context that changes nothing gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringJob:
    """One completion behind the student's prompt and behind the self-teacher's prompt of every context."""

    completion_ids: Ids
    student_prompt_ids: Ids
    teacher_prompt_ids: Mapping[str, Ids]


@dataclass(frozen=True, kw_only=True, slots=True)
class SideScores:
    """What one side says at every completion token; float32, nats."""

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
) -> Iterator[Scores]:
    """Score every job, in order. Jobs are taken as they are needed, so memory does not grow with their number.

    Args:
        temperature: divides the logits of both sides, the rule of training; use the sampling temperature.
        top_k: alternatives per token and side.
        max_micro_batch_tokens: tokens of one forward pass, and of the hidden states held at a time.
    """
    for window in windows(jobs, _num_tokens, max_micro_batch_tokens):
        hidden = _hidden_states(solver, window, max_micro_batch_tokens)
        for job in window:
            yield _compare(solver.head_VH, hidden, job, temperature, min(top_k, len(solver.head_VH)))


def _sequences(job: ScoringJob) -> list[tuple[Ids, Ids]]:
    """(prompt, completion) of every different prompt, the student's first."""
    prompts = dict.fromkeys((job.student_prompt_ids, *job.teacher_prompt_ids.values()))
    return [(prompt, job.completion_ids) for prompt in prompts]


def _num_tokens(job: ScoringJob) -> int:
    return sum(len(prompt) + len(completion) for prompt, completion in _sequences(job))


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


def _hidden_states(solver: Solver, jobs: Sequence[ScoringJob], max_tokens: int) -> dict[tuple[Ids, Ids], Tensor]:
    """The hidden states [T, H] that predict each completion, by (prompt, completion)."""
    sequences = list(dict.fromkeys(pair for job in jobs for pair in _sequences(job)))
    found = {}
    for batch in micro_batches(sequences, max_tokens=max_tokens):
        chosen = [sequences[i] for i in batch]
        hidden_NH = completion_hidden(solver, chosen)
        found.update(zip(chosen, hidden_NH.split([len(ids) for _, ids in chosen]), strict=True))
    return found


def _compare(
    head_VH: Tensor, hidden: Mapping[tuple[Ids, Ids], Tensor], job: ScoringJob, temperature: float, top_k: int
) -> Scores:
    """The student beside the self-teacher under every context, and beside itself where there is none."""
    student_TH = hidden[job.student_prompt_ids, job.completion_ids]
    student: SideScores | None = None
    contexts = {}
    for name, prompt_ids in (job.teacher_prompt_ids or {"": job.student_prompt_ids}).items():
        found = fused_linear_divergence(
            student_TH,
            head_VH,
            hidden[prompt_ids, job.completion_ids],
            head_VH,
            weights=student_TH.new_zeros(len(student_TH)),
            temperature=temperature,
            token_ids=torch.tensor(job.completion_ids, dtype=torch.long, device=head_VH.device),
            alternatives=top_k,
        )
        student = student or _side_scores(found.student_log_probs, found.student_entropy, found.student_top)
        if name in job.teacher_prompt_ids:
            contexts[name] = ContextScores(
                log_ratio=_array(found.log_ratio),
                forward_kl=_array(found.per_token.clamp(min=0)),  # rounding may leave a negative hair
                teacher=_side_scores(found.teacher_log_probs, found.teacher_entropy, found.teacher_top),
            )
    assert student is not None
    return Scores(student=student, contexts=contexts)


def _side_scores(log_probs: Tensor | None, entropy: Tensor | None, top: tuple[Tensor, Tensor] | None) -> SideScores:
    ids, top_log_probs = top or (None, None)
    return SideScores(
        log_probs=_array(log_probs), entropy=_array(entropy), top_ids=_array(ids), top_log_probs=_array(top_log_probs)
    )


def _array(values: Tensor | None) -> np.ndarray:
    assert values is not None  # token ids were given
    return values.cpu().numpy()
