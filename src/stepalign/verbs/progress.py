"""Progress on this terminal: live bars where there is one, plain lines elsewhere."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stepalign.config import parse_settings
from stepalign.errors import UserError
from stepalign.events import Event, Listener

console = Console(highlight=False, markup=False, soft_wrap=True)
"""Plain lines: brackets in a path or a name stay brackets, and a long path stays one line."""

_SECONDS_BETWEEN_LINES = 30


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or value != value else format(value, form)


def _step_note(numbers: Mapping[str, Any]) -> str:
    divergence = numbers.get("divergence")
    shown = [f"reward {_number(numbers.get('reward'))}"]
    if divergence is not None and divergence == divergence:
        shown.append(f"divergence {_number(divergence, '.3f')}")
    return "  ".join([*shown, f"entropy {_number(numbers.get('student_entropy'))}"])


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """``avg@12 21.3 %  maj@12 ...`` of an evaluation."""
    largest = max((row["k"] for row in rows if row["k"]), default=None)
    wanted = [f"{name}@{largest}" for name in ("avg", "maj", "pass")]
    found = {row["metric"]: row["value"] for row in rows}
    return "  ".join(f"{name} {_number(100 * found[name], '.1f')} %" for name in wanted if name in found)


@contextmanager
def for_python(listener: Listener | None) -> Iterator[Listener]:
    """Around a verb that Python calls: its progress is printed where no listener hears it, and hints name arguments."""
    try:
        if listener is not None:
            yield listener
        else:
            with Display() as display:
                yield display
    except UserError as error:
        error.hint = error.hint and in_python(error.hint)
        raise


def in_python(hint: str) -> str:
    """A hint with the options of the command line as arguments: ``--set a.b=1`` is ``overrides={"a.b": 1}``."""

    def override(found: re.Match[str]) -> str:
        setting = "".join(shlex.split(found["setting"]))
        ((key, value),) = parse_settings([setting]).items()
        return f"overrides={{{key!r}: {value!r}}}".replace("'", '"')

    hint = re.sub(r"--set (?P<setting>'[^']*'|[\w.]+=(?:'[^']*'|[^\s,;)]*))", override, hint)
    hint = hint.replace("--resume", "resume=True")
    return re.sub(r"--([a-z]+)\b(?:[ =](?=[A-Z./]))?", r"\1=", hint)


class Display:
    """A Listener with one bar per run, or per phase where there is no run.

    Without a terminal, steps and phases become lines: the first of each at once, then one every half minute, so that a
    log shows that the work goes on and does not fill.

    Args:
        title: the run of events that name none; "" gives every phase a bar of its own.
        transient: remove the bars at the end.
    """

    def __init__(self, title: str = "", *, transient: bool = False) -> None:
        self._title, self._live = title, console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=transient,
        )
        self._rows: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        """Runs and phases -> when a line about them was last written."""

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        run = event.run or self._title
        prefix = f"{run}: " if run else ""
        match event.kind:
            case "line":
                console.print(f"{prefix}{event.text}")
            case "warning":
                console.print(f"warning: {event.run}{': ' if event.run else ''}{event.text}", style="yellow")
            case "progress":
                if run:
                    self._update(run, note=f"{event.name} {event.done}/{event.total}" if event.total else event.name)
                else:
                    self._update(event.name, completed=event.done, total=event.total, note=event.text)
                if event.total:
                    note = f"  {event.text}" if event.text else ""
                    self._say_seldom(f"{prefix}{event.name}: {event.done} of {event.total}{note}", event)
            case "step":
                note = _step_note(event.numbers)
                self._update(run, completed=event.done, total=event.total, note=note)
                self._say_seldom(f"{prefix}step {event.done} of {event.total}  {note}", event)
            case "evaluation":
                self._update(run, note=headline(event.rows))
                if not event.run or event.name == "test":  # the validation curves of many runs would hide the rest
                    console.print(f"{prefix}step {event.done}, {event.name}: {headline(event.rows)}")
            case "finished":
                total = (self._bars.tasks[self._rows[run]].total if run in self._rows else None) or 1
                self._update(run, completed=total, total=total, note="done")
            case "failed":
                self._update(run, note="failed")
                console.print(f"{run} failed: {event.text}", style="red")

    def _update(self, row: str, **fields: Any) -> None:
        if self._live:
            if row not in self._rows:
                self._rows[row] = self._bars.add_task(row, total=None, note="")
            self._bars.update(self._rows[row], **fields)

    def _say_seldom(self, text: str, event: Event) -> None:
        """Without a terminal: the first line of a run or phase, its last one, and one every half minute."""
        now, run = time.monotonic(), event.run or self._title
        phase = f"{run} {event.name or event.kind}"
        seldom = now - self._said.get(run or phase, 0.0) > _SECONDS_BETWEEN_LINES
        is_last = event.done == event.total and (event.kind == "step" or not run)
        if event.done and not self._live and (phase not in self._said or seldom or is_last):
            self._said[phase] = self._said[run or phase] = now
            console.print(text)
