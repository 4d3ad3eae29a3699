"""Is the signal where the mistake is? Numbers over rollouts, each with a bootstrap interval.

A token belongs to one of four places: a *right* token (steps before the first error, and all of a correct trace), a
token of the *first wrong step*, in it the tokens that *state the wrong result*, or a token *after* it. Where nothing is
known of a rollout its tokens have no place; they count for the numbers that need none (concentration, style).

Six of the seven tokens of a wrong step are usually unobjectionable, so a detector of the whole step cannot be good and
should not be; the wrong result is what a context must point at. Both are reported.

Every number is a ratio of two sums over rollouts, or a ranking of tokens or steps (``token_signal.ranking``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepalign.evaluation.statistics import bootstrap
from stepalign.token_signal.ranking import Number, Ranking, gini, mean_of, ratio
from stepalign.token_signal.style import style_tokens
from stepalign.token_signal.table import ScoredCompletion, TokenTable


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownTokens:
    """The known places of the tokens of one rollout. Indices are positions in the completion."""

    right: frozenset[int] = frozenset()
    wrong_step: frozenset[int] = frozenset()
    """Tokens of the first wrong step; empty when there is none."""
    wrong_result: frozenset[int] = frozenset()
    """The tokens that state the first wrong result, where they are known."""
    results: frozenset[int] = frozenset()
    """Tokens that state a result, right ones and the first wrong one."""
    right_steps: tuple[frozenset[int], ...] = ()
    """The tokens of each right step."""
    style: frozenset[int] = frozenset()
    """Style tokens: punctuation, layout, connectives (``token_signal.style``)."""


def known_tokens(scored: ScoredCompletion) -> KnownTokens:
    """The known places of a completion's tokens. Special tokens have no place."""
    special = set(scored.special)
    inside = [
        (step.status, frozenset(np.flatnonzero(scored.step == index).tolist()) - special)
        for index, step in enumerate(scored.steps)
    ]
    right_steps = tuple(tokens for status, tokens in inside if status == "right" and tokens)
    style = style_tokens(scored.text, scored.spans)
    return KnownTokens(
        right=frozenset().union(*right_steps),
        wrong_step=frozenset().union(*(tokens for status, tokens in inside if status == "wrong")),
        wrong_result=frozenset(scored.wrong_tokens),
        results=frozenset(scored.result_tokens),
        right_steps=right_steps,
        style=frozenset(np.flatnonzero(style).tolist()),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The input of the numbers


Columns = dict[str, np.ndarray]
Summary = tuple[dict[str, float], Columns, Columns]
"""Of one rollout under one context: sums; ranked tokens; ranked steps."""


def summarise_rollout(table: TokenTable, truth: KnownTokens) -> Summary:
    """(sums, ranked tokens, ranked steps) of one rollout, small enough to keep a thousand."""
    log_ratio, size, length = table.log_ratio, np.abs(table.log_ratio), len(table)
    places = {name: _mask(getattr(truth, name), length) for name in ("right", "wrong_step", "wrong_result", "style")}
    places["in_wrong_rollout"] = np.full(length, bool(truth.wrong_step))
    places["all"] = np.full(length, True)
    sums = {"is_known": float(bool(truth.right or truth.wrong_step))}
    for name, mask in places.items():
        sums[f"count_{name}"] = float(mask.sum())
        sums[f"{name}/log_ratio"] = float(log_ratio[mask].sum())
        sums[f"{name}/abs"] = float(size[mask].sum())
        sums[f"{name}/kl"] = float(table.forward_kl[mask].sum())
    sums["right/suppressed"] = float((log_ratio[places["right"]] < 0).sum())
    for name, sign in (("right", np.sign(log_ratio)), ("wrong_step", -np.sign(log_ratio))):
        sums[f"{name}/agrees"] = float((0.5 + 0.5 * sign[places[name]]).sum())

    steps = [*truth.right_steps, *([truth.wrong_step] if truth.wrong_step else [])]
    step_sums = np.array([log_ratio[sorted(step)].sum() for step in steps])
    wrong = np.arange(len(steps)) >= len(truth.right_steps)
    lowest = step_sums == step_sums.min(initial=np.inf)
    sums["count_wrong"] = float(bool(truth.wrong_step))
    # A fair share where several steps are equally low.
    sums["found"] = float(lowest[wrong].sum() / lowest.sum()) if truth.wrong_step else 0.0
    sums["found_blindly"] = 1 / len(steps) if truth.wrong_step else 0.0
    concentration = gini(size)
    sums["count_gini"] = float(not math.isnan(concentration))
    sums["gini"] = 0.0 if math.isnan(concentration) else concentration

    ranked = places["right"] | places["wrong_step"] | places["wrong_result"]
    columns = {name: places[name] for name in ("right", "wrong_step", "wrong_result")}
    columns |= {"result": _mask(truth.results, length), "log_ratio": log_ratio}
    tokens = {name: column[ranked] for name, column in columns.items()}
    return sums, tokens, {"log_ratio": step_sums, "wrong": wrong}


def _mask(positions: frozenset[int], length: int) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    mask[sorted(positions)] = True
    return mask


class _Rollouts:
    """The summaries of all rollouts, joined: sums [R] by name, and what is ranked."""

    def __init__(self, rollouts: Sequence[Summary]) -> None:
        self._sums = {name: np.array([sums[name] for sums, _, _ in rollouts]) for name in rollouts[0][0]}
        tokens = _joined([tokens for _, tokens, _ in rollouts])
        steps = _joined([steps for _, _, steps in rollouts])
        known = tokens["right"] | tokens["wrong_result"]
        self.rankings = {
            "wrong_result": _ranking(tokens, "wrong_result", known),
            "wrong_result_among_results": _ranking(tokens, "wrong_result", known & tokens["result"]),
            "wrong_step": _ranking(tokens, "wrong_step", tokens["right"] | tokens["wrong_step"]),
            "first_wrong_step": _ranking(steps, "wrong", np.full(len(steps["wrong"]), True)),
        }

    def ratio(self, numerator: str, denominator: str) -> Number:
        return ratio(self._sums[numerator], self._sums[denominator])

    def mean(self, name: str) -> Number:
        """Of a sum over the tokens of its place."""
        return self.ratio(name, f"count_{name.split('/')[0]}")


def _joined(parts: Sequence[Columns]) -> Columns:
    owner = np.repeat(np.arange(len(parts)), [len(part["log_ratio"]) for part in parts])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} | {"owner": owner}


