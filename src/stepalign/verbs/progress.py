"""What a person sees while something runs: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(highlight=False, markup=False, soft_wrap=True)
"""Plain lines: brackets in a path or a name stay brackets, and a long path stays one line."""

_SECONDS_BETWEEN_LINES = 30


def progress_bars(*, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
        transient=transient,
    )


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or value != value else format(value, form)


def step_note(numbers: Mapping[str, Any]) -> str:
    """The line beside a run's bar."""
    parts = [f"reward {_number(numbers.get('reward'))}"]
    if numbers.get("divergence") == numbers.get("divergence"):
        parts.append(f"divergence {_number(numbers.get('divergence'), '.3f')}")
    return "  ".join([*parts, f"entropy {_number(numbers.get('student_entropy'))}"])


def headline(rows: list[dict[str, Any]]) -> str:
    """``avg@12 21.3 %  maj@12 ...`` of an evaluation."""
    largest = max((row["k"] for row in rows if row["k"]), default=None)
    wanted = [f"{name}@{largest}" for name in ("avg", "maj", "pass")]
    found = {row["metric"]: row["value"] for row in rows}
    return "  ".join(f"{name} {_number(100 * found[name], '.1f')} %" for name in wanted if name in found)


class _Display:
    """Bars on a terminal; elsewhere a line now and then, so that a log does not fill with them."""

    def __init__(self, *, transient: bool = False) -> None:
        self._live = console.is_terminal
        self._bars = progress_bars(transient=transient)
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def _time_to_speak(self) -> bool:
        """Whether the last line is half a minute old; then this one is the last."""
        due = time.monotonic() - self._told > _SECONDS_BETWEEN_LINES
        if due:
            self._told = time.monotonic()
        return due


class TrainDisplay(_Display):
    """A Listener for one run on this terminal."""

    def __init__(self, title: str, max_steps: int) -> None:
        super().__init__()
        self._steps: TaskID = self._bars.add_task(title, total=max_steps, note="")
        self._phase: TaskID = self._bars.add_task("", total=None, note="", visible=False)
        self._title = title

    def phase(self, name: str, done: int, total: int) -> None:
        if self._live:
            self._bars.update(self._phase, description=f"  {name}", completed=done, total=total, visible=done < total)

    def step(self, step: int, max_steps: int, numbers: dict[str, float]) -> None:
        if self._live:
            self._bars.update(self._steps, completed=step, note=step_note(numbers))
        elif step == max_steps or self._time_to_speak():
            console.print(f"{self._title}: step {step} of {max_steps}  {step_note(numbers)}")

    def evaluated(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        console.print(f"{self._title}: step {step}, {name}: {headline(rows)}")

    def say(self, text: str) -> None:
        console.print(f"{self._title}: {text}", style="yellow" if text.startswith("warning") else "")


class PhaseDisplay(_Display):
    """One bar per phase on a terminal, a line every half minute elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, TaskID] = {}

    def phase(self, name: str, done: int, total: int) -> None:
        if self._live:
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(name, total=total, note="")
            self._bars.update(self._rows[name], completed=done, total=total)
        elif done == total or self._time_to_speak():
            console.print(f"{name}: {done} of {total}")

    def say(self, text: str) -> None:
        console.print(text, style="yellow" if text.startswith("warning") else "", markup=False)


class CompareDisplay(_Display):
    """A Watcher: one bar per run; lines for results and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, TaskID] = {}

    def tasks(self, names: list[str]) -> None:
        self._rows = {name: self._bars.add_task(name, total=None, note="waiting") for name in names}

    def event(self, task: str, kind: str, payload: Mapping[str, Any]) -> None:
        row = self._rows[task]
        if kind == "step":
            self._bars.update(row, completed=payload["step"], total=payload["max_steps"], note=step_note(payload))
        elif kind == "phase":
            self._bars.update(row, note=f"{payload['name']} {payload['done']}/{payload['total']}")
        elif kind == "evaluated":
            text = headline(payload["rows"])
            self._bars.update(row, note=text)
            if payload["set"] == "test":
                console.print(f"{task}: step {payload['step']}, test: {text}")
        elif kind == "say":
            self.say(f"{task}: {payload['text']}")
        elif kind == "finished":
            total = self._bars.tasks[row].total or 1
            self._bars.update(row, completed=total, total=total, note="done")
        elif kind == "failed":
            self._bars.update(row, note="failed")
            console.print(f"{task} failed: {payload['error'].what}", style="red")

    def say(self, text: str) -> None:
        console.print(text, style="yellow" if "warning" in text else "")


class CritiqueDisplay(_Display):
    """The bar of ``stepalign critique``, with the findings so far beside it."""

    def __init__(self, total: int) -> None:
        super().__init__(transient=True)
        self._row = self._bars.add_task("critiques", total=total, note="")
        self._total = total

    def update(self, done: int, found: Mapping[str, int]) -> None:
        """Told after every critique: how many are done, and how often each finding was made."""
        if self._live:
            most = sorted(found.items(), key=lambda item: -item[1])[:2]
            note = "  ".join(f"{count} {name}" for name, count in most)
            self._bars.update(self._row, completed=done, note=note)
        elif self._time_to_speak():
            console.print(f"critiques: {done} of {self._total}")

    def say(self, text: str) -> None:
        console.print(text, style="yellow")
