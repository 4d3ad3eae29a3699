"""A cache of keys and values whose rows have lengths of their own, for decoding one token a row.

Row i holds its tokens from place 0 on, so that a place is a position and nothing is padded on the left. A prompt is
computed by the model's own plain forward pass and copied in; then every layer writes its new token at the row's own
position, and the model's own rule for who may look at whom - causal, a sliding window, chunks - is evaluated there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from stepalign import memory

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_GROWTH = 64
"""Places by which the buffer grows at least."""


def unsampleable(decoder: torch.nn.Module) -> str | None:
    """Why rows of unequal lengths cannot be decoded side by side; None where they can."""
    config: Any = decoder.config
    if getattr(decoder, "_is_stateful", False):
        return "it carries a state from token to token"
    if others := set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS:
        return f"it has layers of the type {', '.join(sorted(others))}"
    if not getattr(decoder, "_supports_attention_backend", False):
        return "its attention is part of the model's own code"
    if getattr(config, "num_kv_shared_layers", None):
        return "its layers share keys and values"
    return None


class Slots(Cache):
    """Keys and values [R, heads, W, D] of every layer, of which the first rows are in use."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self.positions_B: torch.Tensor = torch.zeros(0, dtype=torch.long)
        """Place of the token that each row takes next."""
        self.width = 0
        """Places in use."""

    def place(self, prompts: Cache, sources: torch.Tensor, first_row: int) -> None:
        """Copy computed prompts, named by their rows in ``prompts``, into the rows from ``first_row`` on."""
        rows = slice(first_row, first_row + len(sources))
        layers: list[Any] = prompts.layers
        for index, layer in enumerate(layers):
            for buffers, states in ((self._keys, layer.keys), (self._values, layer.values)):
                if len(buffers) == index:
                    heads, length, size = states.shape[1:]
                    buffers.append(states.new_zeros((self.rows, heads, length + _GROWTH, size)))
                width = states.shape[2]
                self._widen(buffers, index, width)
                buffers[index][rows, :, :width] = states.index_select(0, sources)
                self.width = max(self.width, width)

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy rows over others."""
        for buffers in (self._keys, self._values):
            for buffer in buffers:
                buffer[targets, :, : self.width] = buffer[sources, :, : self.width]

    def expect(self, positions: Sequence[int], device: torch.device) -> None:
        """The places at which the rows in use write their next token."""
        self.positions_B = torch.tensor(positions, device=device)
        self.width = max(positions) + 1

    def _widen(self, buffers: list[torch.Tensor], index: int, width: int) -> None:
        """Never beyond what is written to by much: most completions end before their limit."""
        rows, heads, have, size = buffers[index].shape
        if width > have:
            wider = buffers[index].new_zeros((rows, heads, max(width, have + max(_GROWTH, have // 4)), size))
            wider[:, :, :have] = buffers[index]
            buffers[index] = wider
            if buffers is self._values and index == len(buffers) - 1:
                memory.give_back()  # the narrower ones of all layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows_B = torch.arange(len(key_states), device=key_states.device)
        found = []
        for buffers, states in ((self._keys, key_states), (self._values, value_states)):
            self._widen(buffers, layer_idx, self.width)
            buffers[layer_idx][rows_B, :, self.positions_B] = states[:, :, 0]
            found.append(buffers[layer_idx][: len(states), :, : self.width])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.width, 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.positions_B


def prompt_cache() -> Cache:
    """For prompts: every layer keeps all of it, those with a window too."""
    return Cache(layer_class_to_replicate=DynamicLayer)
