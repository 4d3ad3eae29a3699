"""The loss of a micro-batch as a value: hidden states, heads and Samples in; (sum, watched sums) out.

    loss = sum over tokens of  w * (w_d * D(self-teacher, student) + w_p * clipped policy loss + beta * KL to reference)

w_d and w_p come with each Sample, w from ``loss_type`` and the counts of the whole optimizer step: sums first, one
division by a global count, so that the cut into micro-batches changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepalign.models.load import on_device
from stepalign.objectives.divergences import Divergence, TopK, forward_kl
from stepalign.objectives.fused import FusedDivergence, fused_linear_divergence, fused_linear_log_probs
from stepalign.objectives.policy_gradient import (
    LOSS_TYPES,
    LossType,
    StepCounts,
    clipped_policy_loss,
    kl_to_reference,
    sized_advantages,
    truncated_importance_weights,
)
from stepalign.objectives.served import served_divergence
from stepalign.records import Sample, ServedTop

WatchedSums = dict[str, tuple[Tensor | float, int]]
"""By name: the sum over the tokens for which it is defined, float64 on their device, and their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The settings of the loss. Clips are in nats, docs/objective.md has formulas and sources."""

    temperature: float = 1.0
    """Divides all logits; the sampling temperature."""
    divergence: Divergence = forward_kl
    top_k: TopK | None = None
    entry_clip: float | None = None
    token_clip: float | None = None
    importance_clip: float | None = None
    """Bound on the importance ratio that multiplies the self-teacher's term; None takes completions as on-policy."""
    position_weight: float = 0.0
    discrepancy_weight: float = 0.0
    """Times 1 + the first * a token's place in its completion, from 0 to 1, and 1 + the second * the part of the sum of
    |A_t| that is not yet behind it (IW-OPD, arXiv 2606.22600)."""
    magnitude_clip: float = 0.2
    """Half-width of the sizes around 1 that the self-teacher may give an advantage."""
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    loss_type: LossType = "dapo"
    fast_logits: bool = False
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """Hidden states that predict completion tokens, completion after completion, and the head on top of them."""

    hidden_NH: Tensor
    head_VH: Tensor
    live_NH: Tensor | None = None
    """Trust region: the same tokens under the student's weights behind the self-teacher's prompt ..."""
    live_share: float = 0.0
    """... and the part of their logits in the self-teacher's."""


def uses_teacher(sample: Sample) -> bool:
    """Whether a self-teacher is scored: for its divergence, or for the size of the advantage."""
    return bool(sample.distillation_weight or (sample.magnitude_mixing and is_rewarded(sample)))


def scores_teacher(sample: Sample) -> bool:
    """Whether the self-teacher is scored here, and not by servers before."""
    return uses_teacher(sample) and sample.served is None


def uses_contrast(sample: Sample) -> bool:
    """Whether the self-teacher is scored behind a second prompt."""
    return bool(sample.contrast_prompt_ids and sample.magnitude_mixing and is_rewarded(sample))


def is_rewarded(sample: Sample) -> bool:
    """Whether the policy term has a gradient."""
    return bool(sample.policy_weight and sample.advantage)


