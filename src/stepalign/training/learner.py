"""One optimizer step on a list of Samples: the terms of the loss, whatever condition made the Samples.

    loss = sum over tokens of  w * (w_d * D(self-teacher, student) + w_p * clipped policy loss + beta * KL to reference)

w_d and w_p come with each Sample, w from ``objective.loss_type``; by default it is one over the trained tokens of the
whole batch: sums first, one division by a global count, so the cut into micro-batches changes nothing. All logits are
divided by the sampling temperature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.errors import ConfigError
from stepalign.models.compiling import pays_to_compile
from stepalign.models.load import Solver
from stepalign.models.packing import Scored, micro_batches
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.divergences import TopK, find_divergence
from stepalign.objectives.fused import FusedDivergence, fused_linear_divergence, fused_linear_log_probs
from stepalign.objectives.policy_gradient import (
    StepCounts,
    clipped_policy_loss,
    kl_to_reference,
    rlsd_advantages,
    truncated_importance_weights,
)
from stepalign.records import Sample
from stepalign.training.micro_batch import MicroBatch
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


@dataclass(frozen=True, slots=True)
class _TeacherSide:
    """What the self-teacher makes of its prompts: logits from its own weights, and a part from the live ones."""

    hidden_NH: torch.Tensor
    head_VH: torch.Tensor
    live_NH: torch.Tensor | None
    live_share: float

    def logits(self, rows: Sequence[int], live_head_VH: torch.Tensor) -> torch.Tensor:
        logits_RV = (self.hidden_NH[rows] @ self.head_VH.T).float()
        if self.live_NH is None:
            return logits_RV
        return torch.lerp(logits_RV, (self.live_NH[rows] @ live_head_VH.T).float(), self.live_share)


class Learner:
    """Holds the optimizer. ``update`` is the only thing that changes the solver's weights."""

    def __init__(
        self,
        solver: Solver,
        objective: ObjectiveSection,
        training: TrainingSection,
        *,
        temperature: float,
        max_completion_length: int = 0,
    ) -> None:
        """``max_completion_length``, the sampling budget in tokens, is what ``loss_type = "dr_grpo"`` divides by."""
        self._solver = solver
        self._objective = objective
        self._training = training
        self._temperature = temperature
        self._max_completion_length = max_completion_length
        weight = f"({objective.jensen_shannon_weight})" if objective.divergence == "jensen_shannon" else ""
        self._divergence = find_divergence(objective.divergence + weight)
        self._top_k = _top_k(objective, len(solver.head_VH))
        wanted = objective.compiled
        self._compiled = pays_to_compile(solver.head_VH) if wanted is None else wanted
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
        batches = self._cut(samples)
        counts = StepCounts(
            completions=max(1, sum(any(sample.loss_mask) for sample in samples)),
            tokens=max(1, num_tokens),
            micro_batches=max(1, len(batches)),
            max_completion_length=self._max_completion_length,
        )
        sums = _Sums()
        _score_without_dropout(self._solver.model)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            part = self._loss(
                MicroBatch.of(batch, self._objective.loss_type, counts, self._solver.device), teacher, sums
            )
            if part.requires_grad:  # not where every token is masked
                part.backward()
            loss += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(self._solver.model.parameters(), self._training.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)  # a broken step must not break the weights; it is reported
        elif batches:
            self.optimizer.step()
        names = ("divergence", "student_entropy", "teacher_entropy", "log_ratio", "abs_log_ratio", "clip_ratio", "kl")
        return {
            "loss": loss,
            "grad_norm": float(norm) if batches else 0.0,
            **{name: sums.mean(name) for name in names},
            "right_value_probability": sums.mean("right_value_probability"),
            "student_right_value_probability": sums.mean("student_right_value_probability"),
            "trained_tokens": float(num_tokens),
            "active_samples": float(sum(map(len, batches))),
        }

    def _cut(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Micro-batches of the samples that need a forward pass; the others' tokens still count in every mean."""
        every = bool(self._objective.beta) or self._objective.loss_type == "bnpo"  # bnpo: means over what a cut holds
        active = [s for s in samples if every or s.distillation_weight or _is_rewarded(s)]
        sides = _student_side(active), _teacher_side(active)
        cut = micro_batches(*sides, max_tokens=self._training.max_micro_batch_tokens)
        return [[active[i] for i in batch] for batch in cut]

    def _loss(self, batch: MicroBatch, teacher: Teacher, sums: _Sums) -> torch.Tensor:
        """The micro-batch's share of the loss, weights of the whole step included."""
        student_sequences = _student_side(batch.samples)
        student_NH, head_VH = completion_hidden(self._solver, student_sequences), self._solver.head_VH
        total = student_NH.new_zeros(())
        advantages_N = batch.per_token(lambda s: s.advantage)

        taught_N = batch.rows(_is_taught)
        if taught_N.any():
            compared = self._compare(batch, taught_N, student_NH, head_VH, teacher, sums)
            total = total + compared.loss
            mixing_N = batch.per_token(lambda s: s.magnitude_mixing)[taught_N]
            assert compared.log_ratio is not None  # token ids were given
            advantages_N[taught_N] = rlsd_advantages(
                advantages_N[taught_N], compared.log_ratio.float(), mixing=mixing_N, clip=self._objective.rlsd_clip
            )

        # Masked tokens take no part at all: a ratio that overflows there would spoil the sum even at the weight 0.
        anchored = bool(self._objective.beta)
        rewarded_N = batch.rows(_is_rewarded) & batch.mask_N
        scored_N = batch.mask_N if anchored else rewarded_N
        if not scored_N.any():
            return total
        token_ids, temperature = batch.token_ids_N[scored_N], self._temperature
        scored = fused_linear_log_probs(student_NH[scored_N], head_VH, token_ids=token_ids, temperature=temperature)
        sums.add("student_entropy", scored.entropy[~taught_N[scored_N]])  # the others are in already
        if rewarded_N.any():
            loss_N, clipped_N = clipped_policy_loss(
                scored.log_probs[rewarded_N[scored_N]],
                batch.sampler_log_probs_N[rewarded_N],
                advantages_N[rewarded_N],
                epsilon=self._objective.epsilon,
                epsilon_high=self._objective.epsilon_high,
            )
            weights_N = (batch.weights_N * batch.per_token(lambda s: s.policy_weight))[rewarded_N]
            total = total + (weights_N * loss_N).sum()
            sums.add("clip_ratio", clipped_N.float())
        if anchored:
            with torch.no_grad(), teacher.reference_in_place(self._solver.model):
                reference_NH = completion_hidden(self._solver, student_sequences)
                reference = fused_linear_log_probs(
                    reference_NH[scored_N], self._solver.head_VH.data, token_ids=token_ids, temperature=temperature
                )
            kl_N = kl_to_reference(reference.log_probs, scored.log_probs)
            total = total + self._objective.beta * (batch.weights_N[scored_N] * kl_N).sum()
            sums.add("kl", kl_N.detach())
        return total

    def _compare(
        self,
        batch: MicroBatch,
        taught_N: torch.Tensor,
        student_NH: torch.Tensor,
        head_VH: torch.Tensor,
        teacher: Teacher,
        sums: _Sums,
    ) -> FusedDivergence:
        """The distillation term of the samples that have a self-teacher, and what is watched of both sides."""
        taught = [s for s in batch.samples if _is_taught(s)]
        side = self._score_teacher(_teacher_side(taught), teacher)
        compare = functools.partial(
            fused_linear_divergence,
            student_NH[taught_N],
            head_VH,
            side.hidden_NH,
            side.head_VH,
            live_hidden=side.live_NH,
            live_share=side.live_share,
            divergence=self._divergence,
            temperature=self._temperature,
            token_ids=batch.token_ids_N[taught_N],
            top_k=self._top_k,
            entry_clip=self._objective.entry_clip,
            token_clip=self._objective.token_clip,
            fast_logits=self._objective.fast_logits,
            compiled=self._compiled,
        )
        weights_N = (batch.weights_N * batch.per_token(lambda s: s.distillation_weight))[taught_N]
        damping_N = batch.per_token(lambda s: s.entropy_damping)[taught_N]
        clip = self._objective.importance_clip
        if clip is not None or damping_N.any():  # weights that depend on what is compared: look first
            with torch.no_grad():
                seen = compare(weights=weights_N)
            assert seen.teacher_entropy is not None  # token ids were given
            assert seen.student_log_probs is not None
            weights_N = weights_N * torch.exp(-damping_N * seen.teacher_entropy)
            if clip is not None:
                sampler_N = batch.sampler_log_probs_N[taught_N]
                weights_N = weights_N * truncated_importance_weights(seen.student_log_probs, sampler_N, maximum=clip)
        with torch.set_grad_enabled(bool(weights_N.any())):  # RLSD only looks
            compared = compare(weights=weights_N)
        kept = batch.mask_N[taught_N]
        watched = {"divergence": compared.per_token, "log_ratio": compared.log_ratio}
        watched |= {"student_entropy": compared.student_entropy, "teacher_entropy": compared.teacher_entropy}
        for name, values_N in watched.items():
            assert values_N is not None  # token ids were given
            sums.add(name, values_N[kept])
            if name == "log_ratio":
                sums.add("abs_log_ratio", values_N[kept].abs())
        self._probe(taught, student_NH[taught_N], head_VH, side, sums)
        return compared

    @torch.no_grad()
    def _score_teacher(self, sequences: Sequence[Scored], teacher: Teacher) -> _TeacherSide:
        live_NH = completion_hidden(self._solver, sequences) if teacher.live_share else None
        with teacher.in_place(self._solver.model):
            hidden_NH = completion_hidden(self._solver, sequences)
            return _TeacherSide(hidden_NH, self._solver.head_VH.data, live_NH, teacher.live_share)

    @torch.no_grad()
    def _probe(
        self,
        samples: Sequence[Sample],
        student_NH: torch.Tensor,
        head_VH: torch.Tensor,
        side: _TeacherSide,
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
        ids_R1 = torch.tensor(tokens, device=student_NH.device)[:, None]
        for name, logits_RV in (
            ("right_value_probability", side.logits(rows, head_VH)),
            ("student_right_value_probability", (student_NH[rows] @ head_VH.T).float()),
        ):
            sums.add(name, (logits_RV / self._temperature).softmax(-1).gather(1, ids_R1))


def _top_k(objective: ObjectiveSection, vocabulary: int) -> TopK | None:
    if objective.top_k is None:
        return None
    if objective.top_k > vocabulary:
        raise ConfigError(f"the vocabulary has {vocabulary} entries only", where=f"objective.top_k = {objective.top_k}")
    return TopK(objective.top_k, objective.top_k_support, objective.top_k_remainder)


def _is_rewarded(sample: Sample) -> bool:
    return bool(sample.policy_weight and sample.advantage)


def _is_taught(sample: Sample) -> bool:
    """Whether a self-teacher is scored: for its divergence, or for the size of the advantage."""
    return bool(sample.distillation_weight or (sample.magnitude_mixing and _is_rewarded(sample)))


def _score_without_dropout(model: torch.nn.Module) -> None:
    """Both sides of every comparison are scored as the sampler draws. Layers that checkpoint do so in training only."""
    model.eval()
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def _student_side(samples: Sequence[Sample]) -> list[Scored]:
    return [(s.student_prompt_ids, s.completion_ids) for s in samples]


def _teacher_side(samples: Sequence[Sample]) -> list[Scored]:
    """A sample without a self-teacher has an empty prompt here."""
    return [(s.teacher_prompt_ids or (), s.completion_ids) for s in samples]