def _ranking(columns: Columns, positive: str, chosen: np.ndarray) -> Ranking:
    return Ranking(-columns["log_ratio"][chosen], columns[positive][chosen], columns["owner"][chosen])


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


@dataclass(frozen=True, slots=True)
class _Measure:
    label: str
    """On the page."""
    description: str
    value: Callable[[_Rollouts], Number]
    baseline: Callable[[_Rollouts], Number] | None = None


def _chance(_: _Rollouts) -> Number:
    return lambda counts: 0.5


_MEASURES: dict[str, _Measure] = {
    "share_of_abs_signal_in_wrong_step": _Measure(
        "Share of |A| in the first wrong step",
        "share of the sum of |A| of wrong rollouts that lies in the first wrong step; baseline: its share of tokens",
        lambda r: r.ratio("wrong_step/abs", "in_wrong_rollout/abs"),
        lambda r: r.ratio("count_wrong_step", "count_in_wrong_rollout"),
    ),
    "share_of_kl_in_wrong_step": _Measure(
        "Share of KL in the first wrong step",
        "the same for KL(self-teacher || student) at each token",
        lambda r: r.ratio("wrong_step/kl", "in_wrong_rollout/kl"),
        lambda r: r.ratio("count_wrong_step", "count_in_wrong_rollout"),
    ),
    "mean_log_ratio_right_tokens": _Measure(
        "Mean A on right tokens", "mean A on right tokens, nats", lambda r: r.mean("right/log_ratio")
    ),
    "mean_log_ratio_wrong_step": _Measure(
        "Mean A on the first wrong step",
        "mean A on the tokens of the first wrong step, nats",
        lambda r: r.mean("wrong_step/log_ratio"),
    ),
    "mean_log_ratio_wrong_result": _Measure(
        "Mean A on the wrong result",
        "mean A on the token that states the first wrong result, nats",
        lambda r: r.mean("wrong_result/log_ratio"),
    ),
    "mean_abs_log_ratio_right_tokens": _Measure(
        "Mean |A| on right tokens",
        "mean |A| on right tokens, nats: what the context disturbs without need",
        lambda r: r.mean("right/abs"),
    ),
    "share_of_right_tokens_suppressed": _Measure(
        "Right tokens suppressed", "share of right tokens with A < 0", lambda r: r.mean("right/suppressed")
    ),
    "sign_agreement": _Measure(
        "Sign agreement",
        "mean of two shares: right tokens with A > 0, tokens of the first wrong step with A < 0; A = 0 counts half",
        lambda r: mean_of(r.mean("right/agrees"), r.mean("wrong_step/agrees")),
        _chance,
    ),
    "auroc_wrong_result": _Measure(
        "AUROC, wrong result",
        "AUROC of -A for telling the wrong result from right tokens; 0.5 is chance",
        lambda r: r.rankings["wrong_result"].auroc,
        _chance,
    ),
    "auroc_wrong_result_among_results": _Measure(
        "AUROC, wrong result among results",
        "the same among tokens that state a result",
        lambda r: r.rankings["wrong_result_among_results"].auroc,
        _chance,
    ),
    "auroc_wrong_step": _Measure(
        "AUROC, whole wrong step",
        "AUROC of -A for telling every token of the first wrong step from right tokens",
        lambda r: r.rankings["wrong_step"].auroc,
        _chance,
    ),
    "average_precision_wrong_step": _Measure(
        "Average precision, whole wrong step",
        "average precision of the same; baseline: the share of such tokens",
        lambda r: r.rankings["wrong_step"].average_precision,
        lambda r: r.rankings["wrong_step"].prevalence,
    ),
    "auroc_first_wrong_step": _Measure(
        "AUROC, which step is wrong first",
        "AUROC of -(sum of A over a step) for telling first wrong steps from right steps",
        lambda r: r.rankings["first_wrong_step"].auroc,
        _chance,
    ),
    "average_precision_first_wrong_step": _Measure(
        "Average precision, which step is wrong first",
        "average precision of the same; baseline: the share of such steps",
        lambda r: r.rankings["first_wrong_step"].average_precision,
        lambda r: r.rankings["first_wrong_step"].prevalence,
    ),
    "share_of_first_wrong_steps_found": _Measure(
        "First wrong steps found",
        "share of wrong rollouts whose first wrong step has the lowest sum of A among it and the steps before it;"
        " baseline: drawn blindly",
        lambda r: r.ratio("found", "count_wrong"),
        lambda r: r.ratio("found_blindly", "count_wrong"),
    ),
    "gini_abs_log_ratio": _Measure(
        "Concentration (Gini)",
        "Gini coefficient of |A| over the tokens of a rollout, mean over rollouts: 0 spread evenly, 1 on one token",
        lambda r: r.ratio("gini", "count_gini"),
    ),
    "share_of_abs_signal_on_style": _Measure(
        "Share of |A| on style",
        "share of the sum of |A| on style tokens (punctuation, layout, connectives); baseline: their share of tokens",
        lambda r: r.ratio("style/abs", "all/abs"),
        lambda r: r.ratio("count_style", "count_all"),
    ),
}
LABELS = {name: measure.label for name, measure in _MEASURES.items()}
"""Name of a number -> what a page calls it."""


