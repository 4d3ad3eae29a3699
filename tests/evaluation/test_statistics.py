"""Second opinions: scipy, full enumeration, and simulated experiments whose truth is known."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stepalign.evaluation.comparison import detectable_difference
from stepalign.evaluation.statistics import (
    bootstrap,
    bootstrap_mean,
    hierarchical_bootstrap,
    minimum_detectable_difference,
    paired_difference,
    rank_correlation,
    sign_flip_p_value,
)


def accuracies(rng: np.random.Generator, *shape: int, n: int = 12) -> np.ndarray:
    """Synthetic avg@n per problem with uniformly spread difficulty: true mean 0.5."""
    return rng.binomial(n, rng.uniform(size=shape)) / n


def scipy_interval(values: np.ndarray, statistic: object, method: str) -> tuple[float, float]:
    result = stats.bootstrap((values,), statistic, method=method, n_resamples=20_000, rng=1)  # pyright: ignore
    return result.confidence_interval.low, result.confidence_interval.high


def test_one_value_has_no_interval_unless_it_is_a_share() -> None:
    interval = bootstrap_mean([38.0])
    assert interval.value == 38.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    # A Clopper-Pearson limit for 1 of 1.
    assert bootstrap_mean([1.0], share=True).low == pytest.approx(0.025)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    ours = bootstrap_mean(values, resamples=20_000)
    low, high = scipy_interval(values, np.mean, "percentile")
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.01)


def test_generic_bootstrap_agrees_with_scipy_for_a_median() -> None:
    values = np.random.default_rng(0).normal(size=101)
    ours = bootstrap(lambda drawn: float(np.median(drawn)), values, resamples=5_000)
    assert (ours.low, ours.high) == pytest.approx(scipy_interval(values, np.median, "percentile"), abs=0.02)


def test_coverage_of_the_problem_level_interval() -> None:
    rng = np.random.default_rng(0)
    experiments = accuracies(rng, 2_000, 60)
    intervals = [bootstrap_mean(values, resamples=1_000, seed=i) for i, values in enumerate(experiments)]
    coverage = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.slow
def test_coverage_of_the_paired_interval_and_power_at_the_detectable_difference() -> None:
    rng = np.random.default_rng(1)
    problems, n = 60, 12
    truth = minimum_detectable_difference(problems, n, within_variance=0.25)
    difficulty = np.full((2_000, problems), 0.5)
    a = rng.binomial(n, difficulty + truth / 2) / n
    b = rng.binomial(n, difficulty - truth / 2) / n
    results = [paired_difference(a[i], b[i], resamples=1_000, seed=i) for i in range(2_000)]
    assert 0.93 <= np.mean([result.low <= truth <= result.high for result in results]) <= 0.97
    assert 0.77 <= np.mean([result.p_value < 0.05 for result in results]) <= 0.85


@pytest.mark.slow
def test_coverage_over_seeds_and_problems() -> None:
    rng = np.random.default_rng(2)
    seeds, problems = 5, 60
    covered = []
    for index in range(2_000):
        values = 0.5 + 0.25 * rng.normal(size=(1, problems)) + 0.03 * rng.normal(size=(seeds, 1))
        values = values + 0.1 * rng.normal(size=(seeds, problems))
        interval = hierarchical_bootstrap(values, resamples=600, seed=index)
        covered.append(interval.low <= 0.5 <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_false_positive_rate_under_the_null() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.uniform(size=(2_000, 40))
    a, b = rng.binomial(12, difficulty) / 12, rng.binomial(12, difficulty) / 12
    p_values = np.array([sign_flip_p_value(a[i] - b[i], resamples=1_000, seed=i) for i in range(2_000)])
    assert 0.04 <= (p_values <= 0.05).mean() <= 0.06


@pytest.mark.parametrize("problems", [2, 5, 8, 12])
def test_small_permutation_tests_are_exact(problems: int) -> None:
    differences = np.random.default_rng(problems).normal(0.5, size=problems)
    flipped = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=problems)]
    exact = np.mean(np.array(flipped) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p_value(differences) == pytest.approx(exact)
    scipy_p = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    ).pvalue  # pyright: ignore
    assert sign_flip_p_value(differences) == pytest.approx(scipy_p)


def test_sampled_permutation_test_agrees_with_scipy() -> None:
    differences = np.random.default_rng(0).normal(0.25, size=50)
    scipy_p = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=50_000, rng=0
    ).pvalue  # pyright: ignore
    assert sign_flip_p_value(differences, resamples=50_000) == pytest.approx(scipy_p, abs=0.01)


def test_permutation_p_value_is_never_zero_and_one_without_a_difference() -> None:
    assert sign_flip_p_value(np.ones(100), resamples=999) == pytest.approx(1 / 1_000)
    assert sign_flip_p_value(np.zeros(10)) == 1.0
    assert sign_flip_p_value([0.1] + [0.0] * 1_000) == 1.0


def test_ties_up_to_rounding_count_as_reached() -> None:
    # 0.1 + 0.2 != 0.3 in floats; all patterns of equal size must count.
    differences = [0.1, 0.2, -0.3, 0.1, 0.2, -0.3]
    assert sign_flip_p_value(differences) == 1.0


def test_pairing_removes_the_difficulty_of_problems() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.uniform(size=200)
    a = difficulty + 0.02 + 0.01 * rng.normal(size=(2, 200))
    b = difficulty + 0.01 * rng.normal(size=(2, 200))
    result = paired_difference(a, b)
    assert result.low > 0.015
    assert result.high < 0.025
    assert result.p_value < 0.001
    assert (result.num_seeds, result.num_problems) == (2, 200)
    assert result.seed_differences == pytest.approx((0.02, 0.02), abs=0.005)
    assert np.mean(result.seed_differences) == pytest.approx(result.difference)


def test_paired_arms_must_have_equal_shapes() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_difference(np.zeros((2, 5)), np.zeros((3, 5)))


def test_seed_spread_widens_the_interval() -> None:
    rng = np.random.default_rng(5)
    noise = 0.1 * rng.normal(size=(5, 100))
    steady = hierarchical_bootstrap(noise)
    shifted = hierarchical_bootstrap(noise + np.array([[-0.2], [-0.1], [0.0], [0.1], [0.2]]))
    assert shifted.high - shifted.low > 3 * (steady.high - steady.low)
    assert shifted.value == pytest.approx(steady.value)


def test_one_seed_is_the_problem_level_bootstrap() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    assert hierarchical_bootstrap(values) == bootstrap_mean(values) == hierarchical_bootstrap(values[None, :])


def test_nothing_and_nan_are_undefined() -> None:
    for values in ([], [0.5, math.nan]):
        interval = bootstrap_mean(values)
        assert math.isnan(interval.value)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        result = paired_difference(values, values)
        assert math.isnan(result.difference)
        assert math.isnan(result.p_value)
    assert math.isnan(bootstrap(lambda units: 1.0, []).value)


def test_all_correct_is_not_certain() -> None:
    plain = bootstrap_mean(np.ones(30))
    assert (plain.low, plain.high) == (1.0, 1.0)
    exact = stats.binomtest(30, 30).proportion_ci(0.95, method="exact")
    assert bootstrap_mean(np.ones(30), share=True).low == pytest.approx(exact.low)
    assert bootstrap_mean(np.ones(30), share=True).high == 1.0
    assert bootstrap_mean(np.zeros(30), share=True).high == pytest.approx(1 - exact.low)
    assert bootstrap_mean([0.0, 1.0] * 15, share=True) == bootstrap_mean([0.0, 1.0] * 15)
    for same in (0.0, 0.5, 1.0):  # more seeds on the same problems say nothing about other problems
        one, three = bootstrap_mean(np.full(30, same), share=True), np.full((3, 30), same)
        assert hierarchical_bootstrap(three, bounds=(0, 1)) == one
        assert one.low < one.high


def test_arms_that_agree_on_every_problem_are_not_known_to_be_equal() -> None:
    arm = np.tile([0.0, 1.0, 0.5], (2, 10))
    exact = stats.binomtest(0, 30).proportion_ci(0.95, method="exact")
    same = paired_difference(arm, arm, share=True)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert (same.low, same.high) == pytest.approx((-exact.high, exact.high))
    best = paired_difference(np.ones((2, 30)), np.zeros((2, 30)), share=True)
    assert (best.low, best.high) == pytest.approx((1 - 2 * exact.high, 1.0))


def test_generic_bootstrap_of_an_auroc_over_rollouts() -> None:
    rng = np.random.default_rng(7)
    rollouts = [(rng.normal(label, 1, size=5), label) for label in (0, 1) * 40]

    def auroc(units: list[tuple[np.ndarray, int]]) -> float:
        wrong = np.concatenate([scores for scores, label in units if label] or [np.empty(0)])
        right = np.concatenate([scores for scores, label in units if not label] or [np.empty(0)])
        return float((wrong[:, None] > right).mean()) if wrong.size and right.size else math.nan

    interval = bootstrap(auroc, rollouts, resamples=300)
    assert interval.low < stats.norm.cdf(1 / math.sqrt(2)) < interval.high
    assert interval.low < interval.value < interval.high


def test_undefined_resamples_are_left_out_until_most_are() -> None:
    often = bootstrap(lambda units: float(np.mean(units)) if 1 in units else math.nan, [0, 1, 2])
    assert not math.isnan(often.low)
    rarely = bootstrap(lambda units: 1.0 if len(set(units)) == len(units) else math.nan, list(range(6)))
    assert rarely.value == 1.0
    assert math.isnan(rarely.low)


def test_detectable_difference_of_a_small_test_set() -> None:
    assert minimum_detectable_difference(30, 12) == pytest.approx(0.11, abs=0.005)
    assert minimum_detectable_difference(120, 12) == pytest.approx(0.053, abs=0.001)
    # More completions help against sampling noise only, more seeds against the spread between seeds only.
    floor = (stats.t.ppf(0.975, 29) + stats.t.ppf(0.8, 29)) * 0.1 / math.sqrt(30)
    assert minimum_detectable_difference(30, 10**9, effect_spread=0.1) == pytest.approx(floor, rel=1e-3)
    assert minimum_detectable_difference(30, 10**9, seed_spread=0.1, num_seeds=4) == pytest.approx(
        (stats.t.ppf(0.975, 29) + stats.t.ppf(0.8, 29)) * 0.05, rel=1e-3
    )


@pytest.mark.parametrize("degrees", [1, 2, 5, 10, 29, 1_000])
def test_student_quantile_agrees_with_scipy(degrees: int) -> None:
    from stepalign.evaluation.statistics import _student_quantile

    for probability in (0.6, 0.8, 0.9, 0.975, 0.995):
        expected = stats.t.ppf(probability, degrees)
        assert _student_quantile(probability, degrees) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("arguments", [(1, 12), (30, 0)])
def test_detectable_difference_rejects_nonsense(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="need P"):
        minimum_detectable_difference(*arguments)


def test_levels_outside_the_unit_interval_are_errors() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([0.0, 1.0], level=95)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_deterministic_ordered_and_inside_the_range(values: list[float], seed: int) -> None:
    interval = bootstrap_mean(values, resamples=200, seed=seed)
    assert interval == bootstrap_mean(values, resamples=200, seed=seed)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_a_test_set_that_can_show_nothing_is_named_as_such() -> None:
    """A difference of shares is at most 1, so that no number above 100 points is a size to look for."""
    assert detectable_difference(4, 2, 1) == (
        "4 test problems x 2 completions x 1 seed: no gap in avg@2 can show (80 % power, 95 % level)"
    )
    assert "points will not show" in detectable_difference(200, 12, 5)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=5))
def test_rank_correlation_agrees_with_scipy_ties_and_all_orders_included(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    ours = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(ours.value)
        return
    expected = stats.spearmanr(x, y).statistic  # pyright: ignore
    assert ours.value == pytest.approx(expected)
    orders = permutations(stats.rankdata(y))
    as_extreme = [abs(np.corrcoef(stats.rankdata(x), order)[0, 1]) for order in orders]
    assert ours.p_value == pytest.approx(np.mean(np.array(as_extreme) >= abs(expected) - 1e-9))


def test_the_interval_of_a_rank_correlation_covers_the_true_one() -> None:
    rng = np.random.default_rng(0)
    covariance = [[1.0, 0.7], [0.7, 1.0]]
    true = 6 / math.pi * math.asin(0.7 / 2)  # Spearman's rho of a normal pair
    drawn = [rng.multivariate_normal([0, 0], covariance, size=20).T for _ in range(400)]
    intervals = [rank_correlation(x, y, resamples=10) for x, y in drawn]
    covered = np.mean([found.low <= true <= found.high for found in intervals])
    assert 0.91 < covered < 0.985


def test_a_rank_correlation_of_too_few_pairs_has_no_interval() -> None:
    assert math.isnan(rank_correlation([], []).value)
    assert math.isnan(rank_correlation([1, 2, 3], [3, 2, 1]).low)
    assert rank_correlation([1, 2, 3], [3, 2, 1]).value == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 2, math.nan, 4], [3, 2, 1, 0]).value)
    with pytest.raises(ValueError, match="pairs"):
        rank_correlation([1, 2], [1])
