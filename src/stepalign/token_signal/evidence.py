"""The numbers behind a verdict: shares and means over attempts, each with its bootstrap interval. Pure.

Shape suffixes: R attempts, B resamples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stepalign.evaluation.statistics import UNDEFINED, Interval, bootstrap_mean, paired_difference
from stepalign.token_signal.localisation import known_tokens
from stepalign.token_signal.table import NULL, SHUFFLED, ScoredCompletion
from stepalign.token_signal.verdict import RAISED

EDGE, FORKS = 0.3, 0.2
"""Shares of a completion that are its beginning and its end, and of its tokens that are its least certain ones."""
PLACES = ("right", "wrong_step", "after_error", "style", "first", "last", "forks")
RESAMPLES = 500


def share(flags: Sequence[bool | float], problems: Sequence[str] | None = None) -> Interval:
    """A mean of flags, by problem where several attempts share one. Undefined for none."""
    if not len(flags):
        return UNDEFINED
    groups: dict[object, list[float]] = {}
    for at, flag in enumerate(flags):
        groups.setdefault(problems[at] if problems else at, []).append(float(flag))
    return bootstrap_mean([float(np.mean(group)) for group in groups.values()], share=True, resamples=2000)


def gain(student: Mapping[str, float], teacher: Iterable[tuple[str, float]]) -> Interval:
    """Accuracy that the self-teacher adds, paired by problem.

    Args:
        student: by problem, the share of right completions without a context.
        teacher: (problem, share of right completions with the context of one attempt at it).
    """
    groups: dict[str, list[float]] = {}
    for problem, rate in teacher:
        groups.setdefault(problem, []).append(rate)
    if not groups:
        return UNDEFINED
    pairs = [(float(np.mean(rates)), student[problem]) for problem, rates in groups.items()]
    found = paired_difference(*zip(*pairs, strict=True), share=True, resamples=2000)
    return Interval(found.difference, found.low, found.high)


def token_numbers(
    completions: Sequence[ScoredCompletion], name: str, gradients: Mapping[str, np.ndarray]
) -> dict[str, Interval]:
    """The numbers of one context over the attempts that have it.

    Args:
        gradients: by rollout_id, the size of the update that each token would make.
    """
    rows = [_sums(one, name, gradients.get(one.rollout_id)) for one in completions if name in one.tables]
    if not rows:
        return {}
    columns = {key: np.array([row.get(key, 0.0) for row in rows]) for key in {key for row in rows for key in row}}

    # The same resamples of the attempts for every number.
    drawn_BR = np.random.default_rng(0).multinomial(len(rows), [1 / len(rows)] * len(rows), size=RESAMPLES)

    def over(numerator: str, denominator: str) -> Interval:
        """A ratio of two sums over attempts."""
        below_R = columns.get(denominator, np.zeros(len(rows)))
        above_R = columns.get(numerator, np.full(len(rows), math.nan))
        if not below_R.sum():
            return UNDEFINED
        below_B = drawn_BR @ below_R
        values_B = (drawn_BR @ above_R)[below_B > 0] / below_B[below_B > 0]
        low, high = np.quantile(values_B, [0.025, 0.975]) if (below_R > 0).sum() > 1 else (math.nan, math.nan)
        return Interval(float(above_R.sum() / below_R.sum()), float(low), float(high))

    found = {
        "strength": over("abs", "tokens"),
        "strength_null": over("abs_null", "tokens_null"),
        "strength_shuffled": over("abs_shuffled", "tokens_shuffled"),
        "wrong_token": over("wrong", "wrong_attempts"),
        "wrong_token_over_null": over("wrong_over_null", "wrong_null"),
        "wrong_token_shuffled": over("wrong_shuffled", "wrong_with_shuffled"),
        "raised": over("raised", "wrong_attempts"),
        "right_token_size": over("abs_right", "tokens_right"),
    }
    for place in PLACES:
        wrong_only = "_of_wrong" if place in ("wrong_step", "after_error") else ""
        found[place] = over(f"abs_{place}", f"abs{wrong_only}")
        found[f"{place}_tokens"] = over(f"tokens_{place}", f"tokens{wrong_only}")
        found[f"gradient_{place}"] = over(f"gradient_{place}", f"gradient{wrong_only}")
    return found


def _sums(scored: ScoredCompletion, name: str, gradient: np.ndarray | None) -> dict[str, float]:
    table, truth = scored.tables[name], known_tokens(scored)
    length, values = len(table), np.nan_to_num(table.log_ratio)
    places = _places(scored, table.student_entropy)
    is_wrong = float(bool(truth.wrong_step))
    sums = {"tokens": float(length), "abs": float(np.abs(values).sum())}
    sums |= {"tokens_of_wrong": length * is_wrong, "abs_of_wrong": sums["abs"] * is_wrong}
    for place, mask in places.items():
        sums[f"tokens_{place}"], sums[f"abs_{place}"] = float(mask.sum()), float(np.abs(values[mask]).sum())
    if gradient is not None:
        sums["gradient"] = float(gradient.sum())
        sums["gradient_of_wrong"] = sums["gradient"] * is_wrong
        sums |= {f"gradient_{place}": float(gradient[mask].sum()) for place, mask in places.items()}
    if is_wrong:
        wrong = wrong_value(scored, values)
        sums |= {"wrong_attempts": 1.0, "wrong": wrong, "raised": float(wrong > RAISED)}
    for suffix, key in ((NULL, "null"), (SHUFFLED, "shuffled")):
        if (other := scored.tables.get(name + suffix)) is not None:
            beside = np.nan_to_num(other.log_ratio)
            sums |= {f"tokens_{key}": float(length), f"abs_{key}": float(np.abs(beside).sum())}
            if is_wrong and key == "null":
                sums |= {"wrong_null": 1.0, "wrong_over_null": wrong_value(scored, values - beside)}
            elif is_wrong:
                sums |= {"wrong_with_shuffled": 1.0, "wrong_shuffled": wrong_value(scored, beside)}
    return sums


def wrong_value(scored: ScoredCompletion, values: np.ndarray) -> float:
    """A on the error of an attempt: on the tokens that state the first wrong result, else summed over its step."""
    if scored.wrong_tokens:
        return float(values[list(scored.wrong_tokens)].mean())
    return float(values[sorted(known_tokens(scored).wrong_step)].sum())


def _places(scored: ScoredCompletion, entropy: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the tokens of a completion."""
    truth, length = known_tokens(scored), len(scored.tokens)
    at = (np.arange(length) + 0.5) / max(1, length)
    forks = np.zeros(length, dtype=bool)
    forks[np.argsort(-np.nan_to_num(entropy), kind="stable")[: max(1, round(FORKS * length))]] = True
    after = {i for i, step in enumerate(scored.steps) if step.status == "after_error"}
    masks = {name: np.zeros(length, dtype=bool) for name in ("right", "wrong_step", "style")}
    for name, mask in masks.items():
        mask[sorted(getattr(truth, name))] = True
    return masks | {
        "after_error": np.isin(scored.step, sorted(after)),
        "first": at < EDGE,
        "last": at > 1 - EDGE,
        "forks": forks,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Texts

BARE = 0.5
"""A context with fewer words than this share of the attempt's shows no way to the answer that it holds."""


def holds_answer(context: str, answer: str) -> bool:
    """Whether a context has the expected answer as a word of its own."""
    return bool(answer.strip()) and bool(re.search(rf"(?<![\w.,]){re.escape(answer.strip())}(?![\w]|[.,]\d)", context))


def gives_away(context: str, answer: str, attempt: str) -> bool:
    """Whether a context holds the answer and little of the way to it."""
    return holds_answer(context, answer) and len(context.split()) < BARE * len(attempt.split())
