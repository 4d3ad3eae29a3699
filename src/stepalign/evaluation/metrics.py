"""Pass@k, maj@k, avg@k and the lengths, exact for every k up to n. Pure: no files, no network, no clock.

n completions of a problem were drawn; a metric "at k" is the expected result of drawing k of those n without
replacement. That is an unbiased estimate of the result of k fresh completions, and no random number is involved.

Rules that hold everywhere in this module:

- NaN where a metric is undefined (fewer than k completions), never 0.
- An undecided completion counts as not correct, stays in the denominator, and is reported as ``undecided_share``: it
  neither helps an arm nor shrinks its test set.
- A completion without an extracted answer has no vote; when no completion of a draw has one, the majority is wrong.
  Where a completion without one is correct, as a grader of one's own may say, no vote can show it: the majority is
  undefined for k > 1. Maj@1 is avg@1 whatever has an answer.
- Answers tied for most frequent share the win equally: the value of a uniformly random choice among them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from stepalign.evaluation.canaries import distinct_answers, hedge_words, is_repetitive
from stepalign.records import FinishReason, Verdict


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k completions, drawn without replacement from n, is correct.

    ``1 - C(n - c, k) / C(n, k)`` for n = ``num_samples`` and c = ``num_correct`` (Chen et al. 2021, arXiv 2107.03374,
    eq. 1), in integers and rounded once. The average over problems is unbiased for pass@k; ``1 - (1 - c/n)**k`` is not.

    Returns:
        A number in [0, 1], or NaN for n < k.

    Raises:
        ValueError: for k < 1, a negative count, or more correct completions than completions.
    """
    _check_counts(num_samples, num_correct, k)
    if num_samples < k:
        return math.nan
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


def avg_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Expected accuracy of k completions drawn without replacement from n: ``c / n`` for every k up to n.

    k only names how many completions a number rests on. Returns and raises as :func:`pass_at_k`.
    """
    _check_counts(num_samples, num_correct, k)
    return num_correct / num_samples if num_samples >= k else math.nan


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer of k completions, drawn without replacement from n, is right.

    Exact: the sum over all C(n, k) draws, by counting draws per class of equal answers. Tie rule: the answers tied for
    most frequent share the win equally. None never votes; a draw without any answer counts 0.

    Args:
        answers: extracted answer of each completion, equal strings for equal answers (see
            ``stepalign.domains.math.grading.canonical_answer``), None where there is none.
        correct: whether each completion is correct; ignored for those without an answer. Equal answers that were graded
            differently are right to the extent of their correct share.
        k: completions per draw.

    Returns:
        A number in [0, 1], or NaN for n < k.

    Raises:
        ValueError: for k < 1 or sequences of unequal length.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    counts: Counter[str] = Counter()
    rights: Counter[str] = Counter()
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            counts[answer] += 1
            rights[answer] += bool(right)
    if len(answers) < k:
        return math.nan
    value = Fraction(0)
    for answer, num_right in rights.items():
        if num_right:
            others = tuple(sorted(count for other, count in counts.items() if other != answer))
            num_unparsed = len(answers) - counts.total()
            value += Fraction(num_right, counts[answer]) * _win_share(counts[answer], others, num_unparsed, k)
    return float(value)


def _check_counts(num_samples: int, num_correct: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"need 0 <= num_correct <= num_samples, got {num_correct} of {num_samples}")


@lru_cache(maxsize=65536)
def _win_share(count: int, others: tuple[int, ...], num_unparsed: int, k: int) -> Fraction:
    """Expected share of the win of one answer over all draws of k completions.

    ``count`` completions have this answer, ``others`` (sorted) each of the other answers, ``num_unparsed`` none.
    """
    weighted = Fraction(0)
    for votes in range(1, min(count, k) + 1):
        for num_tied, ways in enumerate(_ways_not_beaten(others, num_unparsed, votes, k - votes)):
            if ways:
                weighted += Fraction(math.comb(count, votes) * ways, num_tied + 1)
    return weighted / math.comb(count + sum(others) + num_unparsed, k)


def _ways_not_beaten(others: tuple[int, ...], num_unparsed: int, votes: int, size: int) -> list[int]:
    """Ways to draw ``size`` completions of the other classes, none with more than ``votes``.

    Entry t counts the ways in which exactly t of those classes reach ``votes``. A table over (ties, completions drawn
    so far) is extended by one group of equally large classes at a time: 64 different answers are as cheap as one.
    """
    most_tied = min(size // votes, sum(count >= votes for count in others))
    table = [[0] * (size + 1) for _ in range(most_tied + 1)]
    table[0] = [math.comb(num_unparsed, drawn) for drawn in range(size + 1)]
    for count, multiplicity in Counter(others).items():
        fewer = [math.comb(count, drawn) for drawn in range(min(votes, count + 1))]
        ways_to_tie = math.comb(count, votes)
        extended = [[0] * (size + 1) for _ in range(most_tied + 1)]
        for tied in range(min(multiplicity, most_tied) + 1 if ways_to_tie else 1):
            factor = math.comb(multiplicity, tied) * ways_to_tie**tied
            loser_ways = _power(fewer, multiplicity - tied, size - tied * votes)
            for tied_before in range(most_tied + 1 - tied):
                target = extended[tied_before + tied]
                for drawn_before, ways in enumerate(table[tied_before]):
                    if ways:
                        offset = drawn_before + tied * votes
                        for drawn, other_ways in enumerate(loser_ways[: max(0, size + 1 - offset)]):
                            target[offset + drawn] += factor * ways * other_ways
        table = extended
    return [row[size] for row in table]


def _power(polynomial: list[int], exponent: int, degree: int) -> list[int]:
    """Coefficients of ``polynomial ** exponent`` up to ``degree`` (empty for a negative degree)."""
    if degree < 0:
        return []
    result = [1]
    for _ in range(exponent):
        product = [0] * min(degree + 1, len(result) + len(polynomial) - 1)
        for i, left in enumerate(result):
            for j, right in enumerate(polynomial[: len(product) - i]):
                product[i + j] += left * right
        result = product
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedCompletion:
    """One completion as the metrics see it."""

    answer: str | None
    """The extracted answer in canonical form (equal strings vote together), or None."""
    verdict: Verdict
    length: int
    """Sampled tokens."""
    finish_reason: FinishReason
    text: str = ""
    """Read by the canaries."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Metric:
    """One number over a set of problems, with its parts."""

    name: str
    """"pass@4", "maj@4", "avg@4", "mean_length" (tokens), "truncated_share", "unparsed_share", "undecided_share"; the
    canaries "repetitive_share", "hedge_words" and "distinct_answers" (both per completion)."""
    k: int | None
    """None for metrics that are not at k."""
    n: int | None
    """Completions per problem; None where problems have different numbers."""
    value: float
    """Mean of ``per_problem``; NaN when one of them is undefined or there is none."""
    numerator: float
    """numerator / denominator = value. Summed over completions for metrics that are means over completions."""
    denominator: int
    """Completions, or problems for pass@k, maj@k and sets with unequal n."""
    per_problem: np.ndarray
    """Value of each problem, float64 of shape (P,), in the order given."""

    @property
    def num_problems(self) -> int:
        return len(self.per_problem)


