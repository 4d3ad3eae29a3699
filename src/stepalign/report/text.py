"""Text and numbers as a reader sees them: untrusted text made harmless and visible, numbers in one style everywhere."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# C0 and C1 controls, soft hyphen, zero-width and direction marks, line separators, byte-order mark, language tags,
# lone surrogates: characters that a reader cannot see, or that a terminal obeys.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
    "|[\U000e0000-\U000e007f]"
)

MISSING = "–"
"""What stands for a number that is not defined or not measured yet. Never 0."""


def visible(text: object) -> str:
    """Text with every invisible or terminal-controlling character spelled out; newline and tab stay.

    Control characters become their Unicode pictures (ESC becomes ␛), all others ``⟨U+202E⟩``. Nothing in the result can
    move a cursor, colour a terminal, or reorder the line it stands in.
    """
    return _INVISIBLE.sub(_picture, str(text))


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩"


def safe_json(value: Any) -> str:
    """JSON that can stand inside a ``<script>`` element: no ``<``, ``>``, ``&``, and nothing outside ASCII.

    NaN and infinities become null: JSON has no such numbers, and a browser would refuse the whole page for one of them.
    """
    return escape_json(json.dumps(finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False))


def escape_json(text: str) -> str:
    """JSON text without ``<``, ``>`` and ``&``, which it can only hold inside strings."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: Any) -> Any:
    """A tree in which NaN and infinities are None: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (null, NaN, text, absent)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: Any, *, unit: bool = True) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    share = number(value)
    return MISSING if share is None else f"{100 * share:.1f}" + (" %" if unit else "")


def signed_points(value: Any) -> str:
    """A difference of shares in percentage points, with its sign (a true minus, so that columns align)."""
    share = number(value)
    return MISSING if share is None else _sign(f"{100 * share:+.1f}")


def decimal(value: Any, digits: int = 3) -> str:
    plain = number(value)
    return MISSING if plain is None else _sign(f"{plain:.{digits}f}")


def signed(value: Any, digits: int = 3) -> str:
    plain = number(value)
    return MISSING if plain is None else _sign(f"{plain:+.{digits}f}")


def count(value: Any) -> str:
    """A whole number with thin groups of thousands: 15,872."""
    plain = number(value)
    return MISSING if plain is None else f"{plain:,.0f}"


def number_of(value: Any, name: str) -> str:
    """A count with its noun: 1 rollout, 15,872 rollouts."""
    return f"{count(value)} {name}" if value == 1 else f"{count(value)} {name}s"


def seconds(value: Any) -> str:
    """A duration in the unit a person would choose."""
    plain = number(value)
    if plain is None:
        return MISSING
    if plain < 100:
        return f"{plain:.1f} s"
    if plain < 3600:
        return f"{int(plain // 60)} min {int(plain % 60):02d} s"
    return f"{int(plain // 3600)} h {int(plain % 3600 // 60):02d} min"


def megabytes(value: Any) -> str:
    """Bytes as MB (10**6) or GB (10**9)."""
    plain = number(value)
    if plain is None:
        return MISSING
    return f"{plain / 1e9:.2f} GB" if plain >= 1e9 else f"{plain / 1e6:.0f} MB"


def p_value(value: Any) -> str:
    plain = number(value)
    if plain is None:
        return MISSING
    return "< 0.001" if plain < 0.001 else f"{plain:.3f}"


def listing(items: list[str]) -> str:
    """Items as prose: ``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


def _sign(text: str) -> str:
    return text.replace("-", "−")
