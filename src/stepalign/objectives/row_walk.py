"""One walk over the rows of logits: from z_S and D = z_T - z_S to divergence, gradient and analysis.

With p_S, p_T the distributions of student and self-teacher,

    r = log p_T - log p_S = D - log sum(p_S exp(D))        p_T = p_S exp(r)

When training goes well the two distributions are close, and subtracting two separately rounded softmaxes loses the
signal; r keeps it. Every divergence is a sum over the vocabulary of entries made of p_S, p_T and r.

Shape suffixes: R rows of a block, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from stepalign.objectives.divergence import LEAST_TAIL, DivergenceName, TopK, take_tokens

NARROW = 30.0
"""|D| in nats up to which p_T may be derived from p_S: exp(D) stays finite, and no entry that p_S has lost to underflow
(below e^-87) can hold mass under p_T."""

FAR = 2.0
"""Root mean square of D in nats from which D is formed once more in float32: bfloat16 keeps 1 part in 256 of each
entry, which from here on is more than half a per cent of the gradient."""

FAR_SAMPLES = 512
"""Entries of a row of D, about, that are looked at for that: each costs a line of the cache."""

EXCLUDED_LOGIT = -1e30
"""Stands for -inf: its probability is exactly 0 as well, and 0 times it is 0 instead of NaN."""

Terms = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], tuple[Tensor, Tensor]]


def walk_rows(
    logits_RV: Tensor,
    difference_RV: Tensor,
    weights_R: Tensor,
    token_ids_R: Tensor | None,
    *,
    divergence: DivergenceName,
    mixture_weight: float,
    top_k: TopK | None,
    scale: float,
    entry_clip: float | None,
    token_clip: float | None,
    excluded_V: Tensor | None,
    wants_gradient: bool,
    narrow: bool,
) -> Tensor:
    """Divergence per row and, with token ids, what analysis wants of the same rows.

    Args:
        logits_RV: z_S before scaling.
        difference_RV: D before scaling. **Overwritten** with the weighted gradient with respect to z_S where one is
            wanted: it is read for the last time here, and a second tensor of this size would cost as much as all else.
        weights_R: factors of the rows in the loss.
        token_ids_R: taken tokens y, or None.
        divergence: a name in ``TERMS``.
        mixture_weight: the self-teacher's share of the mixture, for ``jensen_shannon``.
        top_k: compare on the likeliest tokens of one side only.
        scale: 1 / temperature.
        entry_clip: upper bound on each entry before the sum over the vocabulary.
        token_clip: upper bound on each row's divergence.
        excluded_V: entries with probability 0 on both sides.
        wants_gradient: whether to form the gradient.
        narrow: the answer of ``is_narrow`` for these rows.

    Returns:
        [R, 1], the divergence; with token ids [R, 5]: divergence, A_t, log p_S(y), entropy of p_S, entropy of p_T.
    """
    logits = _scaled(logits_RV, scale)
    difference = _scaled(difference_RV, scale)
    if excluded_V is not None:
        logits = logits.masked_fill(excluded_V, EXCLUDED_LOGIT)
        difference = difference.masked_fill(excluded_V, 0.0)
    distributions = _narrow_distributions if narrow else _wide_distributions
    student, teacher, ratio = distributions(logits, difference)

    # What is compared; p_S, p_T and r themselves are still looked at below.
    left, right, gap = student, teacher, ratio
    held = ids_RK = None
    if top_k is not None:
        ids_RK = (logits if top_k.support == "student" else logits + difference).topk(top_k.k, dim=-1).indices
        if top_k.remainder == "tail":
            left, right, gap, held = _with_tail(student, teacher, ratio, ids_RK)
        else:
            left, right, gap = distributions(logits.gather(1, ids_RK), difference.gather(1, ids_RK))
    entries, pulls = TERMS[divergence](left, right, gap, mixture_weight, token_ids_R)
    if entry_clip is not None:
        held = (entries > entry_clip) if held is None else held | (entries > entry_clip)
        entries = entries.clamp(max=entry_clip)
    if held is not None:
        pulls = torch.where(held, left * OFFSETS[divergence], pulls)
    divergence_R = entries.sum(dim=-1)
    factors_R = weights_R * -scale
    if token_clip is not None:
        factors_R = factors_R.masked_fill(divergence_R > token_clip, 0.0)
        divergence_R = divergence_R.clamp(max=token_clip)
    if wants_gradient:
        # Softmax's Jacobian: the sum of all pulls is taken back from every entry in proportion to its probability.
        if held is not None or divergence not in BALANCED:
            pulls = torch.addcmul(pulls, left, pulls.sum(dim=-1, keepdim=True), value=-1.0)
        if ids_RK is not None:
            pulls = _over_vocabulary(pulls, left, student, ids_RK)
        difference_RV.copy_(pulls * factors_R.unsqueeze(-1))
    if token_ids_R is None:
        return divergence_R.unsqueeze(-1)

    # log p_S = below_peak + log_peak: nothing large is subtracted, however large the logits are.
    below_peak = logits - logits.amax(dim=-1, keepdim=True)
    log_peak_R = student.amax(dim=-1).log()
    log_ratio_R = take_tokens(ratio, token_ids_R)
    student_log_probs_R = take_tokens(below_peak, token_ids_R) + log_peak_R
    student_entropy_R = -log_peak_R - torch.linalg.vecdot(student, below_peak)
    teacher_entropy_R = -log_peak_R - torch.linalg.vecdot(teacher, below_peak + ratio)
    return torch.stack((divergence_R, log_ratio_R, student_log_probs_R, student_entropy_R, teacher_entropy_R), dim=-1)


@functools.cache
def compiled_walk() -> Callable[..., Tensor]:
    """``walk_rows`` through ``torch.compile``: a few fused loops instead of fifteen. Compiling takes about 10 s."""
    return torch.compile(walk_rows)


def is_far(difference_CV: Tensor, scale: float) -> bool:
    """Whether D, already rounded to half precision, is so large that its rounding shows: root mean square over FAR."""
    stride = difference_CV.shape[1] // FAR_SAMPLES | 1  # odd, so that it shares no factor with a padded vocabulary
    sample = difference_CV[:, ::stride].to(torch.float32)
    return bool(sample.square().mean().sqrt() * scale > FAR)


def is_narrow(difference_RV: Tensor, scale: float) -> bool:
    """Whether all scaled |D| stay below ``NARROW``; False for NaN, which then shows in the result."""
    smallest, largest = torch.aminmax(difference_RV)
    return bool((largest * scale < NARROW) & (smallest * scale > -NARROW))


def log_softmax(logits_RV: Tensor, *, scale: float, excluded_V: Tensor | None) -> Tensor:
    """Log-probabilities of scaled logits, in float32 (float64 for float64); a new tensor."""
    logits = _scaled(logits_RV, scale)
    if excluded_V is not None:
        logits = logits.masked_fill(excluded_V, EXCLUDED_LOGIT)
    return torch.log_softmax(logits, dim=-1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and of row-wise work: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _scaled(values: Tensor, scale: float) -> Tensor:
    values = values.to(wide_dtype(values.dtype))
    return values if scale == 1.0 else values * scale


def _narrow_distributions(logits: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_S, p_T and r for |D| below ``NARROW``: p_T is derived from p_S, so that both share their rounding."""
    student = torch.softmax(logits, dim=-1)
    # Over a large vocabulary softmax sums to 1 within a few 1e-6 only, and r can be finer than that.
    student.div_(student.sum(dim=-1, keepdim=True))
    # r does not see a constant added to D. Around its mean, E[exp(D)] >= 1 (Jensen) and its logarithm is safe.
    centred = difference - torch.linalg.vecdot(student, difference).unsqueeze(-1)
    growth = torch.expm1(centred)
    shift = torch.log1p(torch.linalg.vecdot(student, growth)).unsqueeze(-1)
    teacher = torch.addcmul(student, student, growth).mul_(torch.exp(-shift))
    return student, teacher, centred.sub_(shift)


