"""The shipped solver: it is fallible, it reads its context, and it can be made again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stepalign.build import open_session
from stepalign.config import load_config
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.arithmetic.corpus import draw_knowledge
from stepalign.domains.sets import load_sets
from stepalign.evaluation.evaluate import metrics_of, sample_and_grade
from stepalign.models.load import EMBEDDED, embedded_folder, load_solver
from stepalign.verbs.warmstart import WarmStart, copy_test, make_embedded


@pytest.fixture(scope="module")
def config():
    return load_config("arithmetic")


def test_the_self_teacher_says_whatever_its_context_says() -> None:
    """True and arbitrary false values, on facts it knows and on facts it does not."""
    solver = load_solver(EMBEDDED)
    found = copy_test(solver, draw_knowledge(WarmStart().seed), num_contexts=300, seed=77)
    control = {kind: value for kind, value in found.items() if kind.startswith("no context")}
    told = {kind: value for kind, value in found.items() if kind not in control}
    assert len(told) == 11
    assert min(told.values()) > 0.9, told
    # Without a context the weak facts are really weak: what the teacher knows, it has read.
    assert control["no context/weak"] < 0.5 < 0.95 < control["no context/strong"]


def test_the_solver_is_fallible_on_the_chosen_problems(config) -> None:
    sets = load_sets(config)
    session = open_session(config)
    done = sample_and_grade(
        sets["test"].problems[:100], num_samples=12, seed=5, sample=session.sample, grade=session.grade
    )
    assert 0.10 < metrics_of(done, [12])["avg@12"].value < 0.40


def test_the_sets_are_disjoint_and_belong_to_their_splits(config) -> None:
    sets = load_sets(config)
    assert {name: len(found.problems) for name, found in sets.items()} == {"train": 282, "validation": 100, "test": 200}
    questions = [p.question for found in sets.values() for p in found.problems]
    assert len(set(questions)) == len(questions)
    for name, found in sets.items():
        assert {arithmetic.split_of(p.question) for p in found.problems} == {name}


def test_the_stated_answers_are_those_of_python() -> None:
    for file in (embedded_folder() / "problems").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert int(row["answer"]) == eval(row["question"]) % 20
            assert 1 / 16 <= row["base_pass_rate"] <= 4 / 16


def test_a_vllm_server_could_load_it() -> None:
    model = load_solver(EMBEDDED).model
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.head_dim == 32
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_references_follow_rho(config) -> None:
    from stepalign.domains.sets import embedded_problems

    shares = {
        rho: sum(p.metadata["reference_order"] == "R" for p in embedded_problems("train", rho)) for rho in (0, 0.5, 1)
    }
    assert shares[0] == 0
    assert shares[1] == 282
    assert 110 < shares[0.5] < 172


@pytest.mark.slow
def test_a_few_steps_of_the_warm_start_are_deterministic_and_learn(tmp_path: Path) -> None:
    losses: list[str] = []
    for name in ("one", "other"):
        make_embedded(tmp_path / name, max_steps=8, on_step=lambda done, total, note: losses.append(note))
    files = [tmp_path / name / "solver" / "model.safetensors" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses[:8] == losses[8:]
    first, last = (float(note.split()[1]) for note in (losses[0], losses[7]))
    assert last < first
    told = json.loads((tmp_path / "one" / "provenance.json").read_text())
    assert told["copy_test"]["far/weak"] < 0.5  # eight steps do not teach to read, and the record says so


def test_the_shipped_weights_tell_where_they_come_from() -> None:
    told = json.loads((embedded_folder() / "provenance.json").read_text(encoding="utf-8"))
    assert told["command"] == f"stepalign warmstart --seed {WarmStart().seed}"
    assert told["parameters"] == sum(p.numel() for p in load_solver(EMBEDDED).model.parameters())
    assert min(v for k, v in told["copy_test"].items() if not k.startswith("no context")) > 0.9


def test_the_model_card_describes_these_weights() -> None:
    card = (embedded_folder() / "README.md").read_text(encoding="utf-8")
    told = json.loads((embedded_folder() / "provenance.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((embedded_folder() / "solver" / "model.safetensors").read_bytes()).hexdigest() in card
    assert f"`{told['command']}`" in card
    assert f"{told['parameters']:,} parameters" in card
    steps = sum(phase["num_steps"] for phase in told["recipe"]["phases"])
    assert f"{steps:,} optimizer steps" in card
    assert f"{told['copy_test']['no context/weak']:.0%}".replace("%", " %") in card
    for name, found in told["sets"].items():
        assert f"{found['problems']} of {found['tried']}" in card, name
