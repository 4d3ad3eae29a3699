"""One rollout under several contexts as a picture for print: PDF, SVG or PNG at an exact width.

The same cells, colours and limit as in the page and the terminal. Text is set in a monospaced face, so where a line
breaks can be computed without drawing; strong tokens carry a line above (reinforced) or below (suppressed), so that a
grey print tells them apart. Needs matplotlib (extra ``paper``).
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepalign.errors import ConfigError
from stepalign.report import scale
from stepalign.report.terminal import find_rollout, find_tables, shown_tokens
from stepalign.report.text import signed, visible
from stepalign.token_signal.table import MarkedStep, ScoredCompletion, TokenTable, context_labels, read_page

FORMATS = (".pdf", ".svg", ".png")
POINTS = {"in": 72.0, "cm": 72 / 2.54, "mm": 72 / 25.4, "pt": 72 / 72.27, "bp": 1.0}
"""PostScript points per unit; ``pt`` is TeX's, of which 72.27 make an inch."""
MONO = ("DejaVu Sans Mono", "Noto Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans Symbols2", "DejaVu Sans")
CELL = 0.602
"""Width of a character of the first of these, in units of the font size."""
LEADING = 1.45
"""Height of a line, likewise."""
MARKED = scale.LEVELS // 4
"""Level from which a token carries its line."""
_NO_GLYPH = re.compile(r"Glyph (\d+) ")
_INK, _DIM, _FAINT, _WRONG = "#000000", "#5b6270", "#9aa1ab", "#8f3206"


