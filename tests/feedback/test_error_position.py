"""The two designs of recipes/error_position.py share the wrong attempts out between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepalign.feedback.designs import NothingToShow, find_design, make_group
from stepalign.records import Attempt, Critique, Grade, Problem

FILE = Path(__file__).parents[2] / "recipes" / "error_position.py"
PROBLEM = Problem(problem_id="p", question="1 + 1 + 1 + 1 + 1", answer="5")
TEXT = "<step_1> 1 + 1 = 2 ; <step_2> 2 + 1 = 3 ; <step_3> 3 + 1 = 4 ; <step_4> 4 + 1 = 5 ; <answer> 5"


@pytest.mark.parametrize(
    ("first_error", "shown_by"),
    [
        ("", ["early", "late"]),
        ("1", ["early"]),
        ("2", ["early"]),
        ("3", ["late"]),
        ("4", ["late"]),
        ("answer", ["late"]),
    ],
)
def test_a_critique_is_shown_by_the_design_of_its_half(first_error: str, shown_by: list[str]) -> None:
    grade = Grade(score=0.0 if first_error else 1.0)
    attempt = Attempt(rollout_id="r", problem=PROBLEM, text=TEXT, grade=grade)
    critique = Critique(rollout_id="r", critic="c", status="ok", text="trace", first_error=first_error)
    group = make_group([attempt], {"r": critique})
    for name in ("early", "late"):
        design = find_design(f"{FILE}:{name}")
        if name in shown_by:
            assert design.show(group, 0) == "trace"
        else:
            with pytest.raises(NothingToShow, match="first error is"):
                design.show(group, 0)
