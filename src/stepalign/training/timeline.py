"""Where the time of a run went: spans, appended while it runs, and shown by chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepalign.storage.files import write_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.run_folder import RunFolder

RECORD = "timeline"
LEARNER = 0
"""Track of the process that learns; steps that are collected at the same time have tracks of their own, from 1 on."""
BINS = 120
Strip = list[dict[str, float]]
"""Equal parts of a run's working time, each with the share of every phase in it."""


class Timeline:
    """Spans of one run, over all its processes. Times are seconds since the epoch."""

    def __init__(self, folder: RunFolder, num_tracks: int = 1) -> None:
        self._folder, self._num_tracks = folder, num_tracks
        self._spans: list[dict[str, Any]] = []

    def add(self, name: str, start: float, end: float, track: int = LEARNER, *, step: int) -> None:
        self._spans.append({"name": name, "start": start, "end": max(start, end), "track": track, "step": step})

    def collected(self, step: int, times: tuple[float, float, float]) -> None:
        """The rollouts of a step: sampling, then the critiques that came after the last completion."""
        start, sampled, end = times
        track = LEARNER + 1 + step % self._num_tracks
        self.add("rollouts", start, sampled, track, step=step)
        if end > sampled:
            self.add("critiques", sampled, end, track, step=step)

    def write(self) -> None:
        """Put the spans since the last call on disk."""
        self._folder.append(RECORD, self._spans)
        self._spans = []


def write_trace(folder: Path) -> None:
    """Write ``timeline.json`` of a run folder.

    Source: Trace Event Format, complete events ("ph": "X"), times in microseconds.
    """
    spans = list(read_json_lines(folder / f"{RECORD}.jsonl"))
    event = {"pid": 1}
    events = [
        {"name": "thread_name", "ph": "M", **event, "tid": track, "args": {"name": f"collected {track}"}}
        for track in range(1, 1 + max([span["track"] for span in spans], default=0))
    ]
    events.insert(0, {"name": "thread_name", "ph": "M", **event, "tid": LEARNER, "args": {"name": "learner"}})
    for span in spans:
        times = {"ts": round(span["start"] * 1e6), "dur": round((span["end"] - span["start"]) * 1e6)}
        facts = {"tid": span["track"], "args": {"step": span["step"]}}
        events.append({"name": span["name"], "ph": "X", **times, **event, **facts})
    if spans:
        write_json(folder / f"{RECORD}.json", {"traceEvents": events, "displayTimeUnit": "ms"}, indent=None)


def strip(folder: Path, bins: int = BINS) -> Strip:
    """The phases of the learner from the first step to the last; time in which no process worked is left out."""
    spans = list(read_json_lines(folder / f"{RECORD}.jsonl"))
    critiques = {span["step"]: (span["start"], span["end"]) for span in spans if span["name"] == "critiques"}
    parts: list[tuple[str, float]] = []
    for span in spans:
        if span["track"] != LEARNER:
            continue
        start, end = span["start"], span["end"]
        waits = 0.0
        if span["name"] == "sampling":  # what is left of it when the last completion has ended is waiting for critiques
            begin, last = critiques.get(span["step"] + 1, (end, end))
            waits = max(0.0, min(end, last) - max(start, begin))
        parts += [(span["name"], end - start - waits), ("feedback", waits)]
    width = sum(seconds for _, seconds in parts) / bins
    return list(_binned(parts, width, bins)) if width else []


def _binned(parts: Iterable[tuple[str, float]], width: float, bins: int) -> Strip:
    found: Strip = [{} for _ in range(bins)]
    at = 0.0
    for name, seconds in parts:
        while seconds > 0:
            index = min(int(at / width), bins - 1)
            taken = seconds if index == bins - 1 else min(seconds, (index + 1) * width - at)
            taken = max(taken, 1e-9 * width)  # rounding at the edge of a bin
            found[index][name] = found[index].get(name, 0.0) + taken / width
            at, seconds = at + taken, seconds - taken
    return found
