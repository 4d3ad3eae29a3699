"""From hidden states and head weights straight to per-token values and their gradients, chunk by chunk.

[N, V] logits of V = 151,936 take N * 0.6 MB in float32, and a plain implementation holds several such tensors. Here
tokens pass in chunks: the logits of a chunk, one walk over its rows (``fused_kernel``) that leaves the gradient with
respect to the student's logits, and two products (``head``) that carry it to hidden states and head. The weights of a
divergence are known before the call, so its gradient is formed in the forward pass and nothing is computed twice: four
matrix products, three with a frozen head. After ``fused_linear_log_probs`` any function of the log-probabilities may
follow, so its backward pass computes the logits again.

The self-teacher enters as D = z_T - z_S: with a shared head D = (h_T - h_S) W^T, else from the differences of hidden
states and of heads. In bfloat16 D is then rounded and not the two logits, so that the gradient stays accurate however
close the two are.

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk, P of a part of it, R rows of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepalign.objectives.divergences import (
    Divergence,
    TopK,
    check_positive,
    check_vocabularies,
    find_divergence,
    forward_kl,
)
from stepalign.objectives.fused_kernel import (
    Comparison,
    compiled_divergence_rows,
    divergence_rows,
    is_far,
    is_narrow,
    log_softmax,
    wide_dtype,
)
from stepalign.objectives.head import (
    Gradients,
    check_excluded,
    check_tensors,
    checked_ids,
    difference_into,
    dtypes_as_given,
    logit_blocks,
    logit_buffer,
    logit_parts,
    row_blocks,
    same_memory,
    slices,
)
from stepalign.objectives.tokens import take_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedDivergence:
    """Result of ``fused_linear_divergence``: all but ``loss`` detached, float32 (float64 for float64 inputs), nats.

    The fields after ``per_token`` are there where token ids y_t were given; all but the last two are [N].
    """

    loss: Tensor
    """Scalar: sum of weights * per-token divergence, differentiable in the student's hidden states and head."""
    per_token: Tensor
    """[N], the divergence after clipping."""
    log_ratio: Tensor | None = None
    """A_t = log p_T(y_t) - log p_S(y_t)."""
    student_log_probs: Tensor | None = None
    """log p_S(y_t)."""
    teacher_log_probs: Tensor | None = None
    """log p_T(y_t)."""
    student_entropy: Tensor | None = None
    teacher_entropy: Tensor | None = None
    student_top: tuple[Tensor, Tensor] | None = None
    """Ids and log-probabilities, each [N, K], of the student's likeliest tokens, strongest first."""
    teacher_top: tuple[Tensor, Tensor] | None = None
    """The same of the self-teacher."""


def fused_linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    weights: Tensor,
    divergence: Divergence | str = forward_kl,
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
    alternatives: int = 0,
) -> FusedDivergence:
    """Weighted sum over tokens of a divergence between self-teacher and student, without [N, V] logits.

    No gradient reaches the self-teacher or the weights. Where nothing of the student requires a gradient (or under
    ``torch.no_grad``) none is formed, and a frozen head costs no product. Under FSDP pass the gathered head.

    Args:
        student_hidden: [N, H], the hidden states that predict the completion tokens; bfloat16, float32 or float64.
        student_head: [V, H], the output embedding, of the same dtype.
        teacher_hidden: [N, H'], of the self-teacher at the same tokens.
        teacher_head: [V, H']; the same tensor, or a detached view of it, marks a shared head.
        weights: [N], factors that already contain the division by the global count; not differentiated.
        divergence: one of ``DIVERGENCES`` or its name; "sampled_token" needs ``token_ids`` and takes no ``top_k``.
        top_k, temperature, entry_clip, token_clip: see ``Comparison``.
        token_ids: [N], completion ids y_t; asks for log-probabilities of the taken tokens and for entropies.
        excluded: [V] bool, entries with probability 0 on both sides (such as padded rows of the head).
        live_hidden: [N, H], trust region only (SDPO, arXiv 2601.20802): of the student's weights behind the
            self-teacher's prompt. The self-teacher's logits are then (1 - live_share) * teacher_hidden teacher_head^T +
            live_share * live_hidden student_head^T.
        live_share: trust region only, in [0, 1].
        fast_logits: keep z_S in the model's dtype instead of float32. In bfloat16 this product is then twice as fast,
            and the gradient error grows from a few tenths of a per cent to one or two.
        chunk_tokens: memory grows with it, speed hardly.
        compiled: run the row-wise part through ``torch.compile``.
        alternatives: with ``token_ids``, also the K likeliest tokens of either side.

    Returns:
        A ``FusedDivergence``; exactly 0 for identical hidden states and heads.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.
        TypeError: mixed dtypes, or float16, in which small gradients vanish.
    """
    if isinstance(divergence, str):
        divergence = find_divergence(divergence)
    how = Comparison(
        divergence=divergence, top_k=top_k, temperature=temperature, entry_clip=entry_clip, token_clip=token_clip,
        excluded_V=excluded,
    )  # fmt: skip
    check_positive(chunk_tokens=chunk_tokens)
    check_tensors(student_hidden, student_head, weights)
    check_tensors(teacher_hidden, teacher_head, weights)
    token_ids = _checked_against_vocabulary(how, len(student_head), len(teacher_head), token_ids, weights)
    sides = _Sides.of(student_hidden, student_head, teacher_hidden, teacher_head, live_hidden, live_share)
    learns = torch.is_grad_enabled()
    needs = learns and student_hidden.requires_grad, learns and student_head.requires_grad
    with torch.no_grad(), dtypes_as_given(sides.student_NH):
        weights_N = weights.detach().to(wide_dtype(student_hidden.dtype))
        gradients = Gradients.waiting(sides.student_NH, sides.student_head_VH, needs, chunk_tokens)
        row_values = compiled_divergence_rows() if compiled else divergence_rows
        row_values = functools.partial(row_values, alternatives=alternatives) if alternatives else row_values
        values = _walk_chunks(sides, how, weights_N, token_ids, gradients, row_values, fast_logits, chunk_tokens)
        loss = (weights_N * values[:, 0]).sum()
    loss = _GradientKnown.apply(loss, student_hidden, student_head, *gradients.finished(student_head.dtype))
    return _result(loss, values)


