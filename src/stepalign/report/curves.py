"""Learning curves and training health as chart series, and curves read off at equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stepalign.report.charts import Series
from stepalign.report.results_schema import (
    Arm,
    Json,
    arms_of,
    metric_family,
    rows_of,
    trained,
)
from stepalign.report.text import (
    MISSING,
    count,
    number,
    percent,
)

HEALTH = {
    "reward": ("Reward", "share of the step’s rollouts that are correct", True),
    "right_value_probability": (
        "Right value at wrong steps",
        "probability the self-teacher gives the right value where the solver went wrong",
        True,
    ),
    "divergence": ("Divergence", "self-teacher against student, mean per trained token, nats", False),
    "student_entropy": ("Student entropy", "mean per token, nats", False),
    "teacher_entropy": ("Self-teacher entropy", "mean per token, nats", False),
    "completion_length": ("Completion length", "mean, tokens", False),
    "truncated": ("Truncated", "share of completions cut at the length limit", True),
    "repetitive": ("Repetitive", "share of completions whose tail deflate shortens more than 10 times", True),
    "distinct_answers": ("Distinct answers", "different answers per completion of a group", True),
    "hedge_words": ("Hedge words", "wait, maybe, let me check, ...: per completion", False),
}


CANARIES = ("truncated", "repetitive", "hedge_words")


def curve_names(results: Json) -> list[tuple[str, str]]:
    """Every (set, metric) that has a curve: Avg before Pass and Maj, validation before test."""
    drawn = [row for row in rows_of(results, "curves") if rows_of(row, "points")]
    names = dict.fromkeys((str(row.get("set", "validation")), str(row.get("metric"))) for row in drawn)
    order = {"avg": 0, "pass": 1, "maj": 2}
    return sorted(names, key=lambda name: (order.get(metric_family(name[1]), 9), name[0] != "validation", name[1]))


def curve_series(results: Json, set_name: str, metric: str, axis: str) -> list[Series]:
    """Held-out curves of every arm over ``axis`` ("steps" or "rollouts"): mean over seeds, each seed behind it."""
    key = {"steps": "step", "rollouts": "rollouts"}[axis]
    out = []
    for arm in trained(arms_of(results)):
        curves = [
            curve
            for curve in rows_of(results, "curves")
            if curve.get("arm") == arm.name and curve.get("set") == set_name and curve.get("metric") == metric
        ]
        out += _seed_lines(arm, curves, key, "value", bands=True)
    return out


def health_series(results: Json, key: str) -> list[Series]:
    out = []
    for arm in trained(arms_of(results)):
        curves = [row for row in rows_of(results, "training") if row.get("arm") == arm.name]
        out += _seed_lines(arm, curves, "step", key, bands=False)
    return [series for series in out if any(number(value) is not None for value in series.y)]


def silent_health(results: Json) -> list[str]:
    """Canaries that were counted and stayed at 0 in every run: a panel of them would show nothing."""
    names = []
    for key in CANARIES:
        values = [y for series in health_series(results, key) for y in series.y if y is not None]
        if values and not any(values):
            names.append(HEALTH[key][0].lower())
    return names


def _seed_lines(arm: Arm, curves: Sequence[Json], x_key: str, y_key: str, *, bands: bool) -> list[Series]:
    pooled = [curve for curve in curves if curve.get("seed") is None]
    seeds = [curve for curve in curves if curve.get("seed") is not None]
    if pooled:
        seeds = []
    lines = [_line_of(arm, curve, x_key, y_key, bands) for curve in pooled or seeds]
    if len(lines) < 2:
        return [
            Series(label=line.label, colour=line.colour, x=line.x, y=line.y, low=line.low, high=line.high, marks=bands)
            for line in lines
        ]
    faint = [
        Series(label=f"{arm.label}, seed {curve.get('seed')}", colour=arm.colour, x=line.x, y=line.y, low=line.low,
               high=line.high, faint=True)
        for curve, line in zip(seeds, lines, strict=True)
    ]  # fmt: skip
    return [*faint, _mean_line(arm, lines, marks=bands)]


def _line_of(arm: Arm, curve: Json, x_key: str, y_key: str, bands: bool) -> Series:
    points = sorted(
        (point for point in rows_of(curve, "points") if number(point.get(x_key)) is not None),
        key=lambda point: point[x_key],
    )
    low = tuple(number(point.get("low")) for point in points) if bands else ()
    has_band = any(value is not None for value in low)
    return Series(
        label=arm.label,
        colour=arm.colour,
        x=tuple(number(point.get(x_key)) for point in points),
        y=tuple(number(point.get(y_key)) for point in points),
        low=low if has_band else (),
        high=tuple(number(point.get("high")) for point in points) if has_band else (),
    )


def _mean_line(arm: Arm, lines: Sequence[Series], *, marks: bool) -> Series:
    """Mean over seeds where every seed has a value; a gap elsewhere, for a mean of fewer seeds is another quantity."""
    tables = [{x: y for x, y in zip(line.x, line.y, strict=True) if x is not None} for line in lines]
    xs = sorted({x for table in tables for x in table})
    ys = []
    for x in xs:
        values = [value for table in tables if (value := table.get(x)) is not None]
        ys.append(sum(values) / len(values) if len(values) == len(tables) else None)
    return Series(label=arm.label, colour=arm.colour, x=tuple(xs), y=tuple(ys), marks=marks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An arm's held-out metric read at an equal budget."""

    arm: Arm
    at_steps: str
    at_rollouts: str


