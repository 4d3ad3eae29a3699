"""Values per token from log-probabilities [..., V]: the taken token, log-ratio, entropy, top-k supports."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stepalign.objectives.divergences import Remainder, Support, TopK, check_vocabularies

LEAST_TAIL = 1e-7
"""Least mass of a tail bucket, as in SDPO."""


def take_tokens(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """The entries of [..., V] at ids of shape [...]; leading axes broadcast."""
    ids = token_ids.long().unsqueeze(-1)
    shape = torch.broadcast_shapes(log_probs.shape[:-1], token_ids.shape)
    return log_probs.expand(*shape, -1).gather(-1, ids.expand(*shape, 1)).squeeze(-1)


def log_ratio(teacher_log_probs: Tensor, student_log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """A_t = log p_T(y_t) - log p_S(y_t) of the taken token, in nats; exactly 0 where both distributions are the same.

    Positive where the context reinforces the token, negative where it suppresses it (arXiv 2606.11173). The arguments
    are [..., V], [..., V] and the completion ids [...].
    """
    return take_tokens(teacher_log_probs, token_ids) - take_tokens(student_log_probs, token_ids)


def sampled_token_loss(teacher_token_log_probs: Tensor, student_token_log_probs: Tensor) -> Tensor:
    """The one-sample form of reverse KL: - stop_gradient(A_t) log p_S(y_t), from log-probabilities [...] of y_t.

    For tokens drawn from the student its expected gradient is that of ``reverse_kl``; its value is not a divergence.
    Differentiable in the student only.
    """
    advantage = (teacher_token_log_probs - student_token_log_probs).detach()
    return -advantage * student_token_log_probs


def entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy of [..., V] in nats, with 0 log 0 = 0."""
    present = log_probs > -torch.inf
    return -(log_probs.exp() * log_probs.masked_fill(~present, 0.0)).sum(dim=-1)


def restrict_to_top_k(
    teacher_log_probs: Tensor,
    student_log_probs: Tensor,
    *,
    k: int,
    support: Support = "student",
    remainder: Remainder = "tail",
) -> tuple[Tensor, Tensor]:
    """Both distributions [..., V] on the k likeliest tokens of one of them (``TopK``), ready for any divergence.

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
