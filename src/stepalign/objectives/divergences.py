"""Divergences between the self-teacher's and the student's next-token distributions, one value each, in one table.

Log-probabilities in, nats per token out: the last axis (the vocabulary, V) is reduced, the token axes before it never
are. Sums over tokens, weights and counts belong to the caller, which adds first and divides once. The direction is
always in the name::

    forward KL = KL(self-teacher || student)        mass-covering; gradient  p_S - p_T  in the student's logits
    reverse KL = KL(student || self-teacher)        mode-seeking;  gradient  p_S * (log p_S/p_T - KL)

Log-probabilities of -inf (masked vocabulary entries) follow 0 * log 0 = 0 in the value and in the gradient. A
divergence is +inf exactly where it should be: forward KL where the student excludes what the self-teacher allows,
reverse KL the other way round, Jensen-Shannon never.

A new divergence is one ``Divergence`` and its row in ``DIVERGENCES``; recipes, the fused objective and the tests read
that table. The module uses methods of tensors only, so that a recipe is checked without loading torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Support = Literal["student", "teacher"]
Remainder = Literal["tail", "renormalise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A divergence in two forms: the formula, and the terms from which the fused objective makes value and gradient.

    Called with log-probabilities it evaluates the formula; see ``__call__``.
    """

    name: str
    """Its key in ``DIVERGENCES``."""
    terms: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    """(p_S, p_T, r = log p_T - log p_S, taken tokens or None) -> (entries, logit gradient), all [R, V].

    The entries sum to the divergence. The logit gradient is p_S d(entry)/d(p_S) + ``baseline`` * p_S, entry by entry;
    softmax's Jacobian, which the fused objective applies, does not see a multiple of p_S. Choose the baseline so that
    equal distributions have a gradient of exactly 0.
    """
    formula: Callable[[Tensor, Tensor], Tensor] | None = None
    """(log p_T, log p_S), each [..., V] -> entries [..., V], by autograd; None where only the taken token is seen."""
    baseline: float = 0.0
    balanced: bool = False
    """Whether the logit gradients of a token sum to 0 without the Jacobian."""
    family: Callable[..., Divergence] | None = None
    """Makes the divergence of other parameters; None where it has none."""

    def __call__(
        self, teacher_log_probs: Tensor, student_log_probs: Tensor, *, entry_clip: float | None = None
    ) -> Tensor:
        """The divergence per token, in nats.

        Args:
            teacher_log_probs: [..., V], normalised over V.
            student_log_probs: [..., V], normalised over V.
            entry_clip: upper bound on each entry *before* the sum over the vocabulary (OPSD v3, arXiv 2601.18734).
                Clipped entries have no gradient, and the clipped sum can be negative.

        Returns:
            [...], differentiable in both arguments; detach the self-teacher.

        Raises:
            ValueError: the vocabularies differ in size, the clip is not positive, or the divergence has no formula
                over the whole vocabulary.
        """
        check_vocabularies(teacher_log_probs.shape[-1], student_log_probs.shape[-1])
        check_positive(entry_clip=entry_clip)
        if self.formula is None:
            raise ValueError(f"{self.name} compares the taken token only: see sampled_token_loss")
        entries = self.formula(teacher_log_probs, student_log_probs)
        return (entries if entry_clip is None else entries.clamp(max=entry_clip)).sum(dim=-1)


