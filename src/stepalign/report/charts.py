"""Charts as SVG text: lines, intervals, stacked bars, strips.

Undefined values (None, NaN) leave a gap: they are never drawn as 0 and never bridged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepalign.report.drawing import (
    ARM_COLOURS,
    DASHED,
    DASHES,
    PHASE_COLOURS,
    Frame,
    arm_class,
    arm_colour,
    defined,
    defined_runs,
    line_ends,
    marker,
    nice_ticks,
    padded,
    path_data,
    px,
    safe,
    shortened,
    spread,
    svg,
    text_width,
    tick_texts,
    words_at,
)
from stepalign.report.text import decimal, number, percent

ROW_LABEL = 58
"""Characters of a row's label in an interval chart; longer ones lose their middle."""


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
    right = 10 + (max((text_width(shortened(line.label)) for line in named), default=0) + 14 if end_labels else 0)
    xs = [value for line in series for value in defined(line.x)]
    ys = [value for line in series for values in (line.y, line.low, line.high) for value in defined(values)]
    x_ticks = nice_ticks(0.0, max(xs, default=1.0), 5)
    y_ticks = nice_ticks(*(y_range or padded(ys)), 5)
    y_texts = tick_texts(y_ticks, as_percent)
    left = 14 + max(text_width(text) for text in y_texts)
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
            words_at(frame.left + frame.width / 2, frame.top + frame.height / 2, "not measured yet", "empty", "middle")
        )
    if guide and frame.x_low < guide[0] < frame.x_high * 0.98:
        at = frame.x(guide[0])
        parts.append(f'<line class="guide" {line_ends(at, frame.top - 4, at, frame.top + frame.height)} {DASHED}/>')
        parts.append(words_at(at + 4, frame.top + 6, guide[1], "guide-name"))
    parts += [_band(line, frame) for line in series]
    parts += [_curve(line, frame, as_percent) for line in sorted(series, key=lambda line: not line.faint)]
    if end_labels:
        parts += _end_labels(named, frame)
    return svg(parts, width, height, title, "chart line-chart")


