"""What was recomputed, and what differs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Verified:
    """What was recomputed, and what differs."""

    checked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Kind of number -> how many of them."""
    different: list[str] = field(default_factory=list)
    """One line per number that differs."""
    skipped: list[str] = field(default_factory=list)
    """What could not be recomputed, and why."""

    def compare(self, kind: str, where: str, stored: Any, found: Any, tolerance: float = 0.0) -> None:
        self.checked[kind] += 1
        if not _same(stored, found, tolerance):
            self.different.append(f"{where}: stored {_short(stored)}, recomputed {_short(found)}")


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one == other
    if isinstance(one, float | int) and isinstance(other, float | int):
        return one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return one == other


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
