"""Learning curves and training health as chart series, and curves read off at equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepalign.report.charts import Series
from stepalign.report.drawing import defined
from stepalign.report.results_schema import Arm, Number, Record, Results, mean_of, metric_family
from stepalign.report.text import MISSING, count, percent

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
"""Training numbers: name, explanation, whether it is a share."""
CANARIES = ("truncated", "repetitive", "hedge_words")


def curve_names(results: Results) -> list[tuple[str, str]]:
    """Every (set, metric) that has a curve: Avg before Pass and Maj, validation before test."""
    names = dict.fromkeys((curve.set, curve.metric) for curve in results.curves if curve.points)
    order = {"avg": 0, "pass": 1, "maj": 2}
    return sorted(names, key=lambda name: (order.get(metric_family(name[1]), 9), name[0] != "validation", name[1]))


def curve_series(results: Results, set_name: str, metric: str, axis: str) -> list[Series]:
    """Held-out curves of every arm over ``axis`` ("step" or "rollouts"): mean over seeds, each seed behind it."""
    curves = [curve for curve in results.curves if (curve.set, curve.metric) == (set_name, metric)]
    return [series for arm in results.trained for series in _seed_lines(arm, curves, axis, "value", bands=True)]


def health_series(results: Results) -> tuple[dict[str, list[Series]], list[str]]:
    """The series of every training number that was measured, and the names of the canaries that stayed at 0 in every
    run: their panels would be empty."""
    panels, silent = {}, []
    for key, (name, _, _) in HEALTH.items():
        lines = [s for arm in results.trained for s in _seed_lines(arm, results.training, "step", key, bands=False)]
        values = [value for series in lines for value in defined(series.y)]
        if key in CANARIES and values and not any(values):
            silent.append(name.lower())
        elif values:
            panels[key] = [series for series in lines if defined(series.y)]
    return panels, silent


def _seed_lines(arm: Arm, curves: Sequence[Record], x_key: str, y_key: str, *, bands: bool) -> list[Series]:
    """The line of an arm's one curve; for several seeds their mean, with each seed faint behind it."""
    own = [curve for curve in curves if curve.arm == arm.name]
    own = [curve for curve in own if curve.seed is None] or own
    lines = [_line(arm, curve, x_key, y_key, bands) for curve in own]
    if len(lines) < 2:
        return lines
    faint = [
        replace(line, label=f"{arm.label}, seed {curve.seed}", faint=True)
        for curve, line in zip(own, lines, strict=True)
        if curve.seed is not None
    ]
    return [*faint, _mean_line(arm, lines, marks=bands)]


def _line(arm: Arm, curve: Record, x_key: str, y_key: str, bands: bool) -> Series:
    points = [(x, point) for point in curve.points if (x := point.get(x_key)) is not None]
    points.sort(key=lambda pair: pair[0])
    banded = bands and any(point.get("low") is not None for _, point in points)
    return Series(
        label=arm.label,
        colour=arm.colour,
        x=tuple(x for x, _ in points),
        y=tuple(point.get(y_key) for _, point in points),
        low=tuple(point.get("low") for _, point in points) if banded else (),
        high=tuple(point.get("high") for _, point in points) if banded else (),
        marks=bands,
    )


def _mean_line(arm: Arm, lines: Sequence[Series], *, marks: bool) -> Series:
    """Mean over seeds where every seed has a value; a gap elsewhere, for a mean of fewer seeds is another quantity."""
    tables = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    xs = sorted({x for line in lines for x in defined(line.x)})
    columns = [[table.get(x) for table in tables] for x in xs]
    ys = [None if None in column else mean_of(column) for column in columns]
    return Series(label=arm.label, colour=arm.colour, x=tuple(xs), y=tuple(ys), marks=marks)


def equal_budgets(results: Results, set_name: str, metric: str) -> tuple[str, str, list[Record]]:
    """The largest step and the largest rollout count that every arm reached, and per ``arm`` its curve read there,
    ``at_steps`` and ``at_rollouts``. A reading between two evaluations is interpolated and names both."""
    budgets, texts = [], []
    for axis, words in (("step", "steps"), ("rollouts", "rollouts")):
        series = curve_series(results, set_name, metric, axis)
        means = {line.label: line for line in series if not line.faint and defined(line.y)}
        budget = min((max(defined(line.x)) for line in means.values()), default=None)
        budgets.append(count(budget))
        texts.append([_read(means.get(arm.label), budget, words) for arm in results.trained])
    rows = zip(results.trained, *texts, strict=True)
    return budgets[0], budgets[1], [Record(arm=arm, at_steps=x, at_rollouts=y) for arm, x, y in rows]


def _read(line: Series | None, budget: Number, axis: str) -> str:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None and y is not None] if line else []
    if budget is None or not points:
        return MISSING
    before = [point for point in points if point[0] <= budget]
    after = [point for point in points if point[0] >= budget]
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
        columns = {name: getattr(line, name) for name in ("x", "y", "low", "high")}
        out.append(replace(line, **{name: tuple(v[i] for i in keep) if v else () for name, v in columns.items()}))
    return out


def common_rollouts(series: Sequence[Series]) -> float | None:
    """The largest rollout count that every arm reached; None when the arms end at the same place."""
    ends = [max(defined(line.x)) for line in series if not line.faint and line.x]
    return min(ends) if ends and min(ends) < max(ends) else None
