"""The colour scale of A_t: one diverging scale, centred at 0, the same in the page, its exports and the terminal.

Blue reinforces, orange suppresses (distinguishable under every common colour-vision deficiency). A value falls into one
of ``2 * LEVELS + 1`` levels; each level has a background and whichever of black and white reads better on it, so text
contrast is at least 4.5:1 by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from stepalign.token_signal.table import DIGITS, ScoredCompletion

Scheme = Literal["light", "dark"]

LEVELS = 16
PERCENTILE = 99

# From the paper outwards, level by level: four colours each, mixed in Oklab, where equal steps look equal.
_BACKGROUNDS: dict[tuple[Scheme, int], str] = {
    ("light", +1): "ffffff f1f7fc e3eef9 d5e6f6 c7def2 bad6ef a8cbeb 95bfe5 82b3e0 6fa7db 5b9bd5 498ecd 3d80c0 3173b4"
    " 2565a7 19579b 0b4a8f",
    ("light", -1): "ffffff fff7f0 feeee1 fde6d2 fcddc2 fbd5b3 f9c8a0 f5ba8a f1ac74 ed9d5d e88e44 e07f2c cf6f25 bf601d"
    " af5116 9f410e 8f3206",
    ("dark", +1): "14161a 171e28 192737 1b3047 1c3957 1d4267 214d79 275a8b 2d679d 3374b0 3982c3 4590d3 5a9ddc 6eabe5"
    " 82b9ee 95c7f6 a9d5ff",
    ("dark", -1): "14161a 221c1b 31211b 40271a 4f2c18 5f3014 703915 83441a 964f1f a95b24 bd6729 ce7534 d9864b e39760"
    " eca874 f6b988 ffca9c",
}


def shared_limit(values: Iterable[float | None], percentile: float = PERCENTILE) -> float:
    """The |value| that the given percentage of all values does not exceed (nearest rank); 1.0 without any signal."""
    sizes = np.abs(np.array(list(values), dtype=float))
    sizes = np.sort(sizes[np.isfinite(sizes)])
    if not len(sizes):
        return 1.0
    rank = max(1, int(np.ceil(percentile / 100 * len(sizes))))
    return float(sizes[rank - 1] or sizes[-1] or 1.0)


def limit_of(rollouts: Sequence[ScoredCompletion]) -> float:
    """The limit of a page: over all its rollouts and contexts."""
    columns = [table.log_ratio for rollout in rollouts for table in rollout.tables.values()]
    return round(shared_limit(np.round(np.concatenate([np.zeros(0), *columns]), DIGITS)), DIGITS)


def level(value: float, limit: float) -> int:
    """The level of a value in [-LEVELS, LEVELS]; 0 for undefined values. Beyond the limit the scale is clipped."""
    if not np.isfinite(value) or limit <= 0:
        return 0
    size = int(min(1.0, abs(value) / limit) * LEVELS + 0.5)
    return size if value > 0 else -size


def background(at: int, scheme: Scheme = "light") -> str:
    """The background of a level as ``#rrggbb``."""
    return "#" + _BACKGROUNDS[scheme, 1 if at >= 0 else -1].split()[min(abs(at), LEVELS)]


def ink(at: int, scheme: Scheme = "light") -> str:
    """Black or white, whichever has the higher contrast on that level's background."""
    paper = background(at, scheme)
    return "#000000" if contrast("#000000", paper) >= contrast("#ffffff", paper) else "#ffffff"


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours as WCAG 2.2 defines it, in [1, 21]."""
    lights = sorted((_luminance(first), _luminance(second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = linear_channels(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear_channels(colour: str) -> list[float]:
    """Linear-light red, green, blue in [0, 1] of ``#rrggbb``."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def stylesheet() -> str:
    """CSS rules of every level, ``.p1 .. .p16`` and ``.m1 .. .m16``, for both colour schemes."""
    # Paper is white: a page printed from a dark screen falls back to the light rules.
    return f"{_rules('light')}\n@media screen and (prefers-color-scheme: dark) {{\n{_rules('dark')}\n}}\n"


def _rules(scheme: Scheme) -> str:
    # --c: small pictures of the scale use the background as their fill.
    return "\n".join(
        f".{'p' if at > 0 else 'm'}{abs(at)}"
        f"{{--c:{background(at, scheme)};background-color:var(--c);color:{ink(at, scheme)}}}"
        for size in range(1, LEVELS + 1)
        for at in (size, -size)
    )
