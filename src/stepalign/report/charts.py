"""Charts as SVG text: pure functions, data in, string out.

Colours stand in the markup as presentation attributes (a chart saved by itself still looks right) and again as classes
(``arm-0`` ...), which the page's style sheet overrides, for instance in dark mode. Undefined values (None, NaN) leave a
gap: they are never drawn as 0 and never bridged. All text is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from stepalign.report.text import decimal, number, percent, visible

# Dark enough for thin lines on white (3:1 and more), told apart under deuteranopia and protanopia by lightness as well.
ARM_COLOURS = ("#00776b", "#b9620b", "#6b4bb5", "#b02a63", "#3a7d1e", "#1f6fb0", "#7a5a2e", "#4a5568")
BASE_COLOUR = "#6b7078"
PHASE_COLOURS = ("#39495c", "#7f95ab", "#b9a27a", "#c9d3dc", "#8f7fa8", "#dccfb4")
# After eight arms colours repeat; a dash pattern then tells them apart.
_DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart. All sequences have the same length; ``low`` and ``high`` may be empty (no band)."""

    label: str
    colour: int
    """Index of the arm; -1 is the untrained solver."""
    x: Sequence[float | None]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    faint: bool = False
    """A thin companion line without markers and label, e.g. one seed behind the mean of all."""
    marks: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One row of an interval chart: a point with its 95% interval."""

    label: str
    colour: int
    value: float | None
    low: float | None = None
    high: float | None = None
    text: str = ""
    """What stands at the right of the row."""
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A rectangle of pixels that shows a rectangle of data."""

    left: float
    top: float
    width: float
    height: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return self.top + self.height * (self.y_high - value) / (self.y_high - self.y_low)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    as_percent: bool = False,
    y_range: tuple[float, float] | None = None,
    guide: tuple[float, str] | None = None,
    width: int = 480,
    height: int = 290,
    end_labels: bool = True,
) -> str:
    """Lines over a common x axis, with bands, gaps at undefined values, and each line's name at its end.

    Args:
        guide: a vertical dashed line: its x value and its name.
        y_range: limits of the y axis; by default the data's, widened to round numbers.
    """
    named = [line for line in series if not line.faint]
    right = 10 + (max((_text_width(_short(line.label)) for line in named), default=0) + 14 if end_labels else 0)
    xs = [value for line in series for value in _defined(line.x)]
    ys = [value for line in series for values in (line.y, line.low, line.high) for value in _defined(values)]
    x_ticks = nice_ticks(0.0, max(xs, default=1.0), 5)
    y_ticks = nice_ticks(*(y_range or _padded(ys)), 5)
    y_texts = tick_texts(y_ticks, as_percent)
    left = 14 + max(_text_width(text) for text in y_texts)
    top = 30 if y_label else 12
    frame = Frame(
        left=left,
        top=top,
        width=max(width - left - right, 40),
        height=height - top - 42,
        x_low=0.0,
        x_high=max(xs, default=1.0) or 1.0,
        y_low=y_ticks[0],
        y_high=y_ticks[-1],
    )
    parts = [_grid(frame, x_ticks, y_ticks, y_texts), _axis_names(frame, x_label, y_label, height)]
    if not ys:
        parts.append(
            _text(frame.left + frame.width / 2, frame.top + frame.height / 2, "not measured yet", "empty", "middle")
        )
    if guide and frame.x_low < guide[0] < frame.x_high * 0.98:
        at = frame.x(guide[0])
        parts.append(f'<line class="guide" {_line(at, frame.top - 4, at, frame.top + frame.height)} {_DASHED}/>')
        parts.append(_text(at + 4, frame.top + 6, guide[1], "guide-name"))
    parts += [_band(line, frame) for line in series]
    parts += [_curve(line, frame, as_percent) for line in sorted(series, key=lambda line: not line.faint)]
    if end_labels:
        parts += _end_labels(named, frame)
    return _svg(parts, width, height, title, "chart line-chart")


