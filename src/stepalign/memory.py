"""Memory that the allocator of the C library holds on to. Where that is not glibc, nothing here does anything."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MMAP_THRESHOLD = -3
"""The parameter's number in malloc.h."""
ON_THE_HEAP, APART = 32 * 2**20, 2**20
"""Bytes from which a block has pages of its own: glibc's largest threshold, and that inside ``apart``."""


@functools.cache
def _glibc() -> Any:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def give_back() -> None:
    """Return every page of the heap that holds nothing: to this process it costs what it will use of them again."""
    if _glibc():
        _glibc().malloc_trim(0)


@contextmanager
def apart(wanted: bool = True) -> Iterator[None]:
    """Inside, blocks of a mebibyte and more have pages of their own, which leave with them.

    On the heap the tensors that a forward pass keeps have gaps between them where others were: half as much again.
    """
    library = _glibc() if wanted else None
    if library:
        library.mallopt(MMAP_THRESHOLD, APART)
    try:
        yield
    finally:
        if library:
            library.mallopt(MMAP_THRESHOLD, ON_THE_HEAP)