NO_SHARES = ("mean_length", "hedge_words")
"""Metrics that are not shares in [0, 1]."""


def compute_metrics(problems: Iterable[Sequence[GradedCompletion]], ks: Iterable[int]) -> dict[str, Metric]:
    """Every metric of a set of problems, by name, in a fixed order.

    A value is the plain mean over problems; at k it is NaN when any problem has fewer than k completions.

    Args:
        problems: for each problem its graded completions.
        ks: the requested k, each at least 1; repeated ones are computed once.

    Raises:
        ValueError: for k < 1.
    """
    problems = [list(completions) for completions in problems]
    sizes = [len(completions) for completions in problems]
    num_correct = [sum(c.verdict == "correct" for c in completions) for completions in problems]
    table: dict[str, Metric] = {}

    def add(name: str, k: int | None, values: list[float], totals: list[int] | None) -> None:
        table[name] = _metric(name, k, sizes, values, totals)

    for k in sorted(set(ks)):
        pairs = list(zip(sizes, num_correct, strict=True))
        add(f"pass@{k}", k, [pass_at_k(n, c, k) for n, c in pairs], None)
        add(f"maj@{k}", k, [_majority(completions, k) for completions in problems], None)
        add(f"avg@{k}", k, [avg_at_k(n, c, k) for n, c in pairs], num_correct)

    totals_by_name = {
        "mean_length": [sum(c.length for c in completions) for completions in problems],
        "truncated_share": [sum(c.finish_reason == "length" for c in completions) for completions in problems],
        "unparsed_share": [sum(c.answer is None for c in completions) for completions in problems],
        "undecided_share": [sum(c.verdict == "undecided" for c in completions) for completions in problems],
        "repetitive_share": [sum(is_repetitive(c.text) for c in completions) for completions in problems],
        "hedge_words": [sum(hedge_words(c.text) for c in completions) for completions in problems],
    }
    for name, totals in totals_by_name.items():
        values = [total / n if n else math.nan for total, n in zip(totals, sizes, strict=True)]
        add(name, None, values, totals)
    add("distinct_answers", None, [distinct_answers([c.answer for c in completions]) for completions in problems], None)
    return table


def mean_score(scores: Iterable[Sequence[float]]) -> Metric:
    """The mean over problems of the mean score of their decided completions (a NaN score is undecided)."""
    decided = [[one for one in of_problem if not math.isnan(one)] for of_problem in scores]
    values = [math.fsum(of_problem) / len(of_problem) if of_problem else math.nan for of_problem in decided]
    return _metric("mean_score", None, [len(of_problem) for of_problem in decided], values, None)


def win_rate(mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Metric:
    """The chance that a completion of the first solver has a higher score than one of the second, a tie counting half;
    over all pairs of completions of the same problem. Problems without a decided pair are NaN.

    Args:
        mine: the scores of each problem's completions, NaN undecided.
        theirs: of the same problems.
    """
    values = []
    for one, other in zip(mine, theirs, strict=True):
        pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other if not (math.isnan(a) or math.isnan(b))]
        values.append(math.fsum(pairs) / len(pairs) if pairs else math.nan)
    return _metric("win_rate", None, [len(values)], values, None)


def _majority(completions: list[GradedCompletion], k: int) -> float:
    correct = [c.verdict == "correct" for c in completions]
    if k == 1:
        return avg_at_k(len(correct), sum(correct), 1)
    if any(c.answer is None and c.verdict == "correct" for c in completions):
        return math.nan
    return maj_at_k([c.answer for c in completions], correct, k)


def _metric(name: str, k: int | None, sizes: list[int], values: list[float], totals: list[int] | None) -> Metric:
    per_problem = np.asarray(values, dtype=np.float64)
    n = sizes[0] if len(set(sizes)) == 1 else None
    numerator, denominator = math.fsum(values), len(values)
    if n and totals is not None and not math.isnan(numerator):
        numerator, denominator = float(sum(totals)), n * len(values)
    value = numerator / denominator if denominator else math.nan
    return Metric(
        name=name, k=k, n=n, value=value, numerator=numerator, denominator=denominator, per_problem=per_problem
    )
