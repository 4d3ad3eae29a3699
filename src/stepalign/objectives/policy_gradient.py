"""Policy-gradient losses from verdicts: group-relative advantages, the clipped objective, mixes with a self-teacher.

Per-token values over a packed batch (N trained completion tokens), never reduced here. A loss is
``(weights_N * loss_N).sum()``, where the weights come from one of ``LOSS_TYPES`` and already carry the division by
counts of the *whole* optimizer step: micro-batches and processes then add up to the same number however they are cut.

Shape suffixes: P problems, G completions per problem, B completions, N completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOG_RATIO = 80.0
"""Nats, beyond which an exponential goes on along its tangent: e^89 is infinite in float32."""

AdvantageScale = Literal["group", "batch", "none"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


def group_advantages(rewards_PG: Tensor, *, scale: AdvantageScale = "group", epsilon: float = 1e-4) -> Tensor:
    """Rewards centred on the mean of their group: A_i = (r_i - mean(r)) / (std(r) + epsilon), GRPO (arXiv 2402.03300).

    NaN rewards (undecided verdicts) take no part in mean or deviation and get advantage 0; so does every member of a
    group with fewer than two decided rewards or with equal ones.

    Args:
        rewards_PG: one row per problem; NaN where the verdict is undecided.
        scale: divide by the deviation of the "group", of the whole "batch", or ("none", Dr. GRPO, arXiv 2503.20783) not
            at all. Deviations are unbiased (n - 1), as in TRL.
        epsilon: added to the deviation.

    Returns:
        [P, G] without NaN.
    """
    decided_PG = ~rewards_PG.isnan()
    centred_PG = (rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)).where(decided_PG, 0.0)
    # Equal rewards can leave a rounding error around their mean, which the division would blow up to a signal.
    largest_P = rewards_PG.nan_to_num(nan=-math.inf).amax(dim=1, keepdim=True)
    smallest_P = rewards_PG.nan_to_num(nan=math.inf).amin(dim=1, keepdim=True)
    centred_PG = centred_PG.where(largest_P > smallest_P, 0.0)
    if scale == "none":
        return centred_PG
    return centred_PG / (_unbiased_deviation(rewards_PG if scale == "group" else rewards_PG.reshape(1, -1)) + epsilon)


def clipped_policy_loss(
    log_probs: Tensor,
    sampler_log_probs: Tensor,
    advantages: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate per token: -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), PPO (arXiv 1707.06347).

    rho = exp(log_probs - sampler_log_probs) is the importance ratio of the same token under the trained and the
    sampling policy. A higher upper bound is DAPO's clip-higher (arXiv 2503.14476).

    Args:
        log_probs: [N], with gradient.
        sampler_log_probs: [N], of the policy that drew the tokens, at the same temperature.
        advantages: [N], the completion's advantage repeated over its tokens, or a token-level one.
        epsilon: lower clip width, and the upper one unless given.
        epsilon_high: upper clip width.

    Returns:
        (loss [N], clipped [N] bool): the second marks tokens whose gradient the clip removed.
    """
    upper = epsilon if epsilon_high is None else epsilon_high
    difference = log_probs - sampler_log_probs
    bounded = difference.detach().exp()
    clipped = ((bounded < 1.0 - epsilon) & (advantages < 0)) | ((bounded > 1.0 + upper) & (advantages > 0))
    # The exponential is not taken where it has no gradient: infinity times 0 is NaN.
    constant = clipped | (advantages == 0)
    moving = _with_tangent(difference.masked_fill(constant, 0.0), lambda near: near.exp()) * advantages
    loss = -moving.where(~constant, bounded.clamp(1.0 - epsilon, 1.0 + upper) * advantages)
    return loss, clipped