def interval_chart(
    rows: Sequence[Interval],
    *,
    title: str,
    as_percent: bool = True,
    zero: bool = False,
    x_range: tuple[float, float] | None = None,
    width: int = 360,
    row_height: int = 26,
) -> str:
    """Points with intervals, one row each, on a common axis; ``zero`` draws the line of no difference."""
    values = [value for row in rows for value in _defined((row.value, row.low, row.high))]
    ticks = nice_ticks(*(x_range or _padded([*values, 0.0] if zero else values)), 4)
    label_width = max((_text_width(_short(row.label, 44)) for row in rows), default=0) + 16
    text_width = max((_text_width(row.text) for row in rows), default=0) + 12
    height = 8 + row_height * len(rows) + 24
    frame = Frame(
        left=label_width,
        top=8,
        width=max(width - label_width - text_width, 40),
        height=row_height * len(rows),
        x_low=ticks[0],
        x_high=ticks[-1],
        y_low=0.0,
        y_high=1.0,
    )
    bottom = frame.top + frame.height
    parts = []
    for tick, text in zip(ticks, tick_texts(ticks, as_percent), strict=True):
        at = frame.x(tick)
        strong = "zero" if zero and tick == 0 else "grid"
        colour = "#8a8f98" if strong == "zero" else "#e3e1da"
        parts.append(f'<line class="{strong}" stroke="{colour}" {_line(at, frame.top, at, bottom)}/>')
        parts.append(_text(at, bottom + 16, text, "tick", "middle"))
    for index, row in enumerate(rows):
        parts.append(_interval_row(row, frame, frame.top + row_height * (index + 0.5), width))
    return _svg(parts, width, height, title, "chart interval-chart")


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]],
    *,
    title: str,
    unit: str = "s",
    width: int = 600,
    row_height: int = 34,
) -> str:
    """One horizontal bar per row, cut into named parts; the same name has the same colour in every row."""
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    totals = [sum(_defined(value for _, value in parts)) for _, parts in rows]
    ticks = nice_ticks(0.0, max(totals, default=1.0) or 1.0, 5)
    left = max((_text_width(_short(label)) for label, _ in rows), default=0) + 16
    frame = Frame(
        left=left,
        top=34,
        width=width - left - 64,
        height=row_height * len(rows),
        x_low=0.0,
        x_high=ticks[-1],
        y_low=0.0,
        y_high=1.0,
    )
    bottom = frame.top + frame.height
    out = [_phase_legend(names, left)]
    for tick, text in zip(ticks, tick_texts(ticks, False), strict=True):
        at = frame.x(tick)
        out.append(f'<line class="grid" stroke="#e3e1da" {_line(at, frame.top, at, bottom)}/>')
        out.append(_text(at, bottom + 16, f"{text} {unit}" if tick == ticks[-1] else text, "tick", "middle"))
    for index, (label, parts) in enumerate(rows):
        middle = frame.top + row_height * (index + 0.5)
        out.append(_text(left - 10, middle + 4, _short(label), "row-name", "end"))
        start = 0.0
        for name, value in parts:
            size = number(value)
            if not size or size < 0:
                continue
            at = names.index(name) % len(PHASE_COLOURS)
            out.append(
                f'<rect class="phase-{at}" fill="{PHASE_COLOURS[at]}" x="{_px(frame.x(start))}" y="{_px(middle - 9)}" '
                f'width="{_px(frame.x(start + size) - frame.x(start))}" height="18">'
                f"<title>{_safe(label)}: {_safe(name)} {size:,.1f} {_safe(unit)}</title></rect>"
            )
            start += size
        out.append(_text(frame.x(start) + 8, middle + 4, f"{start:,.1f} {unit}", "row-value"))
    return _svg(out, width, bottom + 26, title, "chart stacked-bars")


