"""The warm-up: the shipped solver learns a format that it does not know until its pass rate is in the band."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepalign.config import Config, load_config
from stepalign.errors import ConfigError, LockedError
from stepalign.events import Event
from stepalign.stopping import Interrupted
from stepalign.storage.files import read_json
from stepalign.verbs.prepare import prepare_solver


@pytest.fixture
def recipe(tmp_path: Path) -> Config:
    """Sums without steps, which the shipped solver never wrote: "a + b" to learn from, "b plus a" to measure on."""
    for name in ("train", "validation"):
        sums = [(a, b, (a + b) % 20) for b in range(1, 10) for a in range(20)]
        asked = [(f"{a} + {b}" if name == "train" else f"{b} plus {a}", c) for a, b, c in sums]
        rows = [{"question": question, "answer": str(c), "reference": f"<answer> {c}"} for question, c in asked]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = {
        "data.train": str(tmp_path / "train.jsonl"),
        "data.validation": str(tmp_path / "validation.jsonl"),
        "prompts.student": "{{ question }}",
        "prompts.self_teacher": "{{ question }} {{ feedback }}",
        "sampling.max_completion_length": 4,
        "model.device": "cpu",
        "model.dtype": "float32",
        "prepare.learning_rate": 5e-4,
        "prepare.batch_size": 4,
        "prepare.measure_steps": 8,
        "prepare.num_problems": 60,
        "prepare.num_samples": 2,
        "prepare.pass_rate_above": 0.1,
        "prepare.pass_rate_below": 0.2,
    }
    return load_config(None, keys)


def go(config: Config, out: Path, *, resume: bool = False, stops_at: Sequence[int] = ()) -> dict[str, object]:
    def listener(event: Event) -> None:
        if event.kind == "progress" and event.done in stops_at:
            raise Interrupted  # as a signal does, wherever it comes

    return prepare_solver(config, out, resume=resume, listener=listener)


def changed(config: Config, **prepare: float) -> Config:
    return config.model_copy(update={"prepare": config.prepare.model_copy(update=prepare)})


@pytest.mark.slow
def test_the_warm_up_stops_in_the_band_and_goes_on_to_the_same_bits(recipe: Config, tmp_path: Path) -> None:
    whole = go(recipe, tmp_path / "whole")
    rates = [round_["pass_rate"] for round_ in whole["rounds"]]  # type: ignore[attr-defined]
    assert recipe.prepare.pass_rate_above <= rates[-1] < recipe.prepare.pass_rate_below
    assert all(not 0.1 <= rate < 0.2 for rate in rates[:-1])
    assert whole["examples"] == whole["rounds"][-1]["steps"] * 4  # type: ignore[index]
    assert read_json(tmp_path / "whole" / "prepare.json") == whole
    assert not (tmp_path / "whole" / "checkpoints").exists()
    with pytest.raises(Interrupted):
        go(recipe, tmp_path / "cut", stops_at=[whole["rounds"][-1]["steps"] - 2])  # type: ignore[index]
    assert go(recipe, tmp_path / "cut", resume=True) == whole
    weights = [(tmp_path / name / "solver" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert go(recipe, tmp_path / "whole", resume=True) == whole  # nothing is left to do
    with pytest.raises(LockedError):
        go(recipe, tmp_path / "whole")


@pytest.mark.slow
def test_a_round_over_the_band_is_taken_back_and_smaller_ones_follow(recipe: Config, tmp_path: Path) -> None:
    found = go(changed(recipe, pass_rate_above=0.06, pass_rate_below=0.1, measure_steps=40), tmp_path / "out")
    rounds = found["rounds"]
    over = [r for r in rounds if r["pass_rate"] >= 0.1]  # type: ignore[attr-defined,index]
    assert over, rounds
    assert 0.06 <= rounds[-1]["pass_rate"] < 0.1  # type: ignore[index]
    assert rounds[-1]["steps"] < over[0]["steps"]  # type: ignore[index]


def test_what_cannot_be_prepared_is_refused(recipe: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the band is empty"):
        go(changed(recipe, pass_rate_above=0.5, pass_rate_below=0.5), tmp_path / "a")
    no_validation = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": None})})
    with pytest.raises(ConfigError, match="validation problems"):
        go(no_validation, tmp_path / "b")
    with pytest.raises(ConfigError, match="examples lead to a pass rate of") as found:
        go(changed(recipe, examples=8), tmp_path / "c")
    assert "prepare.learning_rate" in (found.value.hint or "")
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="no example"):
        go(recipe, tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "abd")
