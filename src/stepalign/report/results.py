"""Results tables, their intervals, and paired differences. k, n, seeds, problems and rule travel with every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepalign.report.charts import IntervalRow
from stepalign.report.results_schema import (
    METRIC_FAMILIES,
    Arm,
    Number,
    Record,
    Results,
    is_share,
    metric_family,
    metric_label,
    seeds_text,
)
from stepalign.report.text import MISSING, count, decimal, percent, signed, signed_points


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value of a table with all that is needed to judge it."""

    text: str
    unit: str = ""
    interval: str = ""
    detail: str = ""
    """Numerator, denominator, n, problems, seeds, checkpoint: shown on hover and focus, read by screen readers."""
    missing: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    arm: Arm
    label: str
    cells: Mapping[str, Cell]
    """By column, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    set: str
    checkpoint_rule: str
    in_force: bool
    columns: Mapping[str, tuple[str, str]]
    """Name of a metric or cost -> heading and explanation."""
    rows: tuple[Row, ...]
    per_seed: tuple[Row, ...]
    metrics: tuple[Record, ...]
    """The rows of results.json that the table shows."""


COSTS = {
    "rollouts": ("Rollouts", "completions sampled for training, per run"),
    "completion_tokens": ("Tokens", "completion tokens sampled for training, per run"),
    "seconds": ("Train s", "seconds of sampling, feedback and learning in one run; evaluation and saving are left out"),
    "critic.calls": ("Critic calls", "critiques asked for, per run"),
}
"""Columns after the metrics. Total of a run -> heading and explanation."""


def results_tables(results: Results) -> list[ResultsTable]:
    """One table per (set, checkpoint rule); the test set under the rule in force comes first."""
    in_force = results.checkpoint_rule
    # The untrained solver makes no table of its own: it joins those of the trained arms.
    measured = [(row.set, row.checkpoint_rule) for row in results.metrics if row.arm != "base"]
    groups = dict.fromkeys([("test", in_force), *measured])
    ranked = sorted(groups, key=lambda group: (group[1] != in_force, group[0] != "test"))
    return [_results_table(results, set_name, rule) for set_name, rule in ranked]


def _results_table(results: Results, set_name: str, rule: str) -> ResultsTable:
    metrics = tuple(
        row
        for row in results.metrics
        # The untrained solver has one checkpoint, which every rule picks.
        if row.set == set_name and (row.checkpoint_rule == rule or row.arm == "base")
    )
    names = headline_metrics(metrics, results)
    main, per_seed = [], []
    for arm in results.arms:
        own = [row for row in metrics if row.arm == arm.name]
        seeds = sorted({row.seed for row in own if row.seed is not None})
        pooled = any(row.seed is None for row in own) or len(seeds) < 2
        if pooled:
            main.append(_row(arm, arm.label, _pooled(own), arm.runs, names, results))
        for seed in seeds:
            runs, mine = [run for run in arm.runs if run.seed == seed], [row for row in own if row.seed == seed]
            row = _row(arm, f"{arm.label}, seed {seed}", mine, runs, names, results)
            (per_seed if pooled else main).append(row)
    return ResultsTable(
        set=set_name,
        checkpoint_rule=rule,
        in_force=rule == results.checkpoint_rule,
        columns={name: (metric_label(name), METRIC_FAMILIES[metric_family(name)][1]) for name in names} | COSTS,
        rows=tuple(main),
        per_seed=tuple(per_seed) if len(per_seed) > len(main) else (),
        metrics=metrics,
    )


def _pooled(rows: Sequence[Record]) -> Sequence[Record]:
    """The rows of all seeds together, or those of single seeds where none is pooled."""
    return [row for row in rows if row.seed is None] or rows


def _row(
    arm: Arm, label: str, rows: Sequence[Record], runs: Sequence[Record], names: Sequence[str], results: Results
) -> Row:
    cells = {name: metric_cell(next((row for row in rows if row.metric == name), None), results) for name in names}
    if arm.trained is False:
        cells = dict.fromkeys(names, Cell(text=MISSING, detail="no result: it did not train", missing=True))
    cells |= {name: _cost_cell(runs, name) for name in COSTS}
    return Row(arm=arm, label=label, cells=cells)


def headline_metrics(rows: Sequence[Record], results: Results) -> list[str]:
    """Of each family the metric with the largest k; named after n where nothing is measured yet."""
    n = "n" if results.num_samples is None else results.num_samples
    out = []
    for family in METRIC_FAMILIES:
        mine = [row for row in rows if metric_family(row.metric) == family]
        unmeasured = f"{family}@{n}" if family in ("pass", "maj", "avg") else family
        out.append(max(mine, key=lambda row: row.k or 0).metric if mine else unmeasured)
    return out


def metric_cell(row: Record | None, results: Results) -> Cell:
    if row is None or row.value is None:
        return Cell(text=MISSING, detail="not measured yet" if row is None else "undefined for this run", missing=True)
    share = is_share(row.metric)

    def show(value: Number) -> str:
        return percent(value, unit=False) if share else decimal(value, 1)

    interval = "" if row.low is None or row.high is None else f"{show(row.low)} to {show(row.high)}"
    detail = metric_detail(row, results)
    return Cell(text=show(row.value), unit="%" if share else "", interval=interval, detail=detail)


def metric_detail(row: Record, results: Results) -> str:
    """Numerator and denominator, k and n, problems, seeds, checkpoint, as one line."""
    parts = []
    if row.numerator is not None and row.denominator is not None:
        # Unbiased Pass@k and Maj@k sum over problems a number between 0 and 1: the numerator may be a fraction.
        top = count(row.numerator) if row.numerator == int(row.numerator) else f"{row.numerator:,.2f}"
        parts.append(f"{top} {'of' if is_share(row.metric) else '/'} {count(row.denominator)}")
    if row.k is not None and "@" in row.metric:
        parts.append(f"k = {count(row.k)}")
    if row.n is not None:
        parts.append(f"n = {count(row.n)} completions per problem")
    if row.problems is not None:
        parts.append(f"{count(row.problems)} problems")
    if row.seed is not None:
        parts.append(f"seed {row.seed}")
    elif row.arm != "base":
        parts.append(_pooled_text(row, results.seeds))
    if row.step is not None and row.arm != "base":
        parts.append(f"checkpoint at step {row.step}")
    return "; ".join(parts)


def _pooled_text(row: Record, seeds: Sequence[int]) -> str:
    """The seeds of a pooled value: not all of them while a comparison is unfinished."""
    if row.seeds is not None and row.seeds != len(seeds):
        return f"{row.seeds} of {len(seeds)} seeds pooled" if seeds else f"{row.seeds} seeds pooled"
    return seeds_text(seeds) + (" pooled" if len(seeds) > 1 else "")


def _cost_cell(runs: Sequence[Record], name: str) -> Cell:
    """The mean of a total over runs, with the value of each in the detail."""
    defined = [(run.seed, amount) for run in runs if (amount := run.totals.get(name)) is not None]
    if not defined:
        return Cell(text=MISSING, detail="none recorded", missing=True)

    def show(value: float) -> str:
        return decimal(value, 1) if name == "seconds" else count(value)

    each = "; ".join(f"seed {seed}: {show(amount)}" for seed, amount in defined)
    mean = f"mean of {len(defined)} runs; " if len(defined) > 1 else ""
    return Cell(text=show(sum(amount for _, amount in defined) / len(defined)), detail=mean + each)


def result_intervals(table: ResultsTable, results: Results) -> list[tuple[str, list[IntervalRow]]]:
    """For Pass, Maj and Avg: one interval per row of the results table."""
    out = []
    for name in list(table.columns)[:3]:
        intervals = []
        for arm in (arm for arm in results.arms if arm.trained is not False):
            rows = _pooled([row for row in table.metrics if row.arm == arm.name and row.metric == name])
            for row in rows or [None]:
                label = arm.label + (f", seed {row.seed}" if row and len(rows) > 1 else "")
                cell = metric_cell(row, results)
                interval = f" ({results.level} interval {cell.interval})" if cell.interval else ""
                intervals.append(
                    IntervalRow(
                        label=label,
                        colour=arm.colour,
                        **{key: row[key] if row else None for key in ("value", "low", "high")},
                        text=f"{cell.text} %" if not cell.missing else "",
                        title=f"{label}: {cell.text} %{interval}; {cell.detail}",
                    )
                )
        out.append((metric_label(name), intervals))
    return out


def differences(results: Results) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Paired comparisons by (metric, set, checkpoint rule): the row of the file, its arms, and the difference as text,
    with its interval and its row of a chart."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in results.paired:
        a, b = results.arm(row.a), results.arm(row.b)
        if a.trained is not False and b.trained is not False:
            found = {"row": row, "a": a, "b": b, **_difference(row, a, b)}
            groups.setdefault((metric_label(row.metric), row.set, row.checkpoint_rule), []).append(found)
    return groups


def _difference(row: Record, a: Arm, b: Arm) -> dict[str, Any]:
    share = is_share(row.metric)

    def show(value: Number) -> str:
        return signed_points(value) if share else signed(value, 1)

    def drawn(value: Number) -> Number:
        return 100 * value if share and value is not None else value

    unit = "" if row.difference is None else " pts" if share else " tokens"
    names = f"{a.label} − {b.label}"
    interval = MISSING if row.low is None or row.high is None else f"{show(row.low)} to {show(row.high)}"
    chart = IntervalRow(
        label=names,
        colour=a.colour,
        value=drawn(row.difference),
        low=drawn(row.low),
        high=drawn(row.high),
        text=show(row.difference),
        title=f"{metric_label(row.metric)}: {names} {show(row.difference)} ({interval})",
    )
    return {"text": show(row.difference) + unit, "interval": interval, "chart": chart}
