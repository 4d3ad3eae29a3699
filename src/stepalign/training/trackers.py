"""Trackers: the numbers of a run, sent to trackio, wandb or tensorboard while it goes on (``training.report_to``).

The run folder's JSON lines are the record; a tracker is a view. One that fails is left out with one warning, and the
run goes on. A resumed run continues the same tracker run: steps that are done again are sent again, and steps that a
tracker had not written when the process was killed are sent once more from the record.

Names are TRL's where they mean the same. Undefined numbers (NaN) are not sent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.config import TrainingSection, without_passwords
from stepalign.errors import ConfigError
from stepalign.events import Listener, line, warning
from stepalign.storage.jsonl import read_json_lines

STEP = "train/global_step"
"""The axis of every chart: finished optimizer steps."""

TRL_NAMES = {
    "student_entropy": "entropy",
    "clip_ratio": "clip_ratio/region_mean",
    "total_tokens": "num_tokens",
    "num_tokens": "step_tokens",
    "divergence": "self_distillation/divergence",
    "teacher_entropy": "self_distillation/teacher_entropy",
    "log_ratio": "self_distillation/log_ratio",
    "abs_log_ratio": "self_distillation/abs_log_ratio",
    "right_value_probability": "self_distillation/right_value_probability",
    "student_right_value_probability": "self_distillation/student_right_value_probability",
}
"""Our name in metrics.jsonl -> TRL's; others are the same, or ours alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracker:
    """One open run of a tracker."""

    address: str
    """Where to look at it: an address, a folder, or the command that shows it."""
    last_step: float = math.inf
    """The last step it holds; infinity where nothing that was logged can be missing."""
    log: Callable[[int, Mapping[str, float]], None]
    """(step, numbers)"""
    finish: Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as a tracker knows it."""

    project: str
    name: str
    id: str
    """Stays when the run is resumed, and differs from that of every other run."""
    folder: Path
    first_step: int
    """Finished steps at the start: 0 for a new run."""
    config: dict[str, Any]


def _tensorboard(run: TrackedRun) -> Tracker:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = run.folder / "tensorboard"
    writer = EventFileWriter(str(folder))
    # A reader forgets what an interrupted run wrote from this step on.
    start = SessionLog(status=SessionLog.START)
    writer.add_event(Event(wall_time=time.time(), step=run.first_step + 1, session_log=start))

    def log(step: int, numbers: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        writer.flush()

    return Tracker(address=f"tensorboard --logdir {folder}", log=log, finish=writer.close)


def _trackio(run: TrackedRun) -> Tracker:
    import trackio
    from trackio.utils import TRACKIO_DIR

    # Names are trackio's only identity, and "out/run-1" is a common one.
    name = f"{run.name}-{run.id}"
    options: dict[str, Any] = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    open_run: Any = trackio.init(project=run.project, name=name, config=run.config, **options)
    return Tracker(
        address=getattr(open_run, "url", None) or f'trackio show --project "{run.project}" ({TRACKIO_DIR})',
        last_step=getattr(open_run, "_next_step", math.inf) - 1,  # it writes in batches, seconds later
        log=lambda step, numbers: open_run.log(dict(numbers), step=step),
        finish=open_run.finish,
    )


def _wandb(run: TrackedRun) -> Tracker:
    import wandb

    options: dict[str, Any] = {"resume": "allow", "dir": str(run.folder), "settings": wandb.Settings(silent=True)}
    open_run: Any = wandb.init(project=run.project, name=run.name, id=run.id, config=run.config, **options)
    open_run.define_metric(STEP)
    open_run.define_metric("*", step_metric=STEP)  # wandb's own steps only grow; a resumed run goes back
    offline = open_run.settings.mode != "online"
    return Tracker(
        address=f"wandb sync {Path(open_run.dir).parent}" if offline else open_run.url or open_run.dir,
        last_step=open_run.summary.get(STEP, 0),  # of the server's record; 0 offline
        log=lambda step, numbers: open_run.log({STEP: step, **numbers}),
        finish=open_run.finish,
    )


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}


class Trackers:
    """The open trackers of a run. Made by :func:`open_trackers`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._open: dict[str, Tracker] = {}

    def start(self, name: str, run: TrackedRun) -> None:
        with self._left_out_on_failure(name):
            self._open[name] = TRACKERS[name](run)
        self._say_address(name)

    def catch_up(self, folder: Path) -> None:
        """Send what the record has and a tracker has not."""
        missing = {name: tracker.last_step for name, tracker in self._open.items() if tracker.last_step < math.inf}
        for file, names in (("metrics.jsonl", _trl_names), ("evaluations.jsonl", _evaluation_names)) if missing else ():
            for row in read_json_lines(folder / file):
                self._log(row["step"], names(row), [name for name, last in missing.items() if last < row["step"]])

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a training step."""
        self._log(step, _trl_names(numbers))

    def evaluated(self, step: int, set_name: str, rows: list[dict[str, Any]]) -> None:
        """Send the metrics of a held-out set as ``eval/<set>/<metric>``."""
        self._log(step, _evaluation_names({"set": set_name, "metrics": rows}))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._left_out_on_failure(name):
                tracker.finish()
            self._say_address(name)
        self._open.clear()

    def _say_address(self, name: str) -> None:
        if name in self._open:
            self._listener(line(f"{name}: {self._open[name].address}"))

    def _log(self, step: int, numbers: Mapping[str, float | None], only: Sequence[str] | None = None) -> None:
        defined = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
        for name, tracker in list(self._open.items()):
            if only is None or name in only:
                with self._left_out_on_failure(name):
                    tracker.log(step, defined)

    @contextlib.contextmanager
    def _left_out_on_failure(self, name: str) -> Iterator[None]:
        """Call a tracker without its chatter; one that fails is left out from here on."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:  # of any kind: the run is worth more
            self._open.pop(name, None)
            fault = f"{type(error).__name__}: {str(error)[:200]}"
            text = f"the tracker {name} fails and is left out from here on ({fault}); metrics.jsonl has every number"
            self._listener(warning(text))


