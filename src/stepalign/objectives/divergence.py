"""Divergences between the self-teacher's and the student's next-token distributions.

Log-probabilities in, nats per token out: the last axis (the vocabulary, V) is reduced, the token axes before it never
are. Sums over tokens, weights and counts belong to the caller, which adds first and divides once.

Shape suffixes: N completion tokens, V vocabulary, K entries of a top-k support. Every function takes any number of
leading axes where N is written. The direction is always in the name::

    forward KL = KL(self-teacher || student)        mass-covering; gradient  p_S - p_T  in the student's logits
    reverse KL = KL(student || self-teacher)        mode-seeking;  gradient  p_S * (log p_S/p_T - KL)

Log-probabilities of -inf (masked vocabulary entries) follow 0 * log 0 = 0 in the value and in the gradient. A
divergence is +inf exactly where it should be: forward KL where the student excludes what the self-teacher allows,
reverse KL the other way round, Jensen-Shannon never.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon", "sampled_token"]
Support = Literal["student", "teacher"]
Remainder = Literal["tail", "renormalise"]

LEAST_TAIL = 1e-7
"""Least mass of a tail bucket, as in SDPO."""


def forward_kl(teacher_log_probs: Tensor, student_log_probs: Tensor, *, entry_clip: float | None = None) -> Tensor:
    """KL(self-teacher || student) in nats.

    Args:
        teacher_log_probs: [..., V], normalised over V.
        student_log_probs: [..., V], normalised over V.
        entry_clip: upper bound on each term p_T (log p_T - log p_S) *before* the sum over the vocabulary (OPSD v3,
            arXiv 2601.18734). Clipped entries have no gradient, and the clipped sum can be negative.

    Returns:
        [...], differentiable in both arguments; detach the self-teacher.

    Raises:
        ValueError: the vocabularies differ in size, or the clip is not positive.
    """
    return _sum_clipped(_kl_terms(teacher_log_probs, student_log_probs), entry_clip)


def reverse_kl(teacher_log_probs: Tensor, student_log_probs: Tensor, *, entry_clip: float | None = None) -> Tensor:
    """KL(student || self-teacher) in nats.

    Args:
        teacher_log_probs: [..., V], normalised over V.
        student_log_probs: [..., V], normalised over V.
        entry_clip: upper bound on each term p_S (log p_S - log p_T) before the sum over the vocabulary.

    Returns:
        [...], differentiable in both arguments; detach the self-teacher.

    Raises:
        ValueError: as ``forward_kl``.
    """
    return _sum_clipped(_kl_terms(student_log_probs, teacher_log_probs), entry_clip)


def jensen_shannon(
    teacher_log_probs: Tensor, student_log_probs: Tensor, *, weight: float = 0.5, entry_clip: float | None = None
) -> Tensor:
    """Weighted Jensen-Shannon divergence in nats.

    ``weight`` KL(p_T || m) + (1 - ``weight``) KL(p_S || m) with m = (1 - ``weight``) p_S + ``weight`` p_T: the
    convention shared by the code of OPSD, SDPO, TRL and Liger. It tends to 0 as the weight tends to 0 or 1: its ends
    are *not* the two KL divergences (the peers special-case them), hence only weights strictly between are taken.

    Args:
        teacher_log_probs: [..., V], normalised over V.
        student_log_probs: [..., V], normalised over V.
        weight: the self-teacher's share of the mixture, in (0, 1).
        entry_clip: upper bound on each vocabulary entry's term before the sum.

    Returns:
        [...], differentiable in both arguments; detach the self-teacher.

    Raises:
        ValueError: the weight is not strictly between 0 and 1; otherwise as ``forward_kl``.
    """
    check_mixture_weight(weight)
    check_vocabularies(teacher_log_probs.shape[-1], student_log_probs.shape[-1])
    # Entries that both sides exclude are parked at 0: they have no mass, and -inf - -inf would poison the gradient.
    excluded = (teacher_log_probs == -math.inf) & (student_log_probs == -math.inf)
    teacher = teacher_log_probs.masked_fill(excluded, 0.0)
    student = student_log_probs.masked_fill(excluded, 0.0)
    log_mixture = torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))
    # Rounding must not turn equal inputs into a difference: where both sides agree, so does their mixture. The
    # interpolation is exact there and has the mixture's gradient.
    log_mixture = torch.where(teacher == student, torch.lerp(student, teacher, weight), log_mixture)
    terms = weight * _kl_terms(teacher_log_probs, log_mixture)
    terms = terms + (1.0 - weight) * _kl_terms(student_log_probs, log_mixture)
    return _sum_clipped(terms, entry_clip)


DIVERGENCES: dict[DivergenceName, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}
"""Every full-distribution divergence by the name it has in a recipe. (``sampled_token`` sees one token of each.)"""


def log_ratio(teacher_log_probs: Tensor, student_log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """A_t = log p_T(y_t) - log p_S(y_t) of the taken token, in nats.

    Positive where the context reinforces the token, negative where it suppresses it (arXiv 2606.11173).

    Args:
        teacher_log_probs: [..., V].
        student_log_probs: [..., V].
        token_ids: [...], the completion ids y_t.

    Returns:
        [...]. Exactly 0 where both distributions are the same.
    """
    return take_tokens(teacher_log_probs, token_ids) - take_tokens(student_log_probs, token_ids)


def sampled_token_loss(teacher_token_log_probs: Tensor, student_token_log_probs: Tensor) -> Tensor:
    """The one-sample form of reverse KL: - stop_gradient(A_t) log p_S(y_t).

    For tokens drawn from the student its expected gradient is that of ``reverse_kl``; its value is not a divergence.

    Args:
        teacher_token_log_probs: [...], log p_T of the taken token.
        student_token_log_probs: [...], log p_S of the taken token.

    Returns:
        [...], differentiable in the student only.
    """
    advantage = (teacher_token_log_probs - student_token_log_probs).detach()
    return -advantage * student_token_log_probs


def entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy of [..., V] in nats, with 0 log 0 = 0."""
    present = log_probs > -math.inf
    return -(log_probs.exp() * log_probs.masked_fill(~present, 0.0)).sum(dim=-1)


