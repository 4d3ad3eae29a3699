"""Charts as SVG text: lines, intervals, stacked bars.

Undefined values (None, NaN) leave a gap: they are never drawn as 0 and never bridged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepalign.report import drawing as pen
from stepalign.report.text import decimal, number, percent

ROW_LABEL = 58
"""Characters of a row's label in an interval chart; longer ones lose their middle."""
PHASES = ("sampling", "feedback", "learning", "evaluation", "saving")
GRID, AXIS = 'stroke="#e3e1da"', 'stroke="#8a8f98"'


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
class IntervalRow:
    """One row of an interval chart: a point with its confidence interval."""

    label: str
    colour: int
    value: float | None
    low: float | None = None
    high: float | None = None
    text: str = ""
    """At the right end of the row."""
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
    named = [one for one in series if not one.faint]
    xs = [value for one in series for value in pen.defined(one.x)]
    ys = [value for one in series for values in (one.y, one.low, one.high) for value in pen.defined(values)]
    x_ticks, y_ticks = pen.nice_ticks(0.0, max(xs, default=1.0), 5), pen.nice_ticks(*(y_range or pen.padded(ys)), 5)
    y_texts = pen.tick_texts(y_ticks, as_percent)
    left, top = 14 + pen.widest(y_texts), 30 if y_label else 12
    right = 10 + (pen.widest(pen.shortened(one.label) for one in named) + 14 if end_labels else 0)
    frame = pen.Frame(
        left=left,
        top=top,
        width=max(width - left - right, 40),
        height=height - top - 42,
        x_low=0.0,
        x_high=max(xs, default=1.0) or 1.0,
        y_low=y_ticks[0],
        y_high=y_ticks[-1],
    )
    parts = []
    for tick, text in zip(y_ticks, y_texts, strict=True):
        at = frame.y(tick)
        parts += [pen.line("grid", frame.left, at, frame.right, at, GRID)]
        parts += [pen.words_at(frame.left - 8, at + 4, text, "tick", "end")]
    for tick, text in zip(x_ticks, pen.tick_texts(x_ticks, False), strict=True):
        if tick <= frame.x_high:
            at = frame.x(tick)
            parts += [pen.line("axis", at, frame.bottom, at, frame.bottom + 4, AXIS)]
            parts += [pen.words_at(at, frame.bottom + 18, text, "tick", "middle")]
    parts += [pen.line("axis", frame.left, frame.bottom, frame.right, frame.bottom, AXIS)]
    parts += [
        pen.words_at(frame.right, height - 6, x_label, "axis-name", "end"),
        pen.words_at(2, 14, y_label, "axis-name"),
    ]
    if not ys:
        middle = frame.left + frame.width / 2, frame.top + frame.height / 2
        parts += [pen.words_at(*middle, "not measured yet", "empty", "middle")]
    if guide and frame.x_low < guide[0] < frame.x_high * 0.98:
        at = frame.x(guide[0])
        parts += [pen.line("guide", at, frame.top - 4, at, frame.bottom, f'{AXIS} stroke-dasharray="3 3"')]
        parts += [pen.words_at(at + 4, frame.top + 6, guide[1], "guide-name")]
    parts += [_band(one, frame) for one in series]
    parts += [_curve(one, frame, as_percent) for one in sorted(series, key=lambda one: not one.faint)]
    parts += _end_labels(named, frame) if end_labels else []
    return pen.svg(parts, width, height, title, "chart line-chart")


