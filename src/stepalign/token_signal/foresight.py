"""Does the place of the signal before training say what training gains?

A point is one arm of a comparison whose runs differ in the context alone: the localisation numbers of its context under
the untrained solver (signal.json), and the arm's gain in Avg@n over that solver (results.json). Arms of one solver are
ranked together. Arms that change another key are left out: the context that was scored is not the one they trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepalign.evaluation.statistics import RankCorrelation, rank_correlation
from stepalign.feedback.designs import find_condition
from stepalign.token_signal.localisation import LABELS

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedContext:
    """One arm: what its context looked like before training, and what training on it gained."""

    comparison: str
    context: str
    """Name of the context design."""
    label: str
    numbers: Mapping[str, float]
    """Localisation numbers by name (``LABELS`` of ``token_signal.localisation``); NaN where undefined."""
    gain: float
    """Avg@n after the last step minus that of the untrained solver, mean over seeds and problems."""
    low: float
    high: float
    seeds: int


def trained_contexts(results: Json, signal: Json, comparison: str = "") -> list[TrainedContext]:
    """The points of one comparison: its results.json and signal.json (docs/formats.md)."""
    scored = {
        entry["context"]: {n["name"]: math.nan if n["value"] is None else n["value"] for n in entry["numbers"]}
        for entry in signal["localisation"]
    }
    gains = {
        row["a"]: row
        for row in results["paired"]
        if (row["b"], row["metric"], row["checkpoint_rule"]) == ("base", f"avg@{results['num_samples']}", "last")
    }
    points = []
    for arm in results["arms"]:
        design, gain = find_condition(arm["condition"]).design, gains.get(arm["name"])
        if gain is None or design not in scored or arm["config_diff"].keys() - {"condition"} or not arm["trained"]:
            continue
        interval = {"gain": gain["difference"], "low": gain["low"], "high": gain["high"], "seeds": len(gain["seeds"])}
        names = {"comparison": comparison, "context": design, "label": arm["label"], "numbers": scored[design]}
        points.append(TrainedContext(**names, **interval))
    return points


def foresight(points: Sequence[TrainedContext]) -> dict[str, RankCorrelation]:
    """For every localisation number the rank correlation with the gain, over the points that define it.

    With several comparisons the points are not independent: the same design comes once for each solver. The interval
    treats them as if they were.
    """
    return {name: rank_correlation(*_pairs(points, name)) for name in LABELS}


def _pairs(points: Iterable[TrainedContext], name: str) -> tuple[list[float], list[float]]:
    defined = [p for p in points if not math.isnan(p.numbers.get(name, math.nan))]
    return [p.numbers[name] for p in defined], [p.gain for p in defined]
