"""The guards on made-up histories: what decays is named once, what is well or unknown is left in peace."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.config import GuardsSection
from stepalign.training.health import BREAK_Z, GUARDS, WATCHED, Guards, History, first_step, pass_rate_broke

NAN = math.nan
HEALTHY = {
    "reward": 0.3,
    "student_entropy": 0.4,
    "teacher_entropy": 0.3,
    "right_value_probability": 0.9,
    "grad_norm": 1.0,
    "num_problems": NAN,  # without it there is no test for a break, and a fall is told once
    "num_rollouts": 32.0,
    "active_samples": 20.0,
    "masked": 2.0,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 45.0,
    "completions/repetitive_ratio": 0.02,
    "completions/hedge_words": 3.0,
    "completions/distinct_answers": 0.5,
    "completions/mentions_feedback": 0.01,
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
    assert HEALTHY.keys() == set(WATCHED)
    for name in WATCHED:
        assert run(name, [HEALTHY[name]] * 60) == {}
        assert run(name, [HEALTHY[name] * (1 + 0.1 * (-1) ** i) for i in range(60)]) == {}
    assert run("reward", [i / 60 for i in range(60)]) == {}
    assert run("student_entropy", [0.4 * 0.97**i for i in range(60)]) == {}


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
        texts = [
            w for r in (0.5, 0.5, 0.0, 0.0) for w in guards.look({**HEALTHY, "reward": r, "teacher_entropy": teacher})
        ]
        assert len(texts) == 1
        assert ("teacher" in texts[0]) == named


def test_the_advice_does_not_name_what_the_run_does_already() -> None:
    for weights, named in (("live", True), ("trust_region", True), ("initial", False), ("ema", False)):
        guards = Guards(GuardsSection(window=2), weights)
        texts = [text for r in (0.5, 0.5, 0.0, 0.0) for text in guards.look({**HEALTHY, "reward": r})]
        assert ["objective.teacher.weights" in text for text in texts] == [named]


def test_missing_answers_are_no_answers_that_are_alike() -> None:
    """With groups of four a share below 1/4 says that groups have no answer, not that all have the same."""
    groups = {**HEALTHY, "num_problems": 8.0, "num_rollouts": 32.0}
    for before, after, said in ((0.04, 0.01, ""), (0.9, 0.1, "no completion has an answer"), (0.9, 0.3, "one answer")):
        guards, texts = Guards(GuardsSection(window=2)), []
        for value in (before, before, after, after):
            texts += guards.look({**groups, "completions/distinct_answers": value})
        assert [said in text for text in texts] == ([True] if said else [])


def told(rows: Sequence[dict[str, float]], reasons: dict[str, int] | None = None, **settings: Any) -> dict[str, int]:
    """Guard -> step (from 1) at which it speaks."""
    guards = Guards(GuardsSection(**settings))
    spoken: dict[str, int] = {}
    for step, row in enumerate(rows, 1):
        guards.look({**HEALTHY, **row}, reasons)
        spoken |= {name: step for name in guards.warned if name not in spoken}
    return spoken


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        ([0.8] * 61, [0.1], 1),  # the last step of a run
        ([0.5] * 20, [0.0] * 2, 1),
        ([0.2], [0.0] * 6, 5),  # from the first steps, long before there is a window
        ([0.2] * 4, [0.0] * 4, 4),
    ],
)
def test_a_break_is_told_before_a_window_has_passed(before: list[float], after: list[float], steps: int) -> None:
    found = told([{"reward": r, "num_problems": 32.0} for r in [*before, *after]], window=10)
    assert found["reward_break"] <= len(before) + steps
    assert found.get("reward", math.inf) >= found["reward_break"]


def test_chance_alone_breaks_nothing() -> None:
    """300 runs of 100 steps whose pass rate never changes: problems differ, groups are small, one alarm at most."""
    rng = np.random.default_rng(0)
    alarms = 0
    for run in range(300):
        problems, size = ((32, 1), (4, 8), (8, 4))[run % 3]
        chances = rng.beta(0.5, (0.5, 2.0, 8.0)[run // 100], size=(100, problems, 1))
        rewards = (rng.random((100, problems, size)) < chances).mean((1, 2))
        rows = [{"reward": float(r), "num_problems": float(problems)} for r in rewards]
        section = GuardsSection()
        alarms += any(pass_rate_broke(History(rows[:end], section)) for end in range(2, 101))
    assert alarms <= 1


def test_the_break_is_the_test_of_two_proportions() -> None:
    """The same decision as statsmodels, at the first length that decides it."""
    from statsmodels.stats.proportion import proportions_ztest

    rng = np.random.default_rng(1)
    for _ in range(60):
        counts = rng.binomial(32, rng.choice([0.1, 0.4, 0.7], size=2).repeat([6, 4]))
        rows = [{"reward": float(c) / 32, "num_problems": 32.0} for c in counts]
        expected = False
        for length in range(1, 10):
            z, _ = proportions_ztest(
                [counts[:-length].sum(), counts[-length:].sum()], [32 * (10 - length), 32 * length]
            )
            before, after = counts[:-length].mean() / 32, counts[-length:].mean() / 32
            expected |= bool(z > BREAK_Z and after < before - min(0.15, before / 2))
        assert bool(pass_rate_broke(History(rows, GuardsSection()))) == expected


MASKED = {"critique malformed": 60, "no reference": 4}


@pytest.mark.parametrize(
    ("guard", "before", "after", "setting", "words"),
    [
        ("masked", {"masked": 2.0}, {"masked": 24.0}, {"masked": 0.9}, "critique malformed (60 of 64)"),
        (
            "student_entropy_low", {"student_entropy": 0.4}, {"student_entropy": 0.01}, {"entropy_floor": 0.0},
            "no longer explores",
        ),
        (
            "truncated", {"completions/clipped_ratio": 0.0}, {"completions/clipped_ratio": 0.8}, {"truncated": 0.9},
            "sampling.max_completion_length",
        ),
        (
            "length", {"completions/mean_length": 45.0}, {"completions/mean_length": 4.0}, {"length_factor": 20.0},
            "shrank to",
        ),
        (
            "length", {"completions/mean_length": 45.0}, {"completions/mean_length": 190.0}, {"length_factor": 20.0},
            "grew to",
        ),
        (
            "repetition", {"completions/repetitive_ratio": 0.0}, {"completions/repetitive_ratio": 0.5},
            {"repetitive": 0.9}, "repeat themselves",
        ),
        (
            "hedge_words", {"completions/hedge_words": 4.0}, {"completions/hedge_words": 0.2}, {"hedge_share": 0.0},
            "rich contexts unlearn doubt",
        ),
        (
            "distinct_answers", {"completions/distinct_answers": 0.6}, {"completions/distinct_answers": 0.125},
            {"distinct_share": 0.1}, "one answer whatever it is",
        ),
        (
            "mentions_feedback", {"completions/mentions_feedback": 0.0}, {"completions/mentions_feedback": 0.4},
            {"mention_rise": 0.5}, "of the completions mention feedback",
        ),
    ],
)  # fmt: skip
def test_each_canary_speaks_with_its_reason_and_its_setting_silences_it(
    guard: str, before: dict[str, float], after: dict[str, float], setting: dict[str, float], words: str
) -> None:
    rows = [before] * 8 + [after] * 8
    guards = Guards(GuardsSection(window=4))
    texts = [text for row in rows for text in guards.look({**HEALTHY, **row}, MASKED)]
    assert guards.warned == [guard]
    assert words in texts[0]
    assert told(rows, MASKED, window=4, **setting) == {}


def test_style_that_changes_while_the_pass_rate_rises_is_learning() -> None:
    changes = {"student_entropy": 0.01, "completions/mean_length": 4.0, "completions/distinct_answers": 0.125}
    for rise, silent in ((0.3, True), (0.0, False)):
        rows = [{"reward": 0.3}] * 8 + [{**changes, "reward": 0.3 + rise}] * 8
        assert (told(rows, window=4) == {}) == silent


def test_training_on_nothing_is_told_at_once_with_the_reason() -> None:
    nothing = {"active_samples": 0.0, "masked": 32.0}
    guards = Guards(GuardsSection())
    (text,) = guards.look({**HEALTHY, **nothing}, {"critique malformed": 30, "critique failed": 2})
    assert "every sample is masked, most often: critique malformed (30 of 32)" in text
    without_signal = [{"active_samples": 0.0, "masked": 0.0}] * 10
    assert told(without_signal) == {"nothing": 10}
    assert told([*without_signal[:9], {}] * 3) == {}


# Runs of the embedded recipe, 62 steps, seed 0: what `--set` changed, and which guard speaks when (nothing else may).
# live-*: objective.teacher.weights = live (with forward KL, Jensen-Shannon, reverse KL); grpo-hot: GRPO, 4 problems x 8
# rollouts at 1e-3 (grpo: at 1e-4); fkl: forward KL with a frozen self-teacher. Four of the nine collapse to 0.
RECORDED = {
    "healthy": {},
    "refsol": {},
    "jsd": {},
    "fkl": {},
    "grpo": {},
    "grpo-hot": {"reward": 16, "student_entropy": 38, "truncated": 46, "nothing": 55},
    "live-fkl": {
        "reward_break": 15, "reward": 16, "teacher_entropy": 24, "student_entropy": 30, "length": 41,
        "student_entropy_low": 61,
    },
    "live-jsd": {
        "reward_break": 19, "reward": 22, "teacher_entropy": 28, "right_value_probability": 31, "student_entropy": 36,
        "truncated": 43, "repetition": 45, "student_entropy_low": 54,
    },
    "live-rkl": {
        "reward": 25, "reward_break": 25, "length": 45, "teacher_entropy": 46, "right_value_probability": 46,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_collapses_are_told_and_recorded_health_is_left_in_peace(name: str) -> None:
    file = Path(__file__).parents[1] / "data" / "guards" / "embedded-runs.json"
    series = json.loads(file.read_text(encoding="utf-8"))[name]  # a number that never changes is stored once
    columns = {key: values if isinstance(values, list) else [values] * 62 for key, values in series.items()}
    rows = [{key: NAN if values[i] is None else values[i] for key, values in columns.items()} for i in range(62)]
    assert told(rows) == RECORDED[name]
    if RECORDED[name]:
        assert min(RECORDED[name].values()) <= 25  # the pass rate stays at 0 for the rest of the 62 steps
        assert max(columns["reward"][-10:]) < 0.2


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
    assert sum(map(len, warnings)) <= len(GUARDS)  # each guard speaks once


def test_the_history_of_a_long_run_is_no_larger_than_that_of_a_short_one() -> None:
    sizes, guards = [], Guards(GuardsSection())
    for step in range(1, 1001):
        guards.look({**HEALTHY, "reward": 0.3 + step / 1e4})
        sizes += [len(pickle.dumps(guards.history))] * (step in (100, 1000))
    assert sizes[0] == sizes[1]


def test_steps_that_were_taken_back_are_no_part_of_the_history() -> None:
    """What was good before them is the measure of the steps behind: the wreck's own level is forgotten."""
    levels = [0.5] * 6 + [0.9] * 3 + [0.5] * 6
    rows = [{**HEALTHY, "step": step, "reward": level} for step, level in enumerate(levels, 1)]
    found = {}
    for name, taken in (("all", []), ("back", [(6, 9)])):
        guards = Guards(GuardsSection(window=3))
        guards.remember(rows, taken)
        found[name] = guards.history.means["reward"]
    assert found == {"all": [0.5, pytest.approx(0.9), 0.5], "back": [0.5, 0.5, 0.5]}