def equal_budgets(results: Json, set_name: str, metric: str) -> tuple[str, str, list[Reading]]:
    """Each arm's curve read at the largest step and the largest rollout count that every arm reached.

    Between two evaluations a reading is interpolated, and says so with both of them; before the first one there is
    none.
    """
    means: dict[str, dict[str, Series]] = {}
    for axis in ("steps", "rollouts"):
        for series in curve_series(results, set_name, metric, axis):
            if not series.faint and any(value is not None for value in series.y):
                means.setdefault(series.label, {})[axis] = series
    budget = {
        axis: min(
            (max(x for x in line[axis].x if x is not None) for line in means.values() if axis in line), default=None
        )
        for axis in ("steps", "rollouts")
    }
    readings = []
    for arm in trained(arms_of(results)):
        lines = means.get(arm.label, {})
        texts = [
            _read(lines[axis], budget[axis], axis) if axis in lines and budget[axis] is not None else MISSING
            for axis in ("steps", "rollouts")
        ]
        readings.append(Reading(arm=arm, at_steps=texts[0], at_rollouts=texts[1]))
    return count(budget["steps"]), count(budget["rollouts"]), readings


def _read(series: Series, budget: float | None, axis: str) -> str:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if x is not None and y is not None]
    before = [point for point in points if budget is not None and point[0] <= budget]
    after = [point for point in points if budget is not None and point[0] >= budget]
    if budget is None or not points:
        return MISSING
    if not before:
        return f"{MISSING}, first measured at {count(after[0][0])} {axis}"
    (x, y), (next_x, next_y) = before[-1], after[0] if after else before[-1]
    if x == budget:
        return percent(y)
    if next_x <= x:
        return f"{percent(y)} (at {count(x)} {axis})"
    value = y + (next_y - y) * (budget - x) / (next_x - x)
    return f"≈ {percent(value)} (between {count(x)} and {count(next_x)} {axis})"


def until(series: Sequence[Series], end: float) -> list[Series]:
    """The part of every line up to ``end``; nothing is interpolated."""
    out = []
    for line in series:
        keep = [index for index, x in enumerate(line.x) if x is not None and x <= end]
        cut = {
            name: tuple(values[index] for index in keep) if (values := getattr(line, name)) else ()
            for name in ("x", "y", "low", "high")
        }
        out.append(replace(line, **cut))
    return out


def common_rollouts(series: Sequence[Series]) -> float | None:
    """The largest rollout count that every arm reached; None when the arms end at the same place."""
    ends = [max(x for x in line.x if x is not None) for line in series if not line.faint and line.x]
    return min(ends) if ends and min(ends) < max(ends) else None
