"""SDPO of TRL trains on what ``stepalign export`` writes: ``make test-trl``, in an environment that has TRL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from typer.testing import CliRunner

from stepalign.cli import app

TESTS = Path(__file__).parents[1]
PYTHON = os.environ.get("STEPALIGN_TRL_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="STEPALIGN_TRL_PYTHON names no interpreter that has TRL: make test-trl"
)


def train_sdpo(*words: Path | str) -> dict[str, Any]:
    script = TESTS / "helpers" / "train_sdpo.py"
    done = subprocess.run(
        [PYTHON, str(script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_sdpo_trains_on_an_export(write_recipe: Callable[..., Path], model_folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["train", str(write_recipe(training__max_steps=1)), "--out", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    file = tmp_path / "feedback.jsonl"
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", "trl", "--out", str(file)])
    assert exported.exit_code == 0, exported.output
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = train_sdpo(file, model_folder, tmp_path / "out")
    assert found["trl"] == "1.16.0"
    assert [log["self_distillation/feedback_used_fraction"] for log in found["logs"]] == [1.0, 1.0]
    assert all(log["loss"] > 0 for log in found["logs"])
    assert found["moved"] > 0
    # Each prompt of TRL's self-teacher is a question of ours with the context of one of its rows.
    pairs = [(row["prompt"][-1]["content"], row["privileged_context"]) for row in rows]
    teacher = [prompt for prompt in found["seen"] if prompt not in dict(pairs)]
    assert len(teacher) >= 4
    assert all(any(prompt.startswith(asked) and text in prompt for asked, text in pairs) for prompt in teacher)


def test_each_rollout_of_sdpo_is_shown_its_own_critique(
    model_folder: Path, tmp_path: Path, serve: Callable[..., FaultServer]
) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{n} + 2 + 3"}], "solution": str(n + 5)} for n in (1, 2, 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve()
    found = train_sdpo(tmp_path / "rows.jsonl", model_folder, tmp_path / "out", server.url)
    questions = [row["prompt"][0]["content"] for row in rows]
    shown = [prompt for prompt in found["seen"] if prompt not in questions]
    assert len(shown) == len(found["written"]) == 4
    for prompt, attempt in zip(shown, found["written"], strict=True):
        assert prompt.count(f"about {attempt}") == 1  # the server echoes the attempt
    assert set(server.asked) == set(found["written"])
    assert [log["stepalign/context_fraction"] for log in found["logs"]] == [1.0, 1.0]
    assert [log["self_distillation/feedback_used_fraction"] for log in found["logs"]] == [1.0, 1.0]
    assert all(log["loss"] > 0 for log in found["logs"])
    assert found["moved"] > 0
    assert found["cut"] == 0