def interval_chart(
    rows: Sequence[Interval],
    *,
    title: str,
    as_percent: bool = True,
    zero: bool = False,
    x_range: tuple[float, float] | None = None,
    width: int = 360,
    row_height: int = 26,
    labels_above: bool = False,
) -> str:
    """Points with intervals, one row each, on a common axis.

    Args:
        zero: draw the line of no difference.
        labels_above: each label on a line of its own above its interval, for narrow screens.
    """
    values = [value for row in rows for value in defined((row.value, row.low, row.high))]
    ticks = nice_ticks(*(x_range or padded([*values, 0.0] if zero else values)), 4)
    label_width = max((text_width(shortened(row.label, ROW_LABEL)) for row in rows), default=0) + 16
    if labels_above:
        label_width, row_height = 6, row_height + 14
    value_width = max((text_width(row.text) for row in rows), default=0) + 12
    height = 8 + row_height * len(rows) + 24
    frame = Frame(
        left=label_width,
        top=8,
        width=max(width - label_width - value_width, 40),
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
        parts.append(f'<line class="{strong}" stroke="{colour}" {line_ends(at, frame.top, at, bottom)}/>')
        parts.append(words_at(at, bottom + 16, text, "tick", "middle"))
    for index, row in enumerate(rows):
        middle = frame.top + row_height * (index + (0.72 if labels_above else 0.5))
        label_at = (frame.left, middle - 13) if labels_above else (frame.left - 10, middle + 4)
        label = words_at(*label_at, shortened(row.label, ROW_LABEL), "row-name", "start" if labels_above else "end")
        parts.append(_interval_row(row, frame, middle, width, label))
    return svg(parts, width, height, title, "chart interval-chart")


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]],
    *,
    title: str,
    unit: str = "s",
    width: int = 600,
    row_height: int = 34,
) -> str:
    """One horizontal bar per row, cut into named parts; the same name has the same colour in every row."""
    counts = all(isinstance(value, int) for _, parts in rows for _, value in parts)

    def amount(value: float) -> str:
        return f"{value:,.{0 if counts else 1}f} {unit}".rstrip()

    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    totals = [sum(defined(value for _, value in parts)) for _, parts in rows]
    ticks = nice_ticks(0.0, max(totals, default=1.0) or 1.0, 5)
    left = max((text_width(shortened(label)) for label, _ in rows), default=0) + 16
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
    entries = sum(text_width(name) + 16 for name in names)
    gap = max(4.0, min(18.0, (width - 2 - entries) / max(len(names), 1)))
    out = [_phase_legend(names, max(2.0, min(left, width - entries - gap * len(names))), gap)]
    for tick, text in zip(ticks, tick_texts(ticks, False), strict=True):
        at = frame.x(tick)
        out.append(f'<line class="grid" stroke="#e3e1da" {line_ends(at, frame.top, at, bottom)}/>')
        named = f"{text} {unit}".rstrip() if tick == ticks[-1] else text
        out.append(words_at(at, bottom + 16, named, "tick", "middle"))
    for index, (label, parts) in enumerate(rows):
        middle = frame.top + row_height * (index + 0.5)
        out.append(words_at(left - 10, middle + 4, shortened(label), "row-name", "end"))
        start = 0.0
        for name, value in parts:
            size = number(value)
            if not size or size < 0:
                continue
            at = names.index(name) % len(PHASE_COLOURS)
            out.append(
                f'<rect class="phase-{at}" fill="{PHASE_COLOURS[at]}" x="{px(frame.x(start))}" y="{px(middle - 9)}" '
                f'width="{px(frame.x(start + size) - frame.x(start))}" height="18">'
                f"<title>{safe(label)}: {safe(name)} {safe(amount(size))}</title></rect>"
            )
            start += size
        out.append(words_at(frame.x(start) + 8, middle + 4, amount(start), "row-value"))
    return svg(out, width, bottom + 26, title, "chart stacked-bars")


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
            f'<rect class="band band-{safe(status)}" fill="{tint}" x="{px(frame.x(first))}" y="{px(frame.top)}" '
            f'width="{px(frame.x(last) - frame.x(first))}" height="{px(frame.height)}"/>'
        )
        parts.append(words_at(frame.x(first) + 3, frame.top - 5, name, "tick"))
    for tick in (-limit, 0.0, limit):
        at = frame.y(tick)
        parts.append(f'<line class="grid" stroke="#c9c6bd" {line_ends(frame.left, at, frame.left + frame.width, at)}/>')
        parts.append(words_at(frame.left - 6, at + 4, decimal(tick, 1), "tick", "end"))
    for sign, colour, name in ((1, "#0b4a8f", "plus"), (-1, "#8f3206", "minus")):
        path = "".join(
            f"M{px(frame.x(index + 0.5))} {px(frame.y(0))}V{px(frame.y(max(-limit, min(limit, value))))}"
            for index, value in enumerate(values)
            if number(value) is not None and value is not None and value * sign > 0
        )
        stroke = max(0.6, min(6.0, 0.8 * frame.width / max(len(values), 1)))
        parts.append(f'<path class="{name}" fill="none" stroke="{colour}" stroke-width="{px(stroke)}" d="{path}"/>')
    parts.append(words_at(frame.left + frame.width, height - 8, "token", "axis-name", "end"))
    return svg(parts, width, height, title, "chart strip-chart")


def _grid(frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], y_texts: Sequence[str]) -> str:
    parts = []
    for tick, text in zip(y_ticks, y_texts, strict=True):
        at = frame.y(tick)
        parts.append(f'<line class="grid" stroke="#e3e1da" {line_ends(frame.left, at, frame.left + frame.width, at)}/>')
        parts.append(words_at(frame.left - 8, at + 4, text, "tick", "end"))
    bottom, right = frame.top + frame.height, frame.left + frame.width
    for tick, text in zip(x_ticks, tick_texts(x_ticks, False), strict=True):
        if tick > frame.x_high:
            continue
        at = frame.x(tick)
        parts.append(f'<line class="axis" stroke="#8a8f98" {line_ends(at, bottom, at, bottom + 4)}/>')
        parts.append(words_at(at, bottom + 18, text, "tick", "middle"))
    parts.append(f'<line class="axis" stroke="#8a8f98" {line_ends(frame.left, bottom, right, bottom)}/>')
    return "".join(parts)