def _result(loss: Tensor, values: Tensor) -> FusedDivergence:
    """The columns that ``divergence_rows`` returns, by name."""
    per_token_N, *analysis = values[:, :5].unbind(dim=1)
    if not analysis:
        return FusedDivergence(loss=loss, per_token=per_token_N)
    log_ratio_N, student_N, student_entropy_N, teacher_entropy_N = analysis
    student_ids, student_top, teacher_ids, teacher_top = values[:, 5:].chunk(4, dim=1)
    return FusedDivergence(
        loss=loss,
        per_token=per_token_N,
        log_ratio=log_ratio_N,
        student_log_probs=student_N,
        teacher_log_probs=student_N + log_ratio_N,
        student_entropy=student_entropy_N,
        teacher_entropy=teacher_entropy_N,
        student_top=(student_ids.long(), student_top),
        teacher_top=(teacher_ids.long(), teacher_top),
    )


@dataclass(frozen=True, slots=True)
class _Sides:
    """The detached inputs of both sides."""

    student_NH: Tensor
    student_head_VH: Tensor
    teacher_NH: Tensor
    teacher_head_VH: Tensor
    live_NH: Tensor | None
    live_share: float

    @classmethod
    def of(
        cls, student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, live: Tensor | None, share: float
    ) -> _Sides:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"live_share must be between 0 and 1, not {share}")
        if share and live is None:
            raise ValueError("live_share needs live_hidden")
        if live is not None and live.shape != student.shape:
            shapes = f"{tuple(student.shape)}, not {tuple(live.shape)}"
            raise ValueError(f"expected live hidden states {shapes}: they meet the student's head")
        student, head, teacher, teacher_head = (x.detach() for x in (student, head, teacher, teacher_head))
        if live is not None and same_memory(head, teacher_head):
            # A mixture of logits through one head is the head on the mixture: no product more.
            wide = wide_dtype(teacher.dtype)
            teacher, live = torch.lerp(teacher.to(wide), live.detach().to(wide), share), None
        return cls(student, head, teacher, teacher_head, None if live is None else live.detach(), share)

    def difference(self, out_CV: Tensor, tokens: slice) -> None:
        """out = D = z_T - z_S of these tokens, before the temperature."""
        student_CH, head_VH = self.student_NH[tokens], self.student_head_VH
        difference_into(out_CV, student_CH, head_VH, self.teacher_NH[tokens], self.teacher_head_VH)
        if self.live_NH is not None:  # z_T is a mixture of logits, so D is one of differences
            live_CV = torch.empty_like(out_CV)
            difference_into(live_CV, student_CH, head_VH, self.live_NH[tokens], head_VH)
            out_CV.lerp_(live_CV, self.live_share)


def _checked_against_vocabulary(
    how: Comparison, vocabulary: int, teacher_vocabulary: int, token_ids: Tensor | None, weights: Tensor
) -> Tensor | None:
    """The token ids as int64. Raises ValueError or TypeError for what does not fit the vocabulary."""
    check_vocabularies(vocabulary, teacher_vocabulary)
    check_excluded(how.excluded_V, vocabulary)
    if how.divergence.formula is None and (token_ids is None or how.top_k is not None):
        raise ValueError(f"{how.divergence.name} needs token_ids, and takes no top_k")
    if how.top_k is not None:
        how.top_k.check(vocabulary)
    return None if token_ids is None else checked_ids(token_ids, weights, vocabulary)