def strip_chart(
    values: Sequence[float | None],
    *,
    title: str,
    limit: float,
    bands: Sequence[tuple[int, int, str, str]] = (),
    width: int = 760,
    height: int = 150,
) -> str:
    """A_t over token position: one bar per token, blue upwards, orange downwards, clipped at the limit.

    Args:
        bands: first token, one past the last token, name and status of each step.
    """
    frame = Frame(
        left=44,
        top=18,
        width=width - 54,
        height=height - 44,
        x_low=0.0,
        x_high=float(max(len(values), 1)),
        y_low=-limit,
        y_high=limit,
    )
    parts = []
    for index, (first, last, name, status) in enumerate(bands):
        tint = "#fbe3d0" if status == "wrong" else "#f3f2ee" if index % 2 else "#ffffff"
        parts.append(
            f'<rect class="band band-{_safe(status)}" fill="{tint}" x="{_px(frame.x(first))}" y="{_px(frame.top)}" '
            f'width="{_px(frame.x(last) - frame.x(first))}" height="{_px(frame.height)}"/>'
        )
        parts.append(_text(frame.x(first) + 3, frame.top - 5, name, "tick"))
    for tick in (-limit, 0.0, limit):
        at = frame.y(tick)
        parts.append(f'<line class="grid" stroke="#c9c6bd" {_line(frame.left, at, frame.left + frame.width, at)}/>')
        parts.append(_text(frame.left - 6, at + 4, decimal(tick, 1), "tick", "end"))
    for sign, colour, name in ((1, "#0b4a8f", "plus"), (-1, "#8f3206", "minus")):
        path = "".join(
            f"M{_px(frame.x(index + 0.5))} {_px(frame.y(0))}V{_px(frame.y(max(-limit, min(limit, value))))}"
            for index, value in enumerate(values)
            if number(value) is not None and value is not None and value * sign > 0
        )
        stroke = max(0.6, min(6.0, 0.8 * frame.width / max(len(values), 1)))
        parts.append(f'<path class="{name}" fill="none" stroke="{colour}" stroke-width="{_px(stroke)}" d="{path}"/>')
    parts.append(_text(frame.left + frame.width, height - 8, "token", "axis-name", "end"))
    return _svg(parts, width, height, title, "chart strip-chart")


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
    inside = f"<title>{_safe(title)}</title>" if title else ""
    shape = index % len(ARM_COLOURS) if index >= 0 else 0
    paint = f'class="mark {arm_class(index)}" fill="{arm_colour(index)}"'
    if shape == 0:
        return f'<circle {paint} cx="{_px(x)}" cy="{_px(y)}" r="{_px(size)}">{inside}</circle>'
    corners = {
        1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        2: ((0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        3: ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
        4: ((0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
        5: _PLUS,
        6: ((-0.6, -1.1), (0.6, -1.1), (1.2, 0.0), (0.6, 1.1), (-0.6, 1.1), (-1.2, 0.0)),
        7: tuple((0.75 * (across - down), 0.75 * (across + down)) for across, down in _PLUS),
    }[shape]
    points = " ".join(f"{_px(x + size * across)},{_px(y + size * down)}" for across, down in corners)
    return f'<polygon {paint} points="{points}">{inside}</polygon>'


_PLUS = (
    (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
    (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
)  # fmt: skip
_DASHED = 'stroke="#8a8f98" stroke-dasharray="3 3"'


def _svg(parts: Iterable[str], width: float, height: float, title: str, kind: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" aria-label="{_safe(title)}" '
        f'viewBox="0 0 {_px(width)} {_px(height)}" width="{_px(width)}" height="{_px(height)}" '
        f'font-family="Helvetica Neue, Helvetica, Arial, sans-serif" font-size="12">' + "".join(parts) + "</svg>"
    )


def _grid(frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], y_texts: Sequence[str]) -> str:
    parts = []
    for tick, text in zip(y_ticks, y_texts, strict=True):
        at = frame.y(tick)
        parts.append(f'<line class="grid" stroke="#e3e1da" {_line(frame.left, at, frame.left + frame.width, at)}/>')
        parts.append(_text(frame.left - 8, at + 4, text, "tick", "end"))
    bottom = frame.top + frame.height
    for tick, text in zip(x_ticks, tick_texts(x_ticks, False), strict=True):
        if tick > frame.x_high:
            continue
        at = frame.x(tick)
        parts.append(f'<line class="axis" stroke="#8a8f98" {_line(at, bottom, at, bottom + 4)}/>')
        parts.append(_text(at, bottom + 18, text, "tick", "middle"))
    parts.append(f'<line class="axis" stroke="#8a8f98" {_line(frame.left, bottom, frame.left + frame.width, bottom)}/>')
    return "".join(parts)


def _axis_names(frame: Frame, x_label: str, y_label: str, height: float) -> str:
    return _text(frame.left + frame.width, height - 6, x_label, "axis-name", "end") + _text(2, 14, y_label, "axis-name")


def _curve(line: Series, frame: Frame, as_percent: bool) -> str:
    points = [
        None if x is None or y is None else (x, y)
        for x, y in (map(number, row) for row in zip(line.x, line.y, strict=True))
    ]
    paths = "".join(
        f'<path d="{_path(((frame.x(x), frame.y(y)) for x, y in run), "M")}"/>' for run in _runs(points) if len(run) > 1
    )
    width, opacity = (1, 0.35) if line.faint else (2.2, 1)
    dash = _DASHES[line.colour // len(ARM_COLOURS) % len(_DASHES)] if line.colour >= 0 else "4 3"
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    body = (
        f'<g class="stroke {arm_class(line.colour)}" fill="none" stroke="{arm_colour(line.colour)}" '
        f'stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"{dashed}>{paths}</g>'
    )
    if not line.faint and (line.marks or any(len(run) == 1 for run in _runs(points))):
        body += "".join(
            marker(line.colour, frame.x(x), frame.y(y), title=_point_title(line, index, x, y, as_percent))
            for index, point in enumerate(points)
            if point is not None
            for x, y in [point]
        )
    return f'<g class="series" data-label="{_safe(line.label)}">{body}</g>'


def _point_title(line: Series, index: int, x: float, y: float, as_percent: bool) -> str:
    show = percent if as_percent else decimal
    text = f"{line.label}, at {x:,.0f}: {show(y)}"
    if index < len(line.low) and number(line.low[index]) is not None:
        text += f" (interval {show(line.low[index])} to {show(line.high[index])})"
    return text


def _band(line: Series, frame: Frame) -> str:
    if not line.low:
        return ""
    rows = [
        None if x is None or low is None or high is None else (x, low, high)
        for x, low, high in (map(number, row) for row in zip(line.x, line.low, line.high, strict=True))
    ]
    shapes = []
    for run in _runs(rows):
        if len(run) < 2:
            continue
        upper = [(frame.x(x), frame.y(high)) for x, _, high in run]
        lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(run)]
        shapes.append(f'<path d="{_path(upper + lower, "M")}Z"/>')
    paint = f'fill="{arm_colour(line.colour)}" fill-opacity="0.13"'
    return f'<g class="band {arm_class(line.colour)}" {paint}>{"".join(shapes)}</g>' if shapes else ""


def _end_labels(named: Sequence[Series], frame: Frame) -> list[str]:
    ends = []
    for line in named:
        last = [
            (frame.x(x), frame.y(y))
            for x, y in (map(number, row) for row in zip(line.x, line.y, strict=True))
            if x is not None and y is not None
        ]
        if last:
            ends.append((last[-1], line))
    ends.sort(key=lambda end: end[0][1])
    places = spread([end[0][1] for end in ends], 15.0, frame.top, frame.top + frame.height)
    out, right = [], frame.left + frame.width
    for ((x, y), line), place in zip(ends, places, strict=True):
        if right - x > 2 or abs(place - y) > 3:
            out.append(
                f'<path class="leader" fill="none" stroke="#b5b2a9" '
                f'd="M{_px(x + 5)} {_px(y)}L{_px(right + 6)} {_px(place)}"/>'
            )
        fill = f'fill="{arm_colour(line.colour)}"'
        out.append(
            f'<text class="name {arm_class(line.colour)}" {fill} font-weight="600" '
            f'x="{_px(right + 9)}" y="{_px(place + 4)}">'
            f"{_safe(_short(line.label))}</text>"
        )
    return out


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved as little as a single sweep each way needs to stand at least ``gap`` apart within bounds."""
    out = list(places)
    for index in range(1, len(out)):
        out[index] = max(out[index], out[index - 1] + gap)
    ceiling = high
    for index in range(len(out) - 1, -1, -1):
        out[index] = max(min(out[index], ceiling), low + gap * index)
        ceiling = out[index] - gap
    return out


def _interval_row(row: Interval, frame: Frame, middle: float, width: float) -> str:
    colour, name = arm_colour(row.colour), arm_class(row.colour)
    parts = [_text(frame.left - 10, middle + 4, _short(row.label, 44), "row-name", "end")]
    value, low, high = number(row.value), number(row.low), number(row.high)
    if value is None:
        parts.append(_text(frame.left + 6, middle + 4, "not measured yet", "empty"))
    if low is not None and high is not None:
        parts.append(
            f'<line class="stroke {name}" stroke="{colour}" stroke-width="2" stroke-linecap="round" '
            f"{_line(frame.x(low), middle, frame.x(high), middle)}/>"
        )
    if value is not None:
        parts.append(marker(row.colour, frame.x(value), middle, 4.4))
        parts.append(_text(width - 2, middle + 4, row.text, "row-value", "end"))
    return f"<g><title>{_safe(row.title or row.label)}</title>{''.join(parts)}</g>"


def _phase_legend(names: Sequence[str], left: float) -> str:
    parts, at = [], left
    for index, name in enumerate(names):
        spot = index % len(PHASE_COLOURS)
        parts.append(
            f'<rect class="phase-{spot}" fill="{PHASE_COLOURS[spot]}" x="{_px(at)}" y="9" width="11" height="11"/>'
        )
        parts.append(_text(at + 16, 19, name, "legend"))
        at += 16 + _text_width(name) + 18
    return "".join(parts)


def _runs(points: Iterable[tuple[float, ...] | None]) -> list[list[tuple[float, ...]]]:
    """Stretches of defined points; an undefined one ends a stretch."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _path(points: Iterable[tuple[float, float]], first: str) -> str:
    return first + "L".join(f"{_px(x)} {_px(y)}" for x, y in points)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'x1="{_px(x1)}" y1="{_px(y1)}" x2="{_px(x2)}" y2="{_px(y2)}"'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    fill = "#5b6068" if kind in {"tick", "axis-name", "legend", "guide-name", "empty"} else "#1c1f24"
    return f'<text class="{kind}" fill="{fill}" text-anchor="{anchor}" x="{_px(x)}" y="{_px(y)}">{_safe(text)}</text>'


def _text_width(text: str) -> float:
    """Width of 12 px sans-serif text in px; a rough upper estimate, no font file is at hand."""
    return sum(3.6 if sign in "iljtfr.,:;|!' []()" else 9.6 if sign in "mwMW@%" else 7.0 for sign in text)


def _short(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _safe(text: object) -> str:
    return escape(visible(text), quote=True)


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _defined(values: Iterable[float | None]) -> list[float]:
    return [plain for plain in map(number, values) if plain is not None]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1)
