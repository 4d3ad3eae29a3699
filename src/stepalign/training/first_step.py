"""The size of the update that each token would make: the gradient of a first step, without taking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stepalign.models.load import Solver
from stepalign.models.packing import micro_batches
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.policy_gradient import StepCounts
from stepalign.records import Sample
from stepalign.training.loss import Objective, Side, batch_loss, uses_contrast, uses_teacher


def gradient_sizes(
    solver: Solver, samples: Sequence[Sample], objective: Objective, *, max_tokens: int
) -> list[np.ndarray]:
    """Per sample [T], the norm of the loss's gradient at the hidden state that predicts each completion token.

    Student and self-teacher have the same weights, as before a first step, so the KL to the reference has no gradient.
    """
    objective = replace(objective, beta=0.0, compiled=False)
    head_VH = solver.head_VH.detach()
    sizes: list[np.ndarray] = [np.zeros(len(sample.completion_ids)) for sample in samples]
    counts = StepCounts(
        completions=max(1, len(samples)),
        tokens=max(1, sum(sum(sample.loss_mask) for sample in samples)),
        max_completion_length=max((len(sample.completion_ids) for sample in samples), default=1),
    )
    student = [(s.student_prompt_ids, s.completion_ids) for s in samples]
    teacher = [(s.teacher_prompt_ids or (), s.completion_ids) for s in samples]
    contrast = [(s.contrast_prompt_ids or (), s.completion_ids) for s in samples]
    for batch in micro_batches(student, teacher, contrast, max_tokens=max_tokens):
        chosen = [samples[i] for i in batch]
        taught = [teacher[i] for i in batch if uses_teacher(samples[i])]
        with torch.no_grad():
            hidden_NH = completion_hidden(solver, [student[i] for i in batch])
            side = Side(completion_hidden(solver, taught), head_VH) if taught else None
            other = [contrast[i] for i in batch if uses_contrast(samples[i])]
            second = Side(completion_hidden(solver, other), head_VH) if other else None
        hidden_NH = hidden_NH.detach().clone().requires_grad_(True)
        loss, _ = batch_loss(chosen, counts, Side(hidden_NH, head_VH), side, None, second, objective=objective)
        if not loss.requires_grad:
            continue
        loss.backward()
        assert hidden_NH.grad is not None
        norms = hidden_NH.grad.float().norm(dim=-1).cpu().split([len(s.completion_ids) for s in chosen])
        for i, values in zip(batch, norms, strict=True):
            sizes[i] = values.numpy()
    return sizes
