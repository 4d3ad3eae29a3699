"""Attention over a packed row, for every Hugging Face model that takes its attention function from the registry.

The work is drawn up once for a row and handed down to the layers as an argument of the forward pass, so that a layer
computed again under gradient checkpointing computes the same. Without that argument the registered function is plain
``sdpa``: samplers and everything else that uses the model notice nothing.

There are two routes, equal up to rounding. On a GPU with 16-bit weights one variable-length kernel takes the whole row.
Everywhere else segments are gathered into a few rectangles for ``scaled_dot_product_attention``; in there, and nowhere
else in the model, a segment is padded, where that costs less than one more call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from stepalign.models.load import on_device
from stepalign.models.packing import Packing, Segment

NAME, EAGER = "stepalign_packed", "stepalign_eager"

CALL_IN_PAIRS = 1024
"""The cost of a call of the kernel beyond its work, in pairs of a query and a key; on a CPU 128 to 1024 are as good."""

Attention = Callable[..., torch.Tensor]
"""(query, key, value, scaling, dropout) -> output, each tensor [S, heads, head dimension]."""


def build_attention(packing: Packing, *, device: torch.device, dtype: torch.dtype) -> Attention:
    """The attention of a packed row, to be handed to the layers as ``packed_attention``."""
    route = VarlenAttention if _has_varlen_kernel(device, dtype) else RectangleAttention
    return route(packing, device)


# ---------------------------------------------------------------------------------------------------------------------
# Which models can, and how it is switched on


def unpackable(decoder: torch.nn.Module) -> str | None:
    """Why a decoder cannot compute on packed rows; None where all its layers do plain, full, causal attention."""
    config: Any = decoder.config
    if not getattr(decoder, "_supports_attention_backend", False):
        return "its attention is part of the model's own code"
    if getattr(decoder, "_is_stateful", False):
        return "it carries a state from token to token"
    layer_types = getattr(config, "layer_types", None)
    if others := set(layer_types or ()) - {"full_attention"}:
        return f"it has layers of the type {', '.join(sorted(others))}"
    limits = ["attn_logit_softcapping", "attention_chunk_size", *([] if layer_types else ["sliding_window"])]
    if found := [limit for limit in limits if getattr(config, limit, None)]:
        return f"its configuration sets {', '.join(found)}"
    if any(name.endswith("sinks") for name, _ in decoder.named_parameters()):
        return "its attention has sinks"
    if config._attn_implementation not in ("sdpa", NAME):
        return "it computes attention in a way of its own"
    return None


def enable(decoder: torch.nn.Module) -> None:
    """Let the layers of a decoder look for packed rows, and masks for rows of unequal lengths, from now on."""
    _register()
    config: Any = decoder.config
    found = config._attn_implementation
    config._attn_implementation = {"sdpa": NAME, "eager": EAGER}.get(found, found)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ragged(sdpa_mask))
    AttentionInterface.register(EAGER, _own_attention)
    AttentionMaskInterface.register(EAGER, ragged(eager_mask))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_attention: Attention | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function: tensors in are [1, heads, S, D], the output is [1, S, heads, D]."""
    if packed_attention is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:  # ``unpackable`` should have known
            raise ValueError(f"packed rows know no attention with {name}")
    rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return packed_attention(*rows, scaling, dropout)[None], None


# ---------------------------------------------------------------------------------------------------------------------
# The rule for who may look at whom, at each row's own position