def localise(
    rollouts: Sequence[Summary], *, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Localisation numbers of one context.

    Returns:
        The entry of ``localisation`` in signal.json (docs/formats.md) without the context's name. NaN where undefined.
    """
    joined = _Rollouts(rollouts) if rollouts else None
    numbers = []
    for name, measure in _MEASURES.items():
        number = measure.value(joined) if joined else lambda _: math.nan

        def statistic(drawn: np.ndarray, number: Number = number) -> float:
            return number(np.bincount(drawn.astype(int), minlength=len(rollouts)).astype(float))

        found = bootstrap(statistic, np.arange(len(rollouts)), level=level, resamples=resamples, seed=seed)
        has_spread = len(rollouts) > 1
        numbers.append(
            {
                "name": name,
                "value": found.value,
                "low": found.low if has_spread else math.nan,
                "high": found.high if has_spread else math.nan,
                "baseline": measure.baseline(joined)(np.ones(len(rollouts))) if measure.baseline and joined else None,
                "description": measure.description,
            }
        )
    return {
        "num_rollouts": len(rollouts),
        "num_known": sum(bool(sums["is_known"]) for sums, _, _ in rollouts),
        "num_wrong": sum(bool(sums["count_wrong"]) for sums, _, _ in rollouts),
        "numbers": numbers,
    }
