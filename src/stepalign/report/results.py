"""Results tables, their intervals, and paired differences. k, n, seeds, problems and rule travel with every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepalign.report.charts import Interval
from stepalign.report.results_schema import (
    METRIC_FAMILIES,
    METRIC_HELP,
    Arm,
    Json,
    arms_of,
    find_metric,
    is_share,
    level_text,
    metric_family,
    metric_label,
    rows_of,
    seeds_text,
    stranger,
)
from stepalign.report.text import (
    MISSING,
    count,
    decimal,
    number,
    p_value,
    percent,
    signed,
    signed_points,
)


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
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    set: str
    checkpoint_rule: str
    in_force: bool
    columns: tuple[tuple[str, str], ...]
    """Heading and explanation of each column after the arm's name."""
    rows: tuple[Row, ...]
    per_seed: tuple[Row, ...]


COST_COLUMNS = (
    ("Rollouts", "completions sampled for training, per run"),
    ("Tokens", "completion tokens sampled for training, per run"),
    ("Train s", "seconds of sampling, feedback and learning in one run; evaluation and saving are left out"),
    ("Critic calls", "critiques asked for, per run"),
)


def results_tables(results: Json) -> list[ResultsTable]:
    """One table per (set, checkpoint rule); the test set under the rule in force comes first."""
    # The untrained solver makes no table of its own: it joins those of the trained arms.
    metrics = [row for row in rows_of(results, "metrics") if row.get("arm") != "base"]
    in_force = str(results.get("checkpoint_rule", "last"))
    groups = list(
        dict.fromkeys((str(row.get("set", "test")), str(row.get("checkpoint_rule", in_force))) for row in metrics)
    )
    if ("test", in_force) not in groups:
        groups.insert(0, ("test", in_force))
    groups.sort(key=lambda group: (group[1] != in_force, group[0] != "test"))
    return [_results_table(results, set_name, rule, rule == in_force) for set_name, rule in groups]


def _results_table(results: Json, set_name: str, rule: str, in_force: bool) -> ResultsTable:
    rows = [
        row
        for row in rows_of(results, "metrics")
        # The untrained solver has one checkpoint: it stands in the table of every rule.
        if str(row.get("set", "test")) == set_name
        and (str(row.get("checkpoint_rule", rule)) == rule or row.get("arm") == "base")
    ]
    names = headline_metrics(rows, results)
    arms = arms_of(results)
    main, per_seed = [], []
    for arm in arms:
        own = [row for row in rows if row.get("arm") == arm.name]
        seeds = sorted({seed for row in own if (seed := row.get("seed")) is not None})
        pooled = any(row.get("seed") is None for row in own) or len(seeds) < 2
        whole = [row for row in own if row.get("seed") is None] or own
        if pooled:
            cells = [metric_cell(find_metric(whole, name), results) for name in names] + _cost_cells(arm.runs)
            main.append(Row(arm=arm, label=arm.label, cells=tuple(cells)))
        for seed in seeds:
            runs = [run for run in arm.runs if run.get("seed") == seed]
            mine = [row for row in own if row.get("seed") == seed]
            row = Row(
                arm=arm,
                label=f"{arm.label}, seed {seed}",
                cells=tuple([metric_cell(find_metric(mine, name), results) for name in names] + _cost_cells(runs)),
            )
            (per_seed if pooled else main).append(row)
    columns = tuple((metric_label(name), METRIC_HELP.get(metric_family(name), "")) for name in names)
    return ResultsTable(
        set=set_name,
        checkpoint_rule=rule,
        in_force=in_force,
        columns=columns + COST_COLUMNS,
        rows=tuple(main),
        per_seed=tuple(per_seed) if len(per_seed) > len(main) else (),
    )


def headline_metrics(rows: Sequence[Json], results: Json) -> list[str]:
    """Of each family the metric with the largest k; named after n where nothing is measured yet."""
    n = results.get("num_samples", "n")
    out = []
    for family, _ in METRIC_FAMILIES:
        mine = [row for row in rows if metric_family(str(row.get("metric"))) == family]
        default = f"{family}@{n}" if family in {"pass", "maj", "avg"} else family
        out.append(str(max(mine, key=lambda row: number(row.get("k")) or 0)["metric"]) if mine else default)
    return out


def metric_cell(row: Json | None, results: Json) -> Cell:
    if row is None or number(row.get("value")) is None:
        reason = "not measured yet" if row is None else "undefined for this run"
        return Cell(text=MISSING, detail=reason, missing=True)
    name = str(row.get("metric"))
    share = is_share(name)
    low, high = row.get("low"), row.get("high")
    show = (lambda value: percent(value, unit=False)) if share else (lambda value: decimal(value, 1))
    interval = f"{show(low)} to {show(high)}" if number(low) is not None and number(high) is not None else ""
    return Cell(
        text=show(row["value"]),
        unit="%" if share else "",
        interval=interval,
        detail=metric_detail(row, results),
    )