def parse_width(text: str) -> float:
    """A width such as 5.5in, 14cm, 140mm or 397.5pt (TeX points) in inches.

    Raises:
        ConfigError: no such width, or none that fits a page.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(in|cm|mm|pt|bp)\s*", text)
    inches = float(match[1]) * POINTS[match[2]] / 72 if match else 0.0
    if not 1 <= inches <= 60:
        raise ConfigError(
            f"{text!r} is no width between 1in and 60in",
            where="--width",
            hint=r"such as 5.5in, 14cm or 397.5pt; \the\textwidth prints LaTeX's",
        )
    return inches


def write_figure(
    signal: Mapping[str, Any],
    path: Path,
    *,
    rollout: int | str = 0,
    contexts: Sequence[str] = (),
    steps: Sequence[str] = (),
    width: float = 5.5,
    font_size: float = 7.0,
    dpi: int = 300,
) -> list[str]:
    """Draw one rollout of a signal.json; returns the characters that no installed font has.

    Args:
        path: the suffix decides the format.
        rollout: position (from 0) or rollout_id.
        contexts: names of the contexts to stack; all of them by default.
        steps: labels of the steps to draw; all of them by default.
        width: inches, kept exactly.
        font_size: points.
        dpi: dots per inch of a PNG.

    Raises:
        ConfigError: no matplotlib, another suffix, no such rollout, context or step, or a width that holds no text.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"no figure can be written as {path.name}", hint=f"end it in {', '.join(FORMATS)}")
    try:
        import matplotlib
        from matplotlib import font_manager
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a figure needs matplotlib", hint="pip install 'stepalign[paper]'") from error
    rollouts, labels = read_page(signal), context_labels(signal)
    chosen, limit = find_rollout(rollouts, rollout), scale.limit_of(rollouts)
    there = [step.label for step, _, _ in chosen.stretches()]
    for label in steps:
        if label not in there:
            raise ConfigError(f"this rollout has no step {label!r}", hint=f"choose from {', '.join(there)}")
    grid = _Grid(width * 72, font_size)
    panels = [
        _Panel(
            visible(labels[table.context]),
            float(np.nansum(table.log_ratio)),
            list(_blocks(chosen, table, steps, limit, grid)),
        )
        for table in find_tables(chosen, contexts)
    ]
    settings: dict[Any, Any] = {
        "pdf.fonttype": 42,  # TrueType, not Type 3: many publishers refuse the latter
        "svg.fonttype": "path",
        "svg.hashsalt": "stepalign",
        "font.family": [name for name in MONO if name in font_manager.get_font_names()],
    }
    height = sum(map(grid.height, panels)) + 2.35 * grid.line
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(figsize=(width, height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, grid.width)
        axes.set_ylim(height, 0)
        top = 0.25 * grid.line
        for panel in panels:
            _draw_panel(axes, grid, panel, top)
            top += grid.height(panel)
        _draw_legend(axes, grid, top, limit)
        path.parent.mkdir(parents=True, exist_ok=True)
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        figure.savefig(path, dpi=dpi, metadata=dates.get(path.suffix.lower()))
    missing = {found[1] for warning in caught if (found := _NO_GLYPH.search(str(warning.message)))}
    return [chr(int(code)) for code in sorted(missing, key=int)]


# ---------------------------------------------------------------------------------------------------------------------
# Layout


class _Cell(NamedTuple):
    """A token, or text between tokens."""

    text: str
    level: int


Line = list[tuple[int, int, str, int]]
"""(first column, columns, text, level) of every stretch."""


class _Panel(NamedTuple):
    """One context: its steps, each broken into lines."""

    title: str
    total: float
    blocks: list[tuple[MarkedStep, list[Line]]]


class _Grid:
    """The measures of a picture in points, y downwards: text is broken into lines of whole characters."""

    def __init__(self, width: float, font_size: float) -> None:
        self.width = width
        self.size = font_size
        self.cell = CELL * font_size
        self.line = LEADING * font_size
        self.left = 4.2 * font_size
        """Where text starts: the step labels stand before it."""
        self.columns = int((width - self.left - 1) // self.cell)
        if self.columns < 20:
            raise ConfigError(
                f"only {max(0, self.columns)} characters fit into a line",
                where="--width",
                hint="more width, or a smaller --font-size",
            )

    def height(self, panel: _Panel) -> float:
        return self.line * (1.9 + sum(0.22 + len(lines) for _, lines in panel.blocks))


def _blocks(
    rollout: ScoredCompletion, table: TokenTable, labels: Sequence[str], limit: float, grid: _Grid
) -> Iterator[tuple[MarkedStep, list[Line]]]:
    """The steps with these labels (all without any), each broken into lines."""
    for step, first, last in rollout.stretches():
        if labels and step.label not in labels:
            continue
        cells = []
        for gap, token, piece in shown_tokens(rollout, first, last):
            cells += [_Cell(gap, 0)] if gap else []
            cells += [_Cell(piece, scale.level(float(table.log_ratio[token]), limit))] if piece else []
        yield step, list(_lines(cells, grid.columns))


def _lines(cells: Sequence[_Cell], columns: int) -> Iterator[Line]:
    """Lines of (first column, columns, text, level). A token that a line can hold is not broken."""
    line: Line = []
    column = 0
    for cell in _trimmed(cells):
        for number, part in enumerate(cell.text.expandtabs(4).split("\n")):
            if number:
                yield line
                line, column = [], 0
            wide = _columns(part)
            if column and column + wide > columns and _columns(part.strip()) <= columns:
                yield line
                line, column, part = [], 0, part.lstrip(" ")
            while part:
                if column and column + _columns(part[0]) > columns:
                    yield line
                    line, column = [], 0
                fits = _fitting(part, columns - column)
                line.append((column, _columns(part[:fits]), part[:fits], cell.level))
                column += _columns(part[:fits])
                part = part[fits:]
    if line:
        yield line


def _trimmed(cells: Sequence[_Cell]) -> list[_Cell]:
    """Cells without the blank in front of a step's first word and without blank lines behind its last."""
    kept = list(cells)
    while kept and not kept[-1].text.strip() and not kept[-1].level:
        kept.pop()
    if kept:
        kept[-1] = _Cell(kept[-1].text.rstrip("\n") or "⏎", kept[-1].level)
        if kept[0].text[:1] == " " and kept[0].text[1:2].strip():
            kept[0] = _Cell(kept[0].text[1:], kept[0].level)
    return kept


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fitting(text: str, columns: int) -> int:
    """Characters that fit, at least one."""
    count = 1
    while count < len(text) and _columns(text[: count + 1]) <= columns:
        count += 1
    return count


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def _draw_panel(axes: Any, grid: _Grid, panel: _Panel, y: float) -> None:
    size, line = grid.size, grid.line
    _write(axes, 0, y + 0.72 * line, panel.title, 1.1 * size, _INK, fontweight="bold")
    _write(axes, grid.width, y + 0.72 * line, f"sum {signed(panel.total, 2)} nats", 0.9 * size, ha="right")
    y += 1.35 * line
    for step, lines in panel.blocks:
        top = y
        for boxes in lines:
            for column, cells, text, level in boxes:
                _draw_box(axes, grid, grid.left + column * grid.cell, y, cells * grid.cell, text, level)
            y += line
        wrong = step.status == "wrong"
        rule, ends = [grid.left - 0.45 * size] * 2, [top + 0.08 * line, y - 0.08 * line]
        _rule(axes, rule, ends, _WRONG if wrong else _FAINT, 1.4 if wrong else 0.6)
        name = {"answer": "ans."}.get(step.label, visible(step.label))
        _write(
            axes, grid.left - 0.9 * size, top + 0.72 * line, name, size, _WRONG if wrong else _DIM, ha="right",
            fontweight="bold" if wrong else "normal",
        )  # fmt: skip
        y += 0.22 * line


def _draw_box(axes: Any, grid: _Grid, x: float, y: float, width: float, text: str, level: int) -> None:
    """A stretch of one line: background, the line of a strong token, text."""
    if level:
        _fill(axes, x, y + 0.06 * grid.line, width, 0.88 * grid.line, level)
    if abs(level) >= MARKED:
        at = y + (0.06 if level > 0 else 0.94) * grid.line
        colour = scale.background(scale.LEVELS if level > 0 else -scale.LEVELS)
        _rule(axes, [x + 0.4, x + width - 0.4], [at, at], colour, 0.7)
    shown = text.lstrip(" ")
    if shown.strip():
        x += (len(text) - len(shown)) * grid.cell
        _write(axes, x, y + 0.72 * grid.line, shown.rstrip(), grid.size, scale.ink(level) if level else _INK)


def _draw_legend(axes: Any, grid: _Grid, top: float, limit: float) -> None:
    """The scale with its numbers, and what it measures."""
    levels = range(-scale.LEVELS, scale.LEVELS + 1)
    step = min(1.9 * grid.size / 4, (grid.width - grid.left) / 3 / len(levels))
    y, size, width = top + 0.2 * grid.line, 0.85 * grid.size, step * len(levels)
    for number, level in enumerate(levels):
        _fill(axes, grid.left + number * step, y, step * 1.02, 0.6 * grid.line, level)
    below = y + 0.6 * grid.line + 0.95 * size
    for share, text, align in ((0.0, f"−{limit:.2g}", "left"), (0.5, "0", "center"), (1.0, f"+{limit:.2g}", "right")):
        _write(axes, grid.left + share * width, below, text, size, ha=align)
    note = ("A_t in nats: line below suppressed,", "line above reinforced")
    room = (grid.width - grid.left - width - 2 * grid.size) / (CELL * size)
    words = " ".join(note)
    texts = (words,) if len(words) <= room else note if len(note[0]) <= room else ("A_t in nats",)
    for number, text in enumerate(texts):
        _write(axes, grid.left + width + 1.5 * grid.size, y + 0.5 * grid.line + number * 1.25 * size, text, size)


def _write(axes: Any, x: float, y: float, text: str, size: float, colour: str = _DIM, **more: Any) -> None:
    axes.text(x, y, text, fontsize=size, color=colour, va="baseline", parse_math=False, **more)


def _rule(axes: Any, x: Sequence[float], y: Sequence[float], colour: str, width: float) -> None:
    axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="butt")


def _fill(axes: Any, x: float, y: float, width: float, height: float, level: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=scale.background(level), linewidth=0))