def _walk_chunks(
    sides: _Sides,
    how: Comparison,
    weights_N: Tensor,
    token_ids_N: Tensor | None,
    gradients: Gradients,
    row_values: Callable[..., Tensor],
    fast_logits: bool,
    chunk_tokens: int,
) -> Tensor:
    """The values of all tokens, row by row; adds to ``gradients``. The [C, V] buffers live no longer than this call."""
    student_NH, head_VH, scale = sides.student_NH, sides.student_head_VH, 1.0 / how.temperature
    dtype, wide = student_NH.dtype, wide_dtype(student_NH.dtype)
    logits_PV = logit_buffer(student_NH, head_VH, chunk_tokens, dtype if fast_logits else wide)
    exact_PV = None  # float32 for D, made when a chunk needs it
    difference_CV = student_NH.new_empty(min(chunk_tokens, len(student_NH)), len(head_VH))
    values: list[Tensor] = []
    for chunk in slices(len(student_NH), chunk_tokens):
        student_CH = student_NH[chunk]
        difference_CV = difference_CV[: len(student_CH)]
        sides.difference(difference_CV, chunk)
        far = dtype != wide and not fast_logits and is_far(difference_CV, scale)
        for part, part_logits_PV in logit_parts(student_CH, head_VH, logits_PV):
            difference_PV = difference_CV[part]
            if far:
                exact_PV = torch.empty_like(logits_PV) if exact_PV is None else exact_PV
                difference_PV = exact_PV[: len(part_logits_PV)]
                sides.difference(difference_PV, slice(chunk.start + part.start, chunk.start + part.stop))
            for rows in row_blocks(part_logits_PV):
                first = chunk.start + part.start
                tokens = slice(first + rows.start, first + rows.stop)
                values.append(
                    row_values(
                        part_logits_PV[rows],
                        difference_PV[rows],
                        weights_N[tokens],
                        None if token_ids_N is None else token_ids_N[tokens],
                        how,
                        wants_gradient=gradients.wanted,
                        narrow=is_narrow(difference_PV[rows], scale),
                    )
                )
            if far:
                difference_CV[part] = difference_PV
        # D has served; its memory holds the gradient now.
        gradients.add(chunk, difference_CV, student_CH, head_VH)
    return torch.cat(values) if values else weights_N.new_zeros(0, 1 if token_ids_N is None else 5)


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

    Arguments and errors are those of ``fused_linear_divergence``.

    Returns:
        A ``TokenLogProbs``, float32 (float64 for float64 inputs).
    """
    check_tensors(hidden, head, token_ids)
    check_positive(temperature=temperature, chunk_tokens=chunk_tokens)
    token_ids = checked_ids(token_ids, token_ids, len(head))
    check_excluded(excluded, len(head))
    with dtypes_as_given(hidden):
        log_probs, entropy = _TokenLogProbs.apply(hidden, head, token_ids, temperature, excluded, chunk_tokens)
    return TokenLogProbs(log_probs, entropy)


class _TokenLogProbs(torch.autograd.Function):
    """log p(y_t) and entropy from hidden states; the gradient of log p(y_t) is (onehot(y_t) - p) per logit."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        token_ids_N: Tensor,
        temperature: float,
        excluded_V: Tensor | None,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        empty = hidden_NH.new_empty(0, dtype=wide_dtype(hidden_NH.dtype))
        log_probs, entropies = [empty], [empty]
        logits_PV = logit_buffer(hidden_NH, head_VH, chunk_tokens, wide_dtype(hidden_NH.dtype))
        for rows, logits_RV in logit_blocks(hidden_NH, head_VH, logits_PV):
            log_probs_RV = log_softmax(logits_RV, temperature=temperature, excluded_V=excluded_V)
            log_probs.append(take_tokens(log_probs_RV, token_ids_N[rows]))
            entropies.append(-torch.linalg.vecdot(log_probs_RV.exp(), log_probs_RV))
        ctx.save_for_backward(hidden_NH, head_VH, token_ids_N, excluded_V)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        log_probs_N, entropy_N = torch.cat(log_probs), torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_NH, head_VH, token_ids_N, excluded_V = ctx.saved_tensors
        gradients = Gradients.waiting(hidden_NH, head_VH, ctx.needs_input_grad[:2], ctx.chunk_tokens)
        logits_PV = logit_buffer(hidden_NH, head_VH, ctx.chunk_tokens, wide_dtype(hidden_NH.dtype))
        gradient_CV = head_VH.new_empty(min(len(hidden_NH), ctx.chunk_tokens), len(head_VH))
        upstream_N = upstream_N * (1.0 / ctx.temperature)
        with dtypes_as_given(hidden_NH):
            for chunk in slices(len(hidden_NH), ctx.chunk_tokens):
                hidden_CH, ids_C, upstream_C = hidden_NH[chunk], token_ids_N[chunk], upstream_N[chunk]
                gradient_CV = gradient_CV[: len(hidden_CH)]
                for rows, logits_RV in logit_blocks(hidden_CH, head_VH, logits_PV):
                    log_probs_RV = log_softmax(logits_RV, temperature=ctx.temperature, excluded_V=excluded_V)
                    factors_R1 = upstream_C[rows].unsqueeze(-1)
                    gradient_RV = log_probs_RV.exp_().mul_(-factors_R1)
                    gradient_CV[rows] = gradient_RV.scatter_add_(1, ids_C[rows].unsqueeze(-1), factors_R1)
                gradients.add(chunk, gradient_CV, hidden_CH, head_VH)
        return *gradients.finished(head_VH.dtype), None, None, None, None
