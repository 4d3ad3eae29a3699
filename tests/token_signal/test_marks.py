"""The marks of the steps of an attempt. The truth of each case is known by construction."""

from __future__ import annotations

from typing import Any

import pytest

from stepalign.domains.math import Grade
from stepalign.errors import ConfigError
from stepalign.records import Attempt, Critique, Problem
from stepalign.token_signal.marks import Labels, mark_steps
from stepalign.verbs.signal.rows import check_row

RIGHT = "<step_1> 2 + 3 = 5\n<step_2> 5 * 2 = 10\n<answer> 10"
WRONG = "<step_1> 2 + 3 = 5\n<step_2> 5 * 2 = 12\n<answer> 12"
DAMAGED = "<step_1> 2 + 3 = 6\n<step_2> 6 * 2 = 12\n<answer> 12"
OTHER = "<step_1> 2 + 3 = 5\n<step_2> 5 * 2 = 11\n<answer> 11"


def statuses(text: str, critique: str, score: float, **more: Any) -> list[str]:
    problem = Problem(problem_id="p", question="(2 + 3) * 2", answer="10")
    attempt = Attempt(rollout_id="r", problem=problem, text=text, grade=Grade(score))
    said = Critique(rollout_id="r", critic="model", status="ok", text=critique, **more)
    spans = [(at, at + 1) for at in range(len(text))]
    marks = mark_steps(attempt, list(range(len(text))), text, spans, critique=said, labels=Labels())
    return [step.status for step in marks.steps]


@pytest.mark.parametrize(
    ("text", "critique", "score", "more", "expected"),
    [
        (WRONG, RIGHT, 0.0, {}, ["right", "wrong", "after_error"]),
        (WRONG, RIGHT, 0.0, {"first_error": "2", "case": "D"}, ["right", "wrong", "after_error"]),
        (RIGHT, RIGHT, 1.0, {"case": "A"}, ["right", "right", "right"]),
        # a critic that "corrects" a right attempt is wrong: no right step is painted
        (RIGHT, DAMAGED, 1.0, {}, ["unknown"] * 3),
        (RIGHT, DAMAGED, 1.0, {"first_error": "1", "case": "D"}, ["unknown"] * 3),
        (RIGHT, RIGHT, 1.0, {"first_error": "2", "case": "D"}, ["unknown"] * 3),
        # so is one whose correction ends in another wrong answer
        (WRONG, OTHER, 0.0, {}, ["unknown"] * 3),
        (WRONG, DAMAGED, 0.0, {"first_error": "1", "case": "D"}, ["unknown"] * 3),
        # a program that knows the truth is believed, one that is faulty on purpose is not
        (WRONG, OTHER, 0.0, {"first_error": "2", "case": "D", "truth": True}, ["right", "wrong", "after_error"]),
        (WRONG, RIGHT, 0.0, {"first_error": "2", "case": "D", "truth": False}, ["unknown"] * 3),
    ],
)
def test_a_step_is_called_wrong_only_by_a_critic_that_can_be_right(
    text: str, critique: str, score: float, more: dict[str, Any], expected: list[str]
) -> None:
    assert statuses(text, critique, score, **more) == expected


def test_a_row_is_not_correct_and_wrong_at_once() -> None:
    row = {"question": "2 + 3", "completion": "5", "contexts": {"hint": "No."}, "case": "correct"}
    assert check_row({**row, "wrong_step": ""}, "row 1")
    for label in ({"wrong_step": "1"}, {"wrong_text": "5"}):
        with pytest.raises(ConfigError, match="a correct attempt has no wrong step"):
            check_row({**row, **label}, "row 1")
