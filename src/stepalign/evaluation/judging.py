"""How far judges of free text can be trusted: whether two agree, and whether longer texts score higher. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stepalign.evaluation.statistics import bootstrap

Judged = Sequence[tuple[float, ...]]
"""Of one problem's completions: (score, tokens), or (score of the first judge, tokens, score of the second)."""


def weighted_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights: 1 - the mean squared difference of two judges over that of all pairs of
    their scores. NaN where both give one and the same score throughout."""
    observed = float(np.mean((first - second) ** 2)) if len(first) else math.nan
    chance = float(np.var(first) + np.var(second) + (np.mean(first) - np.mean(second)) ** 2) if len(first) else 0.0
    return 1.0 - observed / chance if chance > 0 else math.nan


def correlation(x: np.ndarray, y: np.ndarray, given: Sequence[np.ndarray] = ()) -> float:
    """Pearson's correlation of what a linear regression on the columns ``given`` leaves of x and y; NaN where nothing
    is left of one of them."""
    columns = np.column_stack([np.ones(len(x)), *given])
    left = [one - columns @ np.linalg.lstsq(columns, one, rcond=None)[0] for one in (x, y)]
    sizes = [float(np.linalg.norm(one)) for one in left]
    if len(x) < 3 or min(sizes) <= 1e-9 * max(1.0, *(float(np.abs(one).max()) for one in (x, y))):
        return math.nan
    return float(np.clip(left[0] @ left[1] / (sizes[0] * sizes[1]), -1.0, 1.0))


def length_correlation(problems: Sequence[Judged], *, given_second: bool = False) -> float:
    """The correlation of a text's score with its length among texts for the same problem (the problems' means are taken
    out), and if wanted given the second judge's score: what is left then is no merit that both see."""
    return _of_centred(_centred(problems), given_second)


def judging_rows(problems: Sequence[Judged], *, level: float, resamples: int) -> list[dict[str, Any]]:
    """Rows like those of ``metric_rows``, each with an interval that draws problems."""
    decided = [[row for row in rows if not any(map(math.isnan, row))] for rows in problems]
    units = [np.array(rows, dtype=float) for rows in decided if rows]
    centred = _centred(units)
    wanted = {"score_length_correlation": (centred, lambda drawn: _of_centred(drawn, False))}
    if any(unit.shape[1] == 3 for unit in units):
        wanted |= {
            "judges_kappa": (units, lambda drawn: weighted_kappa(*_two_judges(drawn))),
            "judges_correlation": (units, lambda drawn: correlation(*_two_judges(drawn))),
            "score_length_given_second": (centred, lambda drawn: _of_centred(drawn, True)),
        }
    rows = []
    for name, (of, statistic) in wanted.items():
        found = bootstrap(statistic, of, level=level, resamples=min(resamples, 1_000))
        counts = {"numerator": None, "denominator": sum(map(len, of)), "problems": len(of)}
        rows.append({"metric": name, "k": None, "n": None, **asdict(found), **counts})
    return rows


def _centred(problems: Sequence[Any]) -> list[np.ndarray]:
    """Without the mean of each problem; a single text says nothing."""
    parts = [np.array(rows, dtype=float) for rows in problems if len(rows) > 1]
    return [part - part.mean(axis=0) for part in parts]


def _of_centred(parts: Sequence[np.ndarray], given_second: bool) -> float:
    if not parts:
        return math.nan
    rows = np.concatenate(parts)
    return correlation(rows[:, 0], rows[:, 1], [rows[:, 2]] if given_second else [])


def _two_judges(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate(parts)
    return rows[:, 0], rows[:, 2]
