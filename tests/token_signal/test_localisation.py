"""Localisation numbers against pairs counted one by one, scipy's Mann-Whitney, and signals made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from stepalign.token_signal import localisation
from stepalign.token_signal.localisation import KnownTokens, summarise_rollout
from stepalign.token_signal.ranking import Ranking, gini
from stepalign.token_signal.table import TokenTable


def ranked(scores: np.ndarray, positive: np.ndarray) -> Ranking:
    """Things that each belong to a rollout of their own: drawing it weighs them."""
    return Ranking(scores, positive, np.arange(len(scores)))


def brute_force(scores: Sequence[float], positive: Sequence[bool], weights: Sequence[float]) -> float:
    won = total = 0.0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if positive[i] and not positive[j]:
            pair = weights[i] * weights[j]
            total += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total if total else math.nan


token = st.tuples(st.sampled_from([-1.5, -1.0, 0.0, 0.25, 3.0]) | st.floats(-5, 5), st.booleans(), st.integers(0, 3))


@given(tokens=st.lists(token, max_size=25))
def test_the_area_is_that_of_all_pairs(tokens: list[tuple[float, bool, int]]) -> None:
    scores, positive, weights = ([t[i] for t in tokens] for i in range(3))
    found = ranked(np.array(scores), np.array(positive, dtype=bool)).auroc(np.array(weights, dtype=float))
    assert found == pytest.approx(brute_force(scores, positive, weights), nan_ok=True, abs=1e-12)


@given(
    up=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20),
    down=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20),
)
def test_the_area_is_that_of_mann_and_whitney(up: list[float], down: list[float]) -> None:
    scores = np.array(up + down)
    positive = np.array([True] * len(up) + [False] * len(down))
    expected = mannwhitneyu(up, down).statistic / (len(up) * len(down))
    assert ranked(scores, positive).auroc(np.ones(len(scores))) == pytest.approx(expected)


@given(tokens=st.lists(token, min_size=2, max_size=20))
def test_whole_weights_are_repetitions(tokens: list[tuple[float, bool, int]]) -> None:
    repeated = [t for t in tokens for _ in range(t[2])]
    ranking = ranked(np.array([t[0] for t in tokens]), np.array([t[1] for t in tokens]))
    one = ranking.auroc(np.array([float(t[2]) for t in tokens]))
    scores = np.array([t[0] for t in repeated], dtype=float)
    other = ranked(scores, np.array([t[1] for t in repeated], dtype=bool)).auroc(np.ones(len(repeated)))
    assert one == pytest.approx(other, nan_ok=True, abs=1e-12)


@given(tokens=st.lists(token, min_size=2, max_size=25))
def test_area_and_precision_are_those_of_scikit_learn(tokens: list[tuple[float, bool, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive, weights = (np.array([t[i] for t in tokens], dtype=float) for i in range(3))
    positive = positive.astype(bool)
    assume(weights[positive].sum() and weights[~positive].sum())
    area = ranked(scores, positive).auroc(weights)
    assert area == pytest.approx(metrics.roc_auc_score(positive, scores, sample_weight=weights), abs=1e-9)
    precision = ranked(scores, positive).average_precision(weights)
    assert precision == pytest.approx(
        metrics.average_precision_score(positive, scores, sample_weight=weights), abs=1e-9
    )


def test_precision_without_positives_is_undefined() -> None:
    assert math.isnan(ranked(np.zeros(3), np.zeros(3, dtype=bool)).average_precision(np.ones(3)))


def pairwise_gini(sizes: Sequence[float]) -> float:
    """Half the relative mean difference of all pairs: the definition, without sorting."""
    total = sum(abs(one - other) for one in sizes for other in sizes)
    return total / (2 * len(sizes) * sum(sizes))


@given(sizes=st.lists(st.integers(0, 50).map(float), min_size=1, max_size=30))
def test_concentration_is_half_the_mean_difference_of_all_pairs(sizes: list[float]) -> None:
    assume(sum(sizes))
    assert gini(np.array(sizes)) == pytest.approx(pairwise_gini(sizes), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_concentration_in_closed_form(count: int) -> None:
    assert gini(np.full(count, 3.0)) == pytest.approx(0.0, abs=1e-12)
    assert gini(np.eye(count)[0]) == pytest.approx(1 - 1 / count)
    # 1, 2, ..., n: G = (n - 1) / (3 n)
    assert gini(np.arange(1.0, count + 1)) == pytest.approx((count - 1) / (3 * count))
    assert math.isnan(gini(np.zeros(count)))


# ---------------------------------------------------------------------------------------------------------------------
# Signals made by hand


def signal(log_ratio: Sequence[float], kl: Sequence[float] | None = None) -> TokenTable:
    rest = np.zeros(len(log_ratio))
    return TokenTable(
        context="step_aligned",
        text="",
        tokens=["x"] * len(log_ratio),
        step=rest.astype(int),
        log_ratio=np.array(log_ratio),
        student_log_prob=rest,
        teacher_log_prob=rest,
        forward_kl=np.array(kl if kl is not None else list(map(abs, log_ratio))),
        student_entropy=rest,
        teacher_entropy=rest,
    )


def localise(tables: Sequence[TokenTable], truths: Sequence[KnownTokens], **settings: Any) -> dict[str, Any]:
    rollouts = [summarise_rollout(table, truth) for table, truth in zip(tables, truths, strict=True)]
    return localisation.localise(rollouts, **settings)


# Two right tokens, a wrong step of three (its result in the middle), one token after it; and a right rollout of four.
WRONG = KnownTokens(
    right=frozenset({0, 1}),
    wrong_step=frozenset({2, 3, 4}),
    wrong_result=frozenset({3}),
    results=frozenset({1, 3}),
    right_steps=(frozenset({0, 1}),),
    style=frozenset({0}),
)
RIGHT = KnownTokens(
    right=frozenset(range(4)),
    results=frozenset({1, 3}),
    right_steps=(frozenset({0, 1}), frozenset({2, 3})),
    style=frozenset({0, 2}),
)
SIGNALS = [
    signal([0.5, -1.0, 0.25, -4.0, 0.25, 2.0], [0.1, 0.2, 0.3, 0.8, 0.1, 0.5]),
    signal([0.5, 0.5, -0.5, 1.5], [1.0, 1.0, 1.0, 1.0]),
]
EXPECTED = {
    "share_of_abs_signal_in_wrong_step": (4.5 / 8.0, 3 / 6),  # of the wrong rollout alone
    "share_of_kl_in_wrong_step": (1.2 / 2.0, 3 / 6),
    "mean_log_ratio_right_tokens": ((0.5 - 1.0 + 0.5 + 0.5 - 0.5 + 1.5) / 6, None),
    "mean_log_ratio_wrong_result": (-4.0, None),
    "mean_abs_log_ratio_right_tokens": (4.5 / 6, None),
    "share_of_right_tokens_suppressed": (2 / 6, None),
    "auroc_wrong_result": (1.0, 0.5),
    "auroc_wrong_result_among_results": (1.0, 0.5),
    # -A of the wrong step {-0.25, 4, -0.25} against right {-0.5, 1, -0.5, -0.5, 0.5, -1.5}
    "auroc_wrong_step": ((4 + 6 + 4) / 18, 0.5),
    "mean_log_ratio_wrong_step": (-3.5 / 3, None),
    "sign_agreement": ((4 / 6 + 1 / 3) / 2, 0.5),
    # by falling -A: 4 is found first of 1, both -0.25 as second and third of 5
    "average_precision_wrong_step": ((1 + 3 / 5 + 3 / 5) / 3, 3 / 9),
    # sums over steps: -0.5 right, -3.5 wrong; 1 and 1 right
    "auroc_first_wrong_step": (1.0, 0.5),
    "average_precision_first_wrong_step": (1.0, 1 / 4),
    "share_of_first_wrong_steps_found": (1.0, 1 / 2),
    "gini_abs_log_ratio": (
        (pairwise_gini([0.5, 1.0, 0.25, 4.0, 0.25, 2.0]) + pairwise_gini([0.5] * 3 + [1.5])) / 2,
        None,
    ),
    "share_of_abs_signal_on_style": (1.5 / 11, 3 / 10),
}


def by_name(found: dict) -> dict[str, dict]:
    return {number["name"]: number for number in found["numbers"]}


def test_the_numbers_of_two_rollouts_counted_by_hand() -> None:
    found = localise(SIGNALS, [WRONG, RIGHT], resamples=100)
    assert (found["num_rollouts"], found["num_wrong"]) == (2, 1)
    numbers = by_name(found)
    assert numbers.keys() == EXPECTED.keys()
    for name, (value, baseline) in EXPECTED.items():
        assert numbers[name]["value"] == pytest.approx(value), name
        assert numbers[name]["baseline"] == (pytest.approx(baseline) if baseline is not None else None), name
        assert numbers[name]["description"]


def test_a_wrong_result_that_looks_like_the_rest_is_at_chance() -> None:
    flat = [signal([0.3] * 6) for i in range(3)]
    numbers = by_name(localise(flat, [WRONG] * 3, resamples=100))
    for name in ("auroc_wrong_result", "auroc_wrong_step", "auroc_wrong_result_among_results"):
        assert (numbers[name]["value"], numbers[name]["low"], numbers[name]["high"]) == (0.5, 0.5, 0.5)
    assert numbers["share_of_abs_signal_in_wrong_step"]["value"] == pytest.approx(0.5)


def test_one_rollout_has_no_interval() -> None:
    for number in localise([signal([0.3] * 6)], [WRONG])["numbers"]:
        assert np.isnan([number["low"], number["high"]]).all(), number["name"]


def test_a_context_that_suppresses_right_tokens_only_is_below_chance() -> None:
    numbers = by_name(localise([signal([-3.0, -3.0, 1.0, 1.0, 1.0, 0.0])], [WRONG], resamples=100))
    assert numbers["auroc_wrong_result"]["value"] == 0.0
    assert numbers["share_of_right_tokens_suppressed"]["value"] == 1.0


def test_what_is_undefined_is_nan_and_never_zero() -> None:
    numbers = by_name(localise(SIGNALS[1:], [RIGHT], resamples=100))  # nothing is wrong
    for name in EXPECTED:
        defined = name in (
            "mean_log_ratio_right_tokens",
            "mean_abs_log_ratio_right_tokens",
            "share_of_right_tokens_suppressed",
            "gini_abs_log_ratio",
            "share_of_abs_signal_on_style",
        )
        assert math.isnan(numbers[name]["value"]) != defined, name
    nothing = localise([], [])
    assert (nothing["num_rollouts"], nothing["num_wrong"]) == (0, 0)
    assert all(math.isnan(number["value"]) for number in nothing["numbers"])
    unknown = KnownTokens(right=frozenset({0, 1}), wrong_step=frozenset({2, 3, 4}))  # the step is known, not its result
    numbers = by_name(localise(SIGNALS[:1], [unknown], resamples=100))
    assert math.isnan(numbers["auroc_wrong_result"]["value"])
    assert numbers["auroc_wrong_step"]["value"] == pytest.approx(4 / 6)


def test_rollouts_are_resampled_whole() -> None:
    """Tokens of one rollout hang together: an interval from two rollouts reaches from one to the other."""
    two = [signal([-1.0] * 50), signal([2.0] * 50)]
    truth = KnownTokens(right=frozenset(range(50)))
    number = by_name(localise(two, [truth] * 2, resamples=400))["mean_log_ratio_right_tokens"]
    assert number["value"] == pytest.approx(0.5)
    assert (number["low"], number["high"]) == (pytest.approx(-1.0), pytest.approx(2.0))


def test_intervals_are_repeatable_and_hold_the_value() -> None:
    rng = np.random.default_rng(0)
    many = [signal(rng.normal([0, 0, 0, -2, 0, 0], 1.0).tolist()) for i in range(40)]
    one, same = (localise(many, [WRONG] * 40, seed=3, resamples=200) for _ in range(2))
    assert one == same
    for number in one["numbers"]:
        assert number["low"] <= number["value"] <= number["high"]
    wider = by_name(localise(many, [WRONG] * 40, seed=3, resamples=200, level=0.99))["auroc_wrong_result"]
    narrow = by_name(one)["auroc_wrong_result"]
    assert wider["low"] <= narrow["low"] < narrow["high"] <= wider["high"]
    assert narrow["low"] > 0.5
