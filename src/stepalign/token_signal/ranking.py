"""Ratios and rankings over rollouts, ready for a bootstrap: each is a function of how often every rollout was drawn.

Things are sorted once, so a resample costs one pass over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Counts = np.ndarray
"""[R], how often each rollout was drawn in a resample; all ones for the value itself."""

Number = Callable[[Counts], float]


def ratio(numerators_R: np.ndarray, denominators_R: np.ndarray) -> Number:
    """A ratio of sums over rollouts; NaN where the denominators sum to 0."""

    def value(counts_R: Counts) -> float:
        total = float(counts_R @ denominators_R)
        return float(counts_R @ numerators_R) / total if total else math.nan

    return value


def mean_of(*numbers: Number) -> Number:
    return lambda counts_R: sum(number(counts_R) for number in numbers) / len(numbers)


class Ranking:
    """Things with a score, some of them positive, sorted once; owners say which rollout each belongs to."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, owners: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        scores = scores[order]
        self._positive = positive[order].astype(np.float64)
        self._owners = owners[order]
        # Equal scores form one group: no threshold lies between them.
        self._starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]]) if len(scores) else np.zeros(0, int)

    def _groups(self, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the positives and of the negatives in every group of equal scores, highest first."""
        if not len(self._starts):
            return np.zeros(0), np.zeros(0)
        weights = np.asarray(counts, dtype=np.float64)[self._owners]
        ups = np.add.reduceat(weights * self._positive, self._starts)
        return ups, np.add.reduceat(weights, self._starts) - ups

    def auroc(self, counts: Counts) -> float:
        """Probability that a positive scores above a negative, ties counted half (Mann-Whitney); NaN without both."""
        ups, downs = self._groups(counts)
        below = downs.sum() - np.cumsum(downs)
        pairs = float(ups.sum() * downs.sum())
        return float((ups * (below + 0.5 * downs)).sum()) / pairs if pairs else math.nan

    def average_precision(self, counts: Counts) -> float:
        """Mean over the positives of the precision at their score (no interpolation); NaN without positives."""
        ups, downs = self._groups(counts)
        total = float(ups.sum())
        if not total:
            return math.nan
        found = np.cumsum(ups)
        taken = found + np.cumsum(downs)
        return float((ups * found / np.where(taken > 0, taken, 1.0)).sum()) / total

    def prevalence(self, counts: Counts) -> float:
        """Share of positives: the average precision of scores that know nothing."""
        ups, downs = self._groups(counts)
        total = float(ups.sum() + downs.sum())
        return float(ups.sum()) / total if total else math.nan


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient of non-negative sizes: 0 when all are equal, 1 - 1/n when one has all.

    G = 2 sum_i i x_(i) / (n sum x) - (n + 1) / n over the sorted x_(1) <= ... <= x_(n); NaN when all are 0.
    """
    total = float(sizes.sum())
    count = len(sizes)
    if not total:
        return math.nan
    ranks = np.arange(1, count + 1)
    return float(2 * (ranks * np.sort(sizes)).sum() / (count * total) - (count + 1) / count)