def _wide_distributions(logits: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_S, p_T and r for any D, through the logarithms."""
    student_log = torch.log_softmax(logits, dim=-1)
    teacher_log = torch.log_softmax(logits + difference, dim=-1)
    return student_log.exp(), teacher_log.exp(), teacher_log - student_log


def _with_tail(
    student: Tensor, teacher: Tensor, ratio: Tensor, ids_RK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p_S, p_T and r on a support and, last, a bucket with the mass outside; and which entries are held constant."""
    student_mass, teacher_mass = (side.scatter(1, ids_RK, 0.0).sum(dim=-1, keepdim=True) for side in (student, teacher))
    student_tail, teacher_tail = student_mass.clamp(min=LEAST_TAIL), teacher_mass.clamp(min=LEAST_TAIL)
    tails = (student_tail, teacher_tail, torch.log(teacher_tail / student_tail))
    inside = (side.gather(1, ids_RK) for side in (student, teacher, ratio))
    left, right, gap = (torch.cat(pair, dim=-1) for pair in zip(inside, tails, strict=True))
    # A bound has no gradient. Where it binds on both sides the tail says nothing, and equal sides must pull nowhere.
    held = (student_mass < LEAST_TAIL) & (teacher_tail > student_tail)
    return left, right, gap, torch.nn.functional.pad(held, (ids_RK.shape[1], 0))


def _over_vocabulary(pulls_RK: Tensor, left_RK: Tensor, student: Tensor, ids_RK: Tensor) -> Tensor:
    """Pulls on a support, [R, K] or with a tail bucket [R, K + 1], as pulls on all logits [R, V].

    A bucket's logit is the logarithm of a sum of exponentials: its pull is shared out in proportion to p_S.
    """
    count = ids_RK.shape[1]
    tail_pull, tail = pulls_RK[:, count:].sum(dim=-1, keepdim=True), left_RK[:, count:].sum(dim=-1, keepdim=True)
    outside = student * (tail_pull / tail.clamp(min=LEAST_TAIL))
    return outside.scatter(1, ids_RK, pulls_RK[:, :count])


# Per divergence: its entries, and how hard each pulls its token up, - p_S d(entry)/d(p_S). Softmax's Jacobian does not
# see a multiple of p_S, so each is given relative to one (OFFSETS): equal distributions pull exactly nothing.


def _forward_kl_terms(student: Tensor, teacher: Tensor, ratio: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return teacher * ratio, teacher - student


def _reverse_kl_terms(student: Tensor, teacher: Tensor, ratio: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    gains = student * ratio
    return -gains, gains


def _jensen_shannon_terms(
    student: Tensor, teacher: Tensor, ratio: Tensor, weight: float, _: object
) -> tuple[Tensor, Tensor]:
    # u = log m - log p_S = log(1 + weight (exp(r) - 1)); beyond 80 nats the exponential is all that is left of it.
    capped = ratio.clamp(max=80.0)
    u = torch.expm1(capped).mul_(weight).log1p_().add_(ratio - capped)
    mixture = torch.lerp(student, teacher, weight)
    entries = (teacher * ratio).mul_(weight).sub_(mixture.mul_(u))
    return entries, u.mul_(student).mul_(1.0 - weight)


def _sampled_token_terms(
    student: Tensor, teacher: Tensor, ratio: Tensor, _: float, token_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-A_t, whose average over y ~ p_S is the reverse KL, with the gradient of -stop_gradient(A_t) log p_S(y)."""
    assert token_ids is not None  # checked before the first row
    gains = torch.zeros_like(ratio).scatter_(1, token_ids.unsqueeze(-1), take_tokens(ratio, token_ids).unsqueeze(-1))
    return -gains, gains


OFFSETS: dict[DivergenceName, float] = {
    "forward_kl": -1.0,
    "reverse_kl": 1.0,
    "jensen_shannon": 0.0,
    "sampled_token": 0.0,
}
"""What was added to the pulls, as a multiple of p_S: all that is left of them at entries that are held constant."""

BALANCED = {"forward_kl"}
"""Divergences whose pulls add up to nothing by themselves, being the difference of two distributions."""

TERMS: dict[DivergenceName, Terms] = {
    "forward_kl": _forward_kl_terms,
    "reverse_kl": _reverse_kl_terms,
    "jensen_shannon": _jensen_shannon_terms,
    "sampled_token": _sampled_token_terms,
}
