"""Refusals before the first step of a run: prompts that cannot be built or do not fit, numbers that cannot train."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stepalign.build import open_session
from stepalign.config import Config, changed, load_config
from stepalign.domains.table import load_sets
from stepalign.errors import ConfigError
from stepalign.events import Event, silent
from stepalign.stopping import StopRequest
from stepalign.verbs.checks import number_format
from stepalign.verbs.dry_run import describe
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.train import train_config


def warnings_of(heard: list[Event]) -> list[str]:
    return [event.text for event in heard if event.kind == "warning"]


@pytest.fixture
def config(write_recipe: Callable[..., Path]) -> Config:
    return load_config(str(write_recipe()))


def refused(config: Config, out: Path) -> ConfigError:
    heard: list[Event] = []
    with pytest.raises(ConfigError) as raised:
        train_config(config, out, resume=False, listener=heard.append, stop=StopRequest())
    assert not any(event.kind == "step" for event in heard)
    assert not out.exists()
    with pytest.raises(ConfigError, match=r".") as dry:
        describe(config)
    assert dry.value.what == raised.value.what
    return raised.value


def lengthen(config: Config, *, words: int, rows: int) -> list[str]:
    """Make the first training questions that long; returns their ids."""
    path = Path(config.data.train)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:rows]:
        line["question"] = " ".join([line["question"], *["+ 1"] * (words // 2)])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [p.problem_id for p in load_sets(config.data)["train"].problems[:rows]]


def test_questions_beyond_the_models_context_are_listed_before_the_first_step(config: Config, tmp_path: Path) -> None:
    long = lengthen(config, words=520, rows=2)
    error = refused(config, tmp_path / "run")
    assert error.what.startswith("2 (")
    assert all(name in error.what for name in long)
    assert "of 3 train problems" in error.what
    assert "the model's 512" in error.what
    assert error.where == "data.train"
    assert "sampling.max_completion_length" in str(error.hint)


def test_a_question_that_fits_by_itself_needs_room_for_a_completion(config: Config, tmp_path: Path) -> None:
    config = changed(config, {"sampling.max_completion_length": 100, "evaluation.max_completion_length": 6})
    lengthen(config, words=420, rows=1)
    assert "a completion of 100 tokens" in refused(config, tmp_path / "run").what
    changed_back = changed(config, {"sampling.max_completion_length": 6, "training.max_steps": 1})
    train_config(changed_back, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())


def test_questions_that_leave_the_self_teacher_no_room_are_listed(config: Config, tmp_path: Path) -> None:
    long = lengthen(config, words=60, rows=3)
    error = refused(changed(config, {"prompts.max_teacher_prompt_length": 50}), tmp_path / "run")
    assert all(name in error.what for name in long)
    assert error.where == "prompts.max_teacher_prompt_length"
    grpo = {"condition": "grpo", "sampling.num_generations": 2, "prompts.max_teacher_prompt_length": 50}
    train_config(changed(config, grpo), tmp_path / "run", resume=False, listener=silent, stop=StopRequest())


def test_only_problems_that_will_be_trained_on_count(config: Config, tmp_path: Path) -> None:
    lengthen(config, words=520, rows=3)
    train_config(
        changed(config, {"training.max_steps": 0}), tmp_path / "a", resume=False, listener=silent, stop=StopRequest()
    )
    one = changed(config, {"training.max_steps": 1, "training.problems_per_step": 1})
    assert "1 (" in refused(one, tmp_path / "b").what


@pytest.mark.parametrize("template", ["{{ question }} {{ feedbck }}", "{% if introduction %}{{ qustion }}{% endif %}"])
def test_a_misspelt_variable_of_the_self_teachers_template_is_found(config: Config, tmp_path: Path, template) -> None:
    error = refused(changed(config, {"prompts.self_teacher": template}), tmp_path / "run")
    assert "feedbck" in error.what or "qustion" in error.what


def test_a_self_teachers_prompt_without_a_place_for_the_context_is_refused(config: Config, tmp_path: Path) -> None:
    error = refused(changed(config, {"prompts.self_teacher": "{{ question }}"}), tmp_path / "run")
    assert (error.where, "never shows its context" in error.what) == ("prompts.self_teacher", True)


def test_a_self_teachers_prompt_leaves_room_for_the_completion_in_the_models_context(config: Config) -> None:
    with_long = changed(config, {"sampling.max_completion_length": 500})
    session = open_session(with_long)
    try:
        assert session.solver.context_length == 512
        assert session.prompts.max_teacher_prompt_length == 12
    finally:
        session.close()


def test_numbers_that_cannot_train_are_refused_or_told(config: Config, tmp_path: Path) -> None:
    heard: list[Event] = []
    half = changed(config, {"model.dtype": "float16"})
    with pytest.raises(ConfigError, match="float16"):
        train_config(half, tmp_path / "run", resume=False, listener=heard.append, stop=StopRequest())
    assert not (tmp_path / "run").exists()
    number_format(Inputs(changed(half, {"training.max_steps": 0}), heard.append))  # it may still be evaluated
    assert warnings_of(heard) == []
    number_format(Inputs(changed(config, {"model.dtype": "bfloat16"}), heard.append))
    assert "bfloat16" in warnings_of(heard)[0]
    number_format(Inputs(changed(config, {"model.dtype": "bfloat16", "model.lora.r": 4}), heard.append))
    assert len(warnings_of(heard)) == 1


def without_references(config: Config, *, keep: int) -> None:
    """Take the reference solutions from all but the first training problems."""
    path = Path(config.data.train)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row if index < keep else {**row, "reference": None} for index, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_design_that_no_problem_has_material_for_is_refused(config: Config, tmp_path: Path) -> None:
    without_references(config, keep=0)
    error = refused(changed(config, {"condition": "refsol"}), tmp_path / "run")
    assert "no training problem has a reference solution" in error.what
    assert "data.columns" in str(error.hint)
    error = refused(changed(config, {"condition": "execution_trace"}), tmp_path / "run")
    assert "Python tests" in error.what


def test_problems_without_material_are_counted_before_the_first_step(config: Config, tmp_path: Path) -> None:
    without_references(config, keep=1)
    heard: list[Event] = []
    one_step = changed(config, {"condition": "refsol", "training.max_steps": 1})
    train_config(one_step, tmp_path / "run", resume=False, listener=heard.append, stop=StopRequest())
    assert "2 of 3 training problems lack a reference solution; their rollouts are masked" in warnings_of(heard)


@pytest.mark.parametrize(
    ("changes", "not_loaded", "error"),
    [
        ({"data.train": "/nowhere.jsonl"}, "torch", "There is no such file."),
        ({"condition": "stepalgn"}, "torch", "unknown condition stepalgn"),
        ({"data.grader": "no_such_module:grade"}, "torch", "The grader cannot be started."),
        (
            {"critic.kind": "endpoint", "critic.base_urls": ["http://127.0.0.1:9/v1"], "critic.model": "m"},
            "transformers",  # torch says which device there is
            "the critic does not answer",
        ),
    ],
)
def test_a_mistake_in_the_recipe_is_found_before_the_model_is_loaded(
    write_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, object], not_loaded: str, error: str
) -> None:
    code = f"""
import sys
sys.modules[{not_loaded!r}] = None  # loading it is an ImportError
from stepalign.errors import UserError
from stepalign.verbs.train import train
try:
    train({str(write_recipe(condition="stepalign"))!r}, {changes!r}, out={str(tmp_path / "run")!r})
except UserError as error:
    print(error.what)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (error, 0), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_diverged_ends_and_keeps_its_checkpoints(config: Config, tmp_path: Path) -> None:
    """One step of 1e30 makes every later loss NaN; those steps change nothing any more."""
    changes = {"training.learning_rate": 1e30, "training.max_steps": 9, "training.warmup_steps": 0}
    changes |= {"training.save_steps": 1, "evaluation.at_start": False}
    changes |= {"guards.policy": "warn", "guards.gradient": "stop"}  # others see it a step earlier
    run = changed(config, changes, "test")
    with pytest.raises(ConfigError, match="3 steps in a row had no finite gradient") as caught:
        train_config(run, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    assert "learning_rate" in (caught.value.hint or "")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] is None for row in rows] == [False, True, True, True]
    assert (tmp_path / "run" / "checkpoints" / "step-00001").is_dir()
    assert not (tmp_path / "run" / "final").exists()