def kl_to_reference(reference_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """The k3 estimator of KL(policy || reference) per token: exp(d) - d - 1 with d = log p_ref - log p. Never negative.

    Unbiased for tokens drawn from the policy (Schulman 2020); GRPO adds it with the factor ``beta``.
    """
    difference = reference_log_probs - log_probs
    return _with_tangent(difference, lambda near: near.expm1()) - difference


def _with_tangent(x: Tensor, exponential: Callable[[Tensor], Tensor]) -> Tensor:
    """exp or expm1, from LARGEST_LOG_RATIO on along the tangent of exp."""
    far = (x > LARGEST_LOG_RATIO) & x.isfinite()  # an infinite ratio breaks the step, not the weights
    tangent = math.exp(LARGEST_LOG_RATIO) * (1.0 + x - LARGEST_LOG_RATIO)
    return tangent.where(far, exponential(x.masked_fill(far, 0.0)))


def truncated_importance_weights(log_probs: Tensor, sampler_log_probs: Tensor, *, maximum: float = 2.0) -> Tensor:
    """min(rho, maximum) per token, without gradient: SDPO's correction of a distillation term on stale completions."""
    return (log_probs - sampler_log_probs).detach().clamp(-20.0, 20.0).exp().clamp(max=maximum)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """The contents of one optimizer step, over all its micro-batches and processes."""

    completions: int
    tokens: int
    """Trained completion tokens, i.e. those inside the loss mask."""
    micro_batches: int = 1
    max_completion_length: int = 0
    """The sampling budget; needed by ``dr_grpo`` only."""


def grpo_weights(lengths_N: Tensor, counts: StepCounts) -> Tensor:
    """1 / (length of the token's completion * completions): mean over tokens, then over completions."""
    return 1.0 / (lengths_N.float() * counts.completions)


def bnpo_weights(lengths_N: Tensor, counts: StepCounts) -> Tensor:
    """1 / (tokens of this micro-batch * micro-batches): TRL's token mean per micro-batch. Depends on how one cuts."""
    return _constant(lengths_N, 1.0 / (lengths_N.numel() * counts.micro_batches))


def dr_grpo_weights(lengths_N: Tensor, counts: StepCounts) -> Tensor:
    """1 / (completions * max_completion_length): a constant, hence no length bias (Dr. GRPO, arXiv 2503.20783)."""
    if counts.max_completion_length < 1:
        raise ValueError("dr_grpo divides by the sampling budget: set max_completion_length")
    scale = 1.0 / (counts.completions * counts.max_completion_length)
    return _constant(lengths_N, scale)


def dapo_weights(lengths_N: Tensor, counts: StepCounts) -> Tensor:
    """1 / tokens of the whole step: every token counts the same (DAPO, arXiv 2503.14476)."""
    return _constant(lengths_N, 1.0 / counts.tokens)


def _constant(lengths_N: Tensor, value: float) -> Tensor:
    """[N] of one value, float32."""
    return lengths_N.float().new_full(lengths_N.shape, value)


LOSS_TYPES: dict[LossType, Callable[[Tensor, StepCounts], Tensor]] = {
    "grpo": grpo_weights,
    "bnpo": bnpo_weights,
    "dr_grpo": dr_grpo_weights,
    "dapo": dapo_weights,
}
"""Token weights by TRL's ``loss_type``. ``lengths_N``: for every token, the trained length of its completion."""


def sized_advantages(
    advantages: Tensor, log_ratio: Tensor, *, mixing: float | Tensor = 0.5, clip: float = 0.2
) -> Tensor:
    """The verifier gives the direction, the self-teacher the size, token by token: RLSD (arXiv 2604.03128).

    A ((1 - mixing) + mixing clip(exp(sign(A) A_t), 1 - clip, 1 + clip)): never flips the sign of A.

    Args:
        advantages: [N], the completion's advantage repeated over its tokens.
        log_ratio: [N], A_t of the taken tokens; used without gradient.
        mixing: share of the self-teacher in the size, in [-1, 1]; 0 returns the advantages. One value, or [N]. Negative
            turns its signal around: tokens that it would not have predicted count more, as in RLRT (arXiv 2605.10781).
        clip: half-width of the allowed sizes around 1.

    Returns:
        [N], for ``clipped_policy_loss``.
    """
    share, direction = abs(mixing), 2 * (mixing >= 0) - 1
    magnitude = (advantages.sign() * direction * log_ratio.detach()).exp().clamp(1.0 - clip, 1.0 + clip)
    return advantages * ((1.0 - share) + share * magnitude)


def _unbiased_deviation(values: Tensor) -> Tensor:
    """Standard deviation (n - 1) of each row over the entries that are not NaN; 0 where there are fewer than two."""
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()
