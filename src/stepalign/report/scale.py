"""The colour scale of A_t: one diverging scale, centred at 0, the same in the page, its exports and the terminal.

Blue reinforces, orange suppresses (distinguishable under every common colour-vision deficiency). A value falls into one
of ``2 * LEVELS + 1`` levels; each level has a background and whichever of black and white reads better on it, so text
contrast is at least 4.5:1 by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from stepalign.report.text import number

Scheme = Literal["light", "dark"]

LEVELS = 16
PERCENTILE = 99
SYMLOG_KNEE = 0.05
"""Where the logarithmic scale turns linear, as a share of the limit."""

# From the paper outwards; neighbours are mixed in Oklab, where equal steps look equal.
_STOPS: dict[tuple[Scheme, int], tuple[str, ...]] = {
    ("light", +1): ("#ffffff", "#b5d3ee", "#4d93d1", "#0b4a8f"),
    ("light", -1): ("#ffffff", "#fbd2ae", "#e5842f", "#8f3206"),
    ("dark", +1): ("#14161a", "#1d456d", "#3d8bd0", "#a9d5ff"),
    ("dark", -1): ("#14161a", "#643212", "#cb6f2c", "#ffca9c"),
}


def shared_limit(values: Iterable[float | None], percentile: float = PERCENTILE) -> float:
    """The |value| that the given percentage of all values does not exceed (nearest rank); 1.0 without any signal."""
    sizes = sorted(abs(value) for value in values if number(value) is not None and value is not None)
    if not sizes:
        return 1.0
    rank = max(1, math.ceil(percentile / 100 * len(sizes)))
    return sizes[rank - 1] or sizes[-1] or 1.0


def level(value: float | None, limit: float, *, symlog: bool = False) -> int:
    """The level of a value in [-LEVELS, LEVELS]; 0 for undefined values. Beyond the limit the scale is clipped."""
    plain = number(value)
    if plain is None or limit <= 0:
        return 0
    share = min(1.0, abs(plain) / limit)
    if symlog:
        share = math.log1p(share / SYMLOG_KNEE) / math.log1p(1 / SYMLOG_KNEE)
    size = math.floor(share * LEVELS + 0.5)
    return size if plain > 0 else -size


def background(at: int, scheme: Scheme = "light") -> str:
    """The background of a level as ``#rrggbb``."""
    stops = _STOPS[scheme, 1 if at >= 0 else -1]
    position = min(abs(at), LEVELS) / LEVELS * (len(stops) - 1)
    left = min(int(position), len(stops) - 2)
    return _mix(stops[left], stops[left + 1], position - left)


def ink(at: int, scheme: Scheme = "light") -> str:
    """Black or white, whichever has the higher contrast on that level's background."""
    paper = background(at, scheme)
    return "#000000" if contrast("#000000", paper) >= contrast("#ffffff", paper) else "#ffffff"


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours as WCAG 2.2 defines it, in [1, 21]."""
    lights = sorted((_luminance(first), _luminance(second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def stylesheet() -> str:
    """CSS rules of every level, ``.p1 .. .p16`` and ``.m1 .. .m16``, for both colour schemes."""
    light, dark = _rules("light"), _rules("dark")
    # Paper is white: a page printed from a dark screen falls back to the light rules.
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _rules(scheme: Scheme) -> str:
    levels = [at for size in range(1, LEVELS + 1) for at in (size, -size)]
    names = {at: f"{'p' if at > 0 else 'm'}{abs(at)}" for at in levels}
    # --c: small pictures of the scale use the background as their fill.
    return "\n".join(
        f".{names[at]}{{--c:{background(at, scheme)};background-color:var(--c);color:{ink(at, scheme)}}}"
        for at in levels
    )


def _channels(colour: str) -> list[float]:
    """Linear-light red, green, blue in [0, 1]."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _luminance(colour: str) -> float:
    red, green, blue = _channels(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _oklab(colour: str) -> tuple[float, float, float]:
    # Constants: B. Ottosson, "A perceptual color space for image processing", 2020.
    red, green, blue = _channels(colour)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    medium = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def _hex(lab: tuple[float, float, float]) -> str:
    light, first, second = lab
    long = (light + 0.3963377774 * first + 0.2158037573 * second) ** 3
    medium = (light - 0.1055613458 * first - 0.0638541728 * second) ** 3
    short = (light - 0.0894841775 * first - 1.2914855480 * second) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    bounded = [min(1.0, max(0.0, part)) for part in linear]
    curved = [12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055 for part in bounded]
    return "#" + "".join(f"{round(255 * part):02x}" for part in curved)


def _mix(first: str, second: str, share: float) -> str:
    start, end = _oklab(first), _oklab(second)
    red, green, blue = (one + (two - one) * share for one, two in zip(start, end, strict=True))
    return _hex((red, green, blue))
