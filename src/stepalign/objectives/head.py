"""The matrix products around the head: logits of a chunk of tokens, and the gradients that flow back from them.

Shape suffixes: N completion tokens, H hidden, V vocabulary, C tokens of a chunk, P of a part of it, R rows of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stepalign.objectives.fused_kernel import wide_dtype

HEAD_TILE = {"cpu": 2048, "cuda": 2**15}
"""Rows of the head per step where a product is cut: small enough for the cache, large enough for the kernel."""

LOGIT_ROWS = 171
"""Rows of float32 logits held at a time on a CPU, a third of a chunk: each part widens the head anew, and more rows
take more memory than they save time. On other devices as many as the chunk has."""

ONEDNN_ROWS = 32
"""Rows of a product by oneDNN are a multiple of it."""

BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**26}
"""Logits per block of rows: on a CPU a block's temporaries stay in the cache, on a GPU this bounds their memory."""


def logit_buffer(hidden_NH: Tensor, head_VH: Tensor, chunk_tokens: int, dtype: torch.dtype) -> Tensor:
    """Memory for ``logit_parts``: [P, V], the logits of P rows at a time."""
    _keep_scratch_memory()
    rows = min(len(hidden_NH), chunk_tokens, LOGIT_ROWS if hidden_NH.device.type == "cpu" else chunk_tokens)
    return hidden_NH.new_empty(rows, len(head_VH), dtype=dtype)


def logit_parts(hidden_NH: Tensor, head_VH: Tensor, buffer_PV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, their logits [P, V]); the logits live until the next part."""
    for part in slices(len(hidden_NH), max(1, len(buffer_PV))):
        logits_PV = buffer_PV[: part.stop - part.start]
        product_into(logits_PV, hidden_NH[part], head_VH)
        yield part, logits_PV


def row_blocks(logits_PV: Tensor) -> Iterator[slice]:
    """Rows for row-wise work, few enough for its temporaries (see ``BLOCK_ENTRIES``), in blocks of even size."""
    most = max(1, BLOCK_ENTRIES.get(logits_PV.device.type, 2**24) // logits_PV.shape[1])
    blocks = max(1, math.ceil(len(logits_PV) / most))
    return slices(len(logits_PV), math.ceil(len(logits_PV) / blocks))


def logit_blocks(hidden_NH: Tensor, head_VH: Tensor, buffer_PV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, their logits [R, V]), few enough rows for row-wise work; the logits live until the next block."""
    for part, logits_PV in logit_parts(hidden_NH, head_VH, buffer_PV):
        for rows in row_blocks(logits_PV):
            yield slice(part.start + rows.start, part.start + rows.stop), logits_PV[rows]


def difference_into(
    out_CV: Tensor, student_CH: Tensor, student_head_VH: Tensor, teacher_CH: Tensor, teacher_head_VH: Tensor
) -> None:
    """out = D = z_T - z_S, formed from differences, so that rounding stays relative to D however small it is.

    Shared head W:          D = (h_T - h_S) W^T
    heads of equal width:   D = (h_T - h_S) W_T^T + h_S (W_T - W_S)^T, as one product of twice the inner width
    another width:          D = h_T W_T^T - h_S W_S^T, likewise; here nothing is near anything
    """
    if same_memory(student_head_VH, teacher_head_VH):
        product_into(out_CV, _subtract(teacher_CH, student_CH, out_CV.dtype), student_head_VH)
        return
    near = student_CH.shape == teacher_CH.shape
    rows = (_subtract(teacher_CH, student_CH, out_CV.dtype), student_CH) if near else (teacher_CH, -student_CH)
    left_CK = torch.cat(rows, dim=1)
    for tile in slices(len(student_head_VH), _tile(student_head_VH)):
        student_tile, teacher_tile = student_head_VH[tile], teacher_head_VH[tile]
        columns = (teacher_tile, _subtract(teacher_tile, student_tile, out_CV.dtype) if near else student_tile)
        product_into(out_CV[:, tile], left_CK, torch.cat(columns, dim=1))


