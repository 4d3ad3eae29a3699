"""Figures for print: exact size, fonts a publisher takes, every character in its place."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from stepalign.errors import ConfigError
from stepalign.report import figure, scale
from stepalign.report.figure import parse_width, write_figure
from stepalign.token_signal.files import load_signal

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("text", "inches"), [("5.5in", 5.5), ("14cm", 14 / 2.54), ("140 mm", 14 / 2.54), ("397.485pt", 5.5), ("396bp", 5.5)]
)
def test_widths_are_those_of_tex(text: str, inches: float) -> None:
    assert parse_width(text) == pytest.approx(inches, abs=1e-4)


@pytest.mark.parametrize("text", ["5.5", "wide", "0in", "-3cm", "1000in", ""])
def test_other_widths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no width"):
        parse_width(text)


def test_a_pdf_has_the_exact_width_and_embedded_truetype_fonts(signal: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "figure.pdf"
    write_figure(signal, path, width=5.5)
    raw = path.read_bytes()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", raw)
    assert box is not None
    assert float(box[1]) == pytest.approx(5.5 * 72)
    assert b"/Type3" not in raw
    assert b"/FontFile2" in raw  # the TrueType program itself
    assert b"DejaVuSansMono" in raw
    again = tmp_path / "again.pdf"
    write_figure(signal, again, width=5.5)
    assert again.read_bytes() == raw


@pytest.mark.slow
def test_a_png_has_the_exact_width_and_the_colours_of_the_page(signal: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    write_figure(signal, path, width=4.0, dpi=100)
    raw = path.read_bytes()
    width, height = struct.unpack(">II", raw[16:24])
    assert width == 400
    assert height > 100
    # Colours, decoded without matplotlib: the strongest level of each sign is drawn somewhere.
    parts, at = b"", 8
    while at < len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        parts += raw[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    pixels = _unfiltered(zlib.decompress(parts), width, height)
    for level in (scale.LEVELS, -scale.LEVELS):
        colour = scale.background(level)
        assert bytes.fromhex(colour[1:]) in pixels, level


def _unfiltered(data: bytes, width: int, height: int, bytes_per_pixel: int = 4) -> set[bytes]:
    """Every colour of a PNG of 8-bit RGBA, by the filters of its specification."""
    stride = width * bytes_per_pixel
    before = bytearray(stride)
    colours: set[bytes] = set()
    for row in range(height):
        kind, line = data[row * (stride + 1)], bytearray(data[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - bytes_per_pixel] if i >= bytes_per_pixel else 0
            corner = before[i - bytes_per_pixel] if i >= bytes_per_pixel else 0
            guess = left + before[i] - corner
            nearest = min((left, before[i], corner), key=lambda v: abs(guess - v))
            line[i] = (line[i] + (0, left, before[i], (left + before[i]) // 2, nearest)[kind]) % 256
        colours |= {bytes(line[i : i + 3]) for i in range(0, stride, bytes_per_pixel)}
        before = line
    return colours


def test_an_svg_has_the_exact_width_and_needs_no_font(signal: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    write_figure(signal, path, width=5.5, contexts=["reference"], steps=["1"])
    text = path.read_text(encoding="utf-8")
    assert re.search(r'<svg[^>]* width="396pt"', text, re.S)
    assert "<text" not in text  # glyphs are outlines


@pytest.mark.parametrize("payload", [*fixtures.HOSTILE[:6], "$x^2 \\frac{", "日本語 größer 🙂", "\x1b[31m\x07"])
def test_hostile_and_foreign_text_is_drawn(payload: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    missing = write_figure(fixtures.make_hostile_signal(payload), path)
    assert path.stat().st_size > 1000
    assert "\x1b" not in missing


pieces = st.lists(
    st.tuples(st.text(st.sampled_from("ab c\n\t日é$"), min_size=1, max_size=9), st.integers(-16, 16)), max_size=30
)


@given(cells=pieces, columns=st.integers(8, 30))
def test_no_line_is_too_long_and_no_visible_character_is_lost(cells: list[tuple[str, int]], columns: int) -> None:
    lines = list(figure._lines([figure._Cell(text, level) for text, level in cells], columns))
    drawn = "".join(text for line in lines for _, _, text, _ in line)
    wanted = "".join(text for text, _ in cells)
    assert re.sub(r"[\s⏎]", "", drawn) == re.sub(r"\s", "", wanted)
    for line in lines:
        for column, width, text, _ in line:
            assert column + width <= columns
            assert width == figure._columns(text)


def test_what_is_not_there_is_refused(signal: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no figure can be written"):
        write_figure(signal, tmp_path / "x.gif")
    with pytest.raises(ConfigError, match="no step '77'"):
        write_figure(signal, tmp_path / "x.png", steps=["77"])
    with pytest.raises(ConfigError, match="characters fit"):
        write_figure(signal, tmp_path / "x.png", width=1.0, font_size=12)


def row(rollout_id: str, context: str) -> dict[str, Any]:
    return {
        "rollout_id": rollout_id, "context": context, "context_text": "c", "critic_case": "", "first_error": "",
        "case": "unknown", "verdict": "correct", "question": "q", "expected_answer": None, "reference": None,
        "text": "a \x1bb", "tokens": ["a", " \x1bb"], "spans": [[0, 1], [1, 4]], "special": [], "token_ids": [5, 6],
        "steps": [{"label": "1", "start": 0, "end": 4, "status": "unknown", "sum": 0.5}],
        "log_ratio": [0.25, -0.5], "student_log_prob": [-1.0, -1.0], "teacher_log_prob": [-0.75, -1.5],
        "forward_kl": [0.1, 0.1], "student_entropy": [1.0, 1.0], "teacher_entropy": [1.0, 1.0],
    }  # fmt: skip


def test_rollouts_that_are_not_on_the_page_come_from_the_records(signal: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "signal.json").write_text(json.dumps(signal), encoding="utf-8")
    rows = [row("far", "step_aligned"), row("far", "reference"), row("farther", "reference")]
    (tmp_path / "signal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"torn', encoding="utf-8")
    assert load_signal(tmp_path, "0") == signal
    found = load_signal(tmp_path, "far")["rollouts"][-1]
    assert [context["name"] for context in found["contexts"]] == ["step_aligned", "reference"]
    assert found["tokens"][1] == {"text": " \x1bb", "start": 1, "end": 4, "id": 6, "special": False}
    with pytest.raises(ConfigError, match="no rollout 'nowhere'"):
        load_signal(tmp_path, "nowhere")
    with pytest.raises(ConfigError, match="there is no signal here"):
        load_signal(tmp_path / "empty")

    shown = subprocess.run(
        [sys.executable, "-m", "stepalign", "show", str(tmp_path), "--rollout", "far", "--context", "reference"],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    assert "a ␛b" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "stepalign", "figure", str(tmp_path), "--out", str(tmp_path / "f.pdf"), "--width", "5"],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "where: --width" in wrong.stderr
