"""A_t: a completion scored with and without each context. No training involved.

The student is scored once per completion, however many contexts there are, and prompts that read the same are scored
once; so a context that changes nothing gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepalign.models.load import Solver
from stepalign.models.packing import micro_batches
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.fused_kernel import log_softmax, wide_dtype
from stepalign.objectives.head import logit_buffer, logit_parts, row_blocks

CHUNK_TOKENS = 512
"""Completion tokens whose logits are formed together (fewer on a CPU); memory grows with it and with the contexts."""

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
    for window in _windows(jobs, max_micro_batch_tokens):
        hidden = _hidden_states(solver, window, max_micro_batch_tokens)
        for job in window:
            ids = job.completion_ids
            sides = [hidden[prompt, ids] for prompt in (job.student_prompt_ids, *job.teacher_prompt_ids.values())]
            yield _compare(solver.head_VH, sides, list(job.teacher_prompt_ids), ids, temperature, top_k)


def _sequences(job: ScoringJob) -> list[tuple[Ids, Ids]]:
    """(prompt, completion) of every different prompt, the student's first."""
    prompts = dict.fromkeys((job.student_prompt_ids, *job.teacher_prompt_ids.values()))
    return [(prompt, job.completion_ids) for prompt in prompts]


def _windows(jobs: Iterable[ScoringJob], max_tokens: int) -> Iterator[list[ScoringJob]]:
    """Consecutive jobs of at most so many tokens together; a longer one stands alone."""
    window: list[ScoringJob] = []
    held = 0
    for job in jobs:
        tokens = sum(len(prompt) + len(completion) for prompt, completion in _sequences(job))
        if window and held + tokens > max_tokens:
            yield window
            window, held = [], 0
        window.append(job)
        held += tokens
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
    head_VH: Tensor, sides: Sequence[Tensor], names: Sequence[str], ids: Ids, temperature: float, top_k: int
) -> Scores:
    """The student ``sides[0]`` beside the self-teacher under every context, block of rows by block of rows."""
    ids_T1 = torch.tensor(ids, device=head_VH.device).unsqueeze(-1)
    kept = min(top_k, len(head_VH))
    student: list[tuple[Tensor, ...]] = []
    teachers: list[list[tuple[Tensor, ...]]] = [[] for _ in names]
    buffers = [logit_buffer(side, head_VH, CHUNK_TOKENS, wide_dtype(side.dtype)) for side in sides]
    parts = (logit_parts(side, head_VH, buffer) for side, buffer in zip(sides, buffers, strict=True))
    for (part, student_PV), *others in zip(*parts, strict=True):
        for rows in row_blocks(student_PV):
            ids_R1 = ids_T1[part][rows]
            student_RV = log_softmax(student_PV[rows], temperature=temperature, excluded_V=None)
            student.append(_side(student_RV, student_RV.exp(), ids_R1, kept))
            for found, (_, teacher_PV) in zip(teachers, others, strict=True):
                teacher_RV = log_softmax(teacher_PV[rows], temperature=temperature, excluded_V=None)
                p_RV = teacher_RV.exp()
                side = _side(teacher_RV, p_RV, ids_R1, kept)
                difference_RV = teacher_RV.sub_(student_RV)
                # Rounding may leave a negative hair where both sides agree.
                kl_R = torch.linalg.vecdot(p_RV, difference_RV).clamp_(min=0)
                found.append((*side, difference_RV.gather(-1, ids_R1).squeeze(-1), kl_R))
    contexts = {}
    for name, found in zip(names, teachers, strict=True):
        *side, log_ratio, kl = _joined(found)
        contexts[name] = ContextScores(log_ratio=log_ratio, forward_kl=kl, teacher=_side_scores(side))
    return Scores(student=_side_scores(_joined(student)), contexts=contexts)


def _side(log_probs_RV: Tensor, p_RV: Tensor, ids_R1: Tensor, k: int) -> tuple[Tensor, ...]:
    entropy_R = -torch.linalg.vecdot(p_RV, log_probs_RV)
    top_RK = log_probs_RV.topk(k)
    return log_probs_RV.gather(-1, ids_R1).squeeze(-1), entropy_R, top_RK.indices, top_RK.values


def _joined(blocks: Sequence[tuple[Tensor, ...]]) -> list[np.ndarray]:
    return [torch.cat(column).cpu().numpy() for column in zip(*blocks, strict=True)]


def _side_scores(columns: Sequence[np.ndarray]) -> SideScores:
    log_probs, entropy, top_ids, top_log_probs = columns
    return SideScores(log_probs=log_probs, entropy=entropy, top_ids=top_ids, top_log_probs=top_log_probs)
