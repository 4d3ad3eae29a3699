"""Training runs by themselves and side by side, read from real run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_html import read_html

from stepalign.config import changed, load_config
from stepalign.errors import ConfigError
from stepalign.report.page import report_html
from stepalign.verbs.report import run_results


@pytest.fixture
def trained(write_recipe: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    """Two seeds of one run, and a run at another learning rate."""
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    config = load_config(str(write_recipe(training__max_steps=2)))
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"training.seed": 1},
        "c": {"training.learning_rate": 2e-3},
    }
    for name, keys in changes.items():
        train_config(changed(config, keys), tmp_path / name, resume=False, listener=silent, stop=StopRequest())
    return {name: tmp_path / name for name in changes}


def test_runs_side_by_side(trained: dict[str, Path], tmp_path: Path) -> None:
    results = run_results(list(trained.values()))
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert {name: [run["seed"] for run in arm["runs"]] for name, arm in arms.items()} == {"a": [0, 1], "c": [0]}
    assert arms["c"]["config_diff"] == {"training.learning_rate": 2e-3}
    for run in arms["a"]["runs"]:
        last = json.loads((Path(run["path"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert (run["steps"], run["rollouts"]) == (2, last["total_rollouts"])
        assert run["completion_tokens"] == last["total_tokens"]
    pairs = {(row["a"], row["b"], tuple(row["seeds"])) for row in results["paired"]}
    assert pairs == {("c", "a", (0,))}
    page = read_html(report_html(results)).all("main")[0].words
    assert "training.learning_rate = 0.002" in page
    assert "No arm is called the best" in page


def test_one_run_and_an_unfinished_one(trained: dict[str, Path]) -> None:
    words = read_html(report_html(run_results([trained["c"]])))
    assert "One training run" in words.all("header")[0].words
    assert "stepalign · runs" in words.all("header")[0].words
    assert "No arm is called the best" not in words.all("main")[0].words
    for part in ("evaluations.jsonl", "metrics.jsonl", "samples", "checkpoints"):
        path = trained["c"] / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    begun = read_html(report_html(run_results([trained["c"]]))).all("main")[0].words
    assert "Not complete: c has no test result yet" in begun


def test_other_test_problems_are_not_paired(trained: dict[str, Path]) -> None:
    file = next((trained["c"] / "samples").glob("step-*-test.jsonl"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps({**row, "problem_id": "other"}) + "\n" for row in rows), encoding="utf-8")
    results = run_results([trained["a"], trained["c"]])
    assert results["paired"] == []
    assert "No paired differences" in read_html(report_html(results)).all("main")[0].words


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run"):
        run_results([tmp_path])


def test_an_arm_that_did_not_train_is_no_result(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Verdicts alone, and every completion of a random model is wrong: the weights never move."""
    from stepalign.events import Event
    from stepalign.stopping import StopRequest
    from stepalign.verbs.report import summary_lines
    from stepalign.verbs.train import train_config

    heard: list[Event] = []
    config = load_config(str(write_recipe(condition="grpo", sampling__num_generations=2, training__max_steps=2)))
    for name, condition in (("grpo", "grpo"), ("refsol", "refsol")):
        own = changed(config, {"condition": condition})
        train_config(own, tmp_path / name, resume=False, listener=heard.append, stop=StopRequest())
    results = run_results([tmp_path / "grpo", tmp_path / "refsol"])
    found = {arm["name"]: (arm["trained"], arm["runs"][0]["steps_without_gradient"]) for arm in results["arms"]}
    assert found == {"grpo": (False, 2), "refsol": (True, 0)}
    (said,) = (
        event.text for event in heard if event.kind == "warning" and "step 1: there is no gradient" in event.text
    )
    assert "0 of 4 rollouts are right" in said
    told = summary_lines({**results, "timings": {"total": 1.0}, "peak_memory_bytes": 0})
    assert [line for line in told if "did not train" in line] == [line for line in told if "grpo" in line]
