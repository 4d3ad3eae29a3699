"""A small comparison, run for real, and every number in it computed again from the files."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_until
from warm import CHILDREN, launcher, python

from stepalign.config import Config, arm_config, changed, difference, load_config
from stepalign.verbs.compare import Task, arm_differences, compare_config, in_order, plan
from stepalign.verbs.report import write_reports
from stepalign.verbs.verify import others, verify

IN_RECIPE = ("grpo", "refsol", "stepalign", "grpo-equal-rollouts", "refsol-forward-kl", "stepalign-forward-kl")
ARMS = ("grpo", "refsol", "grpo-equal-rollouts", "stepalign-forward-kl")
"""Those of the comparison that is run."""
STEPS, EVERY = 4, 2
"""Optimizer steps of a run; steps between two evaluations."""


def toml(value: Any) -> str:
    """A value of a recipe as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


SMALL = {
    "compare.arms": toml([arm.model_dump() for arm in load_config("arithmetic").compare.arms if arm.name in ARMS]),
    "training.max_steps": STEPS,
    "training.problems_per_step": 5,
    "training.save_steps": 1,
    "evaluation.num_samples": 4,
    "evaluation.eval_steps": EVERY,
    "evaluation.checkpoint_rule": '"best_on_validation"',
    "data.max_train": 24,
    "data.max_validation": 6,
    "data.max_test": 8,
    "signal.num_rollouts": 12,
    "signal.num_shown": 6,
    "compare.seeds": "[0, 1]",
}


