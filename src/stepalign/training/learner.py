"""One optimizer step on a list of Samples: the two terms of the loss, whatever condition made the Samples.

    loss = 1/N  sum over tokens of  w_d * D(self-teacher, student)  +  w_p * clipped policy loss

w_d and w_p come with each Sample. N is the number of trained tokens of the whole batch: sums first, one division by a
global count, so the cut into micro-batches changes nothing. Both sides' logits are divided by the sampling temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.objectives import clipped_policy_loss
from stepalign.objectives.fused_linear import fused_linear_divergence, fused_linear_log_probs
from stepalign.records import Sample
from stepalign.solver.model import Solver
from stepalign.solver.scoring import completion_hidden, micro_batches
from stepalign.training.teacher import Teacher


@dataclass(slots=True)
class _Sums:
    """Running sums over the tokens of one step; a mean is NaN when nothing was summed."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        self.counts[name] = self.counts.get(name, 0.0) + values.numel()

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else math.nan


class Learner:
    """Holds the optimizer. ``update`` is the only thing that changes the solver's weights."""

    def __init__(
        self, solver: Solver, objective: ObjectiveSection, training: TrainingSection, *, temperature: float
    ) -> None:
        self._solver = solver
        self._objective = objective
        self._training = training
        self._temperature = temperature
        parameters = [p for p in solver.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.999)
        )

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step ``step`` (from 0): warm-up, then the schedule."""
        section = self._training
        if step < section.warmup_steps:
            return section.learning_rate * (step + 1) / section.warmup_steps
        progress = (step - section.warmup_steps) / max(1, section.max_steps - section.warmup_steps)
        decay = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))),
        }[section.lr_scheduler]
        return section.learning_rate * decay

    def update(self, samples: Sequence[Sample], teacher: Teacher, step: int) -> dict[str, float]:
        """``updates_per_batch`` optimizer updates on the samples.

        Returns:
            The step's numbers: nats per token for divergence, entropies and log-ratios; NaN where nothing was scored.
        """
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        numbers: dict[str, float] = {}
        for _ in range(self._training.updates_per_batch):
            numbers = self._update_once(samples, teacher)
            teacher.update(self._solver.model)
        return {**numbers, "learning_rate": rate}

    def _update_once(self, samples: Sequence[Sample], teacher: Teacher) -> dict[str, float]:
        num_tokens = sum(sum(sample.loss_mask) for sample in samples)
        # A sample without a signal needs no forward pass; its tokens still count in the mean.
        active = [s for s in samples if s.distillation_weight or (s.policy_weight and s.advantage)]
        sums = _Sums()
        _score_without_dropout(self._solver.model)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in micro_batches([_length(s) for s in active], self._training.max_micro_batch_tokens):
            part = self._loss([active[i] for i in batch], teacher, max(1, num_tokens), sums)
            part.backward()
            loss += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(self._solver.model.parameters(), self._training.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)  # a broken step must not break the weights; it is reported
        elif active:
            self.optimizer.step()
        names = ("divergence", "student_entropy", "teacher_entropy", "log_ratio", "abs_log_ratio", "clip_ratio")
        return {
            "loss": loss,
            "grad_norm": float(norm) if active else 0.0,
            **{name: sums.mean(name) for name in names},
            "right_value_probability": sums.mean("right_value_probability"),
            "student_right_value_probability": sums.mean("student_right_value_probability"),
            "trained_tokens": float(num_tokens),
            "active_samples": float(len(active)),
        }

    def _loss(self, samples: Sequence[Sample], teacher: Teacher, num_tokens: int, sums: _Sums) -> torch.Tensor:
        """The micro-batch's share of the loss, already divided by the global count of tokens."""
        device = self._solver.device
        student_NH = completion_hidden(self._solver, [(s.student_prompt_ids, s.completion_ids) for s in samples])
        head_VH = self._solver.head_VH
        ids_N = torch.tensor([i for s in samples for i in s.completion_ids], device=device)
        mask_N = torch.tensor([m for s in samples for m in s.loss_mask], device=device)
        total = student_NH.new_zeros(())

        distilled = [s for s in samples if s.distillation_weight]
        if distilled:
            rows_N = _rows(samples, [bool(s.distillation_weight) for s in samples]).to(device)
            weights = _per_token(distilled, [s.distillation_weight for s in distilled]).to(device)
            with torch.no_grad(), teacher.in_place(self._solver.model):
                teacher_NH = completion_hidden(
                    self._solver, [(s.teacher_prompt_ids or (), s.completion_ids) for s in distilled]
                )
                teacher_head_VH = self._solver.head_VH.data
            result = fused_linear_divergence(
                student_NH[rows_N],
                head_VH,
                teacher_NH,
                teacher_head_VH,
                weights=weights * mask_N[rows_N] / num_tokens,
                divergence=self._objective.divergence,
                temperature=self._temperature,
                token_ids=ids_N[rows_N],
                mixture_weight=self._objective.jensen_shannon_weight,
                entry_clip=self._objective.entry_clip,
            )
            total = total + result.loss
            kept = mask_N[rows_N]
            watched = {"divergence": result.per_token, "log_ratio": result.log_ratio}
            watched |= {"student_entropy": result.student_entropy, "teacher_entropy": result.teacher_entropy}
            for name, values_N in watched.items():
                assert values_N is not None  # token ids were given
                sums.add(name, values_N[kept])
                if name == "log_ratio":
                    sums.add("abs_log_ratio", values_N[kept].abs())
            self._probe(distilled, student_NH[rows_N], head_VH, teacher_NH, teacher_head_VH, sums)

        rewarded = [bool(s.policy_weight and s.advantage) for s in samples]
        if any(rewarded):
            rows_N = _rows(samples, rewarded).to(device)
            kept = [s for s, yes in zip(samples, rewarded, strict=True) if yes]
            scored = fused_linear_log_probs(
                student_NH[rows_N], head_VH, token_ids=ids_N[rows_N], temperature=self._temperature
            )
            loss_N, clipped_N = clipped_policy_loss(
                scored.log_probs,
                torch.tensor([p for s in kept for p in s.sampler_log_probs], device=device),
                _per_token(kept, [s.advantage for s in kept]).to(device),
                epsilon=self._objective.epsilon,
                epsilon_high=self._objective.epsilon_high,
            )
            weights = _per_token(kept, [s.policy_weight for s in kept]).to(device)
            total = total + (weights * mask_N[rows_N] * loss_N).sum() / num_tokens
            sums.add("clip_ratio", clipped_N[mask_N[rows_N]].float())
            not_distilled = _rows(kept, [not s.distillation_weight for s in kept]).to(device)
            sums.add("student_entropy", scored.entropy[mask_N[rows_N] & not_distilled])  # the others are in already
        return total

    @torch.no_grad()
    def _probe(
        self,
        samples: Sequence[Sample],
        student_NH: torch.Tensor,
        student_head_VH: torch.Tensor,
        teacher_NH: torch.Tensor,
        teacher_head_VH: torch.Tensor,
        sums: _Sums,
    ) -> None:
        """How much of each side's probability lies on the right token where the completion has its first wrong one."""
        rows, tokens, start = [], [], 0
        for sample in samples:
            if sample.probe is not None:
                rows.append(start + sample.probe[0])
                tokens.append(sample.probe[1])
            start += len(sample.completion_ids)
        if not rows:
            return
        ids = torch.tensor(tokens, device=student_NH.device)[:, None]
        for name, hidden, head in (
            ("right_value_probability", teacher_NH, teacher_head_VH),
            ("student_right_value_probability", student_NH, student_head_VH),
        ):
            logits_RV = (hidden[rows] @ head.T).float() / self._temperature
            sums.add(name, logits_RV.softmax(-1).gather(1, ids))


def _score_without_dropout(model: torch.nn.Module) -> None:
    """Both sides of every comparison are scored as the sampler draws. Layers that checkpoint do so in training only."""
    model.eval()
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def _length(sample: Sample) -> int:
    """Tokens of the longer of the two sequences."""
    prompt = max(len(sample.student_prompt_ids), len(sample.teacher_prompt_ids or ()))
    return prompt + len(sample.completion_ids)


def _rows(samples: Sequence[Sample], chosen: Sequence[bool]) -> torch.Tensor:
    """Which packed rows belong to the chosen samples."""
    lengths = torch.tensor([len(s.completion_ids) for s in samples])
    return torch.repeat_interleave(torch.tensor(chosen), lengths)


def _per_token(samples: Sequence[Sample], values: Sequence[float]) -> torch.Tensor:
    """One value per sample, repeated over its tokens."""
    lengths = torch.tensor([len(s.completion_ids) for s in samples])
    return torch.repeat_interleave(torch.tensor(values, dtype=torch.float32), lengths)