@given(reward=st.lists(st.floats(0, 1), min_size=8, max_size=40), window=st.integers(2, 8))
def test_the_reward_guard_is_its_definition(reward: list[float], window: int) -> None:
    """Plain loops: the first step whose window lies below the best window so far by the drop, or by half of it."""
    expected = None
    for end in range(window, len(reward) + 1):
        means = [sum(reward[e - window : e]) / window for e in range(window, end + 1)]
        if expected is None and means[-1] < max(means) - min(0.15, max(means) / 2):
            expected = end
    assert list(run("reward", reward, window=window)) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("right", "answered", "cut", "gradient", "words"),
    [
        (0, 22, 52, 0.0, ("there is no gradient: 0 of 96 rollouts are right, 22 mark an answer, 52 are cut", "raise")),
        (0, 22, 3, 0.0, ("there is no gradient", "22 mark an answer", "prompt and model do not fit")),
        (0, 90, 0, 0.0, ("there is no gradient", "too hard: stepalign select")),
        (96, 96, 0, 0.0, ("96 of 96 rollouts are right", "too easy")),
        (48, 96, 0, 0.0, ("there is no gradient", "sampling.num_generations")),
        (40, 56, 40, 0.3, ("40 of 96 rollouts are right, 56 mark an answer, 40 are cut", "max_completion_length")),
        (0, 10, 0, 0.3, ("0 of 96 rollouts are right, 10 mark an answer", "prompts.student")),
    ],
)
def test_a_first_step_that_teaches_little_is_told_at_once(right, answered, cut, gradient, words) -> None:
    shares = {"correct_ratio": right, "answered_ratio": answered, "clipped_ratio": cut}
    row = {"num_rollouts": 96.0, "grad_norm": gradient, **{f"completions/{k}": n / 96 for k, n in shares.items()}}
    sentence = first_step(row)
    assert all(part in sentence for part in words), sentence


@pytest.mark.parametrize(("right", "answered", "cut"), [(0, 96, 0), (20, 90, 20), (96, 96, 0), (1, 20, 28)])
def test_a_first_step_that_may_teach_something_is_not_commented(right, answered, cut) -> None:
    shares = {"correct_ratio": right, "answered_ratio": answered, "clipped_ratio": cut}
    row = {"num_rollouts": 96.0, "grad_norm": 0.5, **{f"completions/{k}": n / 96 for k, n in shares.items()}}
    assert first_step(row) == ""
