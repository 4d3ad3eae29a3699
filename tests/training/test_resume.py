"""Real processes, really killed: what is resumed ends in the same bits as what was never interrupted."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import python

from stepalign.config import Config, changed, load_config
from stepalign.errors import ConfigError
from stepalign.events import Event
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.train import train_config

STEPS = 12
SETTINGS = {
    "training.max_steps": STEPS,
    "training.problems_per_step": 6,
    "training.save_steps": 3,
    "training.save_total_limit": 2,
    "evaluation.eval_steps": 5,
    "evaluation.num_samples": 2,
    "data.max_validation": 10,
    "data.max_test": 10,
    "objective.teacher.weights": "ema",
    "objective.teacher.ema_decay": 0.9,
}
TIMES = ("seconds",)


def command(out: Path, *extra: str) -> list[str]:
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "stepalign", "train", "arithmetic", "--out", str(out), *words, *extra]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until so many steps are on record, or the process has ended."""
    path = out / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < step):
        time.sleep(0.005)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("rollouts", "critiques", "contexts"):
        assert (one / f"{name}.jsonl").read_bytes() == (other / f"{name}.jsonl").read_bytes(), name
    for name in ("metrics", "evaluations"):
        rows = [list(read_json_lines(run / f"{name}.jsonl")) for run in (one, other)]
        assert without_times(rows[0]) == without_times(rows[1]), name
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / "final" / name).read_bytes() == (other / "final" / name).read_bytes(), name
    last = f"checkpoints/step-{STEPS:05d}"
    for name in ("optimizer.safetensors", "teacher.safetensors", "model.safetensors"):
        assert (one / last / name).read_bytes() == (other / last / name).read_bytes(), name
    samples = [{p.name: p.read_bytes() for p in (run / "samples").iterdir()} for run in (one, other)]
    assert samples[0] == samples[1]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = start([sys.executable, *command(whole)])
    rng = random.Random(os.getpid())  # other moments in every run of the tests
    moments = [(rng.randint(1, 4), signal.SIGKILL), (rng.randint(6, 9), signal.SIGINT)]
    told = []
    for step, number in moments:
        process = start([*python(), *command(broken, "--resume")])
        wait_for_step(process, broken, step)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(number)
        _, err = process.communicate()
        told.append((step, number.name, process.returncode))
        if process.returncode == 0:
            continue  # it was faster than we
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, err
        else:
            assert process.returncode == 130, err
            assert "everything so far is saved" in err
            assert "Traceback" not in err
            hint = err.split("continue with: ")[1].strip()
            again = load_config("arithmetic", [w for w in shlex.split(hint) if "=" in w])
            assert again == load_config(str(broken / "config.toml"))
            assert hint.startswith(f"stepalign train arithmetic --out {broken}")
            assert hint.endswith("--resume")
    assert told[0][2] == -signal.SIGKILL
    done = subprocess.run([*python(), *command(broken, "--resume")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, err = uninterrupted.communicate()
    assert uninterrupted.returncode == 0, err
    assert [row["step"] for row in read_json_lines(whole / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [(r["step"], r["set"]) for r in read_json_lines(whole / "evaluations.jsonl")] == [
        *((step, "validation") for step in (0, 5, 10, 12)),
        (12, "test"),
    ]
    assert_same_run(whole, broken)
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == ["step-00009", "step-00012"]


# ---------------------------------------------------------------------------------------------------------------------
# The same in this process, stopped at chosen places


class Watch:
    """A Listener that can ask the run to stop."""

    def __init__(self, stop: StopRequest | None = None, when: Callable[[str, int], bool] = lambda *_: False) -> None:
        self._stop, self._when = stop, when
        self.said: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "line":
            self.said.append(event.text)
        what = {"progress": event.name, "step": "step", "evaluation": f"evaluated {event.name}"}.get(event.kind)
        if what and self._stop is not None and not self._stop.asked and self._when(what, event.done):
            self._stop.ask()


@pytest.fixture
def config(write_recipe: Callable[..., Path]) -> Config:
    settings = ["training.max_steps=4", "evaluation.eval_steps=2", "data.validation_share=0.4", "training.save_steps=2"]
    return load_config(str(write_recipe()), [*settings, "training.warmup_steps=2", "objective.teacher.weights=ema"])


def test_a_run_does_not_go_on_with_other_problems(config: Config, tmp_path: Path) -> None:
    """The recipe is the same; the file behind its name is not."""
    stop, out = StopRequest(), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_config(config, out, resume=False, listener=Watch(stop, MOMENTS["after the first step"]), stop=stop)
    problems, before = Path(config.data.train), Path(config.data.train).read_text()
    records = (out / "rollouts.jsonl").read_bytes()
    problems.write_text(before.replace("9 + 9 - 9", "9 + 9 - 8"))
    with pytest.raises(ConfigError, match="problems have changed since the run began") as told:
        train_config(config, out, resume=True, listener=Watch(), stop=StopRequest())
    assert told.value.where is not None
    assert told.value.where.startswith("data.")
    assert (out / "rollouts.jsonl").read_bytes() == records
    problems.write_text(before)
    assert train_config(config, out, resume=True, listener=Watch(), stop=StopRequest()).step == 4


MOMENTS: dict[str, Callable[[str, int], bool]] = {
    "in the evaluation before the first step": lambda what, number: what == "evaluated validation" and number == 0,
    "in the middle of an evaluation": lambda what, number: what == "evaluation" and number == 1,
    "while the first attempts are sampled": lambda what, number: what == "sampling" and number == 1,
    "after the first step": lambda what, number: what == "step" and number == 1,
    "in an evaluation that falls together with a save": lambda what, number: (
        what.startswith("evaluated") and number == 2
    ),
    "after the last step": lambda what, number: what == "step" and number == 4,
    "in the last evaluation": lambda what, number: what == "evaluated test" and number == 4,
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_asked_to_stop_saves_itself_and_goes_on(
    config: Config, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_config(config, whole, resume=False, listener=Watch(), stop=StopRequest())
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train_config(config, broken, resume=False, listener=Watch(stop, MOMENTS[name]), stop=stop)
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    again = train_config(config, broken, resume=True, listener=Watch(), stop=StopRequest())
    assert again.step == 4
    for records in ("rollouts", "contexts"):
        assert (whole / f"{records}.jsonl").read_bytes() == (broken / f"{records}.jsonl").read_bytes()
    for records in ("metrics", "evaluations"):
        one, other = (without_times(list(read_json_lines(run / f"{records}.jsonl"))) for run in (whole, broken))
        assert one == other, records
    files = [(run / "final" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert files[0] == files[1]


OBJECTIVES: dict[str, dict[str, Any]] = {
    "initial": {"objective.teacher.weights": "initial"},
    "live": {"objective.teacher.weights": "live"},
    "trust region": {"objective.teacher.weights": "trust_region", "objective.teacher.live_share": 0.3},
    "a reference beside ema": {"objective.beta": 0.1, "objective.loss_type": "grpo"},
    "a reference beside live": {"objective.beta": 0.1, "objective.teacher.weights": "live"},
    "a mixing that decays": {"objective.hybrid": "rlsd", "sampling.num_generations": 2},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_teacher_is_saved_and_taken_up_again(config: Config, tmp_path: Path, name: str) -> None:
    config = changed(config, {**OBJECTIVES[name], "training.learning_rate": 0.01, "evaluation.eval_steps": 0})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_config(config, whole, resume=False, listener=Watch(), stop=StopRequest())
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train_config(config, broken, resume=False, listener=Watch(stop, MOMENTS["after the first step"]), stop=stop)
    train_config(config, broken, resume=True, listener=Watch(), stop=StopRequest())
    rows = [without_times(list(read_json_lines(run / "metrics.jsonl"))) for run in (whole, broken)]
    assert rows[0] == rows[1]
    for file in ("final/model.safetensors", "checkpoints/step-00004/teacher.safetensors"):
        assert (whole / file).read_bytes() == (broken / file).read_bytes(), file


@pytest.mark.slow
def test_every_objective_trains_something_else(config: Config, tmp_path: Path) -> None:
    found = {}
    for name, settings in OBJECTIVES.items():
        run = tmp_path / name
        changes = {**settings, "training.learning_rate": 0.01, "evaluation.at_start": False, "evaluation.eval_steps": 0}
        train_config(changed(config, changes), run, resume=False, listener=Watch(), stop=StopRequest())
        found[(run / "final" / "model.safetensors").read_bytes()] = name
        kl = [row["kl"] for row in read_json_lines(run / "metrics.jsonl")]
        assert all(value is None for value in kl) == ("reference" not in name)
    assert sorted(found.values()) == sorted(OBJECTIVES)


@pytest.mark.slow
def test_a_run_killed_at_a_dozen_instants_ends_in_the_same_bits(config: Config, tmp_path: Path) -> None:
    """Children of this process, so that a kill costs no start: in samples, records, evaluations, half-written saves."""
    config = changed(config, {"training.max_steps": 20, "training.save_steps": 1, "training.save_total_limit": 3})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_config(config, whole, resume=False, listener=Watch(), stop=StopRequest())
    rng, killed = random.Random(os.getpid()), 0
    for _ in range(12):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train_config(config, broken, resume=True, listener=Watch(), stop=StopRequest())
                code = 0
            finally:
                os._exit(code)
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        killed += os.WIFSIGNALED(status)
    assert killed > 0
    train_config(config, broken, resume=True, listener=Watch(), stop=StopRequest())
    assert (whole / "rollouts.jsonl").read_bytes() == (broken / "rollouts.jsonl").read_bytes()
    for records in ("metrics", "evaluations"):
        one, other = (without_times(list(read_json_lines(run / f"{records}.jsonl"))) for run in (whole, broken))
        assert one == other, records
    for file in ("final/model.safetensors", "checkpoints/step-00020/optimizer.safetensors"):
        assert (whole / file).read_bytes() == (broken / file).read_bytes()


def test_a_run_goes_on_from_an_older_checkpoint_when_the_newest_is_damaged(config: Config, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        train_config(config, run, resume=False, listener=Watch(), stop=StopRequest())
    (broken / "checkpoints" / "step-00004" / "optimizer.safetensors").write_bytes(b"torn")
    watch = Watch()
    train_config(config, broken, resume=True, listener=watch, stop=StopRequest())
    assert watch.said[1:] == ["continues from step-00002"]
    rows = [without_times(list(read_json_lines(run / "metrics.jsonl"))) for run in (whole, broken)]
    assert rows[0] == rows[1]
    superseded = list(read_json_lines(broken / "superseded" / "metrics.jsonl"))
    assert [row["step"] for row in superseded] == [3, 4]
    assert json.loads((broken / "checkpoints" / "step-00004" / "state.json").read_text())["progress"]["step"] == 4
    files = [(run / "final" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert files[0] == files[1]


def test_the_same_seed_trains_the_same_bits_and_another_one_does_not(config: Config, tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run = tmp_path / name
        train_config(changed(config, {"training.seed": seed}), run, resume=False, listener=Watch(), stop=StopRequest())
        weights[name] = (run / "final" / "model.safetensors").read_bytes()
    assert weights["one"] == weights["same"] != weights["other"]


def test_a_run_ends_after_the_step_that_spends_its_tokens_also_when_it_was_interrupted(
    config: Config, tmp_path: Path
) -> None:
    """The rows up to the end are those of the longer run, and the evaluation due at the end is made there."""
    whole = tmp_path / "whole"
    train_config(config, whole, resume=False, listener=Watch(), stop=StopRequest())
    rows = list(read_json_lines(whole / "metrics.jsonl"))
    assert len(rows) >= 3
    short = changed(config, {"training.token_budget": int(rows[1]["total_tokens"])})
    out, stop = tmp_path / "short", StopRequest()
    with pytest.raises(Interrupted):
        train_config(
            short, out, resume=False, listener=Watch(stop, lambda what, n: what == "step" and n == 1), stop=stop
        )
    done = train_config(short, out, resume=True, listener=Watch(), stop=StopRequest())
    assert done.step == 2
    assert without_times(list(read_json_lines(out / "metrics.jsonl"))) == without_times(rows[:2])
    evaluated = [row["step"] for row in read_json_lines(out / "evaluations.jsonl") if row["set"] == "test"]
    assert evaluated[-1] == 2
    again = train_config(short, out, resume=True, listener=Watch(), stop=StopRequest())
    assert again.step == 2
    over = changed(config, {"training.time_budget": 1e-6})
    assert train_config(over, tmp_path / "over", resume=False, listener=Watch(), stop=StopRequest()).step == 1


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepalign.evaluation.evaluate.CHUNK", 1)
    rows = [{"question": f"{i} + 1", "answer": str(i + 1), "reference": f"<answer> {i + 1}"} for i in (2, 3, 4)]
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole, broken, stop = tmp_path / "whole", tmp_path / "broken", StopRequest()
    train_config(config, whole, resume=False, listener=Watch(), stop=StopRequest())
    steps: list[int] = []

    def in_the_last_evaluation(what: str, number: int) -> bool:
        steps.extend([number] if what == "step" else [])
        return what == "evaluation" and number == 2 and steps == [1, 2, 3, 4]

    with pytest.raises(Interrupted):
        train_config(config, broken, resume=False, listener=Watch(stop, in_the_last_evaluation), stop=stop)
    (samples,) = (broken / "samples").glob("step-00004-test.jsonl")
    assert 0 < samples.read_bytes().count(b"\n") < 3
    kept = samples.read_bytes()
    train_config(config, broken, resume=True, listener=Watch(), stop=StopRequest())
    assert samples.read_bytes().startswith(kept)
    one, other = (without_times(list(read_json_lines(run / "evaluations.jsonl"))) for run in (whole, broken))
    assert one == other
