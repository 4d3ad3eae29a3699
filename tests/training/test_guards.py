"""The guards on made-up histories: what decays is named once, what is well or unknown is left in peace."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.config import GuardsSection
from stepalign.training.guards import WATCHED, Guards

NAN = math.nan
HEALTHY = {
    "reward": 0.3,
    "student_entropy": 0.4,
    "teacher_entropy": 0.3,
    "right_value_probability": 0.9,
    "grad_norm": 1.0,
}


def run(name: str, values: Sequence[float], *, window: int = 4, **settings: float) -> dict[int, str]:
    """Step (from 1) -> warning, when one number takes these values and the others stay healthy."""
    guards = Guards(GuardsSection(window=window, **settings))
    found = {}
    for step, value in enumerate(values, 1):
        warnings = guards.look({**HEALTHY, name: value})
        assert len(warnings) <= 1
        if warnings:
            found[step] = warnings[0]
    return found


def test_a_healthy_run_is_left_in_peace() -> None:
    for name in WATCHED:
        assert run(name, [HEALTHY[name]] * 60) == {}
        assert run(name, [HEALTHY[name] * (1 + 0.1 * (-1) ** i) for i in range(60)]) == {}
    assert run("reward", [i / 60 for i in range(60)]) == {}
    assert run("student_entropy", [0.4 * 0.95**i for i in range(60)]) == {}


def test_a_fall_of_the_pass_rate_is_told_when_the_window_has_fallen_and_only_once() -> None:
    # Means of four: 0.5 until step 8, then 0.4, 0.3 (a fall of 0.2 > 0.15), ...
    found = run("reward", [0.5] * 8 + [0.1] * 20)
    assert list(found) == [10]
    assert "0.30 from 0.50" in found[10]


def test_a_low_pass_rate_has_fallen_when_half_of_it_is_gone() -> None:
    assert run("reward", [0.10] * 8 + [0.06] * 20) == {}
    found = run("reward", [0.10] * 8 + [0.02] * 20)
    assert list(found) == [11]  # 0.04 is the first window below 0.05


def test_less_than_a_window_says_nothing() -> None:
    assert run("reward", [1.0, 0.0, 0.0]) == {}
    assert run("reward", [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], window=6) == {}


@pytest.mark.parametrize(
    ("name", "whose"), [("student_entropy", "the student's"), ("teacher_entropy", "self-teacher's")]
)
def test_growing_entropy_is_told_with_its_side(name: str, whose: str) -> None:
    found = run(name, [0.2] * 4 + [0.6] * 10, entropy_factor=2.5)
    assert list(found) == [8]  # 0.2, 0.3, 0.4, 0.5 (not above), 0.6
    assert whose in found[8]
    assert "0.60 nats a token from 0.20" in found[8]
    assert run(name, [0.001] * 4 + [0.04] * 10) == {}  # tiny in absolute terms


def test_a_self_teacher_that_no_longer_reads_is_told() -> None:
    found = run("right_value_probability", [0.9] * 6 + [0.5] * 10)
    assert list(found) == [9]  # (0.9 + 3 * 0.5) / 4 = 0.6 < 0.675
    assert "0.60" in found[9]
    assert "0.90" in found[9]


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_gradient_that_is_not_finite_is_told_at_once(value: float) -> None:
    assert list(run("grad_norm", [1.0, value, value, 1.0, value])) == [2]


@pytest.mark.parametrize(
    ("name", "well", "ill"),
    [
        ("reward", 0.5, 0.1),
        ("student_entropy", 0.2, 1.0),
        ("teacher_entropy", 0.2, 1.0),
        ("right_value_probability", 0.9, 0.2),
    ],
)
def test_undefined_steps_neither_speak_nor_silence(name: str, well: float, ill: float) -> None:
    """No probe, no decided verdict, no reward signal: for a few steps, or at the beginning."""
    assert run(name, [NAN] * 30) == {}
    assert run(name, [well] * 10 + [NAN] * 30) == {}
    assert len(run(name, [NAN] * 9 + [well] * 10 + [ill] * 20)) == 1
    assert len(run(name, [well] * 10 + [NAN] * 9 + [ill] * 20)) == 1
    assert len(run(name, [well, NAN] * 10 + [ill, NAN] * 10)) == 1


def test_the_advice_names_a_self_teacher_only_where_there_is_one() -> None:
    for teacher, named in ((0.3, True), (NAN, False)):
        guards = Guards(GuardsSection(window=2))
        told = [
            w for r in (0.5, 0.5, 0.0, 0.0) for w in guards.look({**HEALTHY, "reward": r, "teacher_entropy": teacher})
        ]
        assert len(told) == 1
        assert ("teacher" in told[0]) == named


numbers = st.floats(0, 3) | st.just(NAN)
steps = st.fixed_dictionaries(dict.fromkeys(WATCHED, numbers))


@given(history=st.lists(steps, max_size=30), cut=st.integers(0, 30), window=st.integers(2, 5))
def test_a_resumed_run_warns_as_an_uninterrupted_one(history: list[dict[str, float]], cut: int, window: int) -> None:
    whole = Guards(GuardsSection(window=window))
    warnings = [whole.look(row) for row in history]
    first = Guards(GuardsSection(window=window))
    found = [first.look(row) for row in history[:cut]]
    second = Guards(GuardsSection(window=window))
    second.history, second.warned = copy.deepcopy(first.history), copy.deepcopy(first.warned)
    found += [second.look(row) for row in history[cut:]]
    assert found == warnings
    assert sum(map(len, warnings)) <= len(WATCHED)  # each guard speaks once


@given(reward=st.lists(st.floats(0, 1), min_size=8, max_size=40), window=st.integers(2, 8))
def test_the_reward_guard_is_its_definition(reward: list[float], window: int) -> None:
    """Plain loops: the first step whose window lies below the best window so far by the drop, or by half of it."""
    expected = None
    for end in range(window, len(reward) + 1):
        means = [sum(reward[e - window : e]) / window for e in range(window, end + 1)]
        if expected is None and means[-1] < max(means) - min(0.15, max(means) / 2):
            expected = end
    assert list(run("reward", reward, window=window)) == ([] if expected is None else [expected])
