"""Is the signal where the mistake is? Numbers over rollouts, each with a bootstrap interval.

A token belongs to one of four places: a *right* token (steps before the first error, and all of a correct trace), a
token of the *first wrong step*, in it the tokens that *state the wrong result*, or a token *after* it. Where nothing is
known of a rollout its tokens have no place; they count for the numbers that need none (concentration, style).

Six of the seven tokens of a wrong step are usually unobjectionable, so a detector of the whole step cannot be good and
should not be; the wrong result is what a context must point at. Both are reported.

Every number is a ratio of two sums over rollouts, or a ranking of tokens or steps (``signal.ranking``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepalign.evaluation.statistics import bootstrap
from stepalign.records import TokenSignal
from stepalign.signal.ranking import Counts, Number, Ranking, gini, mean_of, ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is known about the tokens of one rollout. Indices are positions in the completion."""

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
    """Tokens of manner, not of matter (``signal.style``)."""

    @property
    def is_known(self) -> bool:
        return bool(self.right or self.wrong_step)


Summary = tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]
"""What the numbers need of one rollout under one context."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Per rollout the sums that the ratios need [R]; flat the tokens and steps that are ranked."""

    sums: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    """Right tokens and those of first wrong steps: log_ratio, wrong_step, wrong_result, right, result, owner."""
    steps: dict[str, np.ndarray]
    """Right steps and first wrong ones: log_ratio (sum over the step), wrong, owner."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    description: str
    number: Number
    baseline: Number | None = None


def _chance(_: Counts) -> float:
    return 0.5


def _entries(table: _Table) -> list[_Entry]:
    """Every number, in the order of the page."""
    sums, tokens, steps = table.sums, table.tokens, table.steps

    def mean(name: str) -> Number:
        return ratio(sums[name], sums[f"count_{name.split('/')[0]}"])

    known = tokens["right"] | tokens["wrong_result"]
    among = known & tokens["result"]
    whole = _ranking(tokens, "wrong_step", tokens["right"] | tokens["wrong_step"])
    result, result_among = _ranking(tokens, "wrong_result", known), _ranking(tokens, "wrong_result", among)
    first = Ranking(-steps["log_ratio"], steps["wrong"], steps["owner"])
    share_of_tokens = ratio(sums["count_wrong_step"], sums["count_in_wrong_rollout"])
    return [
        _Entry(
            "share_of_abs_signal_in_wrong_step",
            "share of the sum of |A| of wrong rollouts that lies in the first wrong step;"
            " baseline: its share of tokens",
            ratio(sums["wrong_step/abs"], sums["in_wrong_rollout/abs"]),
            share_of_tokens,
        ),
        _Entry(
            "share_of_kl_in_wrong_step",
            "the same for KL(self-teacher || student) at each token",
            ratio(sums["wrong_step/kl"], sums["in_wrong_rollout/kl"]),
            share_of_tokens,
        ),
        _Entry("mean_log_ratio_right_tokens", "mean A on right tokens, nats", mean("right/log_ratio")),
        _Entry(
            "mean_log_ratio_wrong_step",
            "mean A on the tokens of the first wrong step, nats",
            mean("wrong_step/log_ratio"),
        ),
        _Entry(
            "mean_log_ratio_wrong_result",
            "mean A on the token that states the first wrong result, nats",
            mean("wrong_result/log_ratio"),
        ),
        _Entry(
            "mean_abs_log_ratio_right_tokens",
            "mean |A| on right tokens, nats: what the context disturbs without need",
            mean("right/abs"),
        ),
        _Entry("share_of_right_tokens_suppressed", "share of right tokens with A < 0", mean("right/suppressed")),
        _Entry(
            "sign_agreement",
            "mean of two shares: right tokens with A > 0, tokens of the first wrong step with A < 0;"
            " A = 0 counts half",
            mean_of(mean("right/agrees"), mean("wrong_step/agrees")),
            _chance,
        ),
        _Entry(
            "auroc_wrong_result",
            "AUROC of -A for telling the wrong result from right tokens; 0.5 is chance",
            result.auroc,
            _chance,
        ),
        _Entry(
            "auroc_wrong_result_among_results",
            "the same among tokens that state a result",
            result_among.auroc,
            _chance,
        ),
        _Entry(
            "auroc_wrong_step",
            "AUROC of -A for telling every token of the first wrong step from right tokens",
            whole.auroc,
            _chance,
        ),
        _Entry(
            "average_precision_wrong_step",
            "average precision of the same; baseline: the share of such tokens",
            whole.average_precision,
            whole.prevalence,
        ),
        _Entry(
            "auroc_first_wrong_step",
            "AUROC of -(sum of A over a step) for telling first wrong steps from right steps",
            first.auroc,
            _chance,
        ),
        _Entry(
            "average_precision_first_wrong_step",
            "average precision of the same; baseline: the share of such steps",
            first.average_precision,
            first.prevalence,
        ),
        _Entry(
            "share_of_first_wrong_steps_found",
            "share of wrong rollouts whose first wrong step has the lowest sum of A among it and the steps before it;"
            " baseline: drawn blindly",
            ratio(sums["found"], sums["count_wrong"]),
            ratio(sums["found_blindly"], sums["count_wrong"]),
        ),
        _Entry(
            "gini_abs_log_ratio",
            "Gini coefficient of |A| over the tokens of a rollout, mean over rollouts: 0 spread evenly, 1 on one token",
            ratio(sums["gini"], sums["count_gini"]),
        ),
        _Entry(
            "share_of_abs_signal_on_style",
            "share of the sum of |A| on tokens of manner (punctuation, layout, connectives); baseline: their share of"
            " tokens",
            ratio(sums["style/abs"], sums["all/abs"]),
            ratio(sums["count_style"], sums["count_all"]),
        ),
    ]  # fmt: skip


def _ranking(tokens: dict[str, np.ndarray], positive: str, chosen: np.ndarray) -> Ranking:
    return Ranking(-tokens["log_ratio"][chosen], tokens[positive][chosen], tokens["owner"][chosen])


def localise(
    signals: Iterable[TokenSignal],
    truths: Iterable[Truth],
    *,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Localisation numbers of one context.

    Args:
        signals: one per rollout, all of the same context.
        truths: what is known about the same rollouts; ``Truth()`` where nothing is.

    Returns:
        The entry of ``localisation`` in signal.json (docs/formats.md) without the context's name. NaN where undefined.

    Raises:
        ValueError: different numbers of signals and truths.
    """
    rollouts = [summarise_rollout(signal, truth) for signal, truth in zip(signals, truths, strict=True)]
    return localise_rollouts(rollouts, level=level, resamples=resamples, seed=seed)


