"""A run that breaks: stopped with healthy checkpoints, or taken back and on with a lower rate, resumed to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stepalign.config import Config, changed, load_config
from stepalign.errors import ConfigError
from stepalign.events import Event, Listener, silent
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.training.checkpoint import WRECK
from stepalign.verbs.train import train_config

RATE = 1e30
"""Wrecks the weights in step 1: the student of steps 2 and 3 is uniform over the vocabulary, and so is its average."""


@pytest.fixture
def config(write_recipe: Callable[..., Path]) -> Config:
    keys = {
        "training.max_steps": 9, "training.warmup_steps": 0, "training.learning_rate": RATE, "training.save_steps": 2,
        "training.save_total_limit": None, "evaluation.at_start": False, "evaluation.eval_steps": 0,
        "objective.teacher.weights": "ema", "guards.policy": "roll_back", "guards.learning_rate_factor": 1e-33,
    }  # fmt: skip
    return changed(load_config(str(write_recipe())), keys)


def train(config: Config, out: Path, *, resume: bool = False, stop_at: int = 0, listener: Listener = silent) -> Path:
    stop = StopRequest()

    def heard(event: Event) -> None:
        listener(event)
        if event.kind == "step" and event.done == stop_at:
            stop.ask()

    try:
        train_config(config, out, resume=resume, listener=heard, stop=stop)
    except Interrupted:
        assert stop_at
    return out


def metrics(out: Path) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in read_json_lines(out / "metrics.jsonl")]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_broken_run_goes_back_to_its_last_healthy_weights(config: Config, tmp_path: Path, ahead: int) -> None:
    config = changed(config, {"rollouts.ahead": ahead})
    said: list[str] = []
    out = train(config, tmp_path / "run", listener=lambda event: said.append(event.text))
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 10))
    (broken,) = [row["step"] for row in rows if row.get("rolled_back_to") is not None]
    assert (broken, rows[broken - 1]["rolled_back_to"]) == (3, 0)
    assert all(row["grad_norm"] is not None for row in rows[broken:])
    assert [row["learning_rate"] for row in rows[broken:]] == [pytest.approx(RATE * 1e-33)] * (9 - broken)
    assert any("rolled back to step 0" in text for text in said)
    back = out / "checkpoints" / f"step-{broken:05d}"
    first, after = (load_file(Path(f) / "model.safetensors") for f in (config.model.path, back))
    assert first.keys() >= after.keys()
    assert all((after[name] == first[name]).all() for name in after)  # to the bit, the embedding and all
    assert load_file(back / "optimizer.safetensors") == {}
    teacher = load_file(back / "teacher.safetensors")
    assert all((value == first[name]).all() for name, value in teacher.items() if name in first)
    assert {f.name for f in (out / "checkpoints").iterdir() if (f / WRECK).exists()} == {
        f"step-{step:05d}" for step in range(2, broken, 2)
    }
    summary = json.loads((out / "summary.json").read_text())
    assert [(one["step"], one["to"], one["guard"]) for one in summary["roll_backs"]] == [(broken, 0, "entropy")]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_a_run_stopped_around_its_roll_back_ends_in_the_same_bits(config: Config, tmp_path: Path, stop_at: int) -> None:
    whole = train(config, tmp_path / "whole")
    broken = train(config, tmp_path / "broken", stop_at=stop_at)
    assert weights(broken / "checkpoints" / f"step-{stop_at:05d}")
    train(config, broken, resume=True)
    assert metrics(whole) == metrics(broken)
    for file in ("final/model.safetensors", "checkpoints/step-00009/optimizer.safetensors"):
        assert (whole / file).read_bytes() == (broken / file).read_bytes(), file


def test_a_run_that_breaks_again_and_again_is_stopped(config: Config, tmp_path: Path) -> None:
    config = changed(config, {"guards.learning_rate_factor": 1.0, "training.max_steps": 30})
    with pytest.raises(ConfigError, match="stopped by a guard"):
        train(config, tmp_path / "run")
    assert [row["rolled_back_to"] for row in metrics(tmp_path / "run") if "rolled_back_to" in row] == [0, 3, 6]


def test_a_stop_keeps_the_healthy_checkpoints_and_marks_the_wrecks(config: Config, tmp_path: Path) -> None:
    """A policy is chosen when the run goes on: the folder is the same run."""
    out = tmp_path / "run"
    keys = {"training.learning_rate": 1e-3, "training.save_total_limit": 1, "guards.policy": "stop"}
    healthy = changed(config, keys)
    train(healthy, out, stop_at=4)
    (out / "sums.json").unlink()
    config_file = out / "config.toml"
    config_file.write_text(config_file.read_text().replace("learning_rate = 0.001", f"learning_rate = {RATE}"))
    wild = changed(healthy, {"training.learning_rate": RATE})
    with pytest.raises(ConfigError, match="the student's entropy grew") as told:
        train(wild, out, resume=True)
    assert "step-00002 is the last healthy one: --resume --set guards.policy=roll_back" in (told.value.hint or "")
    marks = {f.name: (f / WRECK).exists() for f in (out / "checkpoints").iterdir()}
    assert marks.pop("step-00002") is False
    assert marks
    assert all(marks.values())
    heard: list[str] = []
    train(
        changed(wild, {"guards.policy": "roll_back", "guards.learning_rate_factor": 1e-33}),
        out,
        resume=True,
        listener=lambda event: heard.append(event.text),
    )
    assert any("a wreck: step 7" in text and "taken is step-00002" in text for text in heard)
    assert [row["rolled_back_to"] for row in metrics(out) if "rolled_back_to" in row] == [2]
    assert len(metrics(out)) == 9
    assert (out / "final" / "model.safetensors").exists()


def test_records_without_a_checkpoint_are_no_new_run(config: Config, tmp_path: Path) -> None:
    import shutil

    healthy = changed(config, {"training.learning_rate": 1e-3})
    out = train(healthy, tmp_path / "run", stop_at=4)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint, and the records go to step 4"):
        train(healthy, out, resume=True)
    assert len(metrics(out)) == 4
