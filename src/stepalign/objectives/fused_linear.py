"""From hidden states and head weights straight to per-token divergences and their gradients, chunk by chunk.

The logits of N tokens over a vocabulary of V = 151,936 take N * 0.6 MB in float32, and a plain implementation holds
several such tensors. Here tokens pass in chunks: the logits of the chunk, one walk over its rows that leaves the
gradient with respect to the student's logits, and two products that carry it to the hidden states and to the head. A
divergence is a fixed sum (its weights are known before the call), so its gradient is formed in the forward pass and
nothing is computed twice: four matrix products in all, three with a frozen head.

A divergence is computed from the student's logits z_S and the difference D = z_T - z_S (``row_walk`` says why). Where
student and self-teacher share the head (frozen head, LoRA, live self-teacher), D = (h_T - h_S) W^T: in bfloat16 it is
then D that is rounded and not the two logits, and the gradient stays accurate however close the two are. With separate
heads D is formed from the differences of hidden states and of heads (``head_products.difference_into``).

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk, R rows of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepalign.objectives.divergence import (
    DivergenceName,
    TopK,
    check_mixture_weight,
    check_positive,
    check_vocabularies,
)
from stepalign.objectives.head_products import (
    Gradients,
    check_excluded,
    check_tensors,
    checked_ids,
    difference_into,
    dtypes_as_given,
    logit_buffer,
    logit_parts,
    row_blocks,
    same_memory,
    slices,
)
from stepalign.objectives.row_walk import TERMS, compiled_walk, is_far, is_narrow, walk_rows, wide_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedDivergence:
    """Result of ``fused_linear_divergence``: all but ``loss`` detached, float32 (float64 for float64 inputs), nats."""

    loss: Tensor
    """Scalar: sum of weights * per-token divergence, differentiable in the student's hidden states and head."""
    per_token: Tensor
    """[N], the divergence after clipping."""
    log_ratio: Tensor | None = None
    """[N], A_t = log p_T(y_t) - log p_S(y_t). This field and those below only where token ids were given."""
    student_log_probs: Tensor | None = None
    """[N], log p_S(y_t)."""
    teacher_log_probs: Tensor | None = None
    """[N], log p_T(y_t)."""
    student_entropy: Tensor | None = None
    """[N]."""
    teacher_entropy: Tensor | None = None
    """[N]."""


