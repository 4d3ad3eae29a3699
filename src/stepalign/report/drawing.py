"""SVG elements of the charts: frames, ticks, colours, markers and text. Pure functions, data in, string out.

Colours are presentation attributes (a chart saved by itself keeps them) and classes (``arm-0`` ...), which the page's
style sheet overrides, for instance in dark mode. All text is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from stepalign.report.text import number, visible

# Dark enough for thin lines on white (3:1 and more), distinct under deuteranopia and protanopia by lightness as well.
ARM_COLOURS = ("#00776b", "#b9620b", "#6b4bb5", "#b02a63", "#3a7d1e", "#1f6fb0", "#7a5a2e", "#4a5568")
BASE_COLOUR = "#6b7078"
PHASE_COLOURS = ("#39495c", "#7f95ab", "#b9a27a", "#c9d3dc", "#8f7fa8", "#dccfb4")
DASHES = ("", "7 4", "2 3")
"""After eight arms colours repeat; a dash pattern then tells them apart."""

_PLUS = (
    (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
    (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
)  # fmt: skip
_CORNERS = (
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
    ((0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    _PLUS,
    ((-0.6, -1.1), (0.6, -1.1), (1.2, 0.0), (0.6, 1.1), (-0.6, 1.1), (-1.2, 0.0)),
    tuple((0.75 * (across - down), 0.75 * (across + down)) for across, down in _PLUS),
)
"""Outlines of the markers after the circle, in units of their size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A rectangle of pixels that shows a rectangle of data."""

    left: float
    top: float
    width: float
    height: float
    x_low: float
    x_high: float
    y_low: float = 0.0
    y_high: float = 1.0

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return self.top + self.height * (self.y_high - value) / (self.y_high - self.y_low)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers whose first is at most ``low`` and whose last is at least ``high``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"an axis needs finite ends, got {low} and {high}")
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_texts(ticks: Sequence[float], as_percent: bool) -> list[str]:
    """Ticks with as many decimals as their spacing needs, and no more."""
    scaled = [100 * tick if as_percent else tick for tick in ticks]
    gap = min((abs(b - a) for a, b in itertools.pairwise(scaled)), default=1.0)
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    if gap and round(gap, digits) != round(gap, 9):
        digits += 1
    return [f"{tick:,.{digits}f}".replace("-", "−") + (" %" if as_percent else "") for tick in scaled]


def arm_colour(index: int) -> str:
    return BASE_COLOUR if index < 0 else ARM_COLOURS[index % len(ARM_COLOURS)]


def arm_class(index: int) -> str:
    return "arm-base" if index < 0 else f"arm-{index % len(ARM_COLOURS)}"


def marker(index: int, x: float, y: float, size: float = 3.4, title: str = "") -> str:
    """The point of an arm: one of eight shapes by turns, so that shape tells arms apart as well."""
    inside = f"<title>{safe(title)}</title>" if title else ""
    shape = index % len(ARM_COLOURS) if index >= 0 else 0
    paint = f'class="mark {arm_class(index)}" fill="{arm_colour(index)}"'
    if shape == 0:
        return f'<circle {paint} cx="{px(x)}" cy="{px(y)}" r="{px(size)}">{inside}</circle>'
    points = " ".join(f"{px(x + size * across)},{px(y + size * down)}" for across, down in _CORNERS[shape - 1])
    return f'<polygon {paint} points="{points}">{inside}</polygon>'


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved at least ``gap`` apart within bounds, in one sweep each way."""
    out = list(places)
    for index in range(1, len(out)):
        out[index] = max(out[index], out[index - 1] + gap)
    ceiling = high
    for index in range(len(out) - 1, -1, -1):
        out[index] = max(min(out[index], ceiling), low + gap * index)
        ceiling = out[index] - gap
    return out


def svg(parts: Iterable[str], width: float, height: float, title: str, kind: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" aria-label="{safe(title)}" '
        f'viewBox="0 0 {px(width)} {px(height)}" width="{px(width)}" height="{px(height)}" '
        f'font-family="Helvetica Neue, Helvetica, Arial, sans-serif" font-size="12">' + "".join(parts) + "</svg>"
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float, paint: str) -> str:
    return f'<line class="{kind}" {paint} x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}"/>'


def words_at(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    fill = "#5b6068" if kind in {"tick", "axis-name", "legend", "guide-name", "empty"} else "#1c1f24"
    return f'<text class="{kind}" fill="{fill}" text-anchor="{anchor}" x="{px(x)}" y="{px(y)}">{safe(text)}</text>'


def path_data(points: Iterable[Sequence[float]]) -> str:
    return "M" + "L".join(f"{px(x)} {px(y)}" for x, y in points)


def defined_runs(rows: Iterable[Sequence[Any]]) -> list[list[tuple[float, ...]]]:
    """Stretches of rows without an undefined value (None, NaN); a row with one ends a stretch."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for row in rows:
        values = defined(row)
        if len(values) == len(row):
            runs[-1].append(tuple(values))
        else:
            runs.append([])
    return [run for run in runs if run]


def defined(values: Iterable[Any]) -> list[float]:
    return [plain for plain in map(number, values) if plain is not None]


def padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1)


def text_width(text: str) -> float:
    """Width of 12 px sans-serif text in px; a rough upper estimate, no font file is at hand."""
    return sum(3.6 if sign in "iljtfr.,:;|!' []()" else 9.6 if sign in "mwMW@%" else 7.0 for sign in text)


def widest(texts: Iterable[str]) -> float:
    return max(map(text_width, texts), default=0.0)


def shortened(label: str, limit: int = 26) -> str:
    """A label cut in its middle: the difference between two labels is mostly at their beginning or end."""
    if len(label) <= limit:
        return label
    head = limit // 2
    return f"{label[:head].rstrip()}…{label[len(label) - (limit - head - 1) :].lstrip()}"


def safe(text: object) -> str:
    return escape(visible(text), quote=True)


def px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def drawn(
    chart: Callable[..., str],
    data: Any,
    *,
    wide: Mapping[str, Any] | None = None,
    phone: Mapping[str, Any] | None = None,
    **options: Any,
) -> Markup:
    """A chart, and where a phone needs another drawing of it to keep its text readable, both; the style shows one."""
    large = Markup(chart(data, **options, **(wide or {})))
    if phone is None:
        return large
    small = Markup(chart(data, **options, **phone))
    return Markup(f'<div class="on-wide">{large}</div><div class="on-phone">{small}</div>')