def _axis_names(frame: Frame, x_label: str, y_label: str, height: float) -> str:
    right = frame.left + frame.width
    return words_at(right, height - 6, x_label, "axis-name", "end") + words_at(2, 14, y_label, "axis-name")


def _curve(line: Series, frame: Frame, as_percent: bool) -> str:
    points = [
        None if x is None or y is None else (x, y)
        for x, y in (map(number, row) for row in zip(line.x, line.y, strict=True))
    ]
    runs = [[(frame.x(x), frame.y(y)) for x, y in run] for run in defined_runs(points)]
    paths = "".join(f'<path d="{path_data(run, "M")}"/>' for run in runs if len(run) > 1)
    width, opacity = (1, 0.35) if line.faint else (2.2, 1)
    dash = DASHES[line.colour // len(ARM_COLOURS) % len(DASHES)] if line.colour >= 0 else "4 3"
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    body = (
        f'<g class="stroke {arm_class(line.colour)}" fill="none" stroke="{arm_colour(line.colour)}" '
        f'stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"{dashed}>{paths}</g>'
    )
    if not line.faint and (line.marks or any(len(run) == 1 for run in runs)):
        body += "".join(
            marker(line.colour, frame.x(x), frame.y(y), title=_point_title(line, index, x, y, as_percent))
            for index, point in enumerate(points)
            if point is not None
            for x, y in [point]
        )
    return f'<g class="series" data-label="{safe(line.label)}">{body}</g>'


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
    for run in defined_runs(rows):
        if len(run) < 2:
            continue
        upper = [(frame.x(x), frame.y(high)) for x, _, high in run]
        lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(run)]
        shapes.append(f'<path d="{path_data(upper + lower, "M")}Z"/>')
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
                f'd="M{px(x + 5)} {px(y)}L{px(right + 6)} {px(place)}"/>'
            )
        fill = f'fill="{arm_colour(line.colour)}"'
        out.append(
            f'<text class="name {arm_class(line.colour)}" {fill} font-weight="600" '
            f'x="{px(right + 9)}" y="{px(place + 4)}">'
            f"{safe(shortened(line.label))}</text>"
        )
    return out


def _interval_row(row: Interval, frame: Frame, middle: float, width: float, label: str) -> str:
    colour, name = arm_colour(row.colour), arm_class(row.colour)
    parts = [label]
    value, low, high = number(row.value), number(row.low), number(row.high)
    if value is None:
        parts.append(words_at(frame.left + 6, middle + 4, "not measured yet", "empty"))
    if low is not None and high is not None:
        parts.append(
            f'<line class="stroke {name}" stroke="{colour}" stroke-width="2" stroke-linecap="round" '
            f"{line_ends(frame.x(low), middle, frame.x(high), middle)}/>"
        )
    if value is not None:
        parts.append(marker(row.colour, frame.x(value), middle, 4.4))
        parts.append(words_at(width - 2, middle + 4, row.text, "row-value", "end"))
    return f"<g><title>{safe(row.title or row.label)}</title>{''.join(parts)}</g>"


def _phase_legend(names: Sequence[str], left: float, gap: float) -> str:
    parts, at = [], left
    for index, name in enumerate(names):
        spot = index % len(PHASE_COLOURS)
        parts.append(
            f'<rect class="phase-{spot}" fill="{PHASE_COLOURS[spot]}" x="{px(at)}" y="9" width="11" height="11"/>'
        )
        parts.append(words_at(at + 16, 19, name, "legend"))
        at += 16 + text_width(name) + gap
    return "".join(parts)