def metric_detail(row: Json, results: Json) -> str:
    """Numerator and denominator, k and n, problems, seeds, checkpoint, as one line."""
    name = str(row.get("metric"))
    # Unbiased Pass@k and Maj@k sum over problems a number between 0 and 1: a fraction in the numerator is no error.
    top = number(row.get("numerator"))
    parts = []
    if top is not None and number(row.get("denominator")) is not None:
        top_text = count(top) if top == int(top) else f"{top:,.2f}"
        parts.append(
            f"{top_text} of {count(row.get('denominator'))}"
            if is_share(name)
            else f"{top_text} / {count(row.get('denominator'))}"
        )
    if number(row.get("k")) is not None and "@" in name:
        parts.append(f"k = {count(row.get('k'))}")
    if number(row.get("n")) is not None:
        parts.append(f"n = {count(row.get('n'))} completions per problem")
    if number(row.get("problems")) is not None:
        parts.append(f"{count(row.get('problems'))} problems")
    seed = row.get("seed")
    if seed is not None:
        parts.append(f"seed {seed}")
    elif row.get("arm") != "base":
        parts.append(_pooled_text(row, results))
    if row.get("step") is not None and row.get("arm") != "base":
        parts.append(f"checkpoint at step {row['step']}")
    return "; ".join(parts)


def _pooled_text(row: Json, results: Json) -> str:
    """Which seeds a pooled value covers: not all of them while a comparison is unfinished."""
    seeds, covered = results.get("seeds") or [], row.get("seeds")
    if isinstance(covered, int) and covered != len(seeds):
        return f"{covered} of {len(seeds)} seeds pooled" if seeds else f"{covered} seeds pooled"
    return seeds_text(seeds) + (" pooled" if len(seeds) > 1 else "")


def _cost_cells(runs: Sequence[Json]) -> list[Cell]:
    return [
        _mean_cell(runs, [number(run.get("rollouts")) for run in runs], count),
        _mean_cell(runs, [number(run.get("completion_tokens")) for run in runs], count),
        _mean_cell(runs, [number(run.get("seconds")) for run in runs], lambda value: decimal(value, 1)),
        _mean_cell(runs, [number((run.get("critic") or {}).get("calls")) for run in runs], count),
    ]


def _mean_cell(runs: Sequence[Json], values: Sequence[float | None], show: Any) -> Cell:
    defined = [value for value in values if value is not None]
    if not defined:
        return Cell(text=MISSING, detail="none recorded", missing=True)
    each = "; ".join(
        f"seed {run.get('seed')}: {show(value)}" for run, value in zip(runs, values, strict=True) if value is not None
    )
    mean = f"mean of {len(defined)} runs; " if len(defined) > 1 else ""
    return Cell(text=show(sum(defined) / len(defined)), detail=mean + each)


def result_intervals(table: ResultsTable, results: Json) -> list[tuple[str, list[Interval]]]:
    """For Pass, Maj and Avg: one interval per row of the results table."""
    rows = [
        row
        for row in rows_of(results, "metrics")
        if str(row.get("set", "test")) == table.set
        and (
            str(row.get("checkpoint_rule", table.checkpoint_rule)) == table.checkpoint_rule or row.get("arm") == "base"
        )
    ]
    out = []
    for name in headline_metrics(rows, results)[:3]:
        intervals = []
        for arm in arms_of(results):
            own = [row for row in rows if row.get("arm") == arm.name and row.get("metric") == name]
            pooled = [row for row in own if row.get("seed") is None] or own
            for row in pooled or [{}]:
                suffix = f", seed {row['seed']}" if len(pooled) > 1 else ""
                cell = metric_cell(row if row else None, results)
                interval = f" ({level_text(results)} interval {cell.interval})" if cell.interval else ""
                intervals.append(
                    Interval(
                        label=arm.label + suffix,
                        colour=arm.colour,
                        value=number(row.get("value")),
                        low=number(row.get("low")),
                        high=number(row.get("high")),
                        text=f"{cell.text} %" if not cell.missing else "",
                        title=f"{arm.label}{suffix}: {cell.text} %{interval}; {cell.detail}",
                    )
                )
        out.append((metric_label(name), intervals))
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One paired comparison, in words and as one row of an interval chart."""

    a: Arm
    b: Arm
    metric: str
    set: str
    checkpoint_rule: str
    difference: str
    interval: str
    p_value: str
    seeds: str
    problems: str
    chart: Interval


def differences(results: Json) -> list[Difference]:
    arms = {arm.name: arm for arm in arms_of(results)}
    out = []
    for row in rows_of(results, "paired"):
        a, b = (arms.get(str(row.get(side))) or stranger(str(row.get(side))) for side in ("a", "b"))
        name = str(row.get("metric"))
        share = is_share(name)
        show = signed_points if share else (lambda value: signed(value, 1))
        low, high = row.get("low"), row.get("high")
        interval = f"{show(low)} to {show(high)}" if number(low) is not None and number(high) is not None else MISSING
        unit = " pts" if share else " tokens"
        out.append(
            Difference(
                a=a,
                b=b,
                metric=metric_label(name),
                set=str(row.get("set", "test")),
                checkpoint_rule=str(row.get("checkpoint_rule", results.get("checkpoint_rule", "last"))),
                difference=show(row.get("difference")) + (unit if number(row.get("difference")) is not None else ""),
                interval=interval,
                p_value=p_value(row.get("p_value")),
                seeds=seeds_text(row.get("seeds") or []),
                problems=count(row.get("problems")),
                chart=Interval(
                    label=f"{a.label} − {b.label}",
                    colour=a.colour,
                    value=_points(row.get("difference"), share),
                    low=_points(low, share),
                    high=_points(high, share),
                    text=show(row.get("difference")),
                    title=f"{metric_label(name)}: {a.label} − {b.label} {show(row.get('difference'))} ({interval})",
                ),
            )
        )
    return out


def _points(value: Any, share: bool) -> float | None:
    """A difference in the unit it is drawn in: percentage points of a share, tokens otherwise."""
    plain = number(value)
    return None if plain is None else 100 * plain if share else plain
