"""Trackers: what a run sends is read back with each tracker's own reader, after a real death and a resume."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from warm import python

from stepalign.config import Config, TrainingSection, load_config
from stepalign.errors import ConfigError
from stepalign.events import Event
from stepalign.training import trackers as module
from stepalign.training.trackers import STEP, TRL_NAMES, TrackedRun, Trackers, check_trackers, open_trackers

STEPS, DIES_AFTER = 4, 3


def opened(config: Config, folder: Path, first_step: int, listener: Callable[[Event], None]) -> Trackers:
    return open_trackers(config.training, config.model_dump(mode="json"), folder, first_step, listener)


SCRIPT = """
import os
from pathlib import Path
from stepalign.config import load_config
from stepalign.verbs.train import train_config
from stepalign.stopping import StopRequest

def listener(event):
    if event.kind in ("line", "warning"):
        print(event.text, flush=True)
    elif event.kind == "step":
        step = event.done
        if step > {dies_after}:
            os._exit(9)

train_config(load_config({recipe!r}), Path({out!r}), resume={resume}, listener=listener, stop=StopRequest())
"""


def run(folder: Path, recipe: Path, *, resume: bool, dies_after: int = 99) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(recipe=str(recipe), out=str(folder / "my-run"), resume=resume, dies_after=dies_after)
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    return subprocess.run([*python(), "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Callable[..., Path]:
    def write(*names: str) -> Path:
        return write_recipe(
            sampling__num_generations=2,
            training__max_steps=STEPS,
            training__save_steps=2,
            training__report_to=list(names),
            training__project="proofs",
            evaluation__bootstrap_samples=100,
        )

    return write


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "my-run" / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(values) == len(dict(values)) for values in found.values()), "a step stands there twice"
    return {tag: dict(values) for tag, values in found.items()}


def read_trackio(folder: Path) -> dict[str, dict[int, float]]:
    script = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as s\n"
        "(name,) = s.get_runs('proofs')\nprint(json.dumps([name, s.get_logs('proofs', name)]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    name, rows = json.loads(done.stdout.splitlines()[-1])
    assert name.startswith("my-run-")
    return by_name(({k: v for k, v in row.items() if k not in ("timestamp", "step")}, row["step"]) for row in rows)


def read_wandb(folder: Path) -> dict[str, dict[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    rows, runs = [], set()
    for file in sorted(folder.glob("my-run/wandb/offline-run-*/*.wandb")):
        for data in leveldb_log(file.read_bytes()[7:], skipped=7):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append(({k: v for k, v in items.items() if k[0] != "_" and k != STEP}, items[STEP]))
    assert {run[1:] for run in runs} == {("proofs", "my-run")}
    assert len(runs) == 1, "a resumed run is another one"
    return by_name(rows)


def leveldb_log(log: bytes, skipped: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which wandb's files have behind a header of ``skipped`` bytes."""
    at, joined = 0, b""
    while at + 7 <= len(log):
        left = 32768 - (at + skipped) % 32768
        if left < 7:  # no room for a header: the next block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        if kind == 0:
            return
        joined = (b"" if kind in (1, 2) else joined) + log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield joined


def by_name(rows: Any) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for numbers, step in rows:
        for name, value in numbers.items():
            known = found.setdefault(name, {}).setdefault(int(step), value)
            assert known == value or name == "seconds", f"{name} of step {step} was told as {known} and as {value}"
    return found


READERS = {"tensorboard": read_tensorboard, "trackio": read_trackio, "wandb": read_wandb}


@pytest.mark.slow
def test_what_a_killed_and_resumed_run_sent_is_what_it_recorded(tmp_path: Path, recipe) -> None:
    for name in READERS:
        pytest.importorskip(name, reason='trackers need the extra "track"')
    path = recipe(*READERS)
    first = run(tmp_path, path, resume=False, dies_after=DIES_AFTER - 1)
    assert first.returncode == 9, first.stderr
    identity = (tmp_path / "my-run" / "tracking.json").read_text()
    second = run(tmp_path, path, resume=True)
    assert second.returncode == 0, second.stderr
    assert "continues from step-00002" in second.stdout
    assert (tmp_path / "my-run" / "tracking.json").read_text() == identity
    for name in READERS:
        addresses = [line for line in second.stdout.splitlines() if line.startswith(f"{name}: ")]
        assert len(addresses) == 2, "told at the start and at the end"
        assert addresses[0] in first.stdout or name == "wandb"  # offline, each process has a folder; they are one run
        check(READERS[name](tmp_path), tmp_path / "my-run")


