"""A sampler of one's own costs one file: the class of the documents draws, and a run trains from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stepalign.config import SamplingSection, load_config
from stepalign.errors import ConfigError
from stepalign.events import silent
from stepalign.models.load import Solver
from stepalign.models.sampling import own_sampler
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.training.mismatch import differences
from stepalign.verbs.train import train_config
from stepalign.waiting import wait_for


@pytest.fixture
def engine(tmp_path: Path) -> str:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "sampler.py").write_text(code, encoding="utf-8")
    return f"{tmp_path / 'sampler.py'}:Generate"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_its_log_probs_are_those_of_the_learner(engine: str, tiny_solver: Solver, temperature: float) -> None:
    sampler = own_sampler(engine)(tiny_solver, SamplingSection(engine=engine))
    prompts = [tiny_solver.tokenizer.encode(text, add_special_tokens=False) for text in ("1 + 2", "3 - 4 + 5")]
    drawn = wait_for(sampler.sample(prompts, num_samples=2, temperature=temperature, max_tokens=6, seed=1))
    assert [len(found) for found in drawn] == [2, 2]
    scored = [(p, c.ids, c.log_probs, c.sampled_mask) for p, found in zip(prompts, drawn, strict=True) for c in found]
    assert float(differences(tiny_solver, scored, temperature).max()) < 1e-4


def test_a_run_draws_from_it(engine: str, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(
        condition="refsol",
        sampling={"max_completion_length": 4, "num_generations": 2, "engine": engine},
        evaluation={"num_samples": 1, "at_start": False},
    )
    config = load_config(str(recipe))
    done = train_config(config, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    assert done.step == 2
    rows = list(read_json_lines(tmp_path / "run" / "rollouts.jsonl"))
    assert {(row["step"], row["completion"]["policy_version"]) for row in rows} == {(0, 0), (1, 1)}
    assert all(0 < len(row["completion"]["ids"]) <= 4 for row in rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [("Half", "has no has_own_weights, no sample, no close"), ("Missing", "no class Missing"), ("", "no class")],
)
def test_a_class_that_is_no_sampler_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Half:\n    async def publish(self, weights, version): ...\n", "utf-8")
    with pytest.raises(ConfigError, match=message):
        own_sampler(f"{tmp_path / 'own.py'}:{name}")


def test_an_engine_that_is_neither_known_nor_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an engine is local, vllm, or module:Class"):
        load_config(None, ["sampling.engine=vlm"])
