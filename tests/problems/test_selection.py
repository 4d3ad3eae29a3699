"""The gates of a selection, by hand-made evidence."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.config import SelectionSection
from stepalign.problems.selection import GATES, Evidence, SolverAttempts, funnel_rows, gates_of, pass_gates
from stepalign.records import Problem, Verdict

PAPER = SelectionSection(pass_rate_above=0.85, average_above=0.0, average_below=5 / 16, critic_solves=True)


def evidence(
    name: str, *, rate: object = 0.9, right: int = 2, formatted: int = 16, critic: Verdict | None = "correct"
) -> Evidence:
    verdicts: tuple[Verdict, ...] = ("correct",) * right + ("incorrect",) * (16 - right)
    return Evidence(
        problem=Problem(problem_id=name, question=name, answer="1", metadata={"pass_rate_72b_tir": rate}),
        attempts=SolverAttempts(
            problem_id=name, verdicts=verdicts, formatted=(True,) * formatted + (False,) * (16 - formatted)
        ),
        critic_verdict=critic,
    )


def through(*cases: Evidence, section: SelectionSection = PAPER) -> tuple[list[str], dict[str, tuple[int, int, int]]]:
    kept, passages = pass_gates(cases, [gate for gate in GATES if gate.label(section)], section)
    return [one.problem.problem_id for one in kept], {p.name: (p.before, p.fell, p.unknown) for p in passages}


def test_each_gate_takes_its_own_and_every_problem_is_counted_once() -> None:
    kept, counts = through(
        evidence("good"),
        evidence("too hard for 72B", rate=0.85),
        evidence("n/a", rate=None),
        evidence("hopeless", right=0),
        evidence("nearly hopeless", right=1),
        evidence("nearly easy", right=4),
        evidence("easy", right=5),
        evidence("unformatted", formatted=8),
        evidence("nearly unformatted", formatted=9),
        evidence("critic fails", critic="incorrect"),
        evidence("critic is silent", critic=None),
        evidence("nobody can tell", critic="undecided"),
    )
    assert kept == ["good", "nearly hopeless", "nearly easy", "nearly unformatted"]
    assert counts == {
        "pass_rate": (12, 1, 1),
        "not_hopeless": (10, 1, 0),
        "not_solved": (9, 1, 0),
        "formatted": (8, 1, 0),
        "critic_solves": (7, 1, 2),
    }


def test_a_bound_that_binds_nothing_is_no_gate() -> None:
    section = SelectionSection(average_above=-1, average_below=2, formatted_above=-1)
    kept, counts = through(evidence("any", rate="n/a", right=16, formatted=0, critic=None), section=section)
    assert (kept, counts) == (["any"], {})
    assert gates_of(SelectionSection(), "problem") == gates_of(SelectionSection(), "critic") == []
    assert [gate.name for gate in gates_of(SelectionSection(), "solver")] == ["not_hopeless", "not_solved", "formatted"]


@pytest.mark.parametrize(("written", "read"), [("0.65625", 0.65625), (1, 1.0), ("n/a", None), (None, None)])
def test_pass_rates_as_the_data_set_writes_them(written: object, read: float | None) -> None:
    value = GATES[0].measure(evidence("x", rate=written))
    assert math.isnan(value) if read is None else value == read


def test_undecided_completions_are_not_correct_and_nothing_is_nan() -> None:
    verdicts: tuple[Verdict, ...] = ("correct", "undecided", "incorrect", "undecided")
    assert SolverAttempts(problem_id="x", verdicts=verdicts, formatted=()).average == 0.25
    assert math.isnan(SolverAttempts(problem_id="x", verdicts=(), formatted=()).average)
    assert math.isnan(SolverAttempts(problem_id="x", verdicts=(), formatted=()).formatting_rate)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.5, 0.85, 0.9, None, "n/a"]),
            st.integers(0, 16),
            st.integers(0, 16),
            st.sampled_from(["correct", "incorrect", "undecided", None]),
        ),
        max_size=20,
    )
)
def test_the_funnel_adds_up(cases: list[tuple[object, int, int, Verdict | None]]) -> None:
    made = [
        evidence(str(i), rate=rate, right=right, formatted=formatted, critic=critic)
        for i, (rate, right, formatted, critic) in enumerate(cases)
    ]
    kept, passages = pass_gates(made, GATES, PAPER)
    rows = funnel_rows(len(made) + 3, {"no answer": 1, "duplicate question": 2}, passages)
    assert rows[0]["kept"] == len(made)
    assert rows[-1]["kept"] == len(kept)
    assert all(row["before"] - row["fell"] - row["unknown"] == row["kept"] for row in rows)
    assert all(one["kept"] == other["before"] for one, other in pairwise(rows))
    assert len({i for p in passages for i in p.fallen} | {e.problem.problem_id for e in kept}) == len(made)
