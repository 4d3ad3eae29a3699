"""From hidden states and head weights straight to per-token objectives and their gradients, chunk by chunk.

The logits of N tokens over a vocabulary of V = 151,936 take N * 0.6 MB in float32, and a plain implementation
holds several such tensors. Here tokens pass in chunks: the logits of the chunk, one walk over its rows that leaves the
gradient with respect to the student's logits, and two products that carry it to the hidden states and to the head. A
divergence is a fixed sum (its weights are known before the call), so its gradient is formed in the forward pass and
nothing is computed twice: four matrix products in all, three with a frozen head.

**The logit difference.** A divergence is computed from the student's logits z_S and the difference D = z_T - z_S::

    r = log p_T - log p_S = D - log sum(p_S exp(D))        p_T = p_S exp(r)

When training goes well the two distributions are close, and subtracting two separately rounded softmaxes loses the
signal; r keeps it. Where student and self-teacher share the head (frozen head, LoRA, live self-teacher),
D = (h_T - h_S) W^T keeps it even in bfloat16, because it is D that is rounded and not the two logits. With separate
heads both logits are formed in float32 and subtracted.

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk, R rows of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepalign.objectives.divergence import DIVERGENCES, DivergenceName, check_mixture_weight, take_tokens

HEAD_TILE = 2048
"""Rows of the head per step where a product is cut: small enough for the cache, large enough for the kernel."""

BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**26}
"""Logits per block of rows: on a CPU its temporaries stay in the cache, on a GPU they bound the memory."""

NARROW = 30.0
"""|D| in nats up to which p_T may be derived from p_S: exp(D) stays finite, and no entry that p_S has lost to underflow
(below e^-87) can hold mass under p_T."""

EXCLUDED_LOGIT = -1e30
"""Stands for -inf: its probability is exactly 0 as well, and 0 times it is 0 instead of NaN."""


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


class TokenLogProbs(NamedTuple):
    """Result of ``fused_linear_log_probs``, nats."""

    log_probs: Tensor
    """[N], log p(y_t), differentiable in hidden states and head."""
    entropy: Tensor
    """[N], detached."""


def fused_linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    weights: Tensor,
    divergence: DivergenceName = "forward_kl",
    mixture_weight: float = 0.5,
    temperature: float = 1.0,
    entry_clip: float | None = None,
    token_clip: float | None = None,
    token_ids: Tensor | None = None,
    excluded: Tensor | None = None,
    fast_logits: bool = False,
    chunk_tokens: int = 256,
    compiled: bool = False,
) -> FusedDivergence:
    """Weighted sum over tokens of a divergence between self-teacher and student, without [N, V] logits.

    No gradient reaches the self-teacher or the weights. Where nothing of the student requires a gradient (or under
    ``torch.no_grad``) none is formed, and a frozen head costs no product. Under FSDP pass the gathered head.

    A trust-region self-teacher (logits interpolated between reference and student, SDPO, arXiv 2601.20802) needs no
    code of its own where the head is shared: interpolate the hidden states.

    Args:
        student_hidden: [N, H], the hidden states that predict the completion tokens; bfloat16, float32 or float64.
        student_head: [V, H], the output embedding, of the same dtype.
        teacher_hidden: [N, H'], of the self-teacher at the same tokens.
        teacher_head: [V, H']; the same tensor, or a detached view of it, marks a shared head.
        weights: [N], factors that already contain the division by the global count; not differentiated.
        divergence: a name in ``DIVERGENCES``.
        mixture_weight: the self-teacher's share of the mixture, for ``jensen_shannon``.
        temperature: divides the logits of both sides.
        entry_clip: upper bound on each vocabulary entry's term before the sum over the vocabulary, nats.
        token_clip: upper bound on each token's divergence, nats; clipped tokens have no gradient.
        token_ids: [N], completion ids y_t; asks for log-probabilities of the taken tokens and for entropies.
        excluded: [V] bool, entries with probability 0 on both sides (such as padded rows of the head).
        fast_logits: keep z_S in the model's dtype instead of float32. In bfloat16 this product is then twice as fast,
            and the gradient error grows from a few tenths of a per cent to one or two. For a shared head only.
        chunk_tokens: memory grows with it, speed hardly beyond 256.
        compiled: run the walk over the rows through ``torch.compile``.

    Returns:
        A ``FusedDivergence``; exactly 0 for identical hidden states and heads.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.
        TypeError: mixed dtypes, or float16, in which small gradients vanish.
    """
    _check_tensors(student_hidden, student_head, weights)
    _check_tensors(teacher_hidden, teacher_head, weights)
    _check_positive(temperature=temperature, chunk_tokens=chunk_tokens, entry_clip=entry_clip, token_clip=token_clip)
    check_mixture_weight(mixture_weight)
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}: choose one of {', '.join(DIVERGENCES)}")
    if student_head.shape[0] != teacher_head.shape[0]:
        raise ValueError(f"vocabularies differ: {student_head.shape[0]} and {teacher_head.shape[0]} entries")

    student_NH, student_head_VH = student_hidden.detach(), student_head.detach()
    teacher_NH, teacher_head_VH = teacher_hidden.detach(), teacher_head.detach()
    needs = (
        torch.is_grad_enabled() and student_hidden.requires_grad,
        torch.is_grad_enabled() and student_head.requires_grad,
    )
    walk_rows = functools.partial(
        _compiled_walk() if compiled else _walk_rows,
        terms=_TERMS[divergence],
        mixture_weight=mixture_weight,
        scale=1.0 / temperature,
        entry_clip=entry_clip,
        token_clip=token_clip,
        excluded_V=excluded,
        wants_gradient=any(needs),
    )
    with torch.no_grad():
        weights_N = weights.detach().to(_wide(student_NH.dtype))
        gradients = _Gradients.zeros(student_NH, student_head_VH, needs, chunk_tokens)
        values = [weights_N.new_zeros(0, 1 if token_ids is None else 5)]
        for chunk, logits_CV, difference_CV in _logit_pairs(
            student_NH, student_head_VH, teacher_NH, teacher_head_VH, chunk_tokens, fast_logits
        ):
            for block, tokens in _row_blocks(chunk, logits_CV):
                values_R, gradient_RV = walk_rows(
                    logits_CV[block],
                    difference_CV[block],
                    weights_N[tokens],
                    None if token_ids is None else token_ids[tokens],
                    narrow=_is_narrow(difference_CV[block], NARROW * temperature),
                )
                values.append(values_R)
                if gradient_RV is not None:
                    # D of these rows is not read again: from here on its memory holds their gradient.
                    difference_CV[block] = gradient_RV
            gradients.add(chunk, difference_CV, student_NH, student_head_VH)
        per_token_N, *analysis = torch.cat(values).unbind(dim=1)
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


def fused_linear_log_probs(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    excluded: Tensor | None = None,
    chunk_tokens: int = 256,
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
    _check_tensors(hidden, head, token_ids)
    _check_positive(temperature=temperature, chunk_tokens=chunk_tokens)
    log_probs, entropy = _TokenLogProbs.apply(hidden, head, token_ids, 1.0 / temperature, excluded, chunk_tokens)
    return TokenLogProbs(log_probs, entropy)


# The walk over the rows of one block: pure, and the only place that knows the divergences.


def _walk_rows(
    logits_RV: Tensor,
    difference_RV: Tensor,
    weights_R: Tensor,
    token_ids_R: Tensor | None,
    *,
    terms: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]],
    mixture_weight: float,
    scale: float,
    entry_clip: float | None,
    token_clip: float | None,
    excluded_V: Tensor | None,
    wants_gradient: bool,
    narrow: bool,
) -> tuple[Tensor, Tensor | None]:
    """Values [R, 1 or 5] and the weighted gradient [R, V] with respect to the student's logits before scaling.

    The columns are the divergence and, with token ids, A_t, log p_S(y_t) and both entropies.
    """
    logits_RV = _scaled(logits_RV, scale)
    difference_RV = _scaled(difference_RV, scale)
    if excluded_V is not None:
        logits_RV = logits_RV.masked_fill(excluded_V, EXCLUDED_LOGIT)
        difference_RV = difference_RV.masked_fill(excluded_V, 0.0)
    derive = _narrow_distributions if narrow else _wide_distributions
    student_RV, teacher_RV, ratio_RV = derive(logits_RV, difference_RV)

    entries_RV, slopes_RV = terms(student_RV, teacher_RV, ratio_RV, mixture_weight)
    if entry_clip is not None:
        slopes_RV = slopes_RV.masked_fill(entries_RV > entry_clip, 0.0)
        entries_RV = entries_RV.clamp(max=entry_clip)
    divergence_R = entries_RV.sum(dim=-1)
    factors_R = weights_R * scale
    if token_clip is not None:
        factors_R = factors_R.masked_fill(divergence_R > token_clip, 0.0)
        divergence_R = divergence_R.clamp(max=token_clip)
    gradient_RV = None
    if wants_gradient:
        # Softmax's Jacobian: what a slope pulls on one entry is taken from all in proportion to their probability.
        pull_R1 = slopes_RV.sum(dim=-1, keepdim=True)
        gradient_RV = torch.addcmul(slopes_RV, student_RV, pull_R1, value=-1.0).mul_(factors_R.unsqueeze(-1))
    if token_ids_R is None:
        return divergence_R.unsqueeze(-1), gradient_RV

    log_normaliser_R = logits_RV.amax(dim=-1) - student_RV.amax(dim=-1).log()
    student_entropy_R = log_normaliser_R - torch.linalg.vecdot(student_RV, logits_RV)
    teacher_entropy_R = log_normaliser_R - torch.linalg.vecdot(teacher_RV, logits_RV + ratio_RV)
    log_ratio_R = take_tokens(ratio_RV, token_ids_R)
    student_log_probs_R = take_tokens(logits_RV, token_ids_R) - log_normaliser_R
    columns = (divergence_R, log_ratio_R, student_log_probs_R, student_entropy_R, teacher_entropy_R)
    return torch.stack(columns, dim=-1), gradient_RV


@functools.cache
def _compiled_walk() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_walk_rows)


def _narrow_distributions(logits_RV: Tensor, difference_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_S, p_T and r for |D| below ``NARROW``: p_T is derived from p_S, so that both share their rounding."""
    student_RV = torch.softmax(logits_RV, dim=-1)
    # r does not see a constant added to D. Around its mean, E[exp(D)] >= 1 (Jensen) and its logarithm is safe.
    centred_RV = difference_RV - torch.linalg.vecdot(student_RV, difference_RV).unsqueeze(-1)
    growth_RV = torch.expm1(centred_RV)
    shift_R1 = torch.log1p(torch.linalg.vecdot(student_RV, growth_RV)).unsqueeze(-1)
    teacher_RV = torch.addcmul(student_RV, student_RV, growth_RV).mul_(torch.exp(-shift_R1))
    return student_RV, teacher_RV, centred_RV.sub_(shift_R1)


def _wide_distributions(logits_RV: Tensor, difference_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_S, p_T and r for any D, through the logarithms."""
    student_log_RV = torch.log_softmax(logits_RV, dim=-1)
    teacher_log_RV = torch.log_softmax(logits_RV + difference_RV, dim=-1)
    return student_log_RV.exp(), teacher_log_RV.exp(), teacher_log_RV - student_log_RV


# Per divergence: the entries whose sum over the vocabulary it is, and p_S * d(entry)/d(p_S), their slopes.


def _forward_kl_terms(student: Tensor, teacher: Tensor, ratio: Tensor, _: float) -> tuple[Tensor, Tensor]:
    return teacher * ratio, -teacher


def _reverse_kl_terms(student: Tensor, teacher: Tensor, ratio: Tensor, _: float) -> tuple[Tensor, Tensor]:
    entries = -student * ratio
    return entries, entries + student


def _jensen_shannon_terms(student: Tensor, teacher: Tensor, ratio: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    # u = log m - log p_S = log(1 + weight (exp(r) - 1)); beyond 80 nats the exponential is all that is left of it.
    capped = ratio.clamp(max=80.0)
    u = torch.log1p(weight * torch.expm1(capped)) + (ratio - capped)
    mixture = torch.lerp(student, teacher, weight)
    return weight * teacher * ratio - mixture * u, (weight - 1.0) * student * u


_TERMS: dict[DivergenceName, Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl_terms,
    "reverse_kl": _reverse_kl_terms,
    "jensen_shannon": _jensen_shannon_terms,
}


# Chunks, blocks and products.


def _logit_pairs(
    student_NH: Tensor,
    student_head_VH: Tensor,
    teacher_NH: Tensor,
    teacher_head_VH: Tensor,
    chunk_tokens: int,
    fast_logits: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields (tokens of the chunk, z_S [C, V], D [C, V]). The two tensors are reused; the caller may overwrite D."""
    _keep_scratch_memory()
    shared = _same_memory(student_head_VH, teacher_head_VH)
    model_dtype = student_head_VH.dtype
    wide = _wide(model_dtype)
    shape = (min(chunk_tokens, len(student_NH)), len(student_head_VH))
    logits_CV = student_NH.new_empty(shape, dtype=model_dtype if shared and fast_logits else wide)
    difference_CV = student_NH.new_empty(shape, dtype=model_dtype if shared else wide)
    for chunk in _chunks(len(student_NH), chunk_tokens):
        student_CH, teacher_CH = student_NH[chunk], teacher_NH[chunk]
        logits, difference = logits_CV[: len(student_CH)], difference_CV[: len(student_CH)]
        _product_into(logits, student_CH, student_head_VH)
        if shared:
            _product_into(difference, (teacher_CH.to(wide) - student_CH.to(wide)).to(model_dtype), student_head_VH)
        else:
            _product_into(difference, teacher_CH, teacher_head_VH)
            difference.sub_(logits)
        yield chunk, logits, difference


def _product_into(out_CV: Tensor, hidden_CH: Tensor, head_VH: Tensor) -> None:
    """out = hidden head^T, rounded only to out's dtype."""
    if out_CV.is_cuda and out_CV.dtype != head_VH.dtype:
        torch.mm(hidden_CH, head_VH.t(), out_CV.dtype, out=out_CV)
    elif out_CV.dtype == head_VH.dtype and not (out_CV.dtype == torch.float32 and _has_onednn(out_CV)):
        torch.mm(hidden_CH, head_VH.t(), out=out_CV)
    else:
        # A CPU has no product of bfloat16 matrices with a float32 result: widen the head, one tile at a time.
        hidden_CH = hidden_CH.to(out_CV.dtype)
        for tile in _chunks(len(head_VH), HEAD_TILE):
            out_CV[:, tile] = _linear(hidden_CH, head_VH[tile].to(out_CV.dtype))


def _linear(hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
    """hidden weight^T. In float32 through oneDNN, which on AMD processors is twice as fast as MKL behind torch.mm."""
    if weight_VH.dtype == torch.float32 and _has_onednn(weight_VH):
        return torch.ops.mkldnn._linear_pointwise(hidden_CH, weight_VH, None, "none", [], "")
    return torch.mm(hidden_CH, weight_VH.t())


def _has_onednn(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and torch.backends.mkldnn.is_available()


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Gradients of hidden states and head while the chunks pass; None where not required."""

    hidden_NH: Tensor | None
    head_VH: Tensor | None

    @classmethod
    def zeros(cls, hidden_NH: Tensor, head_VH: Tensor, needs: tuple[bool, bool], chunk_tokens: int) -> _Gradients:
        # Several chunks add up in float32, or the rounding of every sum would bias training; a single one need not.
        head_dtype = _wide(head_VH.dtype) if len(hidden_NH) > chunk_tokens else head_VH.dtype
        return cls(
            hidden_NH=torch.zeros_like(hidden_NH) if needs[0] else None,
            head_VH=torch.zeros_like(head_VH, dtype=head_dtype) if needs[1] else None,
        )

    def add(self, chunk: slice, gradient_CV: Tensor, hidden_NH: Tensor, head_VH: Tensor) -> None:
        """Carries the gradient of one chunk's logits to its hidden states and to the head."""
        gradient_CV = gradient_CV.to(head_VH.dtype)
        if self.hidden_NH is not None:
            torch.mm(gradient_CV, head_VH, out=self.hidden_NH[chunk])
        if self.head_VH is not None:
            # By tiles, so that each partial sum is still in the cache when it is added.
            for tile in _chunks(len(head_VH), HEAD_TILE):
                self.head_VH[tile].add_(torch.mm(gradient_CV[:, tile].t(), hidden_NH[chunk]))

    def finished(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        return self.hidden_NH, None if self.head_VH is None else self.head_VH.to(dtype)


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
        for chunk, logits_CV in _logits(hidden_NH, head_VH, chunk_tokens):
            for block, tokens in _row_blocks(chunk, logits_CV):
                log_probs_RV = _log_softmax(logits_CV[block], scale, excluded_V)
                log_probs.append(take_tokens(log_probs_RV, token_ids_N[tokens]))
                entropies.append(-torch.linalg.vecdot(log_probs_RV.exp(), log_probs_RV))
        ctx.save_for_backward(hidden_NH, head_VH, token_ids_N, excluded_V)
        ctx.scale, ctx.chunk_tokens = scale, chunk_tokens
        empty = hidden_NH.new_empty(0, dtype=_wide(hidden_NH.dtype))
        log_probs_N, entropy_N = torch.cat([empty, *log_probs]), torch.cat([empty, *entropies])
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_NH, head_VH, token_ids_N, excluded_V = ctx.saved_tensors
        gradients = _Gradients.zeros(hidden_NH, head_VH, ctx.needs_input_grad[:2], ctx.chunk_tokens)
        for chunk, logits_CV in _logits(hidden_NH, head_VH, ctx.chunk_tokens):
            for block, tokens in _row_blocks(chunk, logits_CV):
                factors_R1 = upstream_N[tokens].unsqueeze(-1) * ctx.scale
                gradient_RV = _log_softmax(logits_CV[block], ctx.scale, excluded_V).exp_().mul_(-factors_R1)
                gradient_RV.scatter_add_(1, token_ids_N[tokens].unsqueeze(-1), factors_R1)
                logits_CV[block] = gradient_RV
            gradients.add(chunk, logits_CV, hidden_NH, head_VH)
        return *gradients.finished(head_VH.dtype), None, None, None, None


def _logits(hidden_NH: Tensor, head_VH: Tensor, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields (tokens of the chunk, logits [C, V]) in float32; the memory is reused and may be overwritten."""
    _keep_scratch_memory()
    logits_CV = hidden_NH.new_empty(min(chunk_tokens, len(hidden_NH)), len(head_VH), dtype=_wide(hidden_NH.dtype))
    for chunk in _chunks(len(hidden_NH), chunk_tokens):
        logits = logits_CV[: chunk.stop - chunk.start]
        _product_into(logits, hidden_NH[chunk], head_VH)
        yield chunk, logits


def _log_softmax(logits_RV: Tensor, scale: float, excluded_V: Tensor | None) -> Tensor:
    logits_RV = _scaled(logits_RV, scale)
    if excluded_V is not None:
        logits_RV = logits_RV.masked_fill(excluded_V, EXCLUDED_LOGIT)
    return torch.log_softmax(logits_RV, dim=-1)


def _scaled(values: Tensor, scale: float) -> Tensor:
    values = values.to(_wide(values.dtype))
    return values if scale == 1.0 else values * scale


def _is_narrow(difference_RV: Tensor, bound: float) -> bool:
    smallest, largest = torch.aminmax(difference_RV)
    return bool((largest < bound) & (smallest > -bound))


def _chunks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _row_blocks(chunk: slice, logits_CV: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields (rows of the chunk, the same as tokens of the batch)."""
    num_rows, vocabulary = logits_CV.shape
    for rows in _chunks(num_rows, max(1, BLOCK_ENTRIES[logits_CV.device.type] // vocabulary)):
        yield rows, slice(chunk.start + rows.start, chunk.start + rows.stop)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and row-wise work: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first is second or (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )


@functools.cache
def _keep_scratch_memory() -> None:
    """Lets glibc keep freed row temporaries instead of returning them to the kernel after every operation.

    Its threshold for that follows the largest block freed so far, up to 32 MiB. Without this the walk over the rows
    spends a third of its time on page faults. Harmless where the allocator is another one.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _check_tensors(hidden: Tensor, head: Tensor, per_token: Tensor) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1] or per_token.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden states [N, H], a head [V, H] and [N] values per token, "
            f"not {tuple(hidden.shape)}, {tuple(head.shape)} and {tuple(per_token.shape)}"
        )
    if hidden.dtype != head.dtype or hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(
            f"hidden states ({hidden.dtype}) and head ({head.dtype}) must share one of bfloat16, float32, float64"
        )


def _check_positive(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