def fused_linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    weights: Tensor,
    divergence: DivergenceName = "forward_kl",
    mixture_weight: float = 0.5,
    top_k: TopK | None = None,
    temperature: float = 1.0,
    entry_clip: float | None = None,
    token_clip: float | None = None,
    token_ids: Tensor | None = None,
    excluded: Tensor | None = None,
    live_hidden: Tensor | None = None,
    live_share: float = 0.0,
    fast_logits: bool = False,
    chunk_tokens: int = 512,
    compiled: bool = False,
) -> FusedDivergence:
    """Weighted sum over tokens of a divergence between self-teacher and student, without [N, V] logits.

    No gradient reaches the self-teacher or the weights. Where nothing of the student requires a gradient (or under
    ``torch.no_grad``) none is formed, and a frozen head costs no product. Under FSDP pass the gathered head.

    A trust-region self-teacher (SDPO, arXiv 2601.20802) is a mixture of logits, the student's own weights behind the
    self-teacher's prompt being the second part: (1 - live_share) * teacher_hidden teacher_head^T + live_share *
    live_hidden student_head^T. Where the head is shared, that is the head on the mixture of hidden states, at the cost
    of no product; with separate heads it is a mixture of the two differences from the student's logits.

    Args:
        student_hidden: [N, H], the hidden states that predict the completion tokens; bfloat16, float32 or float64.
        student_head: [V, H], the output embedding, of the same dtype.
        teacher_hidden: [N, H'], of the self-teacher at the same tokens.
        teacher_head: [V, H']; the same tensor, or a detached view of it, marks a shared head.
        weights: [N], factors that already contain the division by the global count; not differentiated.
        divergence: a name in ``DIVERGENCES``, or "sampled_token": -A_t of the taken token, whose gradient is that of
            ``sampled_token_loss``; needs ``token_ids``.
        mixture_weight: the self-teacher's share of the mixture, for ``jensen_shannon``.
        top_k: compare on the likeliest tokens of one side only (``restrict_to_top_k``).
        temperature: divides the logits of both sides.
        entry_clip: upper bound on each vocabulary entry's term before the sum over the vocabulary, nats.
        token_clip: upper bound on each token's divergence, nats; clipped tokens have no gradient.
        token_ids: [N], completion ids y_t; asks for log-probabilities of the taken tokens and for entropies.
        excluded: [V] bool, entries with probability 0 on both sides (such as padded rows of the head).
        live_hidden: [N, H], trust region only: of the student's weights behind the self-teacher's prompt.
        live_share: trust region only: the part of these logits in the self-teacher's, in [0, 1].
        fast_logits: keep z_S in the model's dtype instead of float32. In bfloat16 this product is then twice as fast,
            and the gradient error grows from a few tenths of a per cent to one or two.
        chunk_tokens: memory grows with it, speed hardly.
        compiled: run the walk over the rows through ``torch.compile``.

    Returns:
        A ``FusedDivergence``; exactly 0 for identical hidden states and heads.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.
        TypeError: mixed dtypes, or float16, in which small gradients vanish.
    """
    check_tensors(student_hidden, student_head, weights)
    check_tensors(teacher_hidden, teacher_head, weights)
    check_positive(temperature=temperature, chunk_tokens=chunk_tokens, entry_clip=entry_clip, token_clip=token_clip)
    check_mixture_weight(mixture_weight)
    _check_live(live_hidden, live_share, student_hidden)
    if divergence not in TERMS:
        raise ValueError(f"unknown divergence {divergence!r}: choose one of {', '.join(TERMS)}")
    if divergence == "sampled_token" and (token_ids is None or top_k is not None):
        raise ValueError("sampled_token needs token_ids, and takes no top_k")
    check_vocabularies(len(student_head), len(teacher_head))
    if top_k is not None:
        top_k.check(len(student_head))
    if token_ids is not None:
        token_ids = checked_ids(token_ids, weights, len(student_head))
    check_excluded(excluded, len(student_head))

    student_NH, student_head_VH = student_hidden.detach(), student_head.detach()
    teacher_NH, teacher_head_VH = teacher_hidden.detach(), teacher_head.detach()
    if live_hidden is not None and same_memory(student_head_VH, teacher_head_VH):
        wide = wide_dtype(teacher_NH.dtype)
        teacher_NH = torch.lerp(teacher_NH.to(wide), live_hidden.detach().to(wide), live_share)
        live_hidden = None
    needs = (
        torch.is_grad_enabled() and student_hidden.requires_grad,
        torch.is_grad_enabled() and student_head.requires_grad,
    )
    scale = 1.0 / temperature
    walk = functools.partial(
        compiled_walk() if compiled else walk_rows,
        divergence=divergence,
        mixture_weight=mixture_weight,
        top_k=top_k,
        scale=scale,
        entry_clip=entry_clip,
        token_clip=token_clip,
        excluded_V=excluded,
        wants_gradient=any(needs),
    )
    with torch.no_grad(), dtypes_as_given(student_NH):
        weights_N = weights.detach().to(wide_dtype(student_NH.dtype))
        gradients = Gradients.waiting(student_NH, student_head_VH, needs, chunk_tokens)
        sides = (student_NH, student_head_VH, teacher_NH, teacher_head_VH)
        live = None if live_hidden is None else (live_hidden.detach(), live_share)
        values = _walk_chunks(*sides, live, weights_N, token_ids, walk, gradients, scale, fast_logits, chunk_tokens)
        per_token_N, *analysis = values.unbind(dim=1)
        loss = (weights_N * per_token_N).sum()
    loss = _GradientKnown.apply(loss, student_hidden, student_head, *gradients.finished(student_head.dtype))
    if token_ids is None:
        return FusedDivergence(loss=loss, per_token=per_token_N)
    log_ratio_N, student_N, student_entropy_N, teacher_entropy_N = analysis
    return FusedDivergence(
        loss=loss,
        per_token=per_token_N,
        log_ratio=log_ratio_N,
        student_log_probs=student_N,
        teacher_log_probs=student_N + log_ratio_N,
        student_entropy=student_entropy_N,
        teacher_entropy=teacher_entropy_N,
    )


