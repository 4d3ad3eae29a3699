"""How the shipped solver is made: it reads its context, and it can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corpus import draw_knowledge
from make_embedded import WarmStart, copy_test, make_embedded
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.models.load import load_solver

FOLDER = Path(arithmetic.__file__).parent


@pytest.mark.slow
def test_the_self_teacher_says_whatever_its_context_says() -> None:
    """True and arbitrary false values, on facts it knows and on facts it does not."""
    solver = load_solver(arithmetic.EMBEDDED)
    found = copy_test(solver, draw_knowledge(WarmStart().seed), num_contexts=100, seed=77)
    control = {kind: value for kind, value in found.items() if kind.startswith("no context")}
    told = {kind: value for kind, value in found.items() if kind not in control}
    assert len(told) == 11
    assert min(told.values()) > 0.9, told
    # Without a context the weak facts are really weak: what the teacher knows, it has read.
    assert control["no context/weak"] < 0.5 < 0.95 < control["no context/strong"]


@pytest.mark.slow
def test_a_few_steps_of_the_warm_start_are_deterministic_and_learn(tmp_path: Path) -> None:
    losses: list[str] = []
    for name in ("one", "other"):
        make_embedded(
            tmp_path / name, max_steps=8, batch_size=16, num_contexts=30, on_step=lambda d, t, note: losses.append(note)
        )
    files = [tmp_path / name / "solver" / "model.safetensors" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses[:8] == losses[8:]
    first, last = (float(note.split()[1]) for note in (losses[0], losses[7]))
    assert last < first
    told = json.loads((tmp_path / "one" / "provenance.json").read_text())
    assert told["copy_test"]["far/weak"] < 0.5  # eight steps do not teach to read, and the record says so


def test_the_shipped_weights_tell_where_they_come_from() -> None:
    told = json.loads((FOLDER / "provenance.json").read_text(encoding="utf-8"))
    assert told["command"] == f"stepalign warmstart --seed {WarmStart().seed}"
    assert told["parameters"] == sum(p.numel() for p in load_solver(arithmetic.EMBEDDED).model.parameters())
    assert min(v for k, v in told["copy_test"].items() if not k.startswith("no context")) > 0.9
