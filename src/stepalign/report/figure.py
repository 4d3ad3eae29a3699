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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.report import scale
from stepalign.report.payload import viewer_data
from stepalign.report.terminal import find_contexts, find_rollout
from stepalign.report.text import signed, visible

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
_INK, _DIM, _WRONG = "#000000", "#5b6270", "#8f3206"
_STATUS = {"wrong": "first wrong step", "after_error": "after the error"}


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
    data = viewer_data(signal, alternatives=0)
    chosen = find_rollout(data, rollout)
    panels = [
        _panel(chosen, context, data, _wanted(chosen, steps)) for context in find_contexts(data, chosen, contexts)
    ]
    layout = _Layout(width * 72, font_size)
    drawing = list(layout.place(panels))
    settings: dict[Any, Any] = {
        "pdf.fonttype": 42,  # TrueType, not Type 3: many publishers refuse the latter
        "svg.fonttype": "path",
        "svg.hashsalt": "stepalign",
        "font.family": [name for name in MONO if name in font_manager.get_font_names()],
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(figsize=(width, layout.height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, layout.width)
        axes.set_ylim(layout.height, 0)
        _draw(axes, drawing, font_size)
        _draw_legend(axes, layout, data, font_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        figure.savefig(path, dpi=dpi, metadata=dates.get(path.suffix.lower()))
    missing = {found[1] for warning in caught if (found := _NO_GLYPH.search(str(warning.message)))}
    return [chr(int(code)) for code in sorted(missing, key=int)]


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


@dataclass(frozen=True, slots=True)
class _Cell:
    """A token, or text between tokens."""

    text: str
    level: int


@dataclass(frozen=True, slots=True)
class _StepBlock:
    label: str
    status: str
    total: float
    cells: list[_Cell]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    total: float
    steps: list[_StepBlock]


def _wanted(rollout: Mapping[str, Any], labels: Sequence[str]) -> set[str]:
    there = [label for label, *_ in rollout["steps"]]
    for label in labels:
        if label not in there:
            raise ConfigError(f"this rollout has no step {label!r}", hint=f"choose from {', '.join(there)}")
    return set(labels or there)


def _panel(rollout: Mapping[str, Any], context: Mapping[str, Any], data: Mapping[str, Any], wanted: set[str]) -> _Panel:
    values, joined, special = context["a"], set(rollout["joined"]), set(rollout["special"])
    blocks = []
    for label, status, first, last in rollout["steps"]:
        if label not in wanted:
            continue
        cells = []
        for token in range(first, last):
            if gap := rollout["gaps"].get(token):
                cells.append(_Cell(visible(gap), 0))
            if token in joined:
                continue
            piece = visible(rollout["pieces"][token]) or "∅"
            at = scale.level(values[token], data["limit"])
            cells.append(_Cell(f"⟨{piece}⟩" if token in special else piece, at))
        blocks.append(_StepBlock(label, status, sum(v for v in values[first:last] if v is not None), cells))
    title = visible(data["contexts"][context["context"]]["label"])
    return _Panel(title, sum(v for v in values if v is not None), blocks)


@dataclass(frozen=True, slots=True)
class _Box:
    """A stretch of one line: its place in points and what stands in it."""

    x: float
    y: float
    width: float
    height: float
    text: str
    level: int


@dataclass(frozen=True, slots=True)
class _Note:
    x: float
    y: float
    text: str
    size: float
    colour: str = _DIM
    bold: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    x: float
    top: float
    bottom: float
    colour: str
    strong: bool


class _Layout:
    """Breaks the cells into lines of whole characters and gives everything its place. Points, y downwards."""

    def __init__(self, width: float, font_size: float) -> None:
        self.width = width
        self.cell = CELL * font_size
        self.line = LEADING * font_size
        self.left = 4.2 * font_size
        """Where text starts: the step labels stand before it."""
        self.columns = int((width - self.left - 1) // self.cell)
        self.size = font_size
        self.height = 0.0
        if self.columns < 20:
            raise ConfigError(
                f"only {max(0, self.columns)} characters fit into a line",
                where="--width",
                hint="more width, or a smaller --font-size",
            )

    def place(self, panels: Sequence[_Panel]) -> Iterator[_Box | _Note | _Rule]:
        y = 0.25 * self.line
        for panel in panels:
            yield _Note(0, y + 0.72 * self.line, panel.title, 1.1 * self.size, _INK, bold=True)
            yield _Note(
                self.width, y + 0.72 * self.line, f"sum {signed(panel.total, 2)} nats", 0.9 * self.size, right=True
            )
            y += 1.35 * self.line
            for step in panel.steps:
                top = y
                lines = list(_lines(step.cells, self.columns))
                for boxes in lines:
                    for column, cells, text, level in boxes:
                        yield _Box(self.left + column * self.cell, y, cells * self.cell, self.line, text, level)
                    y += self.line
                is_wrong = step.status == "wrong"
                colour = _WRONG if is_wrong else "#9aa1ab"
                yield _Rule(
                    self.left - 0.45 * self.size, top + 0.08 * self.line, y - 0.08 * self.line, colour, is_wrong
                )
                name = {"": "", "answer": "ans."}.get(step.label, step.label)
                yield _Note(
                    self.left - 0.9 * self.size, top + 0.72 * self.line, visible(name), self.size,
                    _WRONG if is_wrong else _DIM, bold=is_wrong, right=True,
                )  # fmt: skip
                y += 0.22 * self.line
            y += 0.55 * self.line
        self.legend_top = y
        self.height = y + 2.1 * self.line


def _lines(cells: Sequence[_Cell], columns: int) -> Iterator[list[tuple[int, int, str, int]]]:
    """Lines of (first column, columns, text, level). A token that a line can hold is not broken."""
    line: list[tuple[int, int, str, int]] = []
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


def _draw(axes: Any, drawing: Sequence[_Box | _Note | _Rule], font_size: float) -> None:
    from matplotlib.patches import Rectangle

    for item in drawing:
        if isinstance(item, _Rule):
            axes.plot(
                [item.x, item.x], [item.top, item.bottom], color=item.colour, linewidth=1.4 if item.strong else 0.6,
                solid_capstyle="butt",
            )  # fmt: skip
        elif isinstance(item, _Note):
            axes.text(
                item.x, item.y, item.text, fontsize=item.size, color=item.colour, parse_math=False,
                fontweight="bold" if item.bold else "normal", ha="right" if item.right else "left", va="baseline",
            )  # fmt: skip
        else:
            if item.level:
                fill = scale.background(item.level)
                top, height = item.y + 0.06 * item.height, 0.88 * item.height
                axes.add_patch(Rectangle((item.x, top), item.width, height, facecolor=fill, linewidth=0))
            if abs(item.level) >= MARKED:
                at = item.y + (0.06 if item.level > 0 else 0.94) * item.height
                axes.plot(
                    [item.x + 0.4, item.x + item.width - 0.4], [at, at], linewidth=0.7, solid_capstyle="butt",
                    color=scale.background(scale.LEVELS if item.level > 0 else -scale.LEVELS),
                )  # fmt: skip
            shown = item.text.lstrip(" ")
            if shown.strip():
                shift = (len(item.text) - len(shown)) * CELL * font_size
                axes.text(
                    item.x + shift, item.y + 0.72 * item.height, shown.rstrip(), fontsize=font_size,
                    color=scale.ink(item.level) if item.level else _INK, parse_math=False, va="baseline",
                )  # fmt: skip


def _draw_legend(axes: Any, layout: _Layout, data: Mapping[str, Any], font_size: float) -> None:
    """The scale with its numbers, and what it measures."""
    from matplotlib.patches import Rectangle

    levels = range(-scale.LEVELS, scale.LEVELS + 1)
    step = min(1.9 * font_size / 4, (layout.width - layout.left) / 3 / len(levels))
    y, size = layout.legend_top + 0.2 * layout.line, 0.85 * font_size
    for number, level in enumerate(levels):
        axes.add_patch(
            Rectangle(
                (layout.left + number * step, y), step * 1.02, 0.6 * layout.line,
                facecolor=scale.background(level), linewidth=0,
            )
        )  # fmt: skip
    width = step * len(levels)
    limit = f"{data['limit']:.2g}"
    below = y + 0.6 * layout.line + 0.95 * size
    for share, text, align in ((0.0, f"−{limit}", "left"), (0.5, "0", "center"), (1.0, f"+{limit}", "right")):
        axes.text(
            layout.left + share * width, below, text, fontsize=size, color=_DIM, ha=align, va="baseline",
            parse_math=False,
        )  # fmt: skip
    note = ("A_t in nats: line below suppressed,", "line above reinforced")
    room = (layout.width - layout.left - width - 2 * font_size) / (CELL * size)
    words = " ".join(note)
    texts = (words,) if len(words) <= room else note if len(note[0]) <= room else ("A_t in nats",)
    for number, text in enumerate(texts):
        axes.text(
            layout.left + width + 1.5 * font_size, y + 0.5 * layout.line + number * 1.25 * size, text, fontsize=size,
            color=_DIM, va="baseline", parse_math=False,
        )  # fmt: skip
