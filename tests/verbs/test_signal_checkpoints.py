"""``stepalign signal RUN --checkpoints``: the same rollouts at every checkpoint, on one page with curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepalign.config import load_config
from stepalign.errors import ConfigError
from stepalign.events import silent
from stepalign.stopping import StopRequest
from stepalign.token_signal.files import read_completions
from stepalign.verbs.signal.over_training import analyse_checkpoints, training_curves
from stepalign.verbs.train import train_config


@pytest.mark.slow
def test_every_checkpoint_scores_the_same_rollouts(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(training__save_steps=1, training__save_total_limit=5, training__max_steps=2)
    run, out = tmp_path / "run", tmp_path / "signal"
    train_config(load_config(str(recipe)), run, resume=False, listener=silent, stop=StopRequest())
    page = analyse_checkpoints(run, out, "all", contexts=("reference", "answer"), num=3)
    signal = json.loads((out / "signal.json").read_text())
    assert [(one["of"], one["step"]) for one in signal["contexts"]] == [
        (name, step) for step in (0, 1, 2) for name in ("reference", "answer")
    ]
    parts = [list(read_completions(out / f"step-{step:05d}")) for step in (0, 1, 2)]
    assert len({tuple(one.token_ids) for one in parts[0]} ^ {tuple(one.token_ids) for one in parts[2]}) == 0
    for entry in signal["rollouts"]:
        found = {context["name"]: context["log_ratio"] for context in entry["contexts"]}
        for step, part in zip((0, 1, 2), parts, strict=True):
            (own,) = [one for one in part if one.rollout_id == entry["rollout_id"]]
            assert np.allclose(found[f"reference@{step}"], own.tables["reference"].log_ratio)
    assert parts[0][0].tables["reference"].log_ratio.tolist() != parts[2][0].tables["reference"].log_ratio.tolist()
    assert {"gini", "distinct_bigrams"} & {curve["number"] for curve in signal["over_training"]}
    assert "Over training" in page.read_text()
    with pytest.raises(ConfigError, match="no checkpoint of step 7"):
        analyse_checkpoints(run, tmp_path / "other", "0,7")


def test_curves_of_a_run_come_from_its_records(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    texts = {0: ["a b c", "a b d"], 1: ["a b", "the feedback says a b"]}
    write("rollouts.jsonl", [{"step": s, "problem_id": "p", "text": t} for s, some in texts.items() for t in some])
    write("metrics.jsonl", [{"step": 1, "reward": 0.25}, {"step": 2, "reward": None}, {"step": 3, "reward": 0.75}])
    for step, verdict in ((0, "incorrect"), (2, "correct")):
        row = {"answers": ["5", "5"], "verdicts": [verdict] * 2}
        write(f"samples/step-{step:05d}-test.jsonl", [row])
    numbers = [{"metric": "pass@4", "value": 0.9}, {"metric": "avg@4", "value": 0.5}]
    write("evaluations.jsonl", [{"step": step, "set": "test", "metrics": numbers} for step in (0, 2)])
    found = {
        curve["number"]: {line["label"]: (line["x"], line["y"]) for line in curve["lines"]}
        for curve in training_curves(tmp_path)
    }
    assert found["accuracy"] == {"trained problems": ([1, 3], [0.25, 0.75]), "test problems": ([0, 2], [0.5, 0.5])}
    assert found["overconfidence"] == {"test problems": ([0, 2], [1.0, 0.0])}
    assert found["distinct_bigrams"] == {"rollouts": ([0, 1], [3 / 4, 4 / 5])}
    assert found["mentions_feedback"] == {"rollouts": ([0, 1], [0.0, 0.5])}