def localise_rollouts(
    rollouts: Sequence[Summary], *, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """``localise`` for rollouts that are summarised already."""
    table = _join(rollouts)
    numbers = []
    for entry in _entries(table):

        def statistic(drawn: np.ndarray, number: Number = entry.number) -> float:
            return number(np.bincount(drawn.astype(int), minlength=len(rollouts)).astype(float))

        found = bootstrap(statistic, np.arange(len(rollouts)), level=level, resamples=resamples, seed=seed)
        numbers.append(
            {
                "name": entry.name,
                "value": found.value,
                "low": found.low if len(rollouts) > 1 else float("nan"),  # one rollout has no spread
                "high": found.high if len(rollouts) > 1 else float("nan"),
                "baseline": entry.baseline(np.ones(len(rollouts))) if entry.baseline and rollouts else None,
                "description": entry.description,
            }
        )
    return {
        "num_rollouts": len(rollouts),
        "num_known": sum(bool(sums["is_known"]) for sums, _, _ in rollouts),
        "num_wrong": sum(bool(sums["count_wrong"]) for sums, _, _ in rollouts),
        "numbers": numbers,
    }


def summarise_rollout(signal: TokenSignal, truth: Truth) -> Summary:
    """(sums, ranked tokens, ranked steps) of one rollout, small enough to keep a thousand."""
    log_ratio = np.asarray(signal.log_ratio, dtype=np.float64)
    kl = np.asarray(signal.forward_kl, dtype=np.float64)
    size = np.abs(log_ratio)
    everything = np.ones(len(log_ratio), dtype=bool)
    places = {
        name: _mask(chosen, len(log_ratio))
        for name, chosen in (
            ("right", truth.right),
            ("wrong_step", truth.wrong_step),
            ("wrong_result", truth.wrong_result),
            ("style", truth.style),
        )
    }
    places["in_wrong_rollout"] = everything & bool(truth.wrong_step)
    places["all"] = everything
    signs = {"right": np.sign(log_ratio), "wrong_step": -np.sign(log_ratio)}
    sums: dict[str, float] = {"is_known": float(truth.is_known)}
    for name, mask in places.items():
        sums[f"count_{name}"] = float(mask.sum())
        sums[f"{name}/log_ratio"] = float(log_ratio[mask].sum())
        sums[f"{name}/abs"] = float(size[mask].sum())
        sums[f"{name}/kl"] = float(kl[mask].sum())
    sums["right/suppressed"] = float((log_ratio[places["right"]] < 0).sum())
    for name, sign in signs.items():
        sums[f"{name}/agrees"] = float((0.5 + 0.5 * sign[places[name]]).sum())

    steps = [*truth.right_steps, *([truth.wrong_step] if truth.wrong_step else [])]
    step_sums = np.array([log_ratio[sorted(step)].sum() for step in steps])
    has_wrong = bool(truth.wrong_step)
    sums["count_wrong"] = float(has_wrong)
    sums["found"] = _share_lowest(step_sums) if has_wrong else 0.0
    sums["found_blindly"] = 1 / len(steps) if has_wrong else 0.0
    concentration = gini(size)
    sums["count_gini"] = float(not math.isnan(concentration))
    sums["gini"] = 0.0 if math.isnan(concentration) else concentration

    ranked = places["right"] | places["wrong_step"] | places["wrong_result"]
    tokens = {name: places[name][ranked] for name in ("right", "wrong_step", "wrong_result")}
    tokens["result"] = _mask(truth.results, len(log_ratio))[ranked]
    tokens["log_ratio"] = log_ratio[ranked]
    wrong = np.zeros(len(steps), dtype=bool)
    wrong[len(truth.right_steps) :] = True
    return sums, tokens, {"log_ratio": step_sums, "wrong": wrong}


def _mask(positions: frozenset[int], length: int) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    mask[sorted(positions)] = True
    return mask


def _share_lowest(sums: np.ndarray) -> float:
    """1 when the last value is the lowest, a fair share where several are equally low, else 0."""
    lowest = sums == sums.min()
    return float(lowest[-1]) / float(lowest.sum())


def _join(rollouts: Sequence[Summary]) -> _Table:
    def flat(which: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        parts = [(rollout[1], rollout[2])[which] for rollout in rollouts]
        lengths = [len(part["log_ratio"]) for part in parts]
        columns = {name: np.concatenate([np.zeros(0, bool), *(part[name] for part in parts)]) for name in names}
        columns["log_ratio"] = np.concatenate([np.zeros(0), *(part["log_ratio"] for part in parts)])
        return {**columns, "owner": np.repeat(np.arange(len(rollouts)), lengths)}

    names = rollouts[0][0] if rollouts else ()
    return _Table(
        sums=defaultdict(
            lambda: np.zeros(0), {name: np.array([sums[name] for sums, _, _ in rollouts]) for name in names}
        ),
        tokens=flat(0, ("right", "wrong_step", "wrong_result", "result")),
        steps=flat(1, ("wrong",)),
    )