def _kl_entries(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q) entry by entry; 0 where p is 0, also in the gradient."""
    excluded = log_p == -math.inf
    return log_p.exp() * (log_p.masked_fill(excluded, 0.0) - log_q.masked_fill(excluded, 0.0))


def _forward_kl_terms(student: Tensor, teacher: Tensor, ratio: Tensor, _: object) -> tuple[Tensor, Tensor]:
    return teacher * ratio, student - teacher


forward_kl = Divergence(name="forward_kl", terms=_forward_kl_terms, formula=_kl_entries, baseline=1.0, balanced=True)
"""KL(self-teacher || student)."""


def _reverse_kl_terms(student: Tensor, _teacher: Tensor, ratio: Tensor, _: object) -> tuple[Tensor, Tensor]:
    entries = -(student * ratio)
    return entries, entries


reverse_kl = Divergence(
    name="reverse_kl",
    terms=_reverse_kl_terms,
    formula=lambda teacher_log_probs, student_log_probs: _kl_entries(student_log_probs, teacher_log_probs),
    baseline=-1.0,
)
"""KL(student || self-teacher)."""


def jensen_shannon(weight: float = 0.5) -> Divergence:
    """Weighted Jensen-Shannon: ``weight`` KL(p_T || m) + (1 - weight) KL(p_S || m), m = (1 - weight) p_S + weight p_T.

    The convention shared by the code of OPSD, SDPO, TRL and Liger. It tends to 0 as the weight tends to 0 or 1: its
    ends are *not* the two KL divergences (the peers special-case them).

    Args:
        weight: the self-teacher's share of the mixture, strictly between 0 and 1.

    Raises:
        ValueError: the weight is 0, 1 or outside.
    """
    if not 0.0 < weight < 1.0:
        raise ValueError(f"jensen_shannon needs a weight strictly between 0 and 1, not {weight}; for an end take a KL")

    def formula(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
        # Entries that both sides exclude are parked at 0: they have no mass, and -inf - -inf would poison the gradient.
        excluded = (teacher_log_probs == -math.inf) & (student_log_probs == -math.inf)
        teacher = teacher_log_probs.masked_fill(excluded, 0.0)
        student = student_log_probs.masked_fill(excluded, 0.0)
        log_mixture = (teacher + math.log(weight)).logaddexp(student + math.log1p(-weight))
        # Rounding must not turn equal inputs into a difference: where both sides agree, so does their mixture. The
        # interpolation is exact there and has the mixture's gradient.
        log_mixture = student.lerp(teacher, weight).where(teacher == student, log_mixture)
        entries = weight * _kl_entries(teacher_log_probs, log_mixture)
        return entries + (1.0 - weight) * _kl_entries(student_log_probs, log_mixture)

    def terms(student: Tensor, teacher: Tensor, ratio: Tensor, _: object) -> tuple[Tensor, Tensor]:
        # u = log m - log p_S = log(1 + weight (exp(r) - 1)); beyond 80 nats the exponential is all that is left of it.
        capped = ratio.clamp(max=80.0)
        u = capped.expm1().mul_(weight).log1p_().add_(ratio - capped)
        mixture = student.lerp(teacher, weight)
        entries = (teacher * ratio).mul_(weight).sub_(mixture.mul_(u))
        return entries, u.mul_(student).mul_(weight - 1.0)

    return Divergence(name="jensen_shannon", terms=terms, formula=formula, family=jensen_shannon)


def _sampled_token_terms(
    _student: Tensor, _teacher: Tensor, ratio: Tensor, token_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    assert token_ids is not None  # checked before the first row
    taken = token_ids.unsqueeze(-1)
    entries = ratio.new_zeros(ratio.shape).scatter_(1, taken, -ratio.gather(1, taken))
    return entries, entries


sampled_token = Divergence(name="sampled_token", terms=_sampled_token_terms)
"""-A_t of the taken token, whose mean over y ~ p_S is the reverse KL, with the gradient of ``sampled_token_loss``."""

DIVERGENCES: dict[str, Divergence] = {
    one.name: one for one in (forward_kl, reverse_kl, jensen_shannon(), sampled_token)
}
"""Every divergence by the name it has in a recipe; those of a family with their usual parameters."""


def find_divergence(name: str) -> Divergence:
    """The divergence of a recipe's name, such as "forward_kl" or, with parameters, "jensen_shannon(0.3)".

    Raises:
        ValueError: an unknown name, or parameters that the divergence does not take.
    """
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", name.strip())
    if not found or found[1] not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}: choose one of {', '.join(DIVERGENCES)}")
    divergence = DIVERGENCES[found[1]]
    if found[2] is None:
        return divergence
    try:
        parameters = [float(text) for text in found[2].split(",")]
    except ValueError:
        raise ValueError(f"the parameters of a divergence are numbers, not {found[2]!r}") from None
    if divergence.family is None:
        raise ValueError(f"{found[1]} takes no parameter")
    try:
        return divergence.family(*parameters)
    except TypeError:
        raise ValueError(f"{found[1]} does not take {len(parameters)} parameters") from None


@dataclass(frozen=True, slots=True)
class TopK:
    """Compare on the k likeliest tokens of one side only; see ``tokens.restrict_to_top_k``.

    It saves nothing when both full distributions are at hand (both logit products remain); it is for teacher targets
    that are stored or sent, and for recipes that repeat methods which train so.

    Raises:
        ValueError: k below 1, or an unknown support or remainder.
    """

    k: int
    support: Support = "student"
    """Whose likeliest tokens: the student's (SDPO, arXiv 2601.20802) or the self-teacher's (OPSD)."""
    remainder: Remainder = "tail"
    """The other tokens become one more bucket with their mass, or are dropped and both sides renormalised."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.k}")
        for field, known in (("support", get_args(Support)), ("remainder", get_args(Remainder))):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}: choose one of {', '.join(known)}")

    def check(self, vocabulary: int) -> None:
        """Raises ValueError unless a vocabulary of this size has so many entries."""
        if self.k > vocabulary:
            raise ValueError(f"top_k must lie between 1 and the vocabulary's {vocabulary}, not {self.k}")


def check_vocabularies(first: int, second: int) -> None:
    """Raises ValueError unless both sides have the same number of entries: a single entry would broadcast."""
    if first != second:
        raise ValueError(f"vocabularies differ: {first} and {second} entries")


def check_positive(**options: float | None) -> None:
    """Raises ValueError for a number that is given and not positive."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