def _walk_chunks(
    student_NH: Tensor,
    student_head_VH: Tensor,
    teacher_NH: Tensor,
    teacher_head_VH: Tensor,
    live: tuple[Tensor, float] | None,
    weights_N: Tensor,
    token_ids_N: Tensor | None,
    walk: Callable[..., Tensor],
    gradients: Gradients,
    scale: float,
    fast_logits: bool,
    chunk_tokens: int,
) -> Tensor:
    """Values [N, 1 or 5] of all tokens; adds to ``gradients``. The [C, V] buffers live no longer than this call."""
    dtype, wide = student_NH.dtype, wide_dtype(student_NH.dtype)
    logits_PV = logit_buffer(student_NH, student_head_VH, chunk_tokens, dtype if fast_logits else wide)
    exact_PV = None  # float32 for D, made when a chunk needs it
    difference_CV = student_NH.new_empty(min(chunk_tokens, len(student_NH)), len(student_head_VH))
    values = [weights_N.new_zeros(0, 1 if token_ids_N is None else 5)]

    def form(out_CV: Tensor, tokens: slice) -> None:
        """D of these tokens."""
        student_CH = student_NH[tokens]
        difference_into(out_CV, student_CH, student_head_VH, teacher_NH[tokens], teacher_head_VH)
        if live is not None:  # z_T is a mixture of logits, so D is one of differences
            live_NH, share = live
            live_difference_CV = torch.empty_like(out_CV)
            difference_into(live_difference_CV, student_CH, student_head_VH, live_NH[tokens], student_head_VH)
            out_CV.lerp_(live_difference_CV, share)

    for chunk in slices(len(student_NH), chunk_tokens):
        student_CH = student_NH[chunk]
        difference_CV = difference_CV[: len(student_CH)]
        form(difference_CV, chunk)
        far = dtype != wide and not fast_logits and is_far(difference_CV, scale)
        for part, part_logits_PV in logit_parts(student_CH, student_head_VH, logits_PV):
            difference_PV = difference_CV[part]
            if far:
                exact_PV = torch.empty_like(logits_PV) if exact_PV is None else exact_PV
                difference_PV = exact_PV[: len(part_logits_PV)]
                form(difference_PV, slice(chunk.start + part.start, chunk.start + part.stop))
            for rows in row_blocks(part_logits_PV):
                first = chunk.start + part.start
                tokens = slice(first + rows.start, first + rows.stop)
                ids_R = None if token_ids_N is None else token_ids_N[tokens]
                narrow = is_narrow(difference_PV[rows], scale)
                values.append(walk(part_logits_PV[rows], difference_PV[rows], weights_N[tokens], ids_R, narrow=narrow))
            if far:
                difference_CV[part] = difference_PV
        # D has served; its memory holds the gradient now.
        gradients.add(chunk, difference_CV, student_CH, student_head_VH)
    return torch.cat(values)


class _GradientKnown(torch.autograd.Function):
    """A scalar whose gradients are already there: the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, hidden: Tensor, head: Tensor, *gradients: Tensor | None) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = ctx.saved_tensors
        if upstream.item() != 1.0:  # the usual 1 spares a copy of the head
            gradients = tuple(None if gradient is None else gradient * upstream for gradient in gradients)
        return None, *gradients, None, None


def _check_live(live_hidden: Tensor | None, live_share: float, student_hidden: Tensor) -> None:
    if not 0.0 <= live_share <= 1.0:
        raise ValueError(f"live_share must be between 0 and 1, not {live_share}")
    if live_hidden is not None and live_hidden.shape != student_hidden.shape:
        raise ValueError(
            f"expected live hidden states {tuple(student_hidden.shape)}, not {tuple(live_hidden.shape)}: they meet the "
            "student's head"
        )
    if live_share and live_hidden is None:
        raise ValueError("live_share needs live_hidden")