def words(out: Path, *more: str) -> list[str]:
    """The command; its runs are started behind the words of a launcher."""
    before = {"compare.launcher": toml(["env", "STEPALIGN_LAUNCHED=yes", "nice", "-n", "1", *launcher()])}
    settings = [word for key, value in (SMALL | before).items() for word in ("--set", f"{key}={value}")]
    return [*python(), "-m", "stepalign", "compare", "arithmetic", "--out", str(out), *settings, *more]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **CHILDREN, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "out"
    done = run(*words(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def results(compared: Path) -> dict:
    return json.loads((compared / "results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_run_is_a_command_that_can_be_given_again(compared: Path) -> None:
    for arm in ARMS:
        folder = compared / "arms" / arm / "seed-1"
        config = load_config(str(folder.with_name("seed-1.toml")))
        assert config == load_config(str(folder / "config.toml"))
        assert config == arm_config(
            changed(load_config(str(compared / "config.toml")), {"evaluation.at_start": False}),
            next(a for a in load_config("arithmetic").compare.arms if a.name == arm),
            1,
        )
        assert f"weights: {folder / 'final'}" in folder.with_name("seed-1.log").read_text(encoding="utf-8")


def test_a_launcher_is_cut_into_words_and_must_be_there() -> None:
    from stepalign.errors import ConfigError

    assert load_config(None, ["compare.launcher=srun --comment 'two words'"]).compare.launcher == (
        *("srun", "--comment", "two words"),
    )
    with pytest.raises(ConfigError, match="no command no-such-launcher"):
        plan(load_config("arithmetic", ['compare.launcher=["no-such-launcher", "-n"]']), Path("x"))


def test_the_launcher_stands_before_the_command_of_a_run(tmp_path: Path) -> None:
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.compare import _job
    from stepalign.verbs.processes import run_all

    address = "http://me:s3cret@127.0.0.1:9/v1"
    base = plan(load_config("arithmetic", [f'critic.base_urls=["{address}"]', "training.max_steps=0"]), tmp_path)[0]
    show = (sys.executable, "-c", "import os, sys; print(os.environ['SEEN'], os.environ.get('STEPALIGN_CRITIC_URLS'))")
    job = _job(base, tmp_path, ("env", "SEEN=launched", *show))
    assert run_all([job], 1, stop=StopRequest(), listener=silent) == {}
    assert job.log.read_text().split() == ["launched", f'["{address}"]']
    assert job.command[-5:] == ("train", str(tmp_path / "arms" / "base.toml"), "--out", str(base.folder), "--resume")
    assert "s3cret" not in (tmp_path / "arms" / "base.toml").read_text()  # a password never reaches the disk


def test_a_password_of_any_server_reaches_the_processes_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepalign.verbs.compare import _job

    keys = ("critic", "critic.second", "sampling", "objective.teacher", "data.judge", "environment.served")
    urls = {f"{key}.base_urls": [f"http://me:s3cret@127.0.0.1:{port}/v1"] for port, key in enumerate(keys, 1)}
    for settings in (urls, {"sampling.base_urls": urls["sampling.base_urls"]}, {}):
        config = changed(load_config("arithmetic"), settings)
        job = _job(Task("a/seed-0", config, tmp_path / "a"), tmp_path, ())
        file = tmp_path / "arms" / "a" / "seed-0.toml"
        assert "s3cret" not in file.read_text()
        assert bool(job.environment) == bool(settings)
        with monkeypatch.context() as process:
            for name, value in job.environment.items():
                process.setenv(name, value)
            assert load_config(str(file)) == config


def samples(folder: Path, step: int, name: str) -> list[dict]:
    file = folder / "samples" / f"step-{step:05d}-{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def score(rows: list[dict], metric: str) -> float:
    """The metric from its definition: enumeration for pass, a count for avg, votes for maj (n = k = 4)."""
    values = []
    for row in rows:
        right = [verdict == "correct" for verdict in row["verdicts"]]
        if metric == "avg@4":
            values.append(sum(right) / 4)
        elif metric == "pass@4":
            values.append(float(any(right)))
        elif metric == "pass@1":
            values.append(sum(any(right[i] for i in draw) for draw in itertools.combinations(range(4), 1)) / 4)
        elif metric == "mean_length":
            values.append(sum(row["lengths"]) / 4)
        elif metric == "maj@4":
            votes = Counter(answer for answer in row["answers"] if answer is not None)
            top = [a for a in votes if votes[a] == max(votes.values())]
            correct = {a for a, ok in zip(row["answers"], right, strict=True) if ok}
            values.append(sum(a in correct for a in top) / len(top) if top else 0.0)
    return sum(values) / len(values)


@pytest.mark.slow
def test_every_metric_is_what_the_completions_say(compared: Path, results: dict) -> None:
    checked = 0
    for row in results["metrics"]:
        if row["seed"] is None or row["metric"] not in ("avg@4", "pass@4", "pass@1", "mean_length", "maj@4"):
            continue
        rows = samples(compared / "arms" / row["arm"] / f"seed-{row['seed']}", row["step"], "test")
        assert row["value"] == pytest.approx(score(rows, row["metric"]), abs=1e-12), row
        assert row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12
        assert row["numerator"] / row["denominator"] == pytest.approx(row["value"], abs=1e-12)
        checked += 1
    assert checked == len(ARMS) * 2 * 3 * 5  # arms x seeds x rules x metrics


@pytest.mark.slow
def test_pooled_values_are_means_over_seeds(results: dict) -> None:
    by_key: dict[tuple, list[float]] = {}
    for row in results["metrics"]:
        if row["seed"] is not None:
            by_key.setdefault((row["arm"], row["metric"], row["checkpoint_rule"]), []).append(row["value"])
    pooled = [row for row in results["metrics"] if row["seed"] is None and row["arm"] != "base"]
    assert pooled
    for row in pooled:
        values = by_key[row["arm"], row["metric"], row["checkpoint_rule"]]
        assert row["value"] == pytest.approx(sum(values) / 2, abs=1e-12)


@pytest.mark.slow
def test_checkpoint_rules_pick_what_they_say(compared: Path, results: dict) -> None:
    for row in results["metrics"]:
        if row["seed"] is None or row["metric"] != "avg@4":
            continue
        folder = compared / "arms" / row["arm"] / f"seed-{row['seed']}"
        steps = range(EVERY, STEPS + 1, EVERY)
        if row["checkpoint_rule"] == "last":
            assert row["step"] == STEPS
        elif row["checkpoint_rule"] == "best_on_validation":
            values = {s: score(samples(folder, s, "validation"), "avg@4") for s in steps}
            assert values[row["step"]] == max(values.values())
        else:
            values = {s: score(samples(folder, s, "test"), "avg@4") for s in steps}
            assert values[row["step"]] == max(values.values())


@pytest.mark.slow
def test_paired_differences_are_between_the_same_problems(compared: Path, results: dict) -> None:
    value = {(r["arm"], r["metric"], r["checkpoint_rule"]): r["value"] for r in results["metrics"] if r["seed"] is None}
    for row in results["paired"]:
        first, second = (
            value[row[side], row["metric"], "last" if row[side] == "base" else row["checkpoint_rule"]] for side in "ab"
        )
        expected = first - second
        assert row["difference"] == pytest.approx(expected, abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
        assert 0 < row["p_value"] <= 1
    names = {(row["a"], row["b"]) for row in results["paired"]}
    assert len(names) == (len(ARMS) + 1) * len(ARMS) / 2  # the arms and the base
    assert len(results["paired"]) == len(names) * 3 * 3  # rules x metrics


@pytest.mark.slow
def test_curves_start_at_the_untrained_solver_and_have_both_axes(results: dict) -> None:
    firsts = set()
    for curve in results["curves"]:
        if curve["metric"] != "avg@4" or curve["set"] != "validation":
            continue
        points = curve["points"]
        assert [p["step"] for p in points] == [*range(0, STEPS + 1, EVERY)]
        per_step = {"grpo": 40, "grpo-equal-rollouts": 32}.get(curve["arm"], 5)
        assert [p["rollouts"] for p in points] == [per_step * s for s in range(0, STEPS + 1, EVERY)]
        firsts.add(points[0]["value"])
    assert len(firsts) == 1


@pytest.mark.slow
def test_the_signal_of_the_base_is_there(compared: Path) -> None:
    found = json.loads((compared / "signal.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in found["contexts"]] == ["step_aligned", "reference"]
    for rollout in found["rollouts"]:
        joined = "".join(t["text"] for t in rollout["tokens"] if not t["special"])
        assert joined == rollout["text"]
        for context in rollout["contexts"]:
            differences = [t - s for t, s in zip(context["teacher_log_prob"], context["student_log_prob"], strict=True)]
            assert context["log_ratio"] == pytest.approx(differences, abs=1e-4)


@pytest.mark.slow
def test_a_finished_comparison_is_refused_and_with_resume_does_nothing(compared: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in compared.glob("arms/*/seed-*/metrics.jsonl")}
    assert before
    refused = run(*words(compared))
    assert refused.returncode == 4
    assert "--resume" in refused.stderr
    again = run(*words(compared, "--resume"))
    assert again.returncode == 0, again.stderr
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.slow
def test_a_comparison_that_still_runs_has_a_page(compared: Path, results: dict, tmp_path: Path) -> None:
    """Its problems are counted at its end; before that the page counts them."""
    out = shutil.copytree(compared, tmp_path / "out")
    for file in (out / "results.json", out / "sums.json", out / "arms" / "base" / "sets.json"):
        file.unlink()
    shutil.rmtree(out / "arms" / ARMS[-1] / "seed-1")
    write_reports([out])
    partly = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert partly["problems"] == results["problems"]
    assert [len(arm["runs"]) for arm in partly["arms"]] == [*[2] * (len(ARMS) - 1), 1]


def test_verify_makes_the_numbers_of_a_comparison_again(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run of it is verified as a run by itself: tests/faults/test_verify.py."""
    runs: list[str] = []
    monkeypatch.setattr(others, "verify_run", lambda run, found, num, listener: runs.append(run.name))
    out = shutil.copytree(compared, tmp_path / "out")
    found = verify(out)
    assert found.different == []
    assert runs == ["base", *["seed-0", "seed-1"] * len(ARMS)]
    assert found.checked["results"] > 100
    for name, keys in {
        "results.json": ("metrics", "paired", "curves", "training"),
        "signal.json": ("rollouts",),
    }.items():
        tree = json.loads((compared / name).read_text(encoding="utf-8"))
        for key in keys:
            assert alter(tree[key]), key
        (out / name).write_text(json.dumps(tree), encoding="utf-8")
    named = [line for line in verify(out).different if "changed" not in line]
    assert len(named) >= 5, named
    for key in ("metrics[", "paired", "curves", "training", "signal.json"):
        assert any(key in line for line in named), (key, named)


def alter(tree: Any) -> bool:
    """Add a thousandth to the first number that is no whole one."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, float):
            tree[key] = value + 1e-3
            return True
        if isinstance(value, dict | list) and alter(value):
            return True
    return False


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, **CHILDREN, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def recorded(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob("arms/*/seed-*/metrics.jsonl"))


def run_processes(out: Path) -> list[int]:
    """Living processes that hold the lock of a comparison or of one of its runs."""
    found = []
    for files in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            held = [Path(os.readlink(link)) for link in files.iterdir()]
            if any(file.name == "run.lock" and file.is_relative_to(out) for file in held):
                found.append(int(files.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_a_comparison_stopped_in_every_way_ends_in_the_same_numbers(
    compared: Path, results: dict, tmp_path: Path
) -> None:
    """Ctrl-C, kill -9 of the parent, SIGTERM of the parent, a worker that is killed; then to the end."""
    out, one_seed = tmp_path / "out", ("--set", "compare.seeds=[0]")

    process = start(words(out, *one_seed))
    wait_until(lambda: recorded(out) > 0, process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "stopping: every run saves itself" in told
    assert "--resume" in told
    assert "Traceback" not in told
    assert not run_processes(out)
    assert not (out / "results.json").exists()

    before = recorded(out)
    process = start(words(out, *one_seed, "--resume"))
    wait_until(lambda: recorded(out) > before, process)
    process.kill()
    process.wait()
    wait_until(lambda: not run_processes(out))

    before = recorded(out)
    process = start(words(out, *one_seed, "--resume"))
    wait_until(lambda: recorded(out) > before, process)
    process.terminate()
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, told
    assert "stopping: every run saves itself" in told
    assert not run_processes(out)

    before = recorded(out)
    process = start(words(out, *one_seed, "--resume"))
    wait_until(lambda: recorded(out) > before and len(run_processes(out / "arms")) == 2, process)
    workers = run_processes(out / "arms")
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, told
    assert "one run failed; " in told
    assert "its process was killed (SIGKILL)" in told
    name = told.split("one run failed; ")[1].split(":")[0]
    assert (out / "arms" / name).is_dir()
    assert "stepalign compare arithmetic" in told
    assert "--resume" in told
    unfinished = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(unfinished["failures"]) == [name]
    assert sum(len(arm["runs"]) for arm in unfinished["arms"]) == len(ARMS) - 1  # the others went on

    done = run(*words(out, *one_seed, "--resume"))
    assert done.returncode == 0, done.stderr
    again = json.loads((out / "results.json").read_text(encoding="utf-8"))
    of_seed = [row for row in again["metrics"] if row["seed"] == 0]
    assert of_seed == [row for row in results["metrics"] if row["seed"] == 0]
    assert of_seed
    assert again["failures"] == {}


def test_arms_differ_in_the_named_keys_only() -> None:
    """The promise behind every comparison: what an arm changes is written in the recipe, and nothing else changes."""
    for recipe in ("arithmetic", "paper", "gsm8k"):
        config = load_config(recipe)
        told = arm_differences(config)
        for arm in config.compare.arms:
            named = {k for k in arm.set if _value(config, k) != arm.set[k]}
            assert set(told[arm.name]) == named
            for other in config.compare.arms:
                keys = set(difference(arm_config(config, arm, 0), arm_config(config, other, 0)))
                assert keys <= set(arm.set) | set(other.set)


@pytest.mark.parametrize(
    ("budget", "size", "key", "expected"),
    [
        ("optimizer_steps", 10, "training.max_steps", {"grpo": 10, "refsol": 10, "grpo-equal-rollouts": 10}),
        ("rollouts", 1000, "training.max_steps", {"grpo": 4, "refsol": 32, "grpo-equal-rollouts": 32}),  # 256, 32, 32
        ("completion_tokens", 5e4, "training.token_budget", dict.fromkeys(IN_RECIPE, 50_000)),
        ("training_seconds", 7.5, "training.time_budget", dict.fromkeys(IN_RECIPE, 7.5)),
    ],
)
def test_a_budget_is_the_same_for_every_arm(budget: str, size: float, key: str, expected: dict[str, float]) -> None:
    config = load_config("arithmetic", [f"compare.budget={budget}", f"compare.budget_size={size}"])
    told = {arm.name: arm_config(config, arm, 0) for arm in config.compare.arms}
    for name, value in expected.items():
        assert _value(told[name], key) == value
    for arm in config.compare.arms:  # and nothing else changes
        plain = arm_config(load_config("arithmetic"), arm, 0)
        assert set(difference(plain, told[arm.name])) <= {key}


def test_a_budget_without_a_size_is_refused() -> None:
    from stepalign.errors import ConfigError

    with pytest.raises(ConfigError) as told:
        plan(load_config("arithmetic", ["compare.budget=completion_tokens"]), Path("x"))
    assert "compare.budget_size" in str(told.value.hint)


def _value(config: Config, key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name)
    return node


def test_the_plan_covers_arms_and_seeds_once() -> None:
    config = load_config("arithmetic", ["compare.seeds=[3, 4, 5]"])
    names = [task.name for task in plan(config, Path("x"))]
    assert len(names) == len(set(names))
    assert {n for n in names if "/" in n} == {f"{arm}/seed-{seed}" for arm in IN_RECIPE for seed in (3, 4, 5)}
    assert {"base", "signal"} <= set(names)


def test_one_seed_of_every_arm_comes_before_the_next() -> None:
    config = load_config("arithmetic", ["compare.seeds=[5, 3]"])
    names = [task.name for task in in_order(plan(config, Path("x")), config.compare.seeds)]
    assert all(names.index(f"{first}/seed-5") < names.index(f"{second}/seed-3") for first in ARMS for second in ARMS)
    assert max(names.index("base"), names.index("signal")) < min(names.index(f"{arm}/seed-3") for arm in ARMS)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["evaluation.eval_steps=0"], "evaluation.eval_steps"),
        (["evaluation.eval_steps=62"], "evaluation.eval_steps"),
        ([], "data.validation"),
    ],
)
def test_a_checkpoint_rule_without_a_choice_is_refused_with_its_key(settings: list[str], key: str) -> None:
    from stepalign.errors import ConfigError

    config = changed(load_config("arithmetic", settings), {"evaluation.checkpoint_rule": "best_on_validation"})
    if key == "data.validation":
        config = changed(config, {key: None})
    with pytest.raises(ConfigError) as told:
        plan(config, Path("x"))
    assert key in str(told.value.where)
    assert f"--set {key}=" in str(told.value.hint)
    plan(changed(config, {"evaluation.checkpoint_rule": "last"}), Path("x"))


@pytest.mark.parametrize(
    "key",
    [
        *(
            "model.path",
            "prompts.student",
            "prompts.student_chat_options.enable_thinking",
            "data.judge.model",
            "data.second_judge.temperature",
            "sampling.stop",
            "data.test",
            "data.max_test",
        ),
        *("data.validation_share", "data.grader", "evaluation.num_samples", "evaluation.temperature", "training.seed"),
    ],
)
def test_an_arm_cannot_move_its_anchor(key: str) -> None:
    """An arm that answers other questions, or starts elsewhere, has no place in a paired table."""
    from stepalign.errors import ConfigError

    value = {"data.max_test": 3, "training.seed": 4, "evaluation.num_samples": 2, "data.validation_share": 0.1}
    value |= {"sampling.stop": ["x"]}
    arm = {"name": "own", "set": {key: value.get(key, 0.5 if key.endswith("temperature") else "x")}}
    with pytest.raises(ConfigError) as told:
        plan(changed(load_config("arithmetic"), {"compare.arms": [arm]}), Path("x"))
    assert told.value.where == f"arm own: {key}"
    assert told.value.hint
    plan(
        changed(load_config("arithmetic"), {"compare.arms": [{"name": "own", "set": {"evaluation.eval_steps": 3}}]}),
        Path("x"),
    )


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"model.path": "no/model"}, "model.path"),
        ({"data.test": "embedded:arithmetic", "data.train": "shared.jsonl"}, "data.train, data.test"),
        ({"data.train": "bare.jsonl"}, "arm refsol: condition, data.train"),
        ({"prompts.self_teacher": "{{ nothing }}"}, "template inline"),
    ],
)
def test_what_every_run_would_stumble_over_is_said_once_and_leaves_no_folder(
    settings: dict[str, str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the folder would hold the mistaken recipe, and the mended one would be refused there."""
    from stepalign.domains.table import load_set
    from stepalign.errors import ConfigError
    from stepalign.verbs.progress import Display

    monkeypatch.chdir(tmp_path)
    tested = load_set(load_config("arithmetic").data, "test").problems[0]
    Path("shared.jsonl").write_text(json.dumps({"question": tested.question, "answer": tested.answer}))
    Path("bare.jsonl").write_text('{"question": "1 + 2", "answer": "3"}')
    arms = [{"name": "grpo", "set": {"condition": "grpo", "sampling.num_generations": 2}}, {"name": "refsol"}]
    config = changed(load_config("arithmetic"), {"condition": "refsol", "compare.arms": arms, **settings})
    with pytest.raises(ConfigError) as told:
        compare_config(config, "arithmetic", Path("out"), resume=False, listener=Display())
    assert told.value.where == where
    assert not Path("out").exists()


def test_an_arm_with_longer_completions_is_evaluated_like_the_others() -> None:
    from stepalign.errors import ConfigError

    arms = [{"name": "long", "set": {"sampling.max_completion_length": 90}}]
    config = changed(load_config("arithmetic"), {"compare.arms": arms})
    with pytest.raises(ConfigError, match="90 tokens") as told:
        plan(config, Path("x"))
    assert told.value.hint == "--set evaluation.max_completion_length=90"
    tasks = plan(changed(config, {"evaluation.max_completion_length": 90}), Path("x"))
    assert {task.config.evaluation_length for task in tasks} == {90}


def test_best_on_test_needs_test_problems_and_no_validation() -> None:
    from stepalign.errors import ConfigError

    config = changed(load_config("arithmetic"), {"evaluation.checkpoint_rule": "best_per_metric_on_test"})
    plan(changed(config, {"data.validation": None}), Path("x"))
    with pytest.raises(ConfigError, match="test problems"):
        plan(changed(config, {"data.test": None}), Path("x"))


@pytest.mark.parametrize("setting", ["compare.seeds=[0, 0]", "compare.seeds=[]", 'signal.contexts=["step_algned"]'])
def test_the_plan_refuses_before_anything_runs(setting: str) -> None:
    from stepalign.errors import ConfigError

    with pytest.raises(ConfigError):
        plan(load_config("arithmetic", [setting]), Path("x"))
