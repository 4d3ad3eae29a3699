"""Trackers: the numbers of a run, sent to trackio, wandb or tensorboard while it goes on (``training.report_to``).

The run folder's JSON lines are the record; a tracker is a view. One that fails is left out with one warning, and the
run goes on. A resumed run continues the same tracker run: steps that are done again are told again, and what a tracker
had not written when the process was killed is sent once more from the record.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stepalign.config import Config
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


class Tracker(Protocol):
    """One open run of a tracker."""

    address: str
    """Where to look at it: an address, a folder, or the command that shows it."""
    last_step: float
    """The last step it holds; infinity where nothing that was logged can be missing."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a tracker needs to know about a run."""

    project: str
    name: str
    id: str
    """Stays when the run is resumed, and differs from that of every other run."""
    folder: Path
    first_step: int
    """Finished steps at the start: 0 for a new run."""
    config: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# The three


class _TensorBoard:
    last_step = math.inf  # flushed at every step

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / "tensorboard"
        self.address = f"tensorboard --logdir {folder}"
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        # A reader forgets what an interrupted run wrote from this step on.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=run.first_step + 1, session_log=start))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio
        from trackio.utils import TRACKIO_DIR

        # Names are trackio's only identity, and "out/run-1" is a common one.
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.last_step = getattr(self._run, "_next_step", math.inf) - 1  # it writes in batches, seconds later
        self.address = getattr(self._run, "url", None) or f'trackio show --project "{run.project}" ({TRACKIO_DIR})'

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._run.finish()


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=run.config,
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)  # wandb's own steps only grow; a resumed run goes back
        self.last_step = self._run.summary.get(STEP, 0)  # what the server has; offline nobody knows
        offline = self._run.settings.mode != "online"
        self.address = f"wandb sync {Path(self._run.dir).parent}" if offline else self._run.url or self._run.dir

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **numbers})

    def finish(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
}


# ---------------------------------------------------------------------------------------------------------------------
# All that a recipe names


class Trackers:
    """The open trackers of a run. Made by :func:`open_trackers`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._open: dict[str, Tracker] = {}

    def add(self, name: str, start: Callable[[], Tracker]) -> None:
        tracker: list[Tracker] = []
        if self._safely(name, lambda: tracker.append(start())):
            self._open[name] = tracker[0]
            self._listener(line(f"{name}: {tracker[0].address}"))

    def catch_up(self, folder: Path) -> None:
        """Send what the record has and a tracker has not."""
        missing = {name: tracker.last_step for name, tracker in self._open.items() if tracker.last_step < math.inf}
        for row in read_json_lines(folder / "metrics.jsonl") if missing else ():
            lacking = [name for name, last in missing.items() if last < row["step"]]
            self._log(row["step"], _trl_names(row), only=lacking)
        for row in read_json_lines(folder / "evaluations.jsonl") if missing else ():
            lacking = [name for name, last in missing.items() if last < row["step"]]
            self._log(row["step"], _evaluation_names(row["set"], row["metrics"]), only=lacking)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a training step."""
        self._log(step, _trl_names(numbers))

    def evaluated(self, step: int, set_name: str, rows: list[dict[str, Any]]) -> None:
        """Send the metrics of a held-out set as ``eval/<set>/<metric>``."""
        self._log(step, _evaluation_names(set_name, rows))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            if self._safely(name, tracker.finish):
                self._listener(line(f"{name}: {tracker.address}"))
        self._open.clear()

    def _log(self, step: int, numbers: Mapping[str, float | None], only: Sequence[str] | None = None) -> None:
        defined = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
        for name, tracker in list(self._open.items()):
            if only is not None and name not in only:
                continue
            self._safely(name, lambda tracker=tracker: tracker.log(step, defined))

    def _safely(self, name: str, call: Callable[[], Any]) -> bool:
        """Call a tracker without its chatter; one that fails is left out from here on."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call()
        except Exception as error:  # whatever it is, the run is worth more
            self._open.pop(name, None)
            self._listener(
                warning(
                    f"the tracker {name} fails and is left out from here on ({type(error).__name__}: "
                    f"{str(error)[:200]}); metrics.jsonl has every number"
                )
            )
            return False
        return True


def _trl_names(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """As a tracker shows them for TRL's trainers, which put ``train/`` before each."""
    return {f"train/{TRL_NAMES.get(name, name)}": value for name, value in numbers.items() if name != "step"}


def _evaluation_names(set_name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {f"eval/{set_name}/{row['metric']}": row["value"] for row in rows}


def check_trackers(config: Config) -> None:
    """Raises ConfigError with the install line for a tracker that is not installed."""
    for name in _wanted(config):
        if importlib.util.find_spec(name) is None:
            install = 'pip install "stepalign[track]"'
            raise ConfigError(f"the tracker {name} is not installed", where="training.report_to", hint=install)


def open_trackers(config: Config, folder: Path, first_step: int, listener: Listener) -> Trackers:
    """Start what ``training.report_to`` names, or continue it where the run folder knows it already.

    Args:
        folder: the run folder; ``tracking.json`` in it keeps the identity of the run.
        first_step: finished optimizer steps.
        listener: receives the address of each tracker at its start and at its end, and what fails.
    """
    trackers = Trackers(listener)
    wanted = _wanted(config)
    if wanted:
        run = _tracked_run(config, folder, first_step)
        for name in wanted:
            trackers.add(name, lambda start=TRACKERS[name]: start(run))
        trackers.catch_up(folder)
    return trackers


def _wanted(config: Config) -> list[str]:
    return [name for name in dict.fromkeys(config.training.report_to) if name != "none"]


def _tracked_run(config: Config, folder: Path, first_step: int) -> TrackedRun:
    file = folder / "tracking.json"
    if file.exists():
        known = json.loads(file.read_bytes())
    else:
        path = folder.absolute()
        # arms/stepalign/seed-0 of a comparison is called stepalign-seed-0
        name = f"{path.parent.name}-{path.name}" if re.fullmatch(r"seed-\d+", path.name) else path.name
        known = {"name": config.training.run_name or name, "id": uuid.uuid4().hex[:8]}
        file.write_text(json.dumps(known) + "\n", encoding="utf-8")
    tree = json.loads(
        re.sub(r"//[^/@\s\"]*@", "//", json.dumps(config.model_dump(mode="json")))
    )  # no passwords of URLs
    return TrackedRun(project=config.training.project, **known, folder=folder, first_step=first_step, config=tree)
