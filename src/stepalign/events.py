"""Events: what a run, an analysis or a critic reports while it works, and who listens.

One frozen type and one protocol for progress, log lines, warnings, step numbers and evaluations. A display prints them,
a training run stops on them, a test collects them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stepalign.outside import shown

Kind = Literal["line", "warning", "progress", "step", "evaluation", "finished", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something worth showing. Made by the functions below; fields that a kind does not use keep their defaults."""

    kind: Kind
    name: str = ""
    """progress: the phase. evaluation: the set, "validation" or "test"."""
    text: str = ""
    """line, warning: one sentence. progress: a note beside the bar. failed: the reason."""
    done: int = 0
    """progress: finished parts. step, evaluation: finished optimizer steps."""
    total: int = 0
    """progress, step: what ``done`` runs up to."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """step: the row of metrics.jsonl."""
    rows: Sequence[Mapping[str, Any]] = ()
    """evaluation: the metrics with their intervals."""
    run: str = ""
    """The run it comes from, where several report to one listener."""


class Listener(Protocol):
    """Receives events, from the thread that works. An exception it raises ends the work."""

    def __call__(self, event: Event) -> None: ...


def silent(event: Event) -> None:
    """The listener that shows nothing."""


def line(text: str) -> Event:
    return Event(kind="line", text=shown(text))


def warning(text: str) -> Event:
    return Event(kind="warning", text=shown(text))


def progress(name: str, done: int, total: int, note: str = "") -> Event:
    return Event(kind="progress", name=name, done=done, total=total, text=note)


def step(done: int, total: int, numbers: Mapping[str, Any]) -> Event:
    return Event(kind="step", done=done, total=total, numbers=numbers)


def evaluation(done: int, name: str, rows: Sequence[Mapping[str, Any]]) -> Event:
    return Event(kind="evaluation", done=done, name=name, rows=rows)
