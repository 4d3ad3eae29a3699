"""The shipped solver: it is fallible, it reads its context, and it can be made again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from corpus import split_of
from stepalign.build import open_session
from stepalign.config import load_config
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.math.answers import canonical_answer
from stepalign.domains.table import load_sets
from stepalign.evaluation.evaluate import metrics_of, sample_and_grade
from stepalign.models.load import load_solver

FOLDER = Path(arithmetic.__file__).parent


@pytest.fixture(scope="module")
def config():
    return load_config("arithmetic")


@pytest.mark.slow
def test_the_solver_is_fallible_on_the_chosen_problems(config) -> None:
    sets = load_sets(config.data)
    session = open_session(config)
    done = sample_and_grade(
        sets["test"].problems[:40], num_samples=12, seed=5, attempt=session.attempt, canonical=canonical_answer
    )
    assert 0.10 < metrics_of(done, [12])["avg@12"].value < 0.40


def test_the_sets_are_disjoint_and_belong_to_their_splits(config) -> None:
    sets = load_sets(config.data)
    assert {name: len(found.problems) for name, found in sets.items()} == {"train": 282, "validation": 100, "test": 200}
    questions = [p.question for found in sets.values() for p in found.problems]
    assert len(set(questions)) == len(questions)
    for name, found in sets.items():
        assert {split_of(p.question) for p in found.problems} == {name}


def test_the_stated_answers_are_those_of_python() -> None:
    for file in (FOLDER / "problems").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert int(row["answer"]) == eval(row["question"]) % 20
            assert 1 / 16 <= row["base_pass_rate"] <= 4 / 16


def test_a_vllm_server_could_load_it() -> None:
    model = load_solver(arithmetic.EMBEDDED).model
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.head_dim == 32
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_references_follow_rho(config) -> None:
    from stepalign.domains.arithmetic.domain import read_problems

    shares = {
        rho: sum(p.metadata["reference_order"] == "R" for p in read_problems("train", rho)) for rho in (0, 0.5, 1)
    }
    assert shares[0] == 0
    assert shares[1] == 282
    assert 110 < shares[0.5] < 172


def test_the_model_card_describes_these_weights() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    told = json.loads((FOLDER / "provenance.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((FOLDER / "solver" / "model.safetensors").read_bytes()).hexdigest() in card
    assert f"`{told['command']}`" in card
    assert f"{told['parameters']:,} parameters" in card
    steps = sum(phase["num_steps"] for phase in told["recipe"]["phases"])
    assert f"{steps:,} optimizer steps" in card
    assert f"{told['copy_test']['no context/weak']:.0%}".replace("%", " %") in card
    for name, found in told["sets"].items():
        assert f"{found['problems']} of {found['tried']}" in card, name
