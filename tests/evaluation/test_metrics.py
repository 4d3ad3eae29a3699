"""Second opinion: every metric at k is compared with the enumeration of all subsets of size k."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign.evaluation.metrics import GradedCompletion, avg_at_k, compute_metrics, maj_at_k, pass_at_k
from stepalign.records import Verdict


def majority_of(drawn: tuple[int, ...], answers: list[str | None], right_share: dict[str, float]) -> float:
    """The tie rule, spelled out for one draw."""
    votes = Counter(answers[i] for i in drawn if answers[i] is not None)
    if not votes:
        return 0.0
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(right_share[str(winner)] for winner in winners) / len(winners)


def enumerated_majority(answers: list[str | None], correct: list[bool], k: int) -> float:
    classes: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            classes.setdefault(answer, []).append(right)
    right_share = {answer: sum(rights) / len(rights) for answer, rights in classes.items()}
    draws = list(combinations(range(len(answers)), k))
    return sum(majority_of(drawn, answers, right_share) for drawn in draws) / len(draws)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_and_avg_equal_the_enumeration_of_all_subsets(n: int) -> None:
    for num_correct in range(n + 1):
        correct = [i < num_correct for i in range(n)]
        for k in range(1, n + 1):
            draws = list(combinations(correct, k))
            assert pass_at_k(n, num_correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)
            assert avg_at_k(n, num_correct, k) == pytest.approx(sum(map(sum, draws)) / (k * len(draws)), abs=1e-15)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["7", "8", "9", "10", None]), st.booleans()), min_size=1, max_size=8))
def test_majority_equals_the_enumeration_of_all_subsets(completions: list[tuple[str | None, bool]]) -> None:
    answers, correct = [list(column) for column in zip(*completions, strict=True)]
    for k in range(1, len(answers) + 1):
        assert maj_at_k(answers, correct, k) == pytest.approx(enumerated_majority(answers, correct, k), abs=1e-12)


def test_undefined_is_nan_and_never_zero() -> None:
    assert math.isnan(pass_at_k(3, 3, 4))
    assert math.isnan(avg_at_k(3, 3, 4))
    assert math.isnan(maj_at_k(["7"] * 3, [True] * 3, 4))
    assert math.isnan(pass_at_k(0, 0, 1))
    assert math.isnan(maj_at_k([], [], 1))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (-1, 0, 1), (3, 1, 0), (3, 1, -2)])
def test_nonsense_is_an_error(n: int, c: int, k: int) -> None:
    for metric in (pass_at_k, avg_at_k):
        with pytest.raises(ValueError, match=r"k must be|num_correct"):
            metric(n, c, k)


def test_majority_rejects_nonsense() -> None:
    with pytest.raises(ValueError, match="k must be"):
        maj_at_k(["7"], [True], 0)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        maj_at_k(["7", "8"], [True], 1)


def test_pass_is_exact_for_large_counts() -> None:
    # The product form in floats drifts; integers do not.
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(200, 1, 1) == 1 / 200
    assert pass_at_k(64, 64, 64) == 1.0


def test_tie_rule_shares_equally() -> None:
    assert maj_at_k(["7", "8"], [True, False], 2) == 0.5
    assert maj_at_k(["7", "8", "9"], [True, False, False], 3) == pytest.approx(1 / 3)
    assert maj_at_k(["7", "7", "8", "8"], [True, True, False, False], 4) == 0.5


def test_unparsed_completions_neither_vote_nor_win() -> None:
    assert maj_at_k(["7", None, None, None], [True, False, False, False], 4) == 1.0
    assert maj_at_k([None, None], [False, False], 2) == 0.0
    # Even a caller who marks an unparsed completion as correct does not make it win.
    assert maj_at_k([None, None], [True, True], 1) == 0.0
    assert maj_at_k(["7", None], [True, False], 1) == 0.5


def test_majority_is_feasible_for_64_completions() -> None:
    generator = random.Random(0)
    for num_answers in (1, 2, 5, 20, 64):
        answers: list[str | None] = [str(generator.randrange(num_answers)) for _ in range(64)]
        correct = [answer == "0" for answer in answers]
        for k in (1, 2, 8, 31, 63, 64):
            assert 0 <= maj_at_k(answers, correct, k) <= 1
    distinct: list[str | None] = [str(i) for i in range(64)]
    assert maj_at_k(distinct, [i == 0 for i in range(64)], 32) == pytest.approx(1 / 64)


def test_majority_of_64_agrees_with_simulation() -> None:
    answers: list[str | None] = ["a"] * 20 + ["b"] * 18 + ["c"] * 10 + [None] * 6 + [str(i) for i in range(10)]
    correct = [answer == "a" for answer in answers]
    rng = np.random.default_rng(0)
    share = {str(answer): float(answer == "a") for answer in answers}
    draws = [majority_of(tuple(rng.permutation(64)[:9]), answers, share) for _ in range(4000)]
    assert maj_at_k(answers, correct, 9) == pytest.approx(float(np.mean(draws)), abs=0.03)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=10), st.data())
def test_bounds_and_order_invariance(answers: list[str | None], data: st.DataObject) -> None:
    correct = [answer == "7" for answer in answers]
    k = data.draw(st.integers(1, len(answers)))
    order = data.draw(st.permutations(range(len(answers))))
    value = maj_at_k(answers, correct, k)
    assert 0 <= value <= pass_at_k(len(answers), sum(correct), k) + 1e-12
    assert value == maj_at_k([answers[i] for i in order], [correct[i] for i in order], k)
    assert maj_at_k(answers, correct, 1) == pytest.approx(avg_at_k(len(answers), sum(correct), 1))


def graded(answer: str | None, verdict: str, length: int = 10, finish_reason: str = "stop") -> GradedCompletion:
    return GradedCompletion(answer=answer, verdict=verdict, length=length, finish_reason=finish_reason)  # pyright: ignore


PROBLEMS = [
    [
        graded("7", "correct", 10),
        graded("7", "correct", 20),
        graded("8", "incorrect", 30),
        graded(None, "incorrect", 60, "length"),
    ],
    [
        graded("1", "undecided", 40),
        graded("2", "incorrect", 10),
        graded("2", "incorrect", 10),
        graded("3", "correct", 20),
    ],
]


def test_table_of_metrics() -> None:
    table = compute_metrics(PROBLEMS, [4, 1, 4])
    assert list(table) == [
        *("pass@1", "maj@1", "avg@1", "pass@4", "maj@4", "avg@4"),
        *("mean_length", "truncated_share", "unparsed_share", "undecided_share"),
        *("repetitive_share", "hedge_words", "distinct_answers"),
    ]
    average = table["avg@4"]
    assert (average.k, average.n, average.num_problems) == (4, 4, 2)
    assert (average.value, average.numerator, average.denominator) == (3 / 8, 3, 8)
    assert average.per_problem.tolist() == [0.5, 0.25]
    assert (table["pass@4"].value, table["pass@4"].numerator, table["pass@4"].denominator) == (1.0, 2, 2)
    assert table["maj@4"].per_problem.tolist() == [1.0, 0.0]
    assert (table["mean_length"].value, table["mean_length"].numerator) == (25.0, 200)
    assert (table["truncated_share"].value, table["truncated_share"].k) == (1 / 8, None)
    assert table["unparsed_share"].numerator == 1


def test_undecided_is_not_correct_stays_in_the_denominator_and_is_reported() -> None:
    table = compute_metrics([[graded("7", "undecided"), graded("7", "correct")]], [1, 2])
    assert table["undecided_share"].value == 0.5
    assert table["avg@1"].value == 0.5
    assert table["pass@1"].value == 0.5
    assert table["maj@2"].value == 0.5


def test_unequal_numbers_of_completions_weigh_problems_equally() -> None:
    table = compute_metrics([[graded("7", "correct")] * 2, [graded("8", "incorrect")]], [1, 2])
    assert (table["avg@1"].value, table["avg@1"].numerator, table["avg@1"].denominator) == (0.5, 1.0, 2)
    assert table["avg@1"].n is None
    assert math.isnan(table["avg@2"].value)
    assert np.isnan(table["pass@2"].per_problem).tolist() == [False, True]


def test_empty_sets_are_undefined() -> None:
    assert all(math.isnan(metric.value) for metric in compute_metrics([], [1]).values())
    assert all(math.isnan(metric.value) for metric in compute_metrics([[]], [1]).values())


def test_no_majority_where_a_correct_completion_has_no_answer() -> None:
    """A grader of one's own that reports none: Maj@1 is Avg@1, and the majority of more is undefined."""

    def graded(*completions: tuple[str | None, Verdict]) -> list[GradedCompletion]:
        return [GradedCompletion(answer=a, verdict=v, length=1, finish_reason="stop") for a, v in completions]

    voteless = compute_metrics([graded((None, "correct"), (None, "correct"))], (1, 2))
    assert (voteless["avg@2"].value, voteless["pass@1"].value) == (1.0, 1.0)
    assert voteless["maj@1"].value == 1.0
    assert math.isnan(voteless["maj@2"].value)
    for verdicts in itertools.product([("7", "correct"), ("8", "incorrect"), (None, "incorrect")], repeat=3):
        metrics = compute_metrics([graded(*verdicts)], (1,))
        assert metrics["maj@1"].value == metrics["avg@1"].value
