from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from stepalign.report import charts, drawing
from stepalign.report.charts import IntervalRow, Series
from stepalign.report.drawing import Frame

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_frame_maps_corners_and_middle() -> None:
    frame = Frame(left=40, top=10, width=200, height=100, x_low=0, x_high=50, y_low=-1, y_high=1)
    assert (frame.x(0), frame.y(1)) == (40, 10)
    assert (frame.x(50), frame.y(-1)) == (240, 110)
    assert (frame.x(25), frame.y(0)) == (140, 60)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 5, [0, 0.25, 0.5, 0.75, 1]),
        (0, 62, 5, [0, 20, 40, 60, 80]),
        (0.11, 0.29, 5, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (-0.3, 0.5, 4, [-0.5, 0, 0.5]),
        (5, 5, 3, [5, 7.5, 10]),
    ],
)
def test_ticks_are_round_and_cover_the_data(low: float, high: float, count: int, expected: list[float]) -> None:
    assert drawing.nice_ticks(low, high, count) == expected


def test_ticks_say_what_they_are() -> None:
    assert drawing.tick_texts([0, 0.25, 0.5], True) == ["0 %", "25 %", "50 %"]
    assert drawing.tick_texts([0, 2.5, 5], False) == ["0.0", "2.5", "5.0"]
    assert drawing.tick_texts([-0.05, 0, 0.05], False) == ["−0.05", "0.00", "0.05"]
    assert drawing.tick_texts([0, 5000, 10000], False) == ["0", "5,000", "10,000"]


def marks(svg: str) -> list[tuple[float, float]]:
    return [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in parse(svg).iter(f"{NAMESPACE}circle")]


def test_points_agree_with_the_axes() -> None:
    """Independent of Frame: pixel positions are an affine map fixed by the drawn ticks, so check against the ticks."""
    line = Series(label="A", colour=0, x=(0, 10, 20), y=(0.0, 0.5, 1.0))
    svg = charts.line_chart([line], title="t", x_label="x", y_label="y", as_percent=True, y_range=(0, 1))
    texts = {text.text: text.attrib for text in parse(svg).iter(f"{NAMESPACE}text")}
    (x0, y0), (x1, y1), (x2, y2) = marks(svg)
    assert [x0, x2] == [float(texts["0"]["x"]), float(texts["20"]["x"])]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.02)
    # Tick texts sit 4 px below their line.
    assert [y0, y2] == [float(texts["0 %"]["y"]) - 4, float(texts["100 %"]["y"]) - 4]
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.02)


@pytest.mark.parametrize("hole", [None, float("nan"), float("inf")])
def test_undefined_values_are_gaps(hole: float | None) -> None:
    line = Series(
        label="A", colour=0, x=(0, 1, 2, 3, 4), y=(0.1, 0.2, hole, 0.3, 0.4), low=(0, 0, hole, 0, 0), high=(1,) * 5
    )
    svg = charts.line_chart([line], title="t", x_label="x", y_label="y")
    strokes = [
        path
        for group in parse(svg).iter(f"{NAMESPACE}g")
        if "stroke" in group.get("class", "").split()
        for path in group
    ]
    assert len(strokes) == 2
    assert all(path.attrib["d"].count("L") == 1 for path in strokes)
    bands = [
        path for group in parse(svg).iter(f"{NAMESPACE}g") if "band" in group.get("class", "").split() for path in group
    ]
    assert len(bands) == 2
    assert len(marks(svg)) == 4
    assert "nan" not in svg.lower()


def test_a_chart_without_data_says_so() -> None:
    svg = charts.line_chart([], title="t", x_label="x", y_label="y")
    assert "not measured yet" in svg
    parse(svg)


def test_end_labels_never_overlap() -> None:
    places = drawing.spread([50, 51, 52, 200], 15, 0, 220)
    assert places == sorted(places)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 15
    assert drawing.spread([10, 219, 219], 15, 0, 220)[-1] <= 220


def test_interval_chart_places_the_interval() -> None:
    rows = [
        IntervalRow(label="A − B", colour=1, value=0.25, low=0.0, high=0.5),
        IntervalRow(label="none", colour=2, value=None),
    ]
    svg = charts.interval_chart(rows, title="t", zero=True, x_range=(-0.5, 0.5))
    (line,) = [line for line in parse(svg).iter(f"{NAMESPACE}line") if line.get("class", "").startswith("stroke")]
    ticks = {
        text.text: float(text.attrib["x"])
        for text in parse(svg).iter(f"{NAMESPACE}text")
        if text.get("class") == "tick"
    }
    assert float(line.attrib["x1"]) == ticks["0 %"]
    assert float(line.attrib["x2"]) == ticks["50 %"]
    assert "not measured yet" in svg


def test_bars_have_the_length_of_their_seconds() -> None:
    svg = charts.stacked_bars(
        [("A", [("one", 10.0), ("two", 30.0)]), ("B", [("two", 20.0), ("gone", None)])], title="t"
    )
    bars = [bar for bar in parse(svg).iter(f"{NAMESPACE}rect") if bar.attrib["height"] == "18"]
    one, two, other = (float(bar.attrib["width"]) for bar in bars)
    assert two / one == pytest.approx(3, abs=0.01)
    assert other / one == pytest.approx(2, abs=0.01)
    assert float(bars[1].attrib["x"]) == pytest.approx(float(bars[0].attrib["x"]) + one, abs=0.02)


def test_bars_of_counts_have_no_decimals() -> None:
    svg = charts.stacked_bars([("A", [("left", 43), ("fell", 17)])], title="t", unit="")
    assert [text.text for text in parse(svg).iter(f"{NAMESPACE}text") if text.get("class") == "row-value"] == ["60"]
    assert "43</title>" in svg


def test_labels_are_escaped() -> None:
    label = '<script>alert("1")</script>\x1b[0m\u202e'
    line = Series(label=label, colour=0, x=(0, 1), y=(0, 1))
    svg = charts.line_chart([line], title=label, x_label=label, y_label=label)
    assert "<script" not in svg
    assert not {"\x1b", "\u202e"} & set(svg)
    parse(svg)


def test_arms_differ_by_shape_as_well_as_colour() -> None:
    count = len(drawing.ARM_COLOURS)
    shapes = {re.sub(r'class="[^"]*" fill="[^"]*"', "", drawing.marker(index, 0, 0)) for index in range(count)}
    assert len(shapes) == len(set(drawing.ARM_COLOURS)) == count
