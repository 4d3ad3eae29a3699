"""Text and numbers as a reader sees them: untrusted text made harmless and visible, numbers in one style everywhere."""

from __future__ import annotations

import json
import math
from typing import Any

from stepalign.outside import visible as visible
from stepalign.storage.files import finite

MISSING = "–"
"""In place of a number that is not defined or not measured yet. Never 0."""


def safe_json(value: Any) -> str:
    """JSON for the inside of a ``<script>`` element: no ``<``, ``>``, ``&``, nothing outside ASCII, null for NaN."""
    return escape_json(json.dumps(finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False))


def escape_json(text: str) -> str:
    """JSON text without ``<``, ``>`` and ``&``, which it can only hold inside strings."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (null, NaN, text, absent)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _written(value: Any, template: str) -> str:
    """A number in a format with a true minus, so that columns align; MISSING for anything else."""
    plain = number(value)
    return MISSING if plain is None else template.format(plain).replace("-", "−")


def percent(value: Any, *, unit: bool = True) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return _written(_hundredfold(value), "{:.1f} %" if unit else "{:.1f}")


def signed_points(value: Any) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _written(_hundredfold(value), "{:+.1f}")


def _hundredfold(value: Any) -> float | None:
    share = number(value)
    return None if share is None else 100 * share


def decimal(value: Any, digits: int = 3) -> str:
    return _written(value, f"{{:.{digits}f}}")


def signed(value: Any, digits: int = 3) -> str:
    return _written(value, f"{{:+.{digits}f}}")


def count(value: Any) -> str:
    """A whole number with groups of thousands: 15,872."""
    return _written(value, "{:,.0f}")


def money(value: Any) -> str:
    return _written(value, "{:,.2f}")


def number_of(value: Any, name: str) -> str:
    """A count with its noun: 1 rollout, 15,872 rollouts."""
    return f"{count(value)} {name}" if value == 1 else f"{count(value)} {name}s"


def seconds(value: Any) -> str:
    """A duration in the unit a person would choose."""
    plain = number(value)
    if plain is None or plain < 100:
        return _written(plain, "{:.1f} s")
    if plain < 3600:
        return f"{int(plain // 60)} min {int(plain % 60):02d} s"
    return f"{int(plain // 3600)} h {int(plain % 3600 // 60):02d} min"


def megabytes(value: Any) -> str:
    """Bytes as MB (10**6) or GB (10**9)."""
    plain = number(value) or 0.0
    return f"{plain / 1e9:.2f} GB" if plain >= 1e9 else _written(value and plain / 1e6, "{:.0f} MB")


def p_value(value: Any) -> str:
    plain = number(value)
    return "< 0.001" if plain is not None and plain < 0.001 else _written(plain, "{:.3f}")


def listing(items: list[str]) -> str:
    """Items as prose: ``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""
