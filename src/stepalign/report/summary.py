"""What results.json says, arranged for a reader: tables, notes and chart series. Pure: data in, views out.

Everything tolerates an unfinished comparison: an arm or a metric that is not there yet becomes a missing cell and a
note, never a zero. Names such as ``avg@12`` are read as they stand in the file; k, n, seeds, problems and the
checkpoint rule travel with every value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepalign.report.charts import Interval, Series
from stepalign.report.text import (
    MISSING,
    count,
    decimal,
    listing,
    number,
    p_value,
    percent,
    seconds,
    signed,
    signed_points,
)

Json = Mapping[str, Any]

CONDITIONS = {
    "grpo": "A right-or-wrong reward for each rollout, compared within its group; no text feedback",
    "refsol": "The self-teacher is shown the reference solution of the problem",
    "stepalign": "The self-teacher is shown a critique that follows the solver’s own steps and corrects the first wrong"
    " one",
}
CHECKPOINT_RULES = {
    "last": "the last checkpoint of every run",
    "best_on_validation": "the checkpoint that was best on the validation set",
    "best_per_metric_on_test": "for each metric, the checkpoint that was best on the test set itself",
}
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
}
METRIC_FAMILIES = (
    ("pass", "Pass"),
    ("maj", "Maj"),
    ("avg", "Avg"),
    ("mean_length", "Length"),
    ("truncated_share", "Truncated"),
)
METRIC_HELP = {
    "pass": "chance that at least one of k completions is right, unbiased from n",
    "maj": "the most frequent answer of k completions is right",
    "avg": "share of completions that are right",
    "mean_length": "tokens per completion",
    "truncated_share": "share of completions cut off at the length limit",
}
SMALL_TEST_SET = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    name: str
    label: str
    condition: str
    colour: int
    """Index into the palette, the same wherever the arm appears; -1 is the untrained solver."""
    about: str
    runs: tuple[Json, ...] = ()
    config_diff: Json = field(default_factory=dict)


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


def arms_of(results: Json) -> list[Arm]:
    """Arms in the order of the file, plus any that only the metrics know (the untrained solver comes first)."""
    listed = [arm for arm in _list(results, "arms") if isinstance(arm, Mapping)]
    arms = [
        Arm(
            name=str(arm.get("name", f"arm {index + 1}")),
            label=str(arm.get("label") or arm.get("name") or f"arm {index + 1}"),
            condition=str(arm.get("condition", "")),
            colour=-1 if arm.get("name") == "base" else index,
            about=CONDITIONS.get(str(arm.get("condition", "")), ""),
            runs=tuple(run for run in _list(arm, "runs") if isinstance(run, Mapping)),
            config_diff=arm.get("config_diff") or {},
        )
        for index, arm in enumerate(listed)
    ]
    known = {arm.name for arm in arms}
    for name in dict.fromkeys(str(metric.get("arm")) for metric in _rows(results, "metrics")):
        if name == "base" and name not in known:
            base = Arm(name="base", label="Untrained solver", condition="", colour=-1, about="before any training")
            arms.insert(0, base)
        elif name not in known:
            arms.append(Arm(name=name, label=name, condition="", colour=len(arms), about=""))
    return arms


def level_text(results: Json) -> str:
    """The confidence level of the intervals, as in ``95%``."""
    return f"{100 * (number(results.get('confidence')) or 0.95):g}%"


def trained(arms: Iterable[Arm]) -> list[Arm]:
    return [arm for arm in arms if arm.name != "base"]


def metric_family(name: str) -> str:
    return name.split("@", 1)[0]


def metric_label(name: str) -> str:
    """``avg@12`` as ``Avg@12``; other names as words."""
    family, _, k = name.partition("@")
    words = dict(METRIC_FAMILIES).get(family, family.replace("_", " ").capitalize())
    return f"{words}@{k}" if k else words


def is_share(name: str) -> bool:
    return metric_family(name) != "mean_length"


def results_tables(results: Json) -> list[ResultsTable]:
    """One table per (set, checkpoint rule); the test set under the rule in force comes first."""
    # The untrained solver makes no table of its own: it joins those of the trained arms.
    metrics = [row for row in _rows(results, "metrics") if row.get("arm") != "base"]
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
        for row in _rows(results, "metrics")
        # The untrained solver has one checkpoint: it stands in the table of every rule.
        if str(row.get("set", "test")) == set_name
        and (str(row.get("checkpoint_rule", rule)) == rule or row.get("arm") == "base")
    ]
    names = _headline_metrics(rows, results)
    arms = arms_of(results)
    main, per_seed = [], []
    for arm in arms:
        own = [row for row in rows if row.get("arm") == arm.name]
        seeds = sorted({seed for row in own if (seed := row.get("seed")) is not None})
        pooled = any(row.get("seed") is None for row in own) or len(seeds) < 2
        whole = [row for row in own if row.get("seed") is None] or own
        if pooled:
            cells = [metric_cell(_find(whole, name), results) for name in names] + _cost_cells(arm.runs)
            main.append(Row(arm=arm, label=arm.label, cells=tuple(cells)))
        for seed in seeds:
            runs = [run for run in arm.runs if run.get("seed") == seed]
            mine = [row for row in own if row.get("seed") == seed]
            row = Row(
                arm=arm,
                label=f"{arm.label}, seed {seed}",
                cells=tuple([metric_cell(_find(mine, name), results) for name in names] + _cost_cells(runs)),
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


COST_COLUMNS = (
    ("Rollouts", "completions sampled for training, per run"),
    ("Tokens", "completion tokens sampled for training, per run"),
    ("Seconds", "wall time of one run"),
    ("Critic calls", "critiques asked for, per run"),
)


def _headline_metrics(rows: Sequence[Json], results: Json) -> list[str]:
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


def summary_sentences(results: Json) -> list[str]:
    """What was compared, in plain words."""
    arms = trained(arms_of(results))
    problems = results.get("problems") or {}
    solver = f"the same solver ({results['model']})" if results.get("model") else "the same solver"
    opening = f"{_number_word(len(arms)).capitalize()} way{'s' * (len(arms) != 1)} of training {solver}, compared"
    if number(problems.get("test")) is not None:
        opening += f" on {count(problems['test'])} test problems it never trained on"
    if results.get("num_samples") is not None:
        opening += f", with n = {results['num_samples']} completions per problem"
    if number(results.get("temperature")) is not None:
        opening += f" at temperature {decimal(results['temperature'], 1)}"
    training = []
    if number(problems.get("train")) is not None:
        training.append(f"on {count(problems['train'])} problems")
    if results.get("seeds"):
        training.append(f"with {_seeds_text(results['seeds'])}")
    sentences = [opening + "."]
    if training:
        sentences.append(f"Every arm starts from the same weights and trains {' '.join(training)}.")
    return sentences


def changes(results: Json) -> list[tuple[Arm, str]]:
    """For each trained arm one line: from where to where in Avg@n, and what it took."""
    table = results_tables(results)[0]
    column = next((index for index, (name, _) in enumerate(table.columns) if name.startswith("Avg")), None)
    base = next((row for row in table.rows if row.arm.name == "base"), None)
    out = []
    for arm in trained(arms_of(results)):
        rows = [row for row in table.rows if row.arm.name == arm.name]
        if len(rows) != 1 or column is None or rows[0].cells[column].missing:
            out.append((arm, "No result yet" if len(rows) < 2 else "Measured for each seed, not yet pooled"))
            continue
        row = rows[0]
        cell, name = row.cells[column], table.columns[column][0]
        text = f"{name} "
        if base is not None and not base.cells[column].missing:
            text += f"{base.cells[column].text} % → "
        text += f"{cell.text} %" + (f" ({level_text(results)} interval {cell.interval})" if cell.interval else "")
        steps = [number(run.get("steps")) for run in arm.runs if number(run.get("steps")) is not None]
        costs = [f"{count(max(step for step in steps if step is not None))} optimizer steps"] if steps else []
        rollouts, _, wall, _ = row.cells[-4:]
        costs += [f"{rollouts.text} rollouts"] if not rollouts.missing else []
        costs += [f"{wall.text} s"] if not wall.missing else []
        out.append((arm, text + (f", with {listing(costs)}" if costs else "")))
    return out


def notes(results: Json) -> list[str]:
    """What a careful reader must know before reading a number off this page."""
    out = []
    arms = trained(arms_of(results))
    missing = incomplete(results)
    if missing:
        out.append("This comparison is not complete: " + "; ".join(missing) + ".")
    out.append(
        "No arm is called the best here: the order of arms depends on the axis. An optimizer step of one arm can cost"
        " many times the solver rollouts of another’s, so every curve is drawn over optimizer steps and over rollouts."
    )
    test = number((results.get("problems") or {}).get("test"))
    if test is not None and test < SMALL_TEST_SET:
        out.append(
            f"Only {count(test)} test problems: one problem more or less moves a per-problem metric by"
            f" {100 / max(test, 1):.1f} points. Intervals are wide, and small gaps mean nothing."
        )
    if str(results.get("checkpoint_rule")) == "best_per_metric_on_test":
        out.append(
            "The checkpoint rule selects on the test set: each metric shows its own best checkpoint as judged by the"
            " very problems it is measured on. Such values are optimistic; compare them only with numbers chosen the"
            " same way."
        )
    seeds = results.get("seeds") or []
    if len(seeds) == 1:
        out.append("One training seed: the intervals cover the choice of problems, not the luck of a training run.")
    if not arms:
        out.append("results.json lists no arm.")
    return out


def incomplete(results: Json) -> list[str]:
    """What is still missing, in words; empty for a finished comparison."""
    out = []
    in_force = str(results.get("checkpoint_rule", "last"))
    measured = {
        (row.get("arm"), row.get("seed"))
        for row in _rows(results, "metrics")
        if row.get("set", "test") == "test" and str(row.get("checkpoint_rule", in_force)) == in_force
    }
    names = {name for name, _ in measured}
    for arm in trained(arms_of(results)):
        if not arm.runs:
            out.append(f"{arm.label} has not run yet")
            continue
        have = {run.get("seed") for run in arm.runs}
        absent = [seed for seed in results.get("seeds") or [] if seed not in have]
        if absent:
            out.append(f"{arm.label} has no run for {_seeds_text(absent)}")
        if arm.name not in names:
            out.append(f"{arm.label} has no test result yet")
    return out


def warnings_of(results: Json) -> list[tuple[Arm, str, str]]:
    """Every warning a run raised: arm, where, text. Masked samples and failed critiques are said here as well."""
    out = []
    for arm in arms_of(results):
        for run in arm.runs:
            where = f"seed {run.get('seed')}"
            out += [(arm, where, str(text)) for text in _list(run, "warnings")]
            masked = run.get("masked") or {}
            if isinstance(masked, Mapping) and masked:
                each = ", ".join(f"{reason}: {count(amount)}" for reason, amount in masked.items())
                out.append((arm, where, f"samples masked from training ({each})"))
            critic = run.get("critic") or {}
            bad = {name: critic.get(name) for name in ("malformed", "failed") if number(critic.get(name))}
            if bad:
                each = ", ".join(f"{count(amount)} {name}" for name, amount in bad.items())
                out.append((arm, where, f"critiques not usable: {each} of {count(critic.get('calls'))}"))
    return out


def differences(results: Json) -> list[Difference]:
    arms = {arm.name: arm for arm in arms_of(results)}
    out = []
    for row in _rows(results, "paired"):
        a, b = (arms.get(str(row.get(side))) or _stranger(str(row.get(side))) for side in ("a", "b"))
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
                seeds=_seeds_text(row.get("seeds") or []),
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


def result_intervals(table: ResultsTable, results: Json) -> list[tuple[str, list[Interval]]]:
    """For Pass, Maj and Avg: one interval per row of the results table."""
    rows = [
        row
        for row in _rows(results, "metrics")
        if str(row.get("set", "test")) == table.set
        and (
            str(row.get("checkpoint_rule", table.checkpoint_rule)) == table.checkpoint_rule or row.get("arm") == "base"
        )
    ]
    out = []
    for name in _headline_metrics(rows, results)[:3]:
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


def curve_series(results: Json, set_name: str, metric: str, axis: str) -> list[Series]:
    """Held-out curves of every arm over ``axis`` ("steps" or "rollouts"): mean over seeds, each seed behind it."""
    key = {"steps": "step", "rollouts": "rollouts"}[axis]
    out = []
    for arm in trained(arms_of(results)):
        curves = [
            curve
            for curve in _rows(results, "curves")
            if curve.get("arm") == arm.name and curve.get("set") == set_name and curve.get("metric") == metric
        ]
        out += _seed_lines(arm, curves, key, "value", bands=True)
    return out


def curve_names(results: Json) -> list[tuple[str, str]]:
    """Every (set, metric) that has a curve: Avg before Pass and Maj, validation before test."""
    drawn = [row for row in _rows(results, "curves") if _rows(row, "points")]
    names = dict.fromkeys((str(row.get("set", "validation")), str(row.get("metric"))) for row in drawn)
    order = {"avg": 0, "pass": 1, "maj": 2}
    return sorted(names, key=lambda name: (order.get(metric_family(name[1]), 9), name[0] != "validation", name[1]))


def health_series(results: Json, key: str) -> list[Series]:
    out = []
    for arm in trained(arms_of(results)):
        curves = [row for row in _rows(results, "training") if row.get("arm") == arm.name]
        out += _seed_lines(arm, curves, "step", key, bands=False)
    return [series for series in out if any(number(value) is not None for value in series.y)]


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
        (point for point in _rows(curve, "points") if number(point.get(x_key)) is not None),
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

    A reading is the last evaluation at or before the budget, never an interpolation; it says where it was taken.
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
    points = [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if x is not None and y is not None and budget is not None and x <= budget
    ]
    if not points:
        return MISSING
    x, y = points[-1]
    return percent(y) + ("" if x == budget else f" (at {count(x)} {axis})")


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


def headline(results: Json) -> str:
    """The arms by name. Labels that hold commas themselves are set apart by dots."""
    labels = [arm.label for arm in trained(arms_of(results))]
    return (" · ".join(labels) if any("," in label for label in labels) else listing(labels)) or "Comparison"


def common_rollouts(series: Sequence[Series]) -> float | None:
    """The largest rollout count that every arm reached; None when the arms end at the same place."""
    ends = [max(x for x in line.x if x is not None) for line in series if not line.faint and line.x]
    return min(ends) if ends and min(ends) < max(ends) else None


def cost_rows(results: Json) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """Per trained arm: (heading, text) of every cost, as the mean over its runs."""
    out = []
    for arm in trained(arms_of(results)):
        critics = [run.get("critic") or {} for run in arm.runs]
        cost = _mean([number(critic.get("cost")) for critic in critics])
        cells = [
            ("Optimizer steps", count(_mean([number(run.get("steps")) for run in arm.runs]))),
            ("Rollouts", count(_mean([number(run.get("rollouts")) for run in arm.runs]))),
            ("Completion tokens", count(_mean([number(run.get("completion_tokens")) for run in arm.runs]))),
            ("Critic calls", count(_mean([number(critic.get("calls")) for critic in critics]))),
            ("Cached", count(_mean([number(critic.get("cached")) for critic in critics]))),
            ("Critic tokens in", count(_mean([number(critic.get("prompt_tokens")) for critic in critics]))),
            ("Critic tokens out", count(_mean([number(critic.get("completion_tokens")) for critic in critics]))),
            ("Critic cost", MISSING if cost is None else f"{cost:,.2f}"),
            ("Wall time", seconds(_mean([number(run.get("seconds")) for run in arm.runs]))),
        ]
        out.append((arm, cells))
    return out


def phase_rows(results: Json) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Where the time of an arm's runs went, mean over seeds; what no phase claims is called "other"."""
    out = []
    for arm in trained(arms_of(results)):
        tables = [run.get("seconds_by_phase") or {} for run in arm.runs]
        names = list(dict.fromkeys(name for table in tables for name in table))
        parts = [(str(name), _mean([number(table.get(name)) for table in tables])) for name in names]
        total = _mean([number(run.get("seconds")) for run in arm.runs])
        rest = None if total is None else total - sum(value or 0.0 for _, value in parts)
        if rest is not None and rest > 0.05:
            parts.append(("other", rest))
        if parts:
            out.append((arm.label, parts))
    return out


