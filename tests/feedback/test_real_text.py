"""Steps and alignment on 2,638 real attempts of a 6B model at grade-school problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.feedback import align, split_steps

FILE = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "model_solutions.jsonl"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"the model solutions of GSM8K are not at {FILE}")


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    return [json.loads(line)["solution"] for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_every_attempt_is_its_steps_and_copies_itself(solutions: list[str]) -> None:
    assert len(solutions) == 2638
    for text in solutions:
        steps = split_steps(text)
        assert "".join(text[step.start : step.end] for step in steps) == text
        found = align(text, text)
        assert (found.edited, found.missing, found.added) == (0, 0, 0)
        assert found.copied == len(found.solver_steps) > 0
        assert found.verbatim_share == 1.0
        assert (found.case, found.first_edit, found.first_error) == ("A", None, None)


@pytest.mark.slow
def test_one_step_replaced_is_exactly_that_step_edited(solutions: list[str]) -> None:
    checked = 0
    for number, text in enumerate(solutions):
        steps = [step for step in split_steps(text) if step.label not in ("", "answer")]
        if not steps:
            continue
        chosen = number % len(steps)
        step = steps[chosen]
        body = text[step.start : step.end]
        stop = "." if body.rstrip().endswith(".") else ""  # five attempts have sentences for steps
        ending = stop + body[len(body.rstrip()) :]
        changed = text[: step.start] + f"Then one counts 4711 + {number} instead{ending}" + text[step.end :]
        found = align(text, changed)
        edited = [match.solver for match in found.matches if match.status == "edited"]
        assert edited == [chosen], text
        assert (found.missing, found.added) == (0, 0)
        assert found.copied == len(found.solver_steps) - 1
        assert found.first_edit == chosen
        checked += 1
    assert checked > 2600
