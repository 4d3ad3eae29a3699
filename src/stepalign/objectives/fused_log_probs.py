"""From hidden states and head weights straight to log-probabilities of the taken tokens, chunk by chunk.

Any function of the log-probabilities may follow, so the gradient cannot be formed in advance as that of a divergence
is (``fused_linear``): the backward pass computes the logits of each chunk once more.

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk, P of a part of it, R rows of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepalign.objectives.divergence import check_positive, take_tokens
from stepalign.objectives.head_products import (
    Gradients,
    check_excluded,
    check_tensors,
    checked_ids,
    dtypes_as_given,
    logit_buffer,
    logit_parts,
    row_blocks,
    slices,
)
from stepalign.objectives.row_walk import log_softmax, wide_dtype


class TokenLogProbs(NamedTuple):
    """Result of ``fused_linear_log_probs``, nats."""

    log_probs: Tensor
    """[N], log p(y_t), differentiable in hidden states and head."""
    entropy: Tensor
    """[N], detached."""


def fused_linear_log_probs(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    excluded: Tensor | None = None,
    chunk_tokens: int = 512,
) -> TokenLogProbs:
    """Log-probabilities of the taken tokens, with gradient, and entropies, without [N, V] logits.

    Any function of the log-probabilities may follow (the clipped objective, a KL to a reference), so the gradient
    cannot be formed in advance: the backward pass computes the logits of each chunk once more.

    Args:
        hidden: [N, H], the hidden states that predict the completion tokens; bfloat16, float32 or float64.
        head: [V, H], of the same dtype.
        token_ids: [N], completion ids y_t.
        temperature: divides the logits.
        excluded: [V] bool, entries with probability 0.
        chunk_tokens: memory grows with it.

    Returns:
        A ``TokenLogProbs``, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not fit, or the temperature is not positive.
        TypeError: mixed dtypes, or float16.
    """
    check_tensors(hidden, head, token_ids)
    check_positive(temperature=temperature, chunk_tokens=chunk_tokens)
    token_ids = checked_ids(token_ids, token_ids, len(head))
    check_excluded(excluded, len(head))
    with dtypes_as_given(hidden):
        log_probs, entropy = _TokenLogProbs.apply(hidden, head, token_ids, 1.0 / temperature, excluded, chunk_tokens)
    return TokenLogProbs(log_probs, entropy)


class _TokenLogProbs(torch.autograd.Function):
    """log p(y_t) and entropy from hidden states; the gradient of log p(y_t) is (onehot(y_t) - p) per logit."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        token_ids_N: Tensor,
        scale: float,
        excluded_V: Tensor | None,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        log_probs, entropies = [], []
        logits_PV = logit_buffer(hidden_NH, head_VH, chunk_tokens, wide_dtype(hidden_NH.dtype))
        for part, part_logits_PV in logit_parts(hidden_NH, head_VH, logits_PV):
            for rows in row_blocks(part_logits_PV):
                log_probs_RV = log_softmax(part_logits_PV[rows], scale=scale, excluded_V=excluded_V)
                log_probs.append(take_tokens(log_probs_RV, token_ids_N[part][rows]))
                entropies.append(-torch.linalg.vecdot(log_probs_RV.exp(), log_probs_RV))
        ctx.save_for_backward(hidden_NH, head_VH, token_ids_N, excluded_V)
        ctx.scale, ctx.chunk_tokens = scale, chunk_tokens
        empty = hidden_NH.new_empty(0, dtype=wide_dtype(hidden_NH.dtype))
        log_probs_N, entropy_N = torch.cat([empty, *log_probs]), torch.cat([empty, *entropies])
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_NH, head_VH, token_ids_N, excluded_V = ctx.saved_tensors
        arguments = ctx.scale, excluded_V, ctx.chunk_tokens
        with dtypes_as_given(hidden_NH):
            gradients = _log_prob_gradients(
                hidden_NH, head_VH, token_ids_N, upstream_N, ctx.needs_input_grad[:2], *arguments
            )
        return *gradients, None, None, None, None


def _log_prob_gradients(
    hidden_NH: Tensor,
    head_VH: Tensor,
    token_ids_N: Tensor,
    upstream_N: Tensor,
    needs: tuple[bool, bool],
    scale: float,
    excluded_V: Tensor | None,
    chunk_tokens: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Those of sum(upstream * log p(y)) with respect to hidden states and head."""
    gradients = Gradients.waiting(hidden_NH, head_VH, needs, chunk_tokens)
    logits_PV = logit_buffer(hidden_NH, head_VH, chunk_tokens, wide_dtype(hidden_NH.dtype))
    gradient_CV = head_VH.new_empty(min(len(hidden_NH), chunk_tokens), len(head_VH))
    for chunk in slices(len(hidden_NH), chunk_tokens):
        hidden_CH, ids_C, upstream_C = hidden_NH[chunk], token_ids_N[chunk], upstream_N[chunk] * scale
        gradient_CV = gradient_CV[: len(hidden_CH)]
        for part, part_logits_PV in logit_parts(hidden_CH, head_VH, logits_PV):
            for rows in row_blocks(part_logits_PV):
                log_probs_RV = log_softmax(part_logits_PV[rows], scale=scale, excluded_V=excluded_V)
                factors_R1 = upstream_C[part][rows].unsqueeze(-1)
                gradient_RV = log_probs_RV.exp_().mul_(-factors_R1)
                gradient_CV[part][rows] = gradient_RV.scatter_add_(1, ids_C[part][rows].unsqueeze(-1), factors_R1)
        gradients.add(chunk, gradient_CV, hidden_CH, head_VH)
    return gradients.finished(head_VH.dtype)
