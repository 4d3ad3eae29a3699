"""One optimizer step on a list of Samples, whatever condition made them: accumulate ``loss.batch_loss``, then step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from stepalign import memory
from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.errors import ConfigError
from stepalign.models.load import Solver, is_large
from stepalign.models.packing import Scored, micro_batches
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.divergences import TopK, find_divergence
from stepalign.objectives.policy_gradient import StepCounts
from stepalign.records import Sample
from stepalign.stopping import PROCESS, Interrupted
from stepalign.training.checkpoint import Checkpoint, restore_optimizer, write_state
from stepalign.training.loss import Objective, Side, WatchedSums, batch_loss, is_rewarded, scores_teacher, uses_contrast
from stepalign.training.ranks import ONE_PROCESS, Ranks, shared_out
from stepalign.training.teacher import Teacher, local, reshard

WATCHED = (
    *("divergence", "student_entropy", "teacher_entropy", "log_ratio", "abs_log_ratio", "clip_ratio", "kl"),
    *("right_value_probability", "student_right_value_probability"),
)


NOTHING = [((0,), (0,))]
"""The sample that a rank scores where it has none of its own: every rank gathers every layer."""
LARGE_VOCABULARY = 2**14
"""Entries from which the walk over the logits weighs enough that a training run wins back the 10 s of compiling."""


@dataclass(slots=True)
class _Sums:
    """The sums of a step so far, besides its gradients."""

    loss: torch.Tensor | float = 0.0
    watched: WatchedSums = field(default_factory=lambda: dict.fromkeys(WATCHED, (0.0, 0)))
    learns: bool = False
    rounds: int = 0
    active: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the optimizer changes, as it was after a step; tensors in the memory of the CPU."""

    weights: list[torch.Tensor]
    optimizer: list[dict[str, torch.Tensor]]
    teacher: dict[str, torch.Tensor]


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
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        """``max_completion_length``, the sampling budget in tokens, is what ``loss_type = "dr_grpo"`` divides by."""
        self._ranks = ranks
        self._solver = solver
        self._objective = make_objective(objective, temperature, solver.head_VH)
        self._training = training
        self._max_completion_length = max_completion_length
        self._trained = [p for p in solver.model.parameters() if p.requires_grad]
        self._kept: dict[int, _Kept] = {}
        self._is_large = is_large(solver)
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.999)
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

    def update(
        self, samples: Sequence[Sample], teacher: Teacher, step: int, rate_factor: float = 1.0
    ) -> dict[str, float]:
        """``updates_per_batch`` optimizer updates on the samples.

        Args:
            rate_factor: of the learning rate, after roll-backs.

        Raises:
            Interrupted: asked to stop before the weights have changed.

        Returns:
            The step's numbers: nats per token for divergence, entropies and log-ratios; NaN where nothing was scored.
        """
        rate = self._set_rate(step, rate_factor)
        numbers: dict[str, float] = {}
        for update in range(self._training.updates_per_batch):
            sums = self._begin()
            self._add(samples, sums, teacher, self._counts(samples), may_stop=update == 0)
            numbers = self._step(sums)
            teacher.update(self._solver.model)
        return {**numbers, "learning_rate": rate}

    def update_as_they_come(
        self, parts: Iterable[Sequence[Sample]], teacher: Teacher, step: int, rate_factor: float = 1.0
    ) -> dict[str, float]:
        """``update`` on samples that arrive in parts: the gradients of a plain sum, divided once before they are
        clipped. What a part costs is up to rounding what it costs among the others; the order of arrival decides the
        rounding. One process, one update; not for ``bnpo``, whose means depend on the cut."""
        rate = self._set_rate(step, rate_factor)
        sums, samples = self._begin(), list[Sample]()
        for part in parts:
            self._add(part, sums, teacher, self._counts(()), may_stop=True)
            samples += part
        counts = self._counts(samples)
        scale = 1.0 / (counts.tokens if self._objective.loss_type == "dapo" else counts.completions)
        for parameter in self._solver.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        sums.loss = sums.loss * scale
        numbers = self._step(sums)
        teacher.update(self._solver.model)
        return {**numbers, "learning_rate": rate}

    def _set_rate(self, step: int, factor: float) -> float:
        rate = self.learning_rate(step) * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def gather(self) -> None:
        """The solver that samples has the weights already."""

    def close(self) -> None:
        """One process holds nothing."""

    def write(self, folder: Path, teacher: Teacher) -> None:
        """Write optimizer and self-teacher into a folder."""
        write_state(folder, self.optimizer, teacher.state())

    def read(self, found: Checkpoint, teacher: Teacher) -> None:
        """Put back what ``write`` wrote."""
        restore_optimizer(self.optimizer, found.optimizer)
        teacher.load(found.teacher)

    def keep(self, step: int, teacher: Teacher, drop: Sequence[int] = ()) -> None:
        """Keep in memory what a step changes, as it is after ``step``; that of the steps ``drop`` no longer."""
        for old in drop:
            self._kept.pop(old, None)
        reshard(self._solver.model)
        self._kept[step] = _Kept(
            [_copy(parameter) for parameter in self._trained],
            [{name: _copy(value) for name, value in self.optimizer.state.get(p, {}).items()} for p in self._trained],
            {name: _copy(value) for name, value in teacher.moving.items()},
        )

    @torch.no_grad()
    def back(self, step: int, teacher: Teacher) -> None:
        """Everything as it was after ``step``, which was kept."""
        kept = self._kept[step]
        reshard(self._solver.model)
        for parameter, weights, state in zip(self._trained, kept.weights, kept.optimizer, strict=True):
            local(parameter).copy_(weights)
            if not state:  # before the first step
                self.optimizer.state.pop(parameter, None)
            for name, value in state.items():
                local(self.optimizer.state[parameter][name]).copy_(value)
        for name, value in kept.teacher.items():
            teacher.moving[name].copy_(value)
        self._kept = {other: one for other, one in self._kept.items() if other <= step}

    def _counts(self, samples: Sequence[Sample]) -> StepCounts:
        """The contents of the step besides micro-batches; of no samples the counts of a plain sum."""
        return StepCounts(
            completions=max(1, sum(any(sample.loss_mask) for sample in samples)),
            tokens=max(1, sum(sum(sample.loss_mask) for sample in samples)),
            max_completion_length=self._max_completion_length,
        )

    def _begin(self) -> _Sums:
        _score_without_dropout(self._solver.model)
        self.optimizer.zero_grad(set_to_none=True)
        return _Sums()

    def _add(
        self, samples: Sequence[Sample], sums: _Sums, teacher: Teacher, counts: StepCounts, *, may_stop: bool
    ) -> None:
        """Accumulate the gradients of samples.

        Raises:
            Interrupted: the process is asked to stop, ``may_stop``, and no other rank waits for this one.
        """
        active = self._active(samples)
        rounds = list(zip_longest(*map(self._cut, shared_out(active, self._ranks.size)), fillvalue=()))
        counts = replace(counts, micro_batches=max(1, len(rounds)))
        for batches in rounds:  # one micro-batch for each rank
            if PROCESS.asked and may_stop and self._ranks.size == 1:
                raise Interrupted
            rounds_samples = [sample for batch in batches for sample in batch]
            scored = any(map(scores_teacher, rounds_samples)), any(map(uses_contrast, rounds_samples))
            part, watched, has_gradient = self._loss(batches[self._ranks.rank], counts, teacher, *scored)
            sums.learns |= has_gradient
            if part.requires_grad:
                part.backward()
            sums.loss = sums.loss + part.detach().double()
            for name, (total, count) in watched.items():
                sums.watched[name] = sums.watched[name][0] + total, sums.watched[name][1] + count
        sums.rounds += len(rounds)
        sums.active += len(active)
        sums.tokens += sum(sum(sample.loss_mask) for sample in samples)

    def _step(self, sums: _Sums) -> dict[str, float]:
        """Clip, step, and the numbers of it."""
        watched = sums.watched
        reshard(self._solver.model)
        if self._ranks.size > 1 and not any(self._ranks.sum([sums.learns])):
            self.optimizer.zero_grad(set_to_none=True)
        norm = torch.nn.utils.clip_grad_norm_(self._solver.model.parameters(), self._training.max_grad_norm)
        # Not one by one, and not micro-batch by micro-batch: the CPU waits for the device each time.
        read = [norm, sums.loss, *(total for total, _ in watched.values())]
        norm, loss, *totals = _read_back(read, self._solver.device)
        loss, *whole = self._ranks.sum([loss, *totals, *(count for _, count in watched.values())])
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)  # a broken step must not break the weights; it is reported
        elif sums.rounds:
            self.optimizer.step()
        return {
            "loss": loss,
            "grad_norm": norm if sums.rounds else 0.0,
            **{
                name: total / count if count else math.nan
                for name, total, count in zip(watched, whole[: len(watched)], whole[len(watched) :], strict=True)
            },
            "trained_tokens": float(sums.tokens),
            "active_samples": float(sums.active),
        }

    def _active(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that need a forward pass; the others' tokens still count in every mean."""
        every = bool(self._objective.beta) or self._objective.loss_type == "bnpo"  # bnpo: means over what a cut holds
        return [s for s in samples if every or s.distillation_weight or is_rewarded(s)]

    def _cut(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """A rank's samples in micro-batches."""
        sides = _student_side(samples), _teacher_side(samples), _contrast_side(samples)
        cut = micro_batches(*sides, max_tokens=self._training.max_micro_batch_tokens)
        return [[samples[i] for i in batch] for batch in cut]

    def _loss(
        self, samples: Sequence[Sample], counts: StepCounts, teacher: Teacher, is_taught: bool, is_contrasted: bool
    ) -> tuple[torch.Tensor, WatchedSums, bool]:
        """The forward passes of a micro-batch, what they cost, and whether a token of it trains.

        The student comes last: FSDP2 lets go of what it has gathered for the others. ``is_taught``, ``is_contrasted``:
        whether any rank scores the self-teacher in this round, and behind a second prompt.
        """
        sequences = _student_side(samples) or NOTHING
        distilled = _teacher_side([sample for sample in samples if scores_teacher(sample)])
        contrasted = _contrast_side([sample for sample in samples if uses_contrast(sample)])
        with memory.apart(self._is_large):
            reference = self._score_reference(sequences, teacher) if self._objective.beta else None
            taught = self._score_teacher(distilled or NOTHING, teacher) if is_taught else None
            other = self._score_teacher(contrasted or NOTHING, teacher) if is_contrasted else None
            student = Side(completion_hidden(self._solver, sequences), self._solver.head_VH)
        if not samples:
            return _zero(student), {}, False
        sides = student, taught if distilled else None, reference, other if contrasted else None
        loss, sums = batch_loss(samples, counts, *sides, objective=self._objective)
        return (loss if self._ranks.size == 1 else loss + _zero(student)), sums, loss.requires_grad

    @torch.no_grad()
    def _score_teacher(self, sequences: Sequence[Scored], teacher: Teacher) -> Side:
        if teacher.other is not None:  # its head may have padding that the student's has not
            head_VH = teacher.other.head_VH.detach()[: len(self._solver.head_VH)]
            return Side(completion_hidden(teacher.other, sequences), head_VH)
        live_NH = completion_hidden(self._solver, sequences) if teacher.live_share else None
        with teacher.in_place(self._solver.model) as keep:
            hidden_NH = completion_hidden(self._solver, sequences)
            return Side(hidden_NH, keep(self._solver.head_VH), live_NH, teacher.live_share)

    @torch.no_grad()
    def _score_reference(self, sequences: Sequence[Scored], teacher: Teacher) -> Side:
        with teacher.reference_in_place(self._solver.model) as keep:
            return Side(completion_hidden(self._solver, sequences), keep(self._solver.head_VH))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor).to("cpu", copy=True)


def _zero(student: Side) -> torch.Tensor:
    """0 with a gradient of 0 for every weight: each rank has to sum the gradients of the same weights."""
    return student.hidden_NH[:0].sum() + student.head_VH[:0].sum()


def make_objective(section: ObjectiveSection, temperature: float, head_VH: torch.Tensor) -> Objective:
    """A recipe's section as what the loss takes. Raises ConfigError for more top-k entries than the vocabulary has."""
    name, vocabulary = section.divergence, len(head_VH)
    if name == "jensen_shannon":
        name = f"jensen_shannon({section.jensen_shannon_weight})"
    if section.top_k is not None and section.top_k > vocabulary:
        raise ConfigError(f"the vocabulary has {vocabulary} entries only", where=f"objective.top_k = {section.top_k}")
    top_k = section.top_k and TopK(section.top_k, section.top_k_support, section.top_k_remainder)
    shared = ("entry_clip", "token_clip", "importance_clip", "epsilon", "epsilon_high", "beta", "loss_type")
    shared += ("position_weight", "discrepancy_weight")
    return Objective(
        temperature=temperature,
        divergence=find_divergence(name),
        top_k=top_k or None,
        magnitude_clip=section.rlsd_clip,
        fast_logits=section.fast_logits,
        compiled=pays_to_compile(head_VH) if section.compiled is None else section.compiled,
        **{key: getattr(section, key) for key in shared},
    )


def pays_to_compile(head_VH: torch.Tensor) -> bool:
    """For a training run with this head. Machine and model alone decide: a resumed run must compute the same bits."""
    return len(head_VH) >= LARGE_VOCABULARY and can_compile(head_VH.device.type)


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works: it needs a C++ compiler, and Triton for a GPU; what is there may still be broken."""
    try:
        torch.compile(torch.exp)(torch.ones(8, device=device_type))
    except Exception:  # compilers raise errors of many kinds
        return False
    return True


def _read_back(numbers: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
    """Numbers that may be on the device, in one transfer; the norm of a sharded model is summed over its shards."""
    whole: list[Any] = [getattr(number, "full_tensor", lambda number=number: number)() for number in numbers]
    return torch.stack([torch.as_tensor(number).to(device, torch.float64) for number in whole]).tolist()


def _score_without_dropout(model: torch.nn.Module) -> None:
    """Both sides of every comparison are scored as the sampler draws. Layers that checkpoint do so in training only."""
    model.eval()
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def _student_side(samples: Sequence[Sample]) -> list[Scored]:
    return [(s.student_prompt_ids, s.completion_ids) for s in samples]


def _contrast_side(samples: Sequence[Sample]) -> list[Scored]:
    return [(s.contrast_prompt_ids or (), s.completion_ids) for s in samples]


def _teacher_side(samples: Sequence[Sample]) -> list[Scored]:
    """A sample without a self-teacher has an empty prompt here."""
    return [(s.teacher_prompt_ids or (), s.completion_ids) for s in samples]