def ragged(mask: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function of transformers, extended to offsets of the query that differ between rows."""

    def masked(*, q_offset: Any = 0, **options: Any) -> torch.Tensor | None:
        if not isinstance(q_offset, torch.Tensor) or not q_offset.ndim:
            return mask(q_offset=q_offset, **options)
        device, rows = q_offset.device, len(q_offset)
        rows_B111 = torch.arange(rows, device=device).view(-1, 1, 1, 1)
        keys_111S = torch.arange(options["kv_length"], device=device).view(1, 1, 1, -1)
        allowed = options["mask_function"](
            rows_B111, torch.zeros_like(rows_B111[:1]), q_offset.view(-1, 1, 1, 1), keys_111S
        )
        allowed = allowed.expand(rows, 1, 1, -1)
        if "dtype" not in inspect.signature(mask).parameters:
            return allowed
        dtype = options["dtype"]
        return torch.zeros((), dtype=dtype, device=device).where(allowed, torch.finfo(dtype).min)

    return masked


def _own_attention(module: torch.nn.Module, *tensors: Any, **options: Any) -> Any:
    """The attention that comes with a model which has no other: with a cap on the scores, or with sinks."""
    return inspect.getmodule(type(module)).eager_attention_forward(module, *tensors, **options)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------------------
# Any device: a few rectangles


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """Segments behind equally long prompts, one a row."""

    segments: tuple[Segment, ...]
    width: int
    """Queries of a row: the longest segment's."""
    shown: int
    """Keys of a row before those of its own segment."""


def rectangles(segments: Sequence[Segment]) -> Iterator[_Rectangle]:
    """Cut segments into rectangles: one joins where the padding it needs costs less than a call of its own."""

    def order(segment: Segment) -> tuple[int, int, int]:
        return len(segment.shown), -segment.length, segment.start

    row: list[Segment] = []
    for segment in sorted(segments, key=order):
        if row:
            shown, width = len(row[0].shown), row[0].length
            padding = width * (shown + width) - segment.length * (shown + segment.length)
            if len(segment.shown) != shown or padding > CALL_IN_PAIRS:
                yield _Rectangle(tuple(row), width, shown)
                row = []
        row.append(segment)
    if row:
        yield _Rectangle(tuple(row), row[0].length, len(row[0].shown))


class RectangleAttention:
    """``scaled_dot_product_attention`` once for each rectangle."""

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self._rectangles = list(rectangles(packing.segments))
        queries: list[int] = []
        keys: list[int] = []
        for rectangle in self._rectangles:
            for segment in rectangle.segments:
                # A pad repeats a token of its own segment, and nothing that counts attends to it.
                padded = [*segment.places, *[segment.places[-1]] * (rectangle.width - segment.length)]
                queries.extend(padded)
                keys.extend([*segment.shown, *padded])
        self._queries, self._keys = _Copies(queries, device), _Copies(keys, device)
        self._masks = [on_device(_lower_right(r.width, r.shown), device) if r.shown else None for r in self._rectangles]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        query_sizes = [len(r.segments) * r.width for r in self._rectangles]
        key_sizes = [len(r.segments) * (r.shown + r.width) for r in self._rectangles]
        outputs = []
        for rectangle, mask, q, k, v in zip(
            self._rectangles,
            self._masks,
            self._queries.of(query).split(query_sizes),
            self._keys.of(key).split(key_sizes),
            self._keys.of(value).split(key_sizes),
            strict=True,
        ):
            q, k, v = (x.unflatten(0, (len(rectangle.segments), -1)).transpose(1, 2) for x in (q, k, v))
            output = scaled_dot_product_attention(
                *(q, k, v, mask),
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return self._queries.back(torch.cat(outputs))


def _lower_right(width: int, shown: int) -> torch.Tensor:
    """[width, shown + width], True where a query may look: all that is shown, its own past, itself."""
    return torch.ones(width, shown + width, dtype=torch.bool).tril(shown)


# ---------------------------------------------------------------------------------------------------------------------
# GPU: one variable-length kernel


def _has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Flash attention: 16-bit types, from compute capability 8.0 (Ampere), from torch 2.11."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return "window_size" in _varlen_options() and torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen_options() -> Collection[str]:
    """The parameters of ``varlen_attn``; none where there is none."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return ()
    return inspect.signature(varlen.varlen_attn).parameters


class VarlenAttention:
    """``varlen_attn`` over the whole row: queries in their order, shared prompts copied in front of their keys.

    The kernel aligns its causal mask at the lower right corner: the last query of a segment sees all its keys. Where it
    does not say that several heads of the query may share one of the keys (torch 2.11), keys are repeated for them.
    """

    def __init__(self, packing: Packing, device: torch.device) -> None:
        segments = packing.segments
        query_lengths = [segment.length for segment in segments]
        key_lengths = [len(segment.shown) + segment.length for segment in segments]
        self._keys = _Copies([place for s in segments for part in (s.shown, s.places) for place in part], device)
        self._bounds = [
            on_device([0, *accumulate(lengths)], device, torch.int32) for lengths in (query_lengths, key_lengths)
        ]
        self._longest = max(query_lengths), max(key_lengths)
        self._shares_heads = "enable_gqa" in _varlen_options()

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        from torch.nn.attention import varlen

        if dropout:
            raise ValueError("the variable-length kernel has no dropout")
        key, value = self._keys.of(key), self._keys.of(value)
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
        if self._shares_heads:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        elif (heads_of_a_key := query.shape[1] // key.shape[1]) > 1:
            key, value = (x.repeat_interleave(heads_of_a_key, dim=1) for x in (key, value))
        return varlen.varlen_attn(  # type: ignore[return-value]
            *(x.contiguous() for x in (query, key, value)), *self._bounds, *self._longest, **options
        )


# ---------------------------------------------------------------------------------------------------------------------
# Copies


class _Copies:
    """Tokens of the row where a kernel wants them: each at least once, a shared prompt once for each that is shown it.

    Plain indexing would do the same. Its backward pass adds row by row into zeros; here the first copies are gathered
    and only the others added.
    """

    def __init__(self, places: Sequence[int], device: torch.device) -> None:
        tokens, first = np.unique(np.asarray(places), return_index=True)
        again = np.delete(np.arange(len(places)), first)
        self.in_place = not len(again) and bool((first == tokens).all())
        self.places, self.first, self.again = (on_device(x, device, torch.long) for x in (places, first, again))

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """[S, ...] -> [number of copies, ...]"""
        return rows if self.in_place else _TakeCopies.apply(rows, self)  # type: ignore[return-value]

    def back(self, copies: torch.Tensor) -> torch.Tensor:
        """[number of copies, ...] -> [S, ...]: what was computed at the first copy of each token."""
        return copies if self.in_place else _TakeFirst.apply(copies, self)  # type: ignore[return-value]


class _TakeCopies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, copies: _Copies) -> torch.Tensor:
        ctx.copies = copies
        return rows.index_select(0, copies.places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        copies = ctx.copies
        total = gradient.index_select(0, copies.first)
        if len(copies.again):  # a shared prompt sums many gradients: not in 16 bits
            wide = torch.promote_types(gradient.dtype, torch.float32)
            further = gradient.index_select(0, copies.again).to(wide)
            total = total.to(wide).index_add_(0, copies.places[copies.again], further).to(gradient.dtype)
        return total, None


class _TakeFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, copies: _Copies) -> torch.Tensor:
        ctx.copies = copies
        return rows.index_select(0, copies.first)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        whole = gradient.new_zeros(len(ctx.copies.places), *gradient.shape[1:])
        return whole.index_copy_(0, ctx.copies.first, gradient), None
