"""The timeline of a run: appended, cut back with the other records, and added up into a strip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.config import load_config
from stepalign.report.charts import time_strips
from stepalign.storage.run_folder import RunFolder
from stepalign.training.timeline import Timeline, strip, write_trace


def test_spans_are_appended_and_a_resumed_run_keeps_those_of_its_checkpoint(tmp_path: Path) -> None:
    config, path = load_config("arithmetic"), tmp_path / "run"
    with RunFolder(path, config, resume=False) as folder:
        timeline = Timeline(folder)
        timeline.add("sampling", 100.0, 103.0, step=0)
        timeline.write()
        before = (path / "timeline.jsonl").read_bytes()
        sizes = folder.sizes()
        timeline.add("learning", 103.0, 104.0, step=0)
        timeline.write()
        assert (path / "timeline.jsonl").read_bytes().startswith(before)  # what is there is not written again
    with RunFolder(path, config, resume=True) as folder:
        folder.rewind(sizes)
        timeline = Timeline(folder)
        timeline.add("learning", 200.0, 202.5, step=0)
        timeline.write()
    write_trace(path)
    trace = json.loads((path / "timeline.json").read_text())["traceEvents"]
    spans = [(event["name"], event["ts"], event["dur"]) for event in trace if event["ph"] == "X"]
    assert spans == [("sampling", 100_000_000, 3_000_000), ("learning", 200_000_000, 2_500_000)]


def test_a_strip_adds_up_to_the_seconds_of_each_phase(tmp_path: Path) -> None:
    """By hand: 6 s of sampling of which 2 s wait for critiques, 3 s of learning, a pause of an hour, 1 s of saving."""
    path = tmp_path / "run"
    with RunFolder(path, load_config("arithmetic"), resume=False) as folder:
        timeline = Timeline(folder)
        timeline.add("sampling", 0.0, 6.0, step=0)
        timeline.collected(1, (0.0, 4.0, 6.0))
        timeline.add("learning", 6.0, 9.0, step=0)
        timeline.add("saving", 3600.0, 3601.0, step=1)
        timeline.write()
    whole = strip(path, bins=1)
    assert whole == [pytest.approx({"sampling": 0.4, "feedback": 0.2, "learning": 0.3, "saving": 0.1})]
    assert strip(path, bins=10)[0] == pytest.approx({"sampling": 1.0})
    assert strip(path, bins=10)[9] == pytest.approx({"saving": 1.0})
    for part in strip(path, bins=7):
        assert sum(part.values()) == pytest.approx(1.0)
    svg = time_strips([("a run", strip(path))], title="t")
    for text in ("sampling 40.0 %", "feedback 20.0 %", "learning 30.0 %", "saving 10.0 %"):
        assert text in svg


def test_a_run_without_spans_has_no_strip(tmp_path: Path) -> None:
    assert strip(tmp_path) == []
    write_trace(tmp_path)
    assert not (tmp_path / "timeline.json").exists()