def clip_tokens(divergence: Tensor, maximum: float) -> Tensor:
    """Bounds every token's divergence from above; clipped tokens have no gradient.

    Args:
        divergence: [...], nats per token.
        maximum: nats, positive.

    Raises:
        ValueError: the bound is not positive.
    """
    check_positive(maximum=maximum)
    return divergence.clamp(max=maximum)


def take_tokens(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """The entries of [..., V] at ids of shape [...]; leading axes broadcast."""
    ids = token_ids.long().unsqueeze(-1)
    shape = torch.broadcast_shapes(log_probs.shape[:-1], token_ids.shape)
    return log_probs.expand(*shape, -1).gather(-1, ids.expand(*shape, 1)).squeeze(-1)


# Top-k: compare the two distributions on the k likeliest tokens of one side. It saves nothing when both full
# distributions are at hand (both logit products remain); it is for teacher targets that are stored or sent, and for
# recipes that repeat methods which train so.


@dataclass(frozen=True, slots=True)
class TopK:
    """The k likeliest tokens of one side, and what becomes of the others; see ``restrict_to_top_k``.

    Raises:
        ValueError: k below 1, or an unknown support or remainder.
    """

    k: int
    support: Support = "student"
    remainder: Remainder = "tail"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.k}")
        if self.support not in get_args(Support):
            raise ValueError(f"unknown support {self.support!r}: choose one of {', '.join(get_args(Support))}")
        if self.remainder not in get_args(Remainder):
            raise ValueError(f"unknown remainder {self.remainder!r}: choose one of {', '.join(get_args(Remainder))}")

    def check(self, vocabulary: int) -> None:
        """Raises ValueError unless a vocabulary of this size has so many entries."""
        if self.k > vocabulary:
            raise ValueError(f"top_k must lie between 1 and the vocabulary's {vocabulary}, not {self.k}")


def restrict_to_top_k(
    teacher_log_probs: Tensor,
    student_log_probs: Tensor,
    *,
    k: int,
    support: Support = "student",
    remainder: Remainder = "tail",
) -> tuple[Tensor, Tensor]:
    """Both distributions on the k likeliest tokens of one of them, ready for any divergence above.

    Args:
        teacher_log_probs: [..., V].
        student_log_probs: [..., V].
        k: size of the support, at most V.
        support: whose likeliest tokens: the student's (SDPO, arXiv 2601.20802) or the self-teacher's (OPSD).
        remainder: what becomes of the other tokens: one more bucket that holds their mass, or nothing and both sides
            renormalised over the support.

    Returns:
        (teacher, student), each [..., K + 1] with a tail bucket or [..., K] renormalised.

    Raises:
        ValueError: k outside 1..V, or an unknown support or remainder.
    """
    TopK(k, support, remainder).check(teacher_log_probs.shape[-1])
    check_vocabularies(teacher_log_probs.shape[-1], student_log_probs.shape[-1])
    source = student_log_probs if support == "student" else teacher_log_probs
    ids = source.detach().topk(k, dim=-1).indices
    close = REMAINDERS[remainder]
    return close(teacher_log_probs.gather(-1, ids)), close(student_log_probs.gather(-1, ids))


def with_tail_bucket(log_probs_NK: Tensor) -> Tensor:
    """Appends log(1 - sum of the K probabilities), so that [..., K + 1] is a distribution again.

    The mass outside is bounded below by ``LEAST_TAIL``: in float32 the sum of K probabilities cannot say less.
    """
    log_inside = torch.logsumexp(log_probs_NK, dim=-1, keepdim=True).clamp(max=-LEAST_TAIL)
    return torch.cat([log_probs_NK, torch.log(-torch.expm1(log_inside))], dim=-1)


def renormalised(log_probs_NK: Tensor) -> Tensor:
    """The K log-probabilities as a distribution of their own."""
    return torch.log_softmax(log_probs_NK, dim=-1)


REMAINDERS: dict[Remainder, Callable[[Tensor], Tensor]] = {"tail": with_tail_bucket, "renormalise": renormalised}


def check_mixture_weight(weight: float) -> None:
    """Raises ValueError unless the Jensen-Shannon weight is strictly between 0 and 1."""
    if not 0.0 < weight < 1.0:
        raise ValueError(f"jensen_shannon needs a weight strictly between 0 and 1, not {weight}; for an end take a KL")


def check_vocabularies(first: int, second: int) -> None:
    """Raises ValueError unless both sides have the same number of entries: one entry must not stand for them all."""
    if first != second:
        raise ValueError(f"vocabularies differ: {first} and {second} entries")


def check_positive(**options: float | None) -> None:
    """Raises ValueError for a number that is given and not positive."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")


def _kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q) entry by entry; 0 where p is 0, also in the gradient."""
    check_vocabularies(log_p.shape[-1], log_q.shape[-1])
    excluded = log_p == -math.inf
    difference = log_p.masked_fill(excluded, 0.0) - log_q.masked_fill(excluded, 0.0)
    return log_p.exp() * difference


def _sum_clipped(terms_NV: Tensor, entry_clip: float | None) -> Tensor:
    check_positive(entry_clip=entry_clip)
    if entry_clip is not None:
        terms_NV = terms_NV.clamp(max=entry_clip)
    return terms_NV.sum(dim=-1)