def interval_chart(
    rows: Sequence[IntervalRow],
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
    values = [value for row in rows for value in pen.defined((row.value, row.low, row.high))]
    ticks = pen.nice_ticks(*(x_range or pen.padded([*values, 0.0] if zero else values)), 4)
    left = pen.widest(pen.shortened(row.label, ROW_LABEL) for row in rows) + 16
    if labels_above:
        left, row_height = 6, row_height + 14
    right = pen.widest(row.text for row in rows) + 12
    height = row_height * len(rows)
    frame = pen.Frame(
        left=left, top=8, width=max(width - left - right, 40), height=height, x_low=ticks[0], x_high=ticks[-1]
    )
    parts = _vertical_grid(frame, ticks, pen.tick_texts(ticks, as_percent), zero)
    for index, row in enumerate(rows):
        middle = frame.top + row_height * (index + (0.72 if labels_above else 0.5))
        label_at = (frame.left, middle - 13) if labels_above else (frame.left - 10, middle + 4)
        label = pen.words_at(
            *label_at, pen.shortened(row.label, ROW_LABEL), "row-name", "start" if labels_above else "end"
        )
        parts.append(_interval_row(row, frame, middle, width, label))
    return pen.svg(parts, width, height + 32, title, "chart interval-chart")


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]],
    *,
    title: str,
    unit: str = "s",
    width: int = 600,
    row_height: int = 34,
) -> str:
    """One horizontal bar per row, cut into named parts; the same name has the same colour in every row."""
    digits = 0 if all(isinstance(value, int) for _, parts in rows for _, value in parts) else 1

    def amount(value: float) -> str:
        return f"{value:,.{digits}f} {unit}".rstrip()

    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    totals = [sum(pen.defined(value for _, value in parts)) for _, parts in rows]
    ticks = pen.nice_ticks(0.0, max(totals, default=1.0) or 1.0, 5)
    left = pen.widest(pen.shortened(label) for label, _ in rows) + 16
    frame = pen.Frame(
        left=left, top=34, width=width - left - 64, height=row_height * len(rows), x_low=0.0, x_high=ticks[-1]
    )
    texts = pen.tick_texts(ticks, False)
    out = _phase_legend(names, left, width)
    out += _vertical_grid(frame, ticks, [*texts[:-1], f"{texts[-1]} {unit}".rstrip()])
    for index, (label, parts) in enumerate(rows):
        middle = frame.top + row_height * (index + 0.5)
        out.append(pen.words_at(left - 10, middle + 4, pen.shortened(label), "row-name", "end"))
        start = 0.0
        for name, value in parts:
            size = number(value)
            if size and size > 0:
                x, length = pen.px(frame.x(start)), pen.px(frame.x(start + size) - frame.x(start))
                text = f"<title>{pen.safe(label)}: {pen.safe(name)} {pen.safe(amount(size))}</title>"
                out.append(
                    f'<rect {_phase(names, name)} x="{x}" y="{pen.px(middle - 9)}" width="{length}" height="18">'
                )
                out.append(f"{text}</rect>")
                start += size
        out.append(pen.words_at(frame.x(start) + 8, middle + 4, amount(start), "row-value"))
    return pen.svg(out, width, frame.bottom + 26, title, "chart stacked-bars")


def time_strips(
    rows: Sequence[tuple[str, Sequence[Mapping[str, float]]]], *, title: str, width: int = 600, height: int = 44
) -> str:
    """One strip per row: equal parts of a time from left to right, each filled by the shares of the named phases."""
    row_height = height + 60
    out = _phase_legend(PHASES, 2, width)
    for index, (label, parts) in enumerate(rows):
        top = 50 + row_height * index
        total = sum(sum(part.values()) for part in parts)
        shares = {name: sum(part.get(name, 0.0) for part in parts) / total for name in PHASES}
        texts = [f"{name} {percent(share)}" for name, share in shares.items() if share >= 0.0005]
        out.append(pen.words_at(2, top - 6, pen.shortened(label), "row-name"))
        step, filled = (width - 4) / len(parts), [0.0] * len(parts)
        for name in PHASES:
            path = ""
            for at, part in enumerate(parts):
                if size := part.get(name, 0.0):
                    path += f"M{pen.px(2 + at * step)} {pen.px(top + height * filled[at])}h{pen.px(step)}"
                    path += f"v{pen.px(height * size)}h{pen.px(-step)}z"
                    filled[at] += size
            words = f"{pen.safe(label)}: {pen.safe(name)} {percent(shares[name])}"
            out.append(f'<path {_phase(PHASES, name)} d="{path}"><title>{words}</title></path>' if path else "")
        half = len(texts) if pen.text_width(", ".join(texts)) < width else (len(texts) + 1) // 2
        for line, part in enumerate((texts[:half], texts[half:])):
            out.append(pen.words_at(2, top + height + 16 * (line + 1), ", ".join(part), "tick"))
    return pen.svg(out, width, 50 + row_height * len(rows) - 18, title, "chart time-strips")


def _vertical_grid(frame: pen.Frame, ticks: Sequence[float], texts: Sequence[str], zero: bool = False) -> list[str]:
    """A line and a text per tick of the x axis; the line of zero stronger than the others."""
    parts = []
    for tick, text in zip(ticks, texts, strict=True):
        at, strong = frame.x(tick), zero and tick == 0
        parts.append(pen.line("zero" if strong else "grid", at, frame.top, at, frame.bottom, AXIS if strong else GRID))
        parts.append(pen.words_at(at, frame.bottom + 16, text, "tick", "middle"))
    return parts


