"""Pure maths, tensors in and out: divergences, their fused form from hidden states, and policy-gradient losses."""

from __future__ import annotations

from stepalign.objectives.divergence import (
    DIVERGENCES,
    DivergenceName,
    TopK,
    clip_tokens,
    entropy,
    forward_kl,
    jensen_shannon,
    log_ratio,
    renormalised,
    restrict_to_top_k,
    reverse_kl,
    sampled_token_loss,
    take_tokens,
    with_tail_bucket,
)
from stepalign.objectives.fused_linear import (
    FusedDivergence,
    fused_linear_divergence,
)
from stepalign.objectives.fused_log_probs import TokenLogProbs, fused_linear_log_probs
from stepalign.objectives.policy_gradient import (
    LOSS_TYPES,
    LossType,
    StepCounts,
    clipped_policy_loss,
    group_advantages,
    kl_to_reference,
    rlsd_advantages,
    truncated_importance_weights,
)

__all__ = [
    "DIVERGENCES",
    "LOSS_TYPES",
    "DivergenceName",
    "FusedDivergence",
    "LossType",
    "StepCounts",
    "TokenLogProbs",
    "TopK",
    "clip_tokens",
    "clipped_policy_loss",
    "entropy",
    "forward_kl",
    "fused_linear_divergence",
    "fused_linear_log_probs",
    "group_advantages",
    "jensen_shannon",
    "kl_to_reference",
    "log_ratio",
    "renormalised",
    "restrict_to_top_k",
    "reverse_kl",
    "rlsd_advantages",
    "sampled_token_loss",
    "take_tokens",
    "truncated_importance_weights",
    "with_tail_bucket",
]