def _subtract(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """first - second, rounded once."""
    wide = wide_dtype(first.dtype)
    return (first.to(wide) - second.to(wide)).to(dtype)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of hidden states and head while the chunks pass; None where not required."""

    hidden_NH: Tensor | None
    head_VH: Tensor | None

    @classmethod
    def waiting(cls, hidden_NH: Tensor, head_VH: Tensor, needs: tuple[bool, bool], chunk_tokens: int) -> Gradients:
        # Several chunks add up in float32, or the rounding of every sum would bias training; a single one need not.
        head_dtype = wide_dtype(head_VH.dtype) if len(hidden_NH) > chunk_tokens else head_VH.dtype
        empty = torch.empty_like if len(hidden_NH) else torch.zeros_like  # the first chunk writes, the others add
        return cls(
            hidden_NH=empty(hidden_NH) if needs[0] else None,
            head_VH=empty(head_VH, dtype=head_dtype) if needs[1] else None,
        )

    @property
    def wanted(self) -> bool:
        return self.hidden_NH is not None or self.head_VH is not None

    def add(self, chunk: slice, gradient_CV: Tensor, hidden_CH: Tensor, head_VH: Tensor) -> None:
        """Carries the gradient of one chunk's logits to its hidden states and to the head."""
        if not self.wanted:
            return
        gradient_CV = gradient_CV.to(head_VH.dtype)
        if self.hidden_NH is not None:
            torch.mm(gradient_CV, head_VH, out=self.hidden_NH[chunk])
        if self.head_VH is not None and chunk.start == 0 and self.head_VH.dtype == head_VH.dtype:
            torch.mm(gradient_CV.t(), hidden_CH, out=self.head_VH)
        elif self.head_VH is not None:
            # By tiles, so that each partial sum is still in the cache when it is added.
            for tile in slices(len(head_VH), _tile(head_VH)):
                part = torch.mm(gradient_CV[:, tile].t(), hidden_CH)
                self.head_VH[tile].copy_(part) if chunk.start == 0 else self.head_VH[tile].add_(part)

    def finished(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        return self.hidden_NH, None if self.head_VH is None else self.head_VH.to(dtype)


def product_into(out_CV: Tensor, hidden_CH: Tensor, head_VH: Tensor) -> None:
    """out = hidden head^T, rounded only to out's dtype."""
    if hidden_CH.dtype == head_VH.dtype != out_CV.dtype and _widens_products(out_CV):
        torch.mm(hidden_CH, head_VH.t(), out_CV.dtype, out=out_CV)
    elif out_CV.dtype == head_VH.dtype and not (out_CV.dtype == torch.float32 and _has_onednn(out_CV)):
        torch.mm(hidden_CH, head_VH.t(), out=out_CV)
    else:
        # No product takes these dtypes together: widen the head, one tile at a time.
        hidden_CH = _in_few_shapes(hidden_CH.to(out_CV.dtype))
        for tile in slices(len(head_VH), _tile(head_VH)):
            out_CV[:, tile] = _linear(hidden_CH, head_VH[tile].to(out_CV.dtype))[: len(out_CV)]


def _widens_products(tensor: Tensor) -> bool:
    """Whether there is a product of two bfloat16 matrices with a float32 result: on a GPU there is, on a CPU not."""
    return tensor.is_cuda


def _linear(hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
    """hidden weight^T. In float32 through oneDNN: on AMD processors twice as fast as MKL, which torch.mm calls."""
    if weight_VH.dtype == torch.float32 and _has_onednn(weight_VH):
        return torch.ops.mkldnn._linear_pointwise(hidden_CH, weight_VH, None, "none", [], "")
    return torch.mm(hidden_CH, weight_VH.t())


def _in_few_shapes(hidden_CH: Tensor) -> Tensor:
    """Rows of zeros behind, up to a multiple of ``ONEDNN_ROWS``: the other rows of a product keep their bits.

    For every number of rows oneDNN and PyTorch's cache in front of it keep half a megabyte, for a thousand of them
    each. One row alone has a kernel of its own, which rounds otherwise.
    """
    if len(hidden_CH) == 1 or hidden_CH.dtype != torch.float32 or not _has_onednn(hidden_CH):
        return hidden_CH
    return torch.nn.functional.pad(hidden_CH, (0, 0, 0, -len(hidden_CH) % ONEDNN_ROWS))


def _has_onednn(tensor: Tensor) -> bool:
    """The operator is what torch.compile lowers linear layers to; it is not promised to stay."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return tensor.device.type == "cpu" and available


def _tile(head_VH: Tensor) -> int:
    return HEAD_TILE.get(head_VH.device.type, len(head_VH))


def slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are one and the same matrix, as a parameter and its detached view are."""
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


def dtypes_as_given(tensor: Tensor) -> torch.autocast:
    """Inside, products and sums keep the dtypes of their inputs, whatever autocast is on around them."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_tensors(hidden: Tensor, head: Tensor, per_token: Tensor) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1] or per_token.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden states [N, H], a head [V, H] and [N] values per token, "
            f"not {tuple(hidden.shape)}, {tuple(head.shape)} and {tuple(per_token.shape)}; "
            "a batch is flattened, best to its completion tokens"
        )
    if hidden.dtype != head.dtype or hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(
            f"hidden states ({hidden.dtype}) and head ({head.dtype}) must share one of bfloat16, float32, float64"
        )


def check_excluded(excluded: Tensor | None, vocabulary: int) -> None:
    if excluded is not None and (excluded.shape != (vocabulary,) or excluded.dtype != torch.bool):
        raise ValueError(
            f"expected excluded entries [{vocabulary}] of bool, not {tuple(excluded.shape)} of {excluded.dtype}"
        )


def checked_ids(token_ids: Tensor, per_token: Tensor, vocabulary: int) -> Tensor:
    if token_ids.shape != per_token.shape:
        raise ValueError(f"expected {tuple(per_token.shape)} token ids, not {tuple(token_ids.shape)}")
    if token_ids.is_floating_point() or token_ids.dtype == torch.bool:
        raise TypeError(f"token ids are integers, not {token_ids.dtype}")
    if token_ids.numel() and not (token_ids.min() >= 0 and token_ids.max() < vocabulary):
        raise ValueError(
            f"token ids must lie between 0 and {vocabulary - 1}, found {int(token_ids.min())} to "
            f"{int(token_ids.max())}; leave masked tokens out, or give them any id and the weight 0"
        )
    return token_ids.long()
