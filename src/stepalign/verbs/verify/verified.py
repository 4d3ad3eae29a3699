"""What was recomputed, and what differs."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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
        for path, one, other in itertools.islice(_differing(stored, found, tolerance), 1):
            self.different.append(f"{where}{path}: stored {_short(one)}, recomputed {_short(other)}")


def _differing(one: Any, other: Any, tolerance: float, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, value) of everything that differs in two trees."""
    pairs: Iterable[tuple[str, tuple[Any, Any]]] = ()
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        pairs = ((f", {key}", (one[key], other[key])) for key in one)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = ((f"[{place}]", pair) for place, pair in enumerate(zip(one, other, strict=True)))
    elif not _same(one, other, tolerance):
        yield path, one, other
    for step, (a, b) in pairs:
        yield from _differing(a, b, tolerance, path + step)


def _same(one: Any, other: Any, tolerance: float) -> bool:
    numbers = isinstance(one, float | int) and isinstance(other, float | int)
    if not numbers or isinstance(one, bool) or isinstance(other, bool):
        return bool(one == other)
    return one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