def batch_loss(
    samples: Sequence[Sample],
    counts: StepCounts,
    student: Side,
    teacher: Side | None = None,
    reference: Side | None = None,
    contrast: Side | None = None,
    *,
    objective: Objective,
) -> tuple[Tensor, WatchedSums]:
    """The micro-batch's share of the loss of a step, and the sums of what is watched.

    Args:
        samples: whose completion tokens, masked ones included, are the N tokens.
        counts: of the whole step.
        student: all N tokens, with gradients.
        teacher: the tokens of the samples that ``uses_teacher`` names; None where there are none.
        reference: all N tokens, for ``objective.beta``.
        contrast: of the self-teacher behind its second prompt, the tokens of the samples that ``uses_contrast`` names.

    Returns:
        (scalar, watched sums): nats per token for divergence, entropies, log-ratios and KL.
    """
    batch = _Tokens.of(samples, objective.loss_type, counts, student.hidden_NH.device)
    watched: WatchedSums = {}
    total = student.hidden_NH.new_zeros(())
    advantages_N = batch.move(batch.per_token(lambda s: s.advantage))
    distilled_N = batch.rows(uses_teacher)
    if teacher is not None or any(uses_teacher(sample) and sample.served is not None for sample in samples):
        compared = _distill(batch, distilled_N, student, teacher, objective, watched)
        total = total + compared.loss
        assert compared.log_ratio is not None  # token ids were given
        log_ratio_N = compared.log_ratio.float()
        if contrast is not None:
            contrasted_N = batch.rows(uses_contrast)
            with torch.no_grad():
                other = _comparison(batch, contrasted_N, student, contrast, objective)(
                    weights=log_ratio_N.new_zeros(int(contrasted_N.sum()))
                )
            assert other.log_ratio is not None
            places = batch.move(contrasted_N[distilled_N].nonzero()[:, 0])
            log_ratio_N = log_ratio_N.index_add(0, places, -other.log_ratio.float())
        sized = sized_advantages(
            _pick(advantages_N, distilled_N),
            log_ratio_N,
            mixing=batch.move(batch.per_token(lambda s: s.magnitude_mixing)[distilled_N]),
            clip=objective.magnitude_clip,
        )
        advantages_N = advantages_N.index_copy(0, batch.move(distilled_N.nonzero()[:, 0]), sized)
    # Masked tokens take no part at all: a ratio that overflows there would spoil the sum even at the weight 0.
    rewarded_N = batch.rows(is_rewarded) & batch.mask_N
    scored_N = batch.mask_N if objective.beta else rewarded_N
    if not scored_N.any():
        return total, watched
    score = functools.partial(
        fused_linear_log_probs, token_ids=batch.move(batch.token_ids_N[scored_N]), temperature=objective.temperature
    )
    scored = score(_pick(student.hidden_NH, scored_N), student.head_VH)
    _watch(watched, "student_entropy", _pick(scored.entropy, ~distilled_N[scored_N]))  # the others are in already
    if rewarded_N.any():
        loss_N, clipped_N = clipped_policy_loss(
            _pick(scored.log_probs, rewarded_N[scored_N]),
            batch.move(batch.sampler_log_probs_N[rewarded_N]),
            _pick(advantages_N, rewarded_N),
            epsilon=objective.epsilon,
            epsilon_high=objective.epsilon_high,
        )
        weights_N = (batch.weights_N * batch.per_token(lambda s: s.policy_weight))[rewarded_N]
        total = total + (batch.move(weights_N) * loss_N).sum()
        _watch(watched, "clip_ratio", clipped_N.float())
    if objective.beta:
        assert reference is not None
        with torch.no_grad():
            anchor = score(_pick(reference.hidden_NH, scored_N), reference.head_VH)
        kl_N = kl_to_reference(anchor.log_probs, scored.log_probs)
        total = total + objective.beta * (batch.move(batch.weights_N[scored_N]) * kl_N).sum()
        _watch(watched, "kl", kl_N.detach())
    return total, watched


