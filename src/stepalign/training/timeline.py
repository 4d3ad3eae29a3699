"""Where the time of a run went, in the trace format of Chrome: chrome://tracing and ui.perfetto.dev draw it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepalign.storage.files import write_json

PROCESS, LEARNER = 1, 0
"""Steps that are collected at the same time have tracks of their own, from 1 on."""


class Timeline:
    """Spans of one run, over all its processes.

    Source: Trace Event Format, complete events ("ph": "X"), times in microseconds.
    """

    def __init__(self, file: Path, num_tracks: int = 1) -> None:
        self._file, self._num_tracks = file, num_tracks
        self._spans: list[dict[str, Any]] = []
        if file.exists():
            self._spans = [span for span in json.loads(file.read_text())["traceEvents"] if span["ph"] == "X"]

    def add(self, name: str, start: float, end: float, track: int = LEARNER, **facts: Any) -> None:
        """Args: seconds since the epoch."""
        times = {"ts": round(start * 1e6), "dur": max(0, round((end - start) * 1e6))}
        self._spans.append({"name": name, "ph": "X", **times, "pid": PROCESS, "tid": track, "args": facts})

    def collected(self, step: int, times: tuple[float, float, float]) -> None:
        """The rollouts of a step: sampling, then the critiques that came after the last completion."""
        start, sampled, end = times
        track = LEARNER + 1 + step % self._num_tracks
        self.add("rollouts", start, sampled, track, step=step)
        if end > sampled:
            self.add("critiques", sampled, end, track, step=step)

    def write(self) -> None:
        names = ["learner", *(f"collected {one + 1}" for one in range(self._num_tracks))]
        tracks = [
            {"name": "thread_name", "ph": "M", "pid": PROCESS, "tid": track, "args": {"name": name}}
            for track, name in enumerate(names)
        ]
        write_json(self._file, {"traceEvents": [*tracks, *self._spans], "displayTimeUnit": "ms"}, indent=None)
