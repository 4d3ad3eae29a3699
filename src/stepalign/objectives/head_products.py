"""The matrix products around the head: logits of a chunk of tokens, and the gradients that flow back from them.

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stepalign.objectives.row_walk import wide_dtype

HEAD_TILE = 2048
"""Rows of the head per step where a product is cut: small enough for the cache, large enough for the kernel."""

BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**26}
"""Logits per block of rows: on a CPU a block's temporaries stay in the cache, on a GPU this bounds their memory."""


def logit_pairs(
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
    wide = wide_dtype(model_dtype)
    shape = (min(chunk_tokens, len(student_NH)), len(student_head_VH))
    logits_CV = student_NH.new_empty(shape, dtype=model_dtype if shared and fast_logits else wide)
    difference_CV = student_NH.new_empty(shape, dtype=model_dtype if shared else wide)
    for chunk in slices(len(student_NH), chunk_tokens):
        student_CH, teacher_CH = student_NH[chunk], teacher_NH[chunk]
        logits, difference = logits_CV[: len(student_CH)], difference_CV[: len(student_CH)]
        product_into(logits, student_CH, student_head_VH)
        if shared:
            product_into(difference, (teacher_CH.to(wide) - student_CH.to(wide)).to(model_dtype), student_head_VH)
        else:
            product_into(difference, teacher_CH, teacher_head_VH)
            difference.sub_(logits)
        yield chunk, logits, difference


def logits_by_chunk(hidden_NH: Tensor, head_VH: Tensor, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields (tokens of the chunk, logits [C, V]) in float32; the memory is reused and may be overwritten."""
    _keep_scratch_memory()
    logits_CV = hidden_NH.new_empty(min(chunk_tokens, len(hidden_NH)), len(head_VH), dtype=wide_dtype(hidden_NH.dtype))
    for chunk in slices(len(hidden_NH), chunk_tokens):
        logits = logits_CV[: chunk.stop - chunk.start]
        product_into(logits, hidden_NH[chunk], head_VH)
        yield chunk, logits


def row_blocks(chunk: slice, logits_CV: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields (rows of the chunk, the same as tokens of the batch)."""
    num_rows, vocabulary = logits_CV.shape
    for rows in slices(num_rows, max(1, BLOCK_ENTRIES.get(logits_CV.device.type, 2**24) // vocabulary)):
        yield rows, slice(chunk.start + rows.start, chunk.start + rows.stop)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of hidden states and head while the chunks pass; None where not required."""

    hidden_NH: Tensor | None
    head_VH: Tensor | None

    @classmethod
    def zeros(cls, hidden_NH: Tensor, head_VH: Tensor, needs: tuple[bool, bool], chunk_tokens: int) -> Gradients:
        # Several chunks add up in float32, or the rounding of every sum would bias training; a single one need not.
        head_dtype = wide_dtype(head_VH.dtype) if len(hidden_NH) > chunk_tokens else head_VH.dtype
        return cls(
            hidden_NH=torch.zeros_like(hidden_NH) if needs[0] else None,
            head_VH=torch.zeros_like(head_VH, dtype=head_dtype) if needs[1] else None,
        )

    def add(self, chunk: slice, gradient_CV: Tensor, hidden_NH: Tensor, head_VH: Tensor) -> None:
        """Carries the gradient of one chunk's logits to its hidden states and to the head."""
        if self.hidden_NH is None and self.head_VH is None:
            return
        gradient_CV = gradient_CV.to(head_VH.dtype)
        if self.hidden_NH is not None:
            torch.mm(gradient_CV, head_VH, out=self.hidden_NH[chunk])
        if self.head_VH is not None:
            # By tiles, so that each partial sum is still in the cache when it is added.
            for tile in slices(len(head_VH), HEAD_TILE):
                self.head_VH[tile].add_(torch.mm(gradient_CV[:, tile].t(), hidden_NH[chunk]))

    def finished(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        return self.hidden_NH, None if self.head_VH is None else self.head_VH.to(dtype)


def product_into(out_CV: Tensor, hidden_CH: Tensor, head_VH: Tensor) -> None:
    """out = hidden head^T, rounded only to out's dtype."""
    if out_CV.is_cuda and out_CV.dtype != head_VH.dtype:
        torch.mm(hidden_CH, head_VH.t(), out_CV.dtype, out=out_CV)
    elif out_CV.dtype == head_VH.dtype and not (out_CV.dtype == torch.float32 and _has_onednn(out_CV)):
        torch.mm(hidden_CH, head_VH.t(), out=out_CV)
    else:
        # A CPU has no product of bfloat16 matrices with a float32 result: widen the head, one tile at a time.
        hidden_CH = hidden_CH.to(out_CV.dtype)
        for tile in slices(len(head_VH), HEAD_TILE):
            out_CV[:, tile] = _linear(hidden_CH, head_VH[tile].to(out_CV.dtype))


def _linear(hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
    """hidden weight^T. In float32 through oneDNN: on AMD processors twice as fast as MKL, which torch.mm calls."""
    if weight_VH.dtype == torch.float32 and _has_onednn(weight_VH):
        return torch.ops.mkldnn._linear_pointwise(hidden_CH, weight_VH, None, "none", [], "")
    return torch.mm(hidden_CH, weight_VH.t())


def _has_onednn(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and torch.backends.mkldnn.is_available()


def slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


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
