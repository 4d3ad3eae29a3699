"""The verdict before training, on numbers made by hand: the right word for every kind of feedback that fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign.evaluation.statistics import Interval
from stepalign.token_signal.verdict import RULES, judge

GOOD: dict[str, Any] = {
    "pass_rate": (0.4, 0.3, 0.5),
    "answered": (1.0, 0.9, 1.0),
    "cut": (0.0, 0.0, 0.1),
    "thinking": (0.0, 0.0, 0.1),
    "covered": (1.0, 0.9, 1.0),
    "self_teacher": (0.8, 0.7, 0.9),
    "gain": (0.3, 0.2, 0.4),
    "gain_where_wrong": (0.4, 0.25, 0.55),
    "gain_at_spikes": (0.3, 0.1, 0.5),
    "unknown_tokens": (0.0, 0.0, 0.0),
    "mentions": (0.0, 0.0, 0.02),
    "answer_in_context": (1.0, 0.9, 1.0),
    "bare_answer": (0.0, 0.0, 0.1),
    "misses_error": (0.0, 0.0, 0.1),
    "quotes_wrong_step": (0.0, 0.0, 0.1),
    "wrong_token": (-2.0, -2.6, -1.4),
    "wrong_token_over_null": (-1.9, -2.5, -1.3),
    "style": (0.2, 0.1, 0.3),
    "style_tokens": (0.3, 0.3, 0.3),
}
NAN = (math.nan, math.nan, math.nan)


def values(**changes: Any) -> dict[str, Interval]:
    """Good feedback with a few other numbers; one number stands for a value without an interval."""
    found = {**GOOD, **changes}
    return {
        name: Interval(*number) if isinstance(number, tuple) else Interval(number, math.nan, math.nan)
        for name, number in found.items()
    }


CASES = {
    "good feedback": ({}, "go", ""),
    "the error is quoted and raised": (
        {"wrong_token": (4.05, 3.2, 4.9), "quotes_wrong_step": 1.0},
        "no",
        "teaches_the_error",
    ),
    "one attempt alone, its error raised": ({"wrong_token": 4.05}, "no", "teaches_the_error"),
    "raised a little, surely": ({"wrong_token": (0.3, 0.1, 0.5)}, "no", "teaches_the_error"),
    "quoted, and nothing known of the tokens": ({"wrong_token": NAN, "quotes_wrong_step": 0.9}, "no", "quotes_errors"),
    "quoted, and lowered all the same": ({"quotes_wrong_step": 0.9}, "doubtful", "some_quoted"),
    "quoted now and then": ({"quotes_wrong_step": 0.2}, "doubtful", "some_quoted"),
    "a critic that misses everything": ({"misses_error": 1.0, "wrong_token": (1.2, 0.8, 1.6)}, "no", "misses_errors"),
    "a critic that misses a third": ({"misses_error": 0.3}, "doubtful", "some_missed"),
    "the answer given away": ({"bare_answer": 1.0}, "doubtful", "answer_given_away"),
    "a hint that leaks in most cases": ({"bare_answer": 0.6}, "doubtful", "answer_given_away"),
    "thinking, with the answer in the context": ({"thinking": 1.0}, "doubtful", "thinking_with_the_answer"),
    "thinking, without an answer in the context": ({"thinking": 1.0, "answer_in_context": 0.0}, "go", ""),
    "the prompt is not understood": ({"answered": 0.1, "pass_rate": 0.0}, "no", "not_understood"),
    "words that the model does not know": ({"unknown_tokens": 0.4}, "no", "foreign_words"),
    "all rollouts right": ({"pass_rate": 1.0, "gain_where_wrong": NAN, "wrong_token": NAN}, "no", "all_right"),
    "all rollouts wrong, and no help": (
        {"pass_rate": 0.0, "gain_where_wrong": (0.0, 0.0, 0.02), "gain": (0.0, 0.0, 0.02)},
        "no",
        "all_wrong",
    ),
    "all rollouts wrong, and the context helps": ({"pass_rate": 0.0}, "go", ""),
    "completions are cut": ({"cut": 0.9, "answered": 0.1}, "no", "cut"),
    "some completions are cut": ({"cut": 0.2}, "doubtful", "some_cut"),
    "few contexts": ({"covered": 0.02}, "no", "nothing_shown"),
    "contexts for a third": ({"covered": 0.3}, "doubtful", "few_covered"),
    "the context harms": ({"gain": (-0.3, -0.4, -0.2), "gain_where_wrong": (-0.1, -0.2, 0.0)}, "no", "teaches_worse"),
    "nothing to pass on": ({"gain_where_wrong": (0.0, -0.03, 0.03)}, "no", "nothing_to_pass_on"),
    "not shown": ({"gain_where_wrong": (0.1, -0.05, 0.25)}, "doubtful", "not_shown_to_help"),
    "a self-teacher that is wrong half of the time": ({"self_teacher": 0.5}, "doubtful", "often_wrong_itself"),
    "solved with a context, which many lack": ({"covered": 0.6, "self_teacher": 0.9}, "doubtful", "often_wrong_itself"),
    "a solved sibling, which hard problems lack": (
        {"covered": 0.8, "self_teacher": 0.95},
        "doubtful",
        "leaves_out_hard_ones",
    ),
    "manner": ({"style": (0.8, 0.7, 0.9)}, "doubtful", "manner"),
    "speaks of the feedback": ({"mentions": 0.4}, "doubtful", "speaks_of_it"),
    "the error is not pointed at": ({"wrong_token": (-0.1, -0.5, 0.3)}, "doubtful", "not_at_the_error"),
    "the self-teacher's words would not help": ({"gain_at_spikes": (0.0, -0.1, 0.1)}, "doubtful", "spikes_do_not_help"),
    "a critic of whose replies half are malformed": ({"usable": 0.5, "covered": 0.5}, "doubtful", "some_unusable"),
    "a critic of whose replies one in ten is malformed": ({"usable": 0.9, "covered": 0.9}, "go", ""),
    "outside of the band": ({"pass_rate": 0.1}, "go", "one_sided"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_feedback_gets_its_word(case: str) -> None:
    changes, word, rule = CASES[case]
    verdict, reasons = judge(values(**changes))
    assert verdict == word, reasons
    gravest = [reason.rule for reason in reasons if reason.severity == reasons[0].severity]
    assert rule in (gravest or [""]), reasons


def test_what_would_teach_the_error_is_loud_and_comes_first() -> None:
    worst = values(wrong_token=(4.05, 3.2, 4.9), cut=0.2, answered=0.3, pass_rate=0.01)
    _, reasons = judge(worst)
    assert reasons[0].loud
    assert reasons[0].text.startswith(
        "the feedback raises the wrong tokens of the attempts, by +4.05 [+3.20, +4.90] nats"
    )
    assert [r.severity for r in reasons] == sorted((r.severity for r in reasons), key=["no", "doubtful", "note"].index)
    assert all(reason.mend for reason in reasons)


def test_every_rule_has_a_case() -> None:
    named = {rule for _, _, rule in CASES.values()}
    assert named - {""} == {rule.name for rule in RULES} - {"some_without_answer"}
    assert judge(values(answered=0.7))[1][0].rule == "some_without_answer"


def test_no_number_at_all_is_no_go() -> None:
    word, reasons = judge({})
    assert word == "doubtful"
    assert "not_shown_to_help" in [reason.rule for reason in reasons]


@pytest.mark.parametrize(
    ("mixed", "pass_rate", "word"),
    [(0.6, 0.5, "go"), (0.3, 0.2, "doubtful"), (0.0, 0.02, "no"), (0.5, 1.0, "no"), (None, 0.4, "doubtful")],
)
def test_a_design_without_a_self_teacher_is_judged_by_its_rewards(mixed: Any, pass_rate: float, word: str) -> None:
    numbers = values(pass_rate=pass_rate, gain_where_wrong=NAN, **({} if mixed is None else {"mixed": mixed}))
    assert judge(numbers, has_teacher=False)[0] == word


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(sorted(GOOD)),
        st.tuples(*(st.floats(-5, 5) | st.just(math.nan) for _ in range(3))),
        max_size=len(GOOD),
    )
)
def test_any_numbers_get_a_verdict_with_readable_reasons(numbers: dict[str, tuple[float, float, float]]) -> None:
    word, reasons = judge({name: Interval(*value) for name, value in numbers.items()})
    assert word in ("go", "doubtful", "no")
    assert (word == "go") == all(reason.severity == "note" for reason in reasons)
    assert not any("nan" in reason.text or "{" in reason.text for reason in reasons)