def _distill(
    batch: _Tokens, distilled_N: Tensor, student: Side, teacher: Side | None, objective: Objective, watched: WatchedSums
) -> FusedDivergence:
    """The self-teacher's term on the tokens of the samples that have one, and what is watched of both sides."""
    served = [s.served for s in batch.samples if s.served is not None and uses_teacher(s)]
    if teacher is None:
        compare = _served_comparison(batch, distilled_N, student, served, objective)
    else:
        compare = _comparison(batch, distilled_N, student, teacher, objective)
    weights_N = batch.weights_N * batch.per_token(lambda s: s.distillation_weight)
    if objective.position_weight:
        weights_N = weights_N * (1.0 + objective.position_weight * batch.places_N)
    weights_N = weights_N[distilled_N]
    learns = bool(weights_N.any())  # or the self-teacher only sizes advantages
    weights_N = batch.move(weights_N)
    damping_N = batch.per_token(lambda s: s.entropy_damping)[distilled_N]
    clip, gamma = objective.importance_clip, objective.discrepancy_weight
    if clip is not None or gamma or damping_N.any():  # weights that depend on what is compared: look first
        with torch.no_grad():
            seen = compare(weights=weights_N)
        assert seen.student_log_probs is not None  # token ids were given
        assert seen.log_ratio is not None
        if damping_N.any():
            assert seen.teacher_entropy is not None
            weights_N = weights_N * torch.exp(-batch.move(damping_N) * seen.teacher_entropy)
        if gamma:
            sizes_N = seen.log_ratio.abs() * batch.move(batch.mask_N[distilled_N])
            lengths = [len(sample.completion_ids) for sample in batch.samples if uses_teacher(sample)]
            weights_N = weights_N * (1.0 + gamma * _part_ahead(sizes_N, lengths))
        if clip is not None:
            sampler_N = batch.move(batch.sampler_log_probs_N[distilled_N])
            weights_N = weights_N * truncated_importance_weights(seen.student_log_probs, sampler_N, maximum=clip)
    with torch.set_grad_enabled(learns):
        compared = compare(weights=weights_N)
    kept_N = batch.mask_N[distilled_N]
    _watch(watched, "divergence", _pick(compared.per_token, kept_N))
    for name in ("log_ratio", "student_entropy", "teacher_entropy"):
        if (values_N := getattr(compared, name)) is not None:
            _watch(watched, name, _pick(values_N, kept_N))
    assert compared.log_ratio is not None
    _watch(watched, "abs_log_ratio", _pick(compared.log_ratio, kept_N).abs())
    if teacher is not None:
        distilled = [sample for sample in batch.samples if uses_teacher(sample)]
        own = Side(_pick(student.hidden_NH, distilled_N), student.head_VH)
        _watch_truth(distilled, own, teacher, objective.temperature, watched)
    return compared


def _comparison(
    batch: _Tokens, rows_N: Tensor, student: Side, teacher: Side, objective: Objective
) -> Callable[..., FusedDivergence]:
    """The student against a self-teacher on some rows; the weights of the tokens are yet to be given."""
    return functools.partial(
        fused_linear_divergence,
        _pick(student.hidden_NH, rows_N),
        student.head_VH,
        teacher.hidden_NH,
        teacher.head_VH,
        live_hidden=teacher.live_NH,
        live_share=teacher.live_share,
        divergence=objective.divergence,
        temperature=objective.temperature,
        token_ids=batch.move(batch.token_ids_N[rows_N]),
        top_k=objective.top_k,
        entry_clip=objective.entry_clip,
        token_clip=objective.token_clip,
        fast_logits=objective.fast_logits,
        compiled=objective.compiled,
    )


def _served_comparison(
    batch: _Tokens, rows_N: Tensor, student: Side, served: Sequence[ServedTop], objective: Objective
) -> Callable[..., FusedDivergence]:
    """The student against what servers say of a teacher's likeliest tokens."""
    ids, log_probs, taken = (
        batch.move(torch.tensor([row for one in served for row in one[column]])) for column in range(3)
    )
    return functools.partial(
        served_divergence,
        _pick(student.hidden_NH, rows_N),
        student.head_VH,
        (ids, log_probs, taken),
        token_ids=batch.move(batch.token_ids_N[rows_N]),
        divergence=objective.divergence,
        temperature=objective.temperature,
        remainder=objective.top_k.remainder if objective.top_k else "tail",
        entry_clip=objective.entry_clip,
        token_clip=objective.token_clip,
    )