def _curve(series: Series, frame: pen.Frame, as_percent: bool) -> str:
    runs = pen.defined_runs(list(zip(series.x, series.y, strict=True)))
    paths = "".join(
        f'<path d="{pen.path_data([(frame.x(x), frame.y(y)) for x, y in run])}"/>' for run in runs if len(run) > 1
    )
    width, opacity = (1, 0.35) if series.faint else (2.2, 1)
    dash = pen.DASHES[series.colour // len(pen.ARM_COLOURS) % len(pen.DASHES)] if series.colour >= 0 else "4 3"
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    body = (
        f'<g class="stroke {pen.arm_class(series.colour)}" fill="none" stroke="{pen.arm_colour(series.colour)}" '
        f'stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"{dashed}>{paths}</g>'
    )
    if not series.faint and (series.marks or any(len(run) == 1 for run in runs)):
        for index, point in enumerate(zip(series.x, series.y, strict=True)):
            if len(pen.defined(point)) == 2:
                x, y = pen.defined(point)
                title = _point_title(series, index, x, y, as_percent)
                body += pen.marker(series.colour, frame.x(x), frame.y(y), title=title)
    return f'<g class="series" data-label="{pen.safe(series.label)}">{body}</g>'


def _point_title(series: Series, index: int, x: float, y: float, as_percent: bool) -> str:
    show = percent if as_percent else decimal
    text = f"{series.label}, at {x:,.0f}: {show(y)}"
    if index < len(series.low) and number(series.low[index]) is not None:
        text += f" (interval {show(series.low[index])} to {show(series.high[index])})"
    return text


def _band(series: Series, frame: pen.Frame) -> str:
    if not series.low:
        return ""
    shapes = ""
    for run in pen.defined_runs(list(zip(series.x, series.low, series.high, strict=True))):
        if len(run) > 1:
            upper = [(frame.x(x), frame.y(high)) for x, _, high in run]
            lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(run)]
            shapes += f'<path d="{pen.path_data(upper + lower)}Z"/>'
    paint = f'fill="{pen.arm_colour(series.colour)}" fill-opacity="0.13"'
    return f'<g class="band {pen.arm_class(series.colour)}" {paint}>{shapes}</g>' if shapes else ""


def _end_labels(named: Sequence[Series], frame: pen.Frame) -> list[str]:
    """The name of each line at its last point, moved apart where lines end close together."""
    ends = []
    for series in named:
        if runs := pen.defined_runs(list(zip(series.x, series.y, strict=True))):
            x, y = runs[-1][-1]
            ends.append((frame.y(y), frame.x(x), series))
    ends.sort(key=lambda end: end[0])
    places = pen.spread([y for y, _, _ in ends], 15.0, frame.top, frame.bottom)
    out = []
    for (y, x, series), place in zip(ends, places, strict=True):
        if frame.right - x > 2 or abs(place - y) > 3:
            leader = pen.path_data([(x + 5, y), (frame.right + 6, place)])
            out.append(f'<path class="leader" fill="none" stroke="#b5b2a9" d="{leader}"/>')
        paint = f'class="name {pen.arm_class(series.colour)}" fill="{pen.arm_colour(series.colour)}" font-weight="600"'
        name = pen.safe(pen.shortened(series.label))
        out.append(f'<text {paint} x="{pen.px(frame.right + 9)}" y="{pen.px(place + 4)}">{name}</text>')
    return out


def _interval_row(row: IntervalRow, frame: pen.Frame, middle: float, width: float, label: str) -> str:
    parts = [label]
    value, low, high = number(row.value), number(row.low), number(row.high)
    if value is None:
        parts.append(pen.words_at(frame.left + 6, middle + 4, "not measured yet", "empty"))
    if low is not None and high is not None:
        paint = f'stroke="{pen.arm_colour(row.colour)}" stroke-width="2" stroke-linecap="round"'
        kind = f"stroke {pen.arm_class(row.colour)}"
        parts.append(pen.line(kind, frame.x(low), middle, frame.x(high), middle, paint))
    if value is not None:
        parts.append(pen.marker(row.colour, frame.x(value), middle, 4.4))
        parts.append(pen.words_at(width - 2, middle + 4, row.text, "row-value", "end"))
    return f"<g><title>{pen.safe(row.title or row.label)}</title>{''.join(parts)}</g>"


def _phase_legend(names: Sequence[str], left: float, width: float) -> list[str]:
    """The names of the parts over the bars, moved left where they would leave the picture."""
    entries = sum(pen.text_width(name) + 16 for name in names)
    gap = max(4.0, min(18.0, (width - 2 - entries) / max(len(names), 1)))
    at = max(2.0, min(left, width - entries - gap * len(names)))
    parts = []
    for name in names:
        parts.append(f'<rect {_phase(names, name)} x="{pen.px(at)}" y="9" width="11" height="11"/>')
        parts.append(pen.words_at(at + 16, 19, name, "legend"))
        at += 16 + pen.text_width(name) + gap
    return parts


def _phase(names: Sequence[str], name: str) -> str:
    at = names.index(name) % len(pen.PHASE_COLOURS)
    return f'class="phase-{at}" fill="{pen.PHASE_COLOURS[at]}"'