def _trl_names(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """As a tracker shows them for TRL's trainers, which put ``train/`` before each."""
    return {f"train/{TRL_NAMES.get(name, name)}": value for name, value in numbers.items() if name != "step"}


def _evaluation_names(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    return {f"eval/{evaluation['set']}/{row['metric']}": row["value"] for row in evaluation["metrics"]}


def check_trackers(section: TrainingSection) -> None:
    """Raises ConfigError with the install line for a tracker that is not installed."""
    for name in _wanted(section):
        if importlib.util.find_spec(name) is None:
            install = 'pip install "stepalign[track]"'
            raise ConfigError(f"the tracker {name} is not installed", where="training.report_to", hint=install)


def open_trackers(
    section: TrainingSection, settings: Mapping[str, Any], folder: Path, first_step: int, listener: Listener
) -> Trackers:
    """Start what ``training.report_to`` names, or continue it where the run folder knows it already.

    Args:
        settings: the whole recipe as plain data, shown beside the run; passwords of addresses are left out.
        folder: the run folder; ``tracking.json`` in it keeps the identity of the run.
        first_step: finished optimizer steps.
        listener: receives the address of each tracker at its start and at its end, and what fails.
    """
    trackers = Trackers(listener)
    wanted = _wanted(section)
    if wanted:
        config = without_passwords(dict(settings))
        identity = _identity(section, folder)
        run = TrackedRun(project=section.project, **identity, folder=folder, first_step=first_step, config=config)
        for name in wanted:
            trackers.start(name, run)
        trackers.catch_up(folder)
    return trackers


def _wanted(section: TrainingSection) -> list[str]:
    return [name for name in dict.fromkeys(section.report_to) if name != "none"]


def _identity(section: TrainingSection, folder: Path) -> dict[str, str]:
    """Name and id of the run, the same when it is resumed."""
    file = folder / "tracking.json"
    if file.exists():
        return json.loads(file.read_bytes())
    path = folder.absolute()
    # arms/stepalign/seed-0 of a comparison is called stepalign-seed-0
    name = f"{path.parent.name}-{path.name}" if re.fullmatch(r"seed-\d+", path.name) else path.name
    known = {"name": section.run_name or name, "id": uuid.uuid4().hex[:8]}
    file.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return known
