"""The recording of a terminal in the README: drawn from its file alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


def test_the_readme_plays_the_recording(tmp_path: Path) -> None:
    """Drawn from it and nothing else; the end that a reader without motion sees has the table of the comparison."""
    pytest.importorskip("pyte")
    import terminal_cast as cast  # type: ignore[import-not-found]

    picture = ROOT / "docs" / "images" / "demo.svg"
    assert picture.read_text(encoding="utf-8") == cast.draw(picture.with_suffix(".cast"))
    assert "docs/images/demo.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
    small = tmp_path / "small.cast"
    small.write_text(
        '{"version": 2, "width": 20, "height": 4, "title": "x < y"}\n'
        '[0.5, "o", "one \\u001b[31mred\\u001b[0m\\r\\n"]\n[60.0, "o", "\\u001b[1;41mtwo\\u001b[0m"]\n'
    )
    times, screens = zip(*cast.frames(small), strict=True)
    assert times[0] < times[1] <= cast.SECONDS - cast.READ  # a minute of waiting is a moment
    drawing = ElementTree.fromstring(cast.draw(small))
    svg = "{http://www.w3.org/2000/svg}"
    texts = [(node.text, node.get("fill"), node.get("font-weight")) for node in drawing.iter(f"{svg}text")]
    assert texts == [("one", None, None), ("red", cast.COLOURS["red"], None), ("two", None, "bold")]
    assert drawing.findtext(f"{svg}title") == "x < y"
    assert screens[1][1].startswith("<rect")
