"""The row-wise part of the fused objective: from z_S and D = z_T - z_S to divergence, logit gradient and analysis.

With p_S, p_T the distributions of student and self-teacher,

    r = log p_T - log p_S = D - log sum(p_S exp(D))        p_T = p_S exp(r)

When training goes well the two distributions are close, and subtracting two separately rounded softmaxes loses the
signal; r keeps it. Every divergence is a sum over the vocabulary of entries made of p_S, p_T and r.

Shape suffixes: R rows of a block, V vocabulary, K top-k (and a tail bucket where there is one).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepalign.objectives.divergences import Divergence, TopK, check_positive, forward_kl
from stepalign.objectives.tokens import LEAST_TAIL, take_tokens

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

Triple = tuple[Tensor, Tensor, Tensor]
"""(p_S, p_T, r)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How the two sides are compared at a token.

    Raises:
        ValueError: a temperature or a clip that is not positive.
    """

    divergence: Divergence = forward_kl
    top_k: TopK | None = None
    temperature: float = 1.0
    """Divides the logits of both sides."""
    entry_clip: float | None = None
    """Upper bound on each vocabulary entry's term before the sum over the vocabulary, nats."""
    token_clip: float | None = None
    """Upper bound on each token's divergence, nats; clipped tokens have no gradient."""
    excluded_V: Tensor | None = None
    """Bool, entries with probability 0 on both sides."""

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature, entry_clip=self.entry_clip, token_clip=self.token_clip)


def divergence_rows(
    logits_RV: Tensor,
    difference_RV: Tensor,
    weights_R: Tensor,
    token_ids_R: Tensor | None,
    how: Comparison,
    *,
    wants_gradient: bool,
    narrow: bool,
    alternatives: int = 0,
) -> Tensor:
    """Divergence per row and, with token ids, what analysis wants of the same rows.

    Args:
        logits_RV: z_S before the temperature.
        difference_RV: D before the temperature. **Overwritten** with the weighted gradient with respect to z_S where
            one is wanted: D is read for the last time here, and a second tensor of its size would cost as much as all
            else.
        weights_R: factors of the rows in the loss.
        token_ids_R: taken tokens y, or None.
        narrow: the answer of ``is_narrow`` for these rows.
        alternatives: likeliest tokens of either side to return with the analysis (K).

    Returns:
        [R, 1], the divergence; with token ids [R, 5 + 4 K]: divergence, A_t, log p_S(y), entropy of p_S, entropy of
        p_T; then ids and log-probabilities of the K likeliest tokens of p_S and of p_T.
    """
    scale = 1.0 / how.temperature
    logits, difference = _scaled(logits_RV, scale, how.excluded_V, EXCLUDED_LOGIT), _scaled(difference_RV, scale)
    if how.excluded_V is not None:
        difference = difference.masked_fill(how.excluded_V, 0.0)
    distributions = _narrow_distributions if narrow else _wide_distributions
    whole = distributions(logits, difference)
    compared, clipped, ids_RK = whole, None, None
    if how.top_k is not None:
        ids_RK = (logits if how.top_k.support == "student" else logits + difference).topk(how.top_k.k, dim=-1).indices
        if how.top_k.remainder == "tail":
            compared, clipped = _with_tail(whole, ids_RK)
        else:
            compared = distributions(logits.gather(1, ids_RK), difference.gather(1, ids_RK))
    divergence_R, gradient = _compare(compared, clipped, token_ids_R, how)
    if wants_gradient:
        factors_R = weights_R * scale
        if how.token_clip is not None:
            factors_R = factors_R.masked_fill(divergence_R > how.token_clip, 0.0)
        if ids_RK is not None:
            gradient = _over_vocabulary(gradient, compared[0], whole[0], ids_RK)
        difference_RV.copy_(gradient * factors_R.unsqueeze(-1))
    if how.token_clip is not None:
        divergence_R = divergence_R.clamp(max=how.token_clip)
    if token_ids_R is None:
        return divergence_R.unsqueeze(-1)
    return torch.cat((divergence_R.unsqueeze(-1), *_analysis(logits, whole, token_ids_R, alternatives)), dim=-1)


def _compare(
    compared: Triple, clipped: Tensor | None, token_ids_R: Tensor | None, how: Comparison
) -> tuple[Tensor, Tensor]:
    """The divergence [R] and its gradient with respect to the logits that are compared."""
    student = compared[0]
    entries, gradient = how.divergence.terms(*compared, token_ids_R)
    if how.entry_clip is not None:
        over = entries > how.entry_clip
        clipped = over if clipped is None else clipped | over
        entries = entries.clamp(max=how.entry_clip)
    if clipped is not None:  # a constant entry: only the baseline is left of its gradient
        gradient = torch.where(clipped, student * how.divergence.baseline, gradient)
    if clipped is not None or not how.divergence.balanced:  # softmax's Jacobian
        gradient = torch.addcmul(gradient, student, gradient.sum(dim=-1, keepdim=True), value=-1.0)
    return entries.sum(dim=-1), gradient