def _part_ahead(sizes_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """1 less the part of a completion's sum that is before a token, completion after completion; 1 of an empty sum."""
    parts = [(part.flip(0).cumsum(0).flip(0), part.sum()) for part in sizes_N.split(list(lengths))]
    return torch.cat([torch.where(total > 0, ahead / total, 1.0) for ahead, total in parts])


@torch.no_grad()
def _watch_truth(
    samples: Sequence[Sample], student: Side, teacher: Side, temperature: float, watched: WatchedSums
) -> None:
    """The probability that each side gives the right token where the completion has its first wrong one."""
    rows, tokens, start = [], [], 0
    for sample in samples:
        if sample.probe is not None:
            rows.append(start + sample.probe[0])
            tokens.append(sample.probe[1])
        start += len(sample.completion_ids)
    if not rows:
        return
    ids_R1, rows_R = (on_device(x, student.hidden_NH.device) for x in (torch.tensor(tokens)[:, None], rows))
    teacher_RV = (teacher.hidden_NH[rows_R] @ teacher.head_VH.T).float()
    if teacher.live_NH is not None:
        teacher_RV = torch.lerp(teacher_RV, (teacher.live_NH[rows_R] @ student.head_VH.T).float(), teacher.live_share)
    student_RV = (student.hidden_NH[rows_R] @ student.head_VH.T).float()
    for name, logits_RV in (("right_value_probability", teacher_RV), ("student_right_value_probability", student_RV)):
        _watch(watched, name, (logits_RV / temperature).softmax(-1).gather(1, ids_R1))


def _watch(watched: WatchedSums, name: str, values: Tensor) -> None:
    total, count = watched.get(name, (0.0, 0))
    watched[name] = total + values.double().sum(), count + values.numel()


def _pick(rows: Tensor, chosen_N: Tensor) -> Tensor:
    """``rows[chosen_N]``, N rows on any device and a mask on the CPU."""
    if chosen_N.all():
        return rows
    return rows.index_select(0, on_device(chosen_N.nonzero()[:, 0], rows.device))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The samples as flat tensors: one entry per completion token, as the hidden states come.

    All are on the CPU, where it is decided which tokens take part in what: asking the device would wait for it.
    """

    samples: Sequence[Sample]
    token_ids_N: Tensor
    mask_N: Tensor
    """True for tokens that train."""
    weights_N: Tensor
    """The weight of a token in the loss of the step, float32; 0 outside the mask."""
    device: torch.device
    """Of the hidden states."""

    @classmethod
    def of(cls, samples: Sequence[Sample], loss_type: LossType, counts: StepCounts, device: torch.device) -> _Tokens:
        ids_N = torch.tensor([i for s in samples for i in s.completion_ids], dtype=torch.long)
        mask_N = torch.tensor([m for s in samples for m in s.loss_mask], dtype=torch.bool)
        lengths_B = torch.tensor([sum(s.loss_mask) for s in samples])  # trained tokens only
        weights_N = torch.zeros(len(ids_N))
        weights_N[mask_N] = LOSS_TYPES[loss_type](torch.repeat_interleave(lengths_B, lengths_B), counts)
        return cls(samples, ids_N, mask_N, weights_N, device)

    def move(self, values: Tensor) -> Tensor:
        """To the hidden states."""
        return on_device(values, self.device)

    @property
    def sampler_log_probs_N(self) -> Tensor:
        """Log-probabilities of the completion tokens when they were drawn, float32; 0 outside the mask.

        Tokens of an environment have none (NaN), and a weight of 0 would not keep that out of the sum.
        """
        return torch.tensor([p for s in self.samples for p in s.sampler_log_probs]).where(self.mask_N, 0.0)

    @property
    def places_N(self) -> Tensor:
        """The place of each token among the trained ones of its completion, from 0 to 1, float32."""
        parts = self.mask_N.float().split([len(s.completion_ids) for s in self.samples])
        return torch.cat([(part.cumsum(0) - 1.0).clamp(min=0.0) / (part.sum() - 1.0).clamp(min=1.0) for part in parts])

    def per_token(self, value: Callable[[Sample], float]) -> Tensor:
        """[N], a value of each sample repeated over its tokens, float32."""
        return self._repeated(torch.tensor([float(value(s)) for s in self.samples]))

    def rows(self, chosen: Callable[[Sample], bool]) -> Tensor:
        """[N] bool, the tokens of the chosen samples."""
        return self._repeated(torch.tensor([bool(chosen(s)) for s in self.samples]))

    def _repeated(self, values_B: Tensor) -> Tensor:
        return torch.repeat_interleave(values_B, torch.tensor([len(s.completion_ids) for s in self.samples]))
