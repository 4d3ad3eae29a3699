"""Is the signal where the mistake is? Numbers over rollouts, each with a bootstrap interval.

A token belongs to one of four places: a *right* token (steps before the first error, and all of a correct trace), a
token of the *first wrong step*, in it the one token that *states the wrong result*, or a token *after* it.

Six of the seven tokens of a wrong step are usually unobjectionable, so a detector of the whole step cannot be good and
should not be; the wrong result is what a context must point at. Both are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepalign.evaluation.statistics import bootstrap
from stepalign.records import TokenSignal


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is known about the tokens of one rollout. Indices are positions in the completion."""

    right: frozenset[int]
    wrong_step: frozenset[int]
    """Tokens of the first wrong step; empty when there is none."""
    wrong_result: int | None = None
    """The token that states the first wrong result, where it is known."""
    results: frozenset[int] = frozenset()
    """Tokens that state a result, right ones and the first wrong one."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    """All tokens of all rollouts, flat: value, KL, owner and place of each."""

    log_ratio: np.ndarray
    kl: np.ndarray
    owner: np.ndarray
    right: np.ndarray
    wrong_step: np.ndarray
    wrong_result: np.ndarray
    result: np.ndarray
    has_error: np.ndarray
    """Whether the token's rollout has a wrong step at all."""


Weights = np.ndarray
"""How often each token's rollout was drawn in a resample; all ones for the value itself."""

Number = Callable[[_Tokens, Weights], float]


def _share(values: np.ndarray, tokens: _Tokens, weights: Weights) -> float:
    total = float((values * weights)[tokens.has_error].sum())
    return float((values * weights)[tokens.wrong_step].sum()) / total if total else math.nan


def _mean(values: np.ndarray, chosen: np.ndarray, weights: Weights) -> float:
    count = float(weights[chosen].sum())
    return float((values * weights)[chosen].sum()) / count if count else math.nan


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: Weights) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney); NaN without both."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[order]
    ups, downs = weights * positive, weights * ~positive
    _, group = np.unique(scores, return_inverse=True)
    up_by_score, down_by_score = np.bincount(group, ups), np.bincount(group, downs)
    below = np.cumsum(down_by_score) - down_by_score
    pairs = float(ups.sum() * downs.sum())
    return float((up_by_score * (below + 0.5 * down_by_score)).sum()) / pairs if pairs else math.nan


def _auroc(tokens: _Tokens, weights: Weights, chosen: np.ndarray) -> float:
    kept = chosen & (tokens.right | tokens.wrong_result)
    return weighted_auroc(-tokens.log_ratio[kept], tokens.wrong_result[kept], weights[kept])


_NUMBERS: tuple[tuple[str, str, Number, Callable[[_Tokens], float] | None], ...] = (
    (
        "share_of_abs_signal_in_wrong_step",
        "share of the sum of |A| of wrong rollouts that lies in the first wrong step; baseline: its share of tokens",
        lambda t, w: _share(np.abs(t.log_ratio), t, w),
        lambda t: _share(np.ones_like(t.log_ratio), t, np.ones_like(t.log_ratio)),
    ),
    (
        "share_of_kl_in_wrong_step",
        "the same for KL(self-teacher || student) at each token",
        lambda t, w: _share(t.kl, t, w),
        lambda t: _share(np.ones_like(t.log_ratio), t, np.ones_like(t.log_ratio)),
    ),
    ("mean_log_ratio_right_tokens", "mean A on right tokens, nats", lambda t, w: _mean(t.log_ratio, t.right, w), None),
    (
        "mean_log_ratio_wrong_result",
        "mean A on the token that states the first wrong result, nats",
        lambda t, w: _mean(t.log_ratio, t.wrong_result, w),
        None,
    ),
    (
        "mean_abs_log_ratio_right_tokens",
        "mean |A| on right tokens, nats: what the context disturbs without need",
        lambda t, w: _mean(np.abs(t.log_ratio), t.right, w),
        None,
    ),
    (
        "share_of_right_tokens_suppressed",
        "share of right tokens with A < 0",
        lambda t, w: _mean((t.log_ratio < 0).astype(float), t.right, w),
        None,
    ),
    (
        "auroc_wrong_result",
        "AUROC of -A for telling the wrong result from right tokens; 0.5 is chance",
        lambda t, w: _auroc(t, w, np.ones_like(t.right)),
        lambda t: 0.5,
    ),
    (
        "auroc_wrong_result_among_results",
        "the same among tokens that state a result",
        lambda t, w: _auroc(t, w, t.result),
        lambda t: 0.5,
    ),
    (
        "auroc_wrong_step",
        "AUROC of -A for telling every token of the first wrong step from right tokens",
        lambda t, w: weighted_auroc(
            -t.log_ratio[t.right | t.wrong_step], t.wrong_step[t.right | t.wrong_step], w[t.right | t.wrong_step]
        ),
        lambda t: 0.5,
    ),
)


def localise(
    signals: Sequence[TokenSignal], truths: Sequence[Truth], *, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Localisation numbers of one context.

    Args:
        signals: one per rollout, all of the same context.
        truths: what is known about the same rollouts.

    Returns:
        The entry of ``localisation`` in signal.json (docs/formats.md) without the context's name. NaN where undefined.

    Raises:
        ValueError: different numbers of signals and truths.
    """
    tokens = _flatten(signals, truths)

    def interval(number: Number) -> tuple[float, float, float]:
        def statistic(drawn: np.ndarray) -> float:
            counts = np.bincount(drawn.astype(int), minlength=len(signals)).astype(float)
            return number(tokens, counts[tokens.owner])

        if not signals:
            return math.nan, math.nan, math.nan
        found = bootstrap(statistic, np.arange(len(signals)), level=level, resamples=resamples, seed=seed)
        return found.value, found.low, found.high

    numbers = []
    for name, description, number, baseline in _NUMBERS:
        value, low, high = interval(number)
        numbers.append(
            {
                "name": name,
                "value": value,
                "low": low,
                "high": high,
                "baseline": baseline(tokens) if baseline and signals else None,
                "description": description,
            }
        )
    num_wrong = sum(bool(truth.wrong_step) for truth in truths)
    return {"num_rollouts": len(signals), "num_wrong": num_wrong, "numbers": numbers}


def _flatten(signals: Sequence[TokenSignal], truths: Sequence[Truth]) -> _Tokens:
    lengths = [len(signal.log_ratio) for signal in signals]

    def marks(pick: Callable[[Truth], frozenset[int]]) -> np.ndarray:
        rows = [
            [position in chosen for position in range(length)]
            for length, chosen in zip(lengths, map(pick, truths), strict=True)
        ]
        return np.array([mark for row in rows for mark in row], dtype=bool)

    owner = np.repeat(np.arange(len(signals)), lengths)
    wrong = np.array([bool(truth.wrong_step) for truth in truths], dtype=bool)
    return _Tokens(
        log_ratio=np.array([a for s in signals for a in s.log_ratio], dtype=float),
        kl=np.array([k for s in signals for k in s.forward_kl], dtype=float),
        owner=owner,
        right=marks(lambda t: t.right),
        wrong_step=marks(lambda t: t.wrong_step),
        wrong_result=marks(lambda t: frozenset() if t.wrong_result is None else frozenset({t.wrong_result})),
        result=marks(lambda t: t.results),
        has_error=wrong[owner] if len(owner) else np.zeros(0, dtype=bool),
    )
