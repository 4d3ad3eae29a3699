"""Record commands in a terminal as an asciicast, and draw the recording as an animated SVG.

    python dev/terminal_cast.py record docs/images/demo.cast "stepalign show runs/look" "stepalign demo"
    python dev/terminal_cast.py draw docs/images/demo.cast docs/images/demo.svg

The recording has the real times of the real output; the picture plays it in SECONDS, long waits shortened.
"""

from __future__ import annotations

import codecs
import fcntl
import html
import json
import os
import pty
import re
import shlex
import struct
import sys
import termios
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import pyte

WIDTH, HEIGHT = 110, 30
SECONDS, READ = 20.0, 3.0
"""Of one round of the picture, and of the screen at the end of each command in it."""
LONGEST, FASTEST = 1.0, 0.25
"""Seconds of a recorded wait that are kept; seconds of the picture between two frames."""
BARS = 5.0
"""Seconds of a recording between two looks at bars that move."""
PROMPT = "\x1b[32m$\x1b[0m "
CELL, LINE, PAD = 8.0, 18.0, 12.0
INK, PAPER = "#d7dae0", "#16181d"
COLOURS = {
    **{"black": "#16181d", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef"},
    **{"magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0", "brightblack": "#7f848e", "brightred": "#ff7b86"},
    **{"brightgreen": "#b5e890", "brightbrown": "#f0d399", "brightblue": "#8ac6ff", "brightmagenta": "#dd9bf0"},
    **{"brightcyan": "#7fd6e0", "brightwhite": "#ffffff"},
}


_REFRESH = re.compile(r"\r\x1b\[2K((?:\x1b\[1A\x1b\[2K)*)(?:[^\x1b\r]|\r\n|\x1b\[[\d;]*m)*")
"""Bars drawn again in the place of those before."""


def record(cast: Path, commands: list[str]) -> None:
    """Run commands one after the other in a terminal of WIDTH x HEIGHT, and write an asciicast (version 2)."""
    header = {"version": 2, "width": WIDTH, "height": HEIGHT, "title": " && ".join(commands)}
    start, events = time.monotonic(), list[tuple[float, str]]()

    def write(text: str) -> None:
        events.append((round(time.monotonic() - start, 3), text))

    for command in commands:
        write(f"{PROMPT}{command}\r\n")
        if code := _run(shlex.split(command), write):
            raise SystemExit(f"{command} ended with {code}")
    write(PROMPT)
    lines = [json.dumps([at, "o", text], ensure_ascii=False) for at, text in thinned(events)]
    cast.write_text("\n".join([json.dumps(header), *lines]) + "\n", encoding="utf-8")


def thinned(events: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without bars that are drawn again, at the same height, within BARS seconds."""
    kept: list[tuple[float, str]] = []
    for at, text in events:
        height = _height(text)
        if height is not None and len(kept) > 1 and _height(kept[-1][1]) == height and at - kept[-2][0] < BARS:
            kept.pop()
        kept.append((at, text))
    return kept


def _height(text: str) -> int | None:
    """Lines of bars, where a text is nothing but bars in the place of as many."""
    found = _REFRESH.fullmatch(text)
    return text.count("\n") if found and found[1].count("A") == text.count("\n") else None


def _run(words: list[str], write: Any) -> int:
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(words[0], words, {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the child has closed it
            break
        if not data:
            break
        write(decoder.decode(data))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def frames(cast: Path) -> list[tuple[float, list[str]]]:
    """(second of the picture, the lines of the screen as SVG), at most one each FASTEST seconds."""
    header, *events = map(json.loads, cast.read_text(encoding="utf-8").splitlines())
    screen = pyte.Screen(header["width"], header["height"])
    stream = pyte.Stream(screen)
    clock, before, holds = 0.0, 0.0, 0
    shown: list[tuple[float, int, list[str]]] = []
    for at, _, text in events:
        clock, before = clock + min(at - before, LONGEST), at
        holds += bool(shown) and text.startswith(PROMPT)
        stream.feed(text)
        shown.append((clock, holds, _lines(screen)))
    scale = (SECONDS - READ * max(holds, 1)) / max(clock, 1e-9)
    kept: list[tuple[float, list[str]]] = []
    for clock, holds, lines in shown:
        second = clock * scale + READ * holds
        if holds == shown[-1][1]:  # the last screen is read at the end
            second = min(second, SECONDS - READ)
        if kept and second - kept[-1][0] < FASTEST:
            kept[-1] = (kept[-1][0], lines)
        elif not kept or lines != kept[-1][1]:
            kept.append((second, lines))
    return kept


def _lines(screen: pyte.Screen) -> list[str]:
    """Each line as rectangles and texts, cells of one look together."""
    drawn = []
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        parts, column = [], 0
        for (ink, paper, bold), group in groupby(cells, _look):
            text = "".join(cell.data for cell in group)
            x, width = column * CELL, len(text) * CELL
            column += len(text)
            if paper != PAPER:
                parts.append(f'<rect x="{x:g}" width="{width:g}" height="{LINE:g}" fill="{paper}"/>')
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                fill = f' fill="{ink}"' if ink != INK else ""
                shown = html.escape(text.rstrip())
                parts.append(
                    f'<text x="{x:g}" y="13.5" textLength="{len(text.rstrip()) * CELL:g}"{fill}{weight}>{shown}</text>'
                )
        drawn.append("".join(parts))
    return drawn


def _look(cell: Any) -> tuple[str, str, bool]:
    ink, paper = (_colour(cell.fg, INK), _colour(cell.bg, PAPER))
    return (paper, ink, cell.bold) if cell.reverse else (ink, paper, cell.bold)


def _colour(name: str, default: str) -> str:
    return default if name == "default" else COLOURS.get(name) or f"#{name}"


def draw(cast: Path) -> str:
    """The recording as an SVG that plays by itself; a reader who wants no motion sees its end."""
    found = frames(cast)
    height = max(len(lines) - next((i for i, line in enumerate(reversed(lines)) if line), 0) for _, lines in found)
    names: dict[str, str] = {}
    for _, lines in found:
        for line in filter(None, lines):
            names.setdefault(line, f"l{len(names)}")
    strips, steps = [], []
    for number, (second, lines) in enumerate(found):
        uses = "".join(f'<use href="#{names[line]}" y="{row * LINE:g}"/>' for row, line in enumerate(lines) if line)
        strips.append(f'<g id="f{number}">{uses}</g>')
        until = found[number + 1][0] if number + 1 < len(found) else SECONDS
        begin, end = 100 * second / SECONDS, 100 * until / SECONDS
        hidden = f"0%{{visibility:hidden}}{begin:.2f}%{{visibility:visible}}" if number else "0%{visibility:visible}"
        closing = "100%{visibility:visible}" if end >= 100 else f"{end:.2f}%,100%{{visibility:hidden}}"
        steps.append(f"@keyframes k{number}{{{hidden}{closing}}}#f{number}{{animation-name:k{number}}}")
    width, tall = WIDTH * CELL + 2 * PAD, height * LINE + 2 * PAD
    style = (
        f"text{{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}}"
        f"g[id]{{visibility:hidden;animation:{SECONDS:g}s step-end infinite}}"
        f"{''.join(steps)}"
        f"@media (prefers-reduced-motion:reduce){{g[id]{{animation:none}}#f{len(found) - 1}{{visibility:visible}}}}"
    )
    title = html.escape(json.loads(cast.open(encoding="utf-8").readline())["title"])
    lines = "".join(f'<svg id="{name}" overflow="visible">{line}</svg>' for line, name in names.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {tall:g}" role="img" xml:space="preserve">'
        f"<title>{title}</title><style>{style}</style><defs>{lines}</defs>"
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>'
        f'<svg x="{PAD:g}" y="{PAD:g}" fill="{INK}" overflow="visible">{"".join(strips)}</svg></svg>\n'
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", cast, *commands] if commands:
            record(Path(cast), commands)
        case ["draw", cast, picture]:
            Path(picture).write_text(draw(Path(cast)), encoding="utf-8")
        case _:
            raise SystemExit(__doc__)
