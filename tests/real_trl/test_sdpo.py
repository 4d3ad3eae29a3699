"""SDPO of TRL trains on what ``stepalign export`` writes: ``make test-trl``, in an environment that has TRL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepalign.cli import app

PYTHON = os.environ.get("STEPALIGN_TRL_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="STEPALIGN_TRL_PYTHON names no interpreter that has TRL: make test-trl"
)


def test_sdpo_trains_on_an_export(write_recipe: Callable[..., Path], model_folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["train", str(write_recipe(training__max_steps=1)), "--out", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    file = tmp_path / "feedback.jsonl"
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", "trl", "--out", str(file)])
    assert exported.exit_code == 0, exported.output
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    script = Path(__file__).parents[1] / "helpers" / "train_sdpo.py"
    done = subprocess.run(
        [PYTHON, str(script), str(file), str(model_folder), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trl"] == "1.16.0"
    assert [log["self_distillation/feedback_used_fraction"] for log in found["logs"]] == [1.0, 1.0]
    assert all(log["loss"] > 0 for log in found["logs"])
    assert found["moved"] > 0
    # Each prompt of TRL's self-teacher is a question of ours with the context of one of its rows.
    pairs = [(row["prompt"][-1]["content"], row["privileged_context"]) for row in rows]
    teacher = [prompt for prompt in found["seen"] if prompt not in dict(pairs)]
    assert len(teacher) >= 4
    assert all(any(prompt.startswith(asked) and text in prompt for asked, text in pairs) for prompt in teacher)