def config_table(results: Json) -> tuple[list[str], list[tuple[Arm, list[str]]]]:
    """Keys in which any two arms differ, and each arm's value of them (missing: the shared configuration's)."""
    arms = trained(arms_of(results))
    keys = list(dict.fromkeys(key for arm in arms for key in arm.config_diff))
    rows = [
        (arm, [str(arm.config_diff[key]) if key in arm.config_diff else "as shared" for key in keys]) for arm in arms
    ]
    return keys, rows


LOCALISATION_LABELS = {
    "share_of_abs_signal_in_wrong_step": "Share of |A| in the first wrong step",
    "share_of_kl_in_wrong_step": "Share of KL in the first wrong step",
    "mean_log_ratio_right_tokens": "Mean A on right tokens",
    "mean_log_ratio_wrong_result": "Mean A on the wrong result",
    "mean_abs_log_ratio_right_tokens": "Mean |A| on right tokens",
    "share_of_right_tokens_suppressed": "Right tokens suppressed",
    "auroc_wrong_result": "AUROC, wrong result",
    "auroc_wrong_result_among_results": "AUROC, wrong result among results",
    "auroc_wrong_step": "AUROC, whole wrong step",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalisationRow:
    label: str
    description: str
    cells: tuple[Cell, ...]
    """One per context."""
    baseline: str


def localisation_rows(signal: Json) -> tuple[list[str], list[LocalisationRow]]:
    """Localisation numbers as a table: one row per number, one column per context."""
    labels = {
        str(context.get("name")): str(context.get("label") or context.get("name"))
        for context in _rows(signal, "contexts")
    }
    entries = _rows(signal, "localisation")
    columns = [labels.get(str(entry.get("context")), str(entry.get("context"))) for entry in entries]
    names = list(dict.fromkeys(str(item.get("name")) for entry in entries for item in _rows(entry, "numbers")))
    rows = []
    for name in names:
        items = [_find_by(_rows(entry, "numbers"), "name", name) for entry in entries]
        known = [item for item in items if item is not None]
        baselines = dict.fromkeys(
            _quantity(item.get("baseline"), name) for item in known if number(item.get("baseline")) is not None
        )
        rows.append(
            LocalisationRow(
                label=LOCALISATION_LABELS.get(name) or _sentence(name),
                description=next((str(item["description"]) for item in known if item.get("description")), ""),
                cells=tuple(_localisation_cell(item, entry, name) for item, entry in zip(items, entries, strict=True)),
                baseline=" / ".join(baselines) or MISSING,
            )
        )
    return columns, rows


def _localisation_cell(item: Json | None, entry: Json, name: str) -> Cell:
    if item is None or number(item.get("value")) is None:
        return Cell(text=MISSING, detail="undefined", missing=True)
    low, high = item.get("low"), item.get("high")
    interval = ""
    if number(low) is not None and number(high) is not None:
        interval = f"{_quantity(low, name)} to {_quantity(high, name)}"
    detail = f"{count(entry.get('num_rollouts'))} rollouts, {count(entry.get('num_wrong'))} of them wrong"
    if number(item.get("baseline")) is not None:
        detail += f"; baseline {_quantity(item.get('baseline'), name)}"
    return Cell(text=_quantity(item["value"], name), interval=interval, detail=detail)


def _quantity(value: Any, name: str) -> str:
    if re.search(r"share|fraction|agreement|probability", name):
        return percent(value)
    return signed(value, 3) if re.search(r"mean|sum|log_ratio", name) and "abs" not in name else decimal(value, 3)


def _sentence(name: str) -> str:
    words = name.replace("_", " ").strip()
    return re.sub(r"\bauroc\b", "AUROC", re.sub(r"\bkl\b", "KL", words[:1].upper() + words[1:], flags=re.I), flags=re.I)


def _points(value: Any, share: bool) -> float | None:
    """A difference in the unit it is drawn in: percentage points of a share, tokens otherwise."""
    plain = number(value)
    return None if plain is None else 100 * plain if share else plain


def _stranger(name: str) -> Arm:
    return Arm(name=name, label=name, condition="", colour=-1, about="")


def _seeds_text(seeds: Sequence[Any]) -> str:
    if not seeds:
        return "no seed"
    return f"seed{'s' * (len(seeds) > 1)} {listing([str(seed) for seed in seeds])}"


def _pooled_text(row: Json, results: Json) -> str:
    """Which seeds a pooled value covers: not all of them while a comparison is unfinished."""
    seeds, covered = results.get("seeds") or [], row.get("seeds")
    if isinstance(covered, int) and covered != len(seeds):
        return f"{covered} of {len(seeds)} seeds pooled" if seeds else f"{covered} seeds pooled"
    return _seeds_text(seeds) + (" pooled" if len(seeds) > 1 else "")


def _number_word(amount: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[amount] if amount < len(words) else str(amount)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _find(rows: Sequence[Json], metric: str) -> Json | None:
    return _find_by(rows, "metric", metric)


def _find_by(rows: Sequence[Json], key: str, value: str) -> Json | None:
    return next((row for row in rows if row.get(key) == value), None)


def _list(mapping: Json, key: str) -> list[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else []


def _rows(mapping: Json, key: str) -> list[Json]:
    return [row for row in _list(mapping, key) if isinstance(row, Mapping)]
