"""Memory and tokens known beforehand, against what libraries and a real process take."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from warm import python

from stepalign.build import find_terms, recipe_solver
from stepalign.config import Config, arm_config, changed, load_config
from stepalign.domains.table import load_sets
from stepalign.errors import ConfigError
from stepalign.models.packing import micro_batches, pack
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.verbs.dry_run import describe, describe_selection
from stepalign.verbs.duration import Rates, describe_hours, measured
from stepalign.verbs.footprint import describe_tokens, expected, kept_bytes, known_shape, learnt_row, memory_parts

MIB = 2**20


def parts_of(config: Config, **options: Any) -> dict[str, float]:
    shapes = recipe_solver(config, weights=False)
    tokens = {"student_tokens": 15, "teacher_tokens": 61}
    return memory_parts(config, shapes, **tokens, **{"device": "cpu", "dtype": "float32", **options})


@pytest.mark.parametrize("weights", ["initial", "ema", "live", "trust_region"])
@pytest.mark.parametrize("lora", [None, {"r": 8, "alpha": 16, "targets": ["q_proj", "down_proj"]}])
def test_the_parts_are_the_bytes_of_the_tensors(weights: str, lora: dict[str, Any] | None) -> None:
    """Counted on a real model after a real step: parameters, gradients, Adam's state, every copy of the teacher."""
    import torch

    from stepalign.models.load import with_lora

    config = load_config("arithmetic", {"model.lora": lora, "objective.teacher.weights": weights})
    solver = recipe_solver(config)
    if config.model.lora:
        solver = with_lora(solver, config.model.lora, seed=config.training.seed, path=config.model.path)
    learner = Learner(solver, config.objective, config.training, temperature=1.0)
    trained = [p for p in solver.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    teacher = Teacher(solver.model, config.objective.teacher)
    state = [value for row in learner.optimizer.state.values() for value in row.values() if value.numel() > 1]
    held = {id(value): value for value in [*teacher.values.values(), *teacher._first.values()]}

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    found = parts_of(config)
    assert find_terms(config).distillation_weight
    assert found["weights"] == size(solver.model.parameters())
    assert found["gradients"] == size(p.grad for p in trained if p.grad is not None)
    assert found["optimizer"] == size(state)
    assert found["teacher"] == size(held.values())


def test_many_ranks_share_what_is_sharded() -> None:
    config = load_config("arithmetic")
    one, four = parts_of(config), parts_of(config, ranks=4)
    for name in ("gradients", "optimizer", "teacher"):
        assert four[name] == one[name] / 4
    assert four["weights"] == one["weights"] * 1.25  # a quarter, and the whole copy of rank 0
    served = parts_of(changed(config, {"sampling.engine": "vllm"}), ranks=4)
    assert (
        four["sampler cache"] > served["sampler cache"] == served["sampler"] == 0.0
    )  # evaluations are drawn there too


def test_half_the_width_is_half_the_size() -> None:
    config = load_config("arithmetic")
    wide, narrow = parts_of(config), parts_of(config, dtype="bfloat16")
    for name in ("weights", "gradients", "sampler cache"):
        assert narrow[name] == wide[name] / 2
    assert wide["activations"] / 2 < narrow["activations"] < wide["activations"]  # norms compute in float32


@pytest.mark.parametrize(
    ("lora", "dtype"), [(None, "float32"), ({"r": 8, "alpha": 16}, "float32"), ({"r": 64, "alpha": 64}, "bfloat16")]
)
def test_the_activations_are_what_a_forward_pass_leaves_with_the_allocator(
    lora: dict[str, Any] | None, dtype: str
) -> None:
    """glibc's own count of what is allocated, on the whole model, against two layers of its widths. In 16 bits every
    adapter leaves a narrow copy of itself behind, however few tokens there are."""
    from stepalign.models.load import with_lora
    from stepalign.models.scoring import completion_hidden

    config = load_config("arithmetic", {"model.lora": lora, "model.dtype": dtype})
    fixed, each = kept_bytes(recipe_solver(config, weights=False), config.model, 4 if dtype == "float32" else 2)
    solver = recipe_solver(config)
    if config.model.lora:
        solver = with_lora(solver, config.model.lora, seed=0, path=config.model.path)
    sequences = [((5, 6, 7, place), (8,) * 60) for place in range(30)]
    completion_hidden(solver, sequences)
    before = allocated_bytes()
    hidden_NH = completion_hidden(solver, sequences)
    tokens = 30 * 63  # the last one of a completion predicts nothing
    assert allocated_bytes() - before == pytest.approx(fixed + each * tokens, rel=0.1)
    assert (fixed > 0) == (dtype == "bfloat16")
    assert len(hidden_NH) == 30 * 60


def allocated_bytes() -> int:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("not glibc")

    class Mallinfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

    count = ctypes.CDLL(None).mallinfo2
    count.restype = Mallinfo
    found = count()
    return found.e + found.h  # mapped, and in use on the heap


def test_micro_batches_are_cut_as_the_learner_cuts_them() -> None:
    """Against the cut itself, of completions of full length."""
    for group, problems, most in ((1, 16, 2048), (4, 4, 600), (4, 4, 300), (8, 3, 10_000), (2, 5, 50)):
        sizes = {"sampling.num_generations": group, "training.problems_per_step": problems}
        config = load_config("arithmetic", {**sizes, "training.max_micro_batch_tokens": most})
        length = config.sampling.max_completion_length
        prompts = [((place,) * 15, (place, sample) + (0,) * 59) for place in range(problems) for sample in range(group)]
        student = [(prompt, (1,) * length) for prompt, _ in prompts]
        teacher = [(context, (1,) * length) for _, context in prompts]
        cut = list(micro_batches(student, teacher, max_tokens=most))
        packed = [len(pack([student[i] for i in batch]).ids) for batch in cut]
        row, scored, batches = learnt_row(config, 15, 61)
        assert batches == len(cut)
        assert scored == max(map(len, cut)) * length
        assert row - max(map(len, cut)) <= max(packed) <= row  # the last token of a completion is left out


def test_tokens_and_money_of_a_served_critic() -> None:
    prices = {"prompt": 1.0, "completion": 4.0}
    critic = {"critic.kind": "endpoint", "critic.model": "m", "critic.max_tokens": 100, "critic.prices": prices}
    sizes = {"training.max_steps": 10, "training.problems_per_step": 5, "sampling.max_completion_length": 20}
    config = load_config("arithmetic", {**critic, **sizes})
    text = describe_tokens(config, student_tokens=30, teacher_tokens=60)
    assert text.startswith("tokens at most: 100 sampled a step, 1,000 in all; 400 scored by the self-teacher a step")
    assert "750 by the critic a step, 7,500 in all" in text
    assert f"({50 * (50 * 1.0 + 100 * 4.0) / 1e6:,.2f} " in text


@pytest.mark.parametrize(("design", "asked"), [("stepalign", True), ("hint", False)])
def test_a_second_served_critic_costs_its_own_price(design: str, asked: bool) -> None:
    prices = {"m": {"prompt": 1.0, "completion": 4.0}, "small": {"prompt": 0.5, "completion": 0.5}}
    critic = {"kind": "endpoint", "model": "m", "max_tokens": 100, "prices": prices}
    sizes = {"training.max_steps": 10, "training.problems_per_step": 5, "sampling.max_completion_length": 20}
    more = {"critic.second.kind": "endpoint", "critic.second.model": "small"}
    keys = {f"critic.{key}": value for key, value in critic.items()}
    config = load_config("arithmetic", {**keys, **sizes, **more, "condition": design})
    text = describe_tokens(config, student_tokens=30, teacher_tokens=60)
    money = (50 * 1.0 + 100 * 4.0) + asked * (50 + 100) * 0.5
    assert f"({50 * money / 1e6:,.2f} " in text
    assert ("1,500 by the critics a step" if asked else "750 by the critic a step") in text
    seconds = {"token": 0.0, "critique": 0.0, "side": 0.0}
    found = expected(config, completion_tokens=20, critic_tokens=(100.0, 200.0), seconds=seconds)
    mean = (100 * 1.5 + 200 * 4.5) / 2 if asked else 100 * 1.0 + 200 * 4.0
    assert found["cost"] == pytest.approx(50 * mean / 1e6)


@pytest.mark.slow
def test_the_printed_sum_is_close_to_what_a_process_takes(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    settings = ["training.max_steps=2", "evaluation.at_start=false", "evaluation.num_samples=1", "data.max_test=1"]
    words = ["train", "arithmetic", "--out", str(tmp_path / "run"), *(w for s in settings for w in ("--set", s))]
    printed = run_command(*words, "--dry-run", interpreter=python()).splitlines()
    (memory,) = [line for line in printed if line.startswith("memory")]
    assert len([line for line in printed if line.startswith("tokens")]) == 1
    run_command(*words)
    measured = json.loads((tmp_path / "run" / "summary.json").read_text())["peak_memory_bytes"] / MIB
    found = re.search(r"([\d.]+) MiB at most", memory)
    assert found
    assert float(found[1]) == pytest.approx(measured, rel=0.15)


@pytest.fixture
def run_command() -> Callable[..., str]:
    def run(*words: str, interpreter: Sequence[str] = (sys.executable,)) -> str:
        done = subprocess.run([*interpreter, "-m", "stepalign", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_known_shapes_have_the_parameters_of_their_models(name: str, parameters: int) -> None:
    """The numbers that the models' cards give."""
    assert sum(p.numel() for p in known_shape(name).model.parameters()) == parameters


def test_a_dry_run_of_the_paper_needs_neither_its_model_nor_its_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("paper")
    arms = {arm.name: arm_config(config, arm, 0) for arm in config.compare.arms}
    lines = describe(config, ranks=8, arms=arms).splitlines()
    assert lines[0] == "== changed keys =="
    assert "training.save_steps = 10" in lines
    assert any(line.startswith("data.train: data/openmathreasoning is yet to be written") for line in lines)
    assert any(line.startswith("model.path: ") for line in lines)
    for word in ("memory", "tokens", "hours"):
        assert len([line for line in lines if line.startswith(word)]) == 1
    assert [line.partition(":")[0] for line in lines if line.startswith(tuple(arms))] == ["grpo", "refsol", "stepalign"]


def test_a_model_that_is_not_there_and_not_known_is_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        describe(load_config("paper", {"model.path": "Nobody/Qwen3-1.7B"}))


def test_hours_are_tokens_over_rates() -> None:
    """By hand: 10 steps of 5 completions of 20 tokens behind 30; 2 x 3 samples of 20 tokens on two problems."""
    sizes = {"training.max_steps": 10, "training.problems_per_step": 5, "sampling.max_completion_length": 20}
    config = load_config("arithmetic", {**sizes, "evaluation.num_samples": 3, "evaluation.eval_steps": 0})
    rates = Rates(sampled=1000 / 3600, learnt=2500 / 3600, length=10.0, source="by hand")
    text = describe_hours(config, rates, student_tokens=30, held_out={"validation": 2, "test": 2})
    # validation at the start and at the end, test at the end: 3 x 2 x 3 x 20 = 360 tokens
    assert text.startswith("hours at most: 2.4 = sampling 1.0, learning 1.0, evaluation 0.36 (by hand)")
    assert "; 1.5 with completions of 10 tokens" in text


@pytest.mark.slow
def test_a_measurement_of_this_machine_takes_a_part_of_a_step() -> None:
    config = load_config("arithmetic", {"training.problems_per_step": 4})
    problems = load_sets(config.data)["train"].problems[:4]
    rates = measured(config, problems, lambda problem: problem.reference or "", seconds=1.0)
    assert rates.sampled > 0
    assert rates.learnt > 0
    assert "measured here on 4 completions" in rates.source


def test_a_selection_is_known_beforehand() -> None:
    """Counted by hand, of problems that are here and of problems of the Hub; a model that is not here, by its card."""
    sizes = {"data.max_train": 20, "selection.num_samples": 8, "sampling.max_completion_length": 10}
    memory, tokens, hours = describe_selection(load_config("arithmetic", sizes)).splitlines()
    assert memory.startswith("memory")
    assert tokens == "tokens at most: 1,600 sampled for 20 problems"
    assert hours.startswith("hours at most: unknown")
    of_hub = {"data.train": "hub:nvidia/OpenMathReasoning@cot", "data.max_train": 20_000}
    memory, tokens, hours = describe_selection(load_config("paper", of_hub)).splitlines()
    assert f"weights {1_720_574_976 * 2 / 2**30:.1f} GiB" in memory
    assert "gradients" not in memory
    assert tokens.startswith(f"tokens at most: {20_000 * 16 * 2048:,} sampled for 20,000 problems; ")
    assert f"{20_000 * (256 + 16_384):,} by the critic" in tokens