def _analysis(logits: Tensor, whole: Triple, token_ids_R: Tensor, alternatives: int) -> Iterator[Tensor]:
    """A_t, log p_S(y), entropy of p_S, entropy of p_T, each [R, 1]; then the likeliest tokens."""
    student, teacher, ratio = whole
    # log p_S = below_peak + log_peak: nothing large is subtracted, however large the logits are.
    below_peak = logits - logits.amax(dim=-1, keepdim=True)
    log_peak_R = student.amax(dim=-1).log()
    yield take_tokens(ratio, token_ids_R).unsqueeze(-1)
    yield (take_tokens(below_peak, token_ids_R) + log_peak_R).unsqueeze(-1)
    for side, below_log_peak in ((student, below_peak), (teacher, below_peak + ratio)):
        yield (-log_peak_R - torch.linalg.vecdot(side, below_log_peak)).unsqueeze(-1)
    for below_log_peak in (below_peak, below_peak + ratio) if alternatives else ():
        top = below_log_peak.topk(alternatives, dim=-1)
        yield top.indices.to(logits.dtype)  # exact: vocabularies are far below 2^24
        yield top.values + log_peak_R.unsqueeze(-1)


@functools.cache
def compiled_divergence_rows() -> Callable[..., Tensor]:
    """``divergence_rows`` through ``torch.compile``: a few fused loops instead of fifteen. Compiling takes 10 s."""
    import torch._dynamo as dynamo
    from torch._inductor.exc import InductorError

    # Each comparison, with and without gradient, narrow or wide, is compiled once; the usual limit is 8 in all.
    dynamo.config.recompile_limit = max(64, dynamo.config.recompile_limit)
    compiled = torch.compile(divergence_rows)

    def rows(
        logits_RV: Tensor, difference_RV: Tensor, weights_R: Tensor, ids_R: Tensor | None, *args: Any, **options: Any
    ):
        if len(logits_RV) == 1:  # the compiler takes a 1 for a constant
            return divergence_rows(logits_RV, difference_RV, weights_R, ids_R, *args, **options)
        for tensor in (logits_RV, difference_RV, weights_R, *([] if ids_R is None else [ids_R])):
            dynamo.mark_dynamic(tensor, 0)
        try:
            return compiled(logits_RV, difference_RV, weights_R, ids_R, *args, **options)
        except InductorError:  # another process was writing the same file of torch's cache; it has by now
            return compiled(logits_RV, difference_RV, weights_R, ids_R, *args, **options)

    return rows


def is_far(difference_CV: Tensor, scale: float) -> bool:
    """Whether D, already rounded to half precision, is so large that its rounding shows: root mean square over FAR."""
    stride = difference_CV.shape[1] // FAR_SAMPLES | 1  # odd, so that it shares no factor with a padded vocabulary
    sample = difference_CV[:, ::stride].to(torch.float32)
    return bool(sample.square().mean().sqrt() * scale > FAR)


def is_narrow(difference_RV: Tensor, scale: float) -> bool:
    """Whether all scaled |D| stay below ``NARROW``; False for NaN, which then shows in the result."""
    smallest, largest = torch.aminmax(difference_RV)
    return bool((largest * scale < NARROW) & (smallest * scale > -NARROW))


def log_softmax(logits_RV: Tensor, *, temperature: float, excluded_V: Tensor | None) -> Tensor:
    """Log-probabilities of logits over a temperature, in float32 (float64 for float64); a new tensor."""
    return torch.log_softmax(_scaled(logits_RV, 1.0 / temperature, excluded_V, EXCLUDED_LOGIT), dim=-1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and of row-wise work: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _scaled(values: Tensor, scale: float, excluded_V: Tensor | None = None, excluded_value: float = 0.0) -> Tensor:
    values = values.to(wide_dtype(values.dtype))
    values = values if scale == 1.0 else values * scale
    return values if excluded_V is None else values.masked_fill(excluded_V, excluded_value)


def _narrow_distributions(logits: Tensor, difference: Tensor) -> Triple:
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


def _wide_distributions(logits: Tensor, difference: Tensor) -> Triple:
    """p_S, p_T and r for any D, through the logarithms."""
    student_log = torch.log_softmax(logits, dim=-1)
    teacher_log = torch.log_softmax(logits + difference, dim=-1)
    return student_log.exp(), teacher_log.exp(), teacher_log - student_log


def _with_tail(whole: Triple, ids_RK: Tensor) -> tuple[Triple, Tensor]:
    """p_S, p_T and r on a support and, last, a bucket with the mass outside; and which entries are clipped."""
    student_mass, teacher_mass = (side.scatter(1, ids_RK, 0.0).sum(dim=-1, keepdim=True) for side in whole[:2])
    student_tail, teacher_tail = student_mass.clamp(min=LEAST_TAIL), teacher_mass.clamp(min=LEAST_TAIL)
    tails = (student_tail, teacher_tail, torch.log(teacher_tail / student_tail))
    inside = (side.gather(1, ids_RK) for side in whole)
    student, teacher, ratio = (torch.cat(pair, dim=-1) for pair in zip(inside, tails, strict=True))
    # A bound has no gradient. Where it binds on both sides the tail says nothing, and equal sides have no gradient.
    clipped = (student_mass < LEAST_TAIL) & (teacher_tail > student_tail)
    return (student, teacher, ratio), torch.nn.functional.pad(clipped, (ids_RK.shape[1], 0))


def _over_vocabulary(gradient_RK: Tensor, compared_RK: Tensor, student_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """A logit gradient on a support, [R, K] or with a tail bucket [R, K + 1], as one on all logits [R, V].

    A bucket's logit is the logarithm of a sum of exponentials: its gradient is shared out in proportion to p_S.
    """
    count = ids_RK.shape[1]
    tail_gradient, tail = (side[:, count:].sum(dim=-1, keepdim=True) for side in (gradient_RK, compared_RK))
    outside = student_RV * (tail_gradient / tail.clamp(min=LEAST_TAIL))
    return outside.scatter(1, ids_RK, gradient_RK[:, :count])