def check(found: dict[str, dict[int, float]], folder: Path) -> None:
    """A tracker holds the numbers of the run folder, under the names that it has for TRL's trainers."""
    from transformers.integrations.integration_utils import rewrite_logs  # what all of Trainer's trackers go through

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trl = ["loss", "grad_norm", "learning_rate", "reward", "reward_std", "entropy", "frac_reward_zero_std"]
    trl += ["completions/mean_length", "completions/clipped_ratio", "num_tokens"]
    ours = {"entropy": "student_entropy", "num_tokens": "total_tokens"}
    for metric in trl:
        recorded = {row["step"]: row[ours.get(metric, metric)] for row in records}
        assert len(recorded) == STEPS
        (shown,) = rewrite_logs({metric: 0.0})
        assert found[shown] == pytest.approx({k: v for k, v in recorded.items() if v is not None}, rel=1e-6), metric
    (evaluation,) = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert (evaluation["set"], evaluation["step"]) == ("test", STEPS)
    for metric in evaluation["metrics"]:
        if metric["value"] is not None:
            assert found[f"eval/test/{metric['metric']}"] == pytest.approx({STEPS: metric["value"]}, rel=1e-6)
    assert {"eval/test/pass@2", "eval/test/maj@2", "eval/test/avg@2"} <= found.keys()
    names = {name: f"train/{TRL_NAMES.get(name, name)}" for row in records for name in row if name != "step"}
    for name, shown in names.items():
        recorded = {row["step"]: row[name] for row in records if row.get(name) is not None}
        assert found.get(shown, {}) == pytest.approx(recorded, rel=1e-6), name
    assert {name for name in found if not name.startswith("eval/")} <= set(names.values()), "a number of nowhere"


class Broken:
    """Fails at a chosen call."""

    address = "nowhere"
    last_step = math.inf
    calls: list[str]

    def __init__(self, place: str) -> None:
        self.place, self.calls = place, []

    def start(self, run: TrackedRun) -> Broken:
        self._do("start")
        return self

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._do("log")

    def finish(self) -> None:
        self._do("finish")

    def _do(self, place: str) -> None:
        print("chatter")
        self.calls.append(place)
        if place == self.place:
            raise OSError("no network")


@pytest.mark.parametrize(
    ("place", "calls"), [("start", 1), ("log", 2), ("finish", 4), ("", 4)]
)  # fmt: skip
def test_a_tracker_that_fails_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, calls: int
) -> None:
    broken, heard = Broken(place), list[Event]()
    monkeypatch.setitem(module.TRACKERS, "wandb", broken.start)
    trackers = opened(load_config(None, ["training.report_to=wandb"]), tmp_path, 0, heard.append)
    for step in (1, 2):
        trackers.step(step, {"loss": 1.0})
    trackers.close()
    trackers.close()
    assert len(broken.calls) == calls
    warnings = [event.text for event in heard if event.kind == "warning"]
    assert len(warnings) == bool(place)
    assert all("wandb" in text and "OSError: no network" in text for text in warnings)
    assert capsys.readouterr().out == ""


def test_undefined_numbers_are_not_sent_and_names_are_those_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, dict[str, float]]] = []

    class Kept:
        address = ""
        last_step = math.inf

        def __init__(self, run: TrackedRun) -> None:
            self.run = run

        def log(self, step: int, numbers: Mapping[str, float]) -> None:
            sent.append((step, dict(numbers)))

        def finish(self) -> None: ...

    monkeypatch.setitem(module.TRACKERS, "wandb", Kept)
    trackers = opened(load_config(None, ["training.report_to=wandb"]), tmp_path, 0, lambda _: None)
    trackers.step(1, {"loss": 0.5, "divergence": math.nan, "student_entropy": 0.25, "clip_ratio": math.inf})
    trackers.evaluated(1, "test", [{"metric": "avg@4", "value": 0.5}, {"metric": "maj@4", "value": None}])
    assert sent == [(1, {"train/loss": 0.5, "train/entropy": 0.25}), (1, {"eval/test/avg@4": 0.5})]


def test_names_and_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[TrackedRun] = []

    def remember(run: TrackedRun) -> Broken:
        runs.append(run)
        return Broken("")

    monkeypatch.setitem(module.TRACKERS, "wandb", remember)
    settings = ["training.report_to=wandb", 'critic.base_urls=["https://me:s3cret@host/v1"]']
    for folder, extra in (("arms/grpo/seed-1", []), ("plain", []), ("x", ["training.run_name=mine"])):
        (tmp_path / folder).mkdir(parents=True)
        opened(load_config(None, settings + extra), tmp_path / folder, 0, lambda _: None)
    assert [run.name for run in runs] == ["grpo-seed-1", "plain", "mine"]
    assert len({run.id for run in runs}) == 3
    assert runs[0].config["critic"]["base_urls"] == ["https://host/v1"]
    assert "s3cret" not in str(runs)


def test_no_tracker_is_the_default_and_leaves_nothing(tmp_path: Path) -> None:
    assert Config().training.report_to == ("none",)
    opened(Config(), tmp_path, 0, lambda _: None).close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tracker_is_an_error_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"stepalign\[track\]"):
        check_trackers(load_config(None, ["training.report_to=['tensorboard']"]).training)
    check_trackers(TrainingSection())
    with pytest.raises(ConfigError, match="report_to"):
        load_config(None, ["training.report_to=mlflow"])
