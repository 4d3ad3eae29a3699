"""Whether torch.compile can work on this machine, and whether it pays."""

from __future__ import annotations

import functools

import torch

LARGE_VOCABULARY = 2**14
"""Entries from which the walk over the logits weighs enough that a training run wins back the 10 s of compiling."""


def pays_to_compile(head_VH: torch.Tensor) -> bool:
    """For a training run with this head. Machine and model alone decide: a resumed run must compute the same bits."""
    return len(head_VH) >= LARGE_VOCABULARY and can_compile(head_VH.device.type)


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works: it needs a C++ compiler, and Triton for a GPU; what is there may still be broken."""
    try:
        torch.compile(torch.exp)(torch.ones(8, device=device_type))
    except Exception:  # whatever a compiler may say
        return False
    return True
