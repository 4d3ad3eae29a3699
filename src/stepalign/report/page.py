"""The report, the token viewer and the lab: what stands on each page. ``report.template`` makes a file of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stepalign.errors import ConfigError
from stepalign.report import charts, costs, curves, localisation
from stepalign.report import results_schema as reading
from stepalign.report import summary_text as prose
from stepalign.report.drawing import drawn
from stepalign.report.payload import page_elements
from stepalign.report.provenance import example_prompts, provenance_rows
from stepalign.report.results import Difference, ResultsTable, differences, result_intervals, results_tables
from stepalign.report.template import package_version, render_page, write_page
from stepalign.report.text import MISSING, listing, megabytes, number, safe_json, seconds

FORMAT = 1


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``folder/results.json`` and, where there is one, ``folder/signal.json``.

    An unfinished comparison is shown as far as it goes, with what is missing named.

    Raises:
        ConfigError: when results.json is missing, or either file is not what docs/formats.md describes.
    """
    folder = Path(folder)
    results = read_json(folder / "results.json", hint="run `stepalign compare RECIPE --out DIR` first")
    signal_path = folder / "signal.json"
    signal = read_json(signal_path, hint="write it again with `stepalign signal`") if signal_path.exists() else None
    target = folder / "report.html"
    write_page(target, report_html(results, signal))
    return target


def write_run_report(results: Mapping[str, Any], folder: Path, *, examples: Path | None = None) -> Path:
    """Write ``folder/report.html`` of training runs (``report.runs.run_results``).

    Args:
        examples: a folder whose signal.json, where there is one, gives the token viewer.
    """
    signal_path = examples / "signal.json" if examples else None
    signal = read_json(signal_path, hint="write it again") if signal_path and signal_path.exists() else None
    target = Path(folder) / "report.html"
    write_page(target, report_html(results, signal))
    return target


def write_token_page(signal: Mapping[str, Any], path: Path) -> Path:
    """Write a page that holds the token viewer and the localisation table of one signal.json, nothing else."""
    path = Path(path)
    write_page(path, token_html(signal))
    return path


def report_html(results: Mapping[str, Any], signal: Mapping[str, Any] | None = None) -> str:
    """The whole report as one HTML text."""
    return render_page("report.html.j2", {**_report_values(results), **_signal_values(signal)})


def token_html(signal: Mapping[str, Any]) -> str:
    """The token viewer by itself as one HTML text."""
    values = {"provenance": provenance_rows(signal, package_version()), "example_prompts": example_prompts(signal)}
    return render_page("tokens.html.j2", {**_signal_values(signal), **values})


def lab_html(desk: Mapping[str, Any]) -> str:
    """The page of the lab: the desk, and a viewer that asks this page's own server for what it draws.

    Args:
        desk: what the desk starts with: ``model``, ``temperature``, ``designs``, ``examples``.
    """
    return render_page("lab.html.j2", {"desk": desk, "desk_data": Markup(safe_json(dict(desk)))}, parts=("lab.js",))


def read_json(path: Path, *, hint: str) -> dict[str, Any]:
    """A JSON object of a format we know, or a ConfigError that says what to do."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path.name} in this folder", where=str(path.parent), hint=hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error.strerror}", where=str(path), hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not valid JSON: {error}", where=str(path), hint=hint) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} should hold one JSON object", where=str(path), hint=hint)
    if data.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"{path.name} has format {data['format']!r}; this version reads format {FORMAT}",
            where=str(path),
            hint="use the stepalign version that wrote it, or write it again",
        )
    return data


def _report_values(results: Mapping[str, Any]) -> dict[str, Any]:
    arms = reading.arms_of(results)
    tables = results_tables(results)
    return {
        "results": results,
        "arms": reading.trained(arms),
        "level": reading.level_text(results),
        "headline": prose.headline(results),
        "sentences": prose.summary_sentences(results),
        "changes": prose.changes(results),
        "notes": prose.notes(results),
        "tables": tables,
        "forest": _forest(tables[0], results),
        "rules": reading.CHECKPOINT_RULES,
        "differences": _differences(results),
        "learning": _learning(results),
        "health": _health(results),
        "silent": listing(curves.silent_health(results)),
        "costs": costs.cost_rows(results),
        "phases": _phases(results),
        "configuration": costs.config_rows(results),
        "findings": costs.finding_rows(results),
        "warnings": prose.warnings_of(results),
        "timings": [(name, seconds(value)) for name, value in (results.get("timings") or {}).items()],
        "memory": megabytes(results.get("peak_memory_bytes")),
        "every_metric": _every_metric(results),
    }


def _signal_values(signal: Mapping[str, Any] | None) -> dict[str, Any]:
    if signal is None:
        return {"signal": None, "levels": Markup(), "localisation": ([], [])}
    scored = [number(entry.get("num_rollouts")) or 0 for entry in reading.rows_of(signal, "localisation")]
    index, rollouts = page_elements(signal)
    return {
        "signal": signal,
        "signal_index": Markup(index),
        "signal_rollouts": [Markup(text) for text in rollouts],
        "num_drawn": len(rollouts),
        "num_rollouts": max([*scored, len(rollouts)]),
        "localisation": localisation.localisation_rows(signal),
    }


PHONE_LINES = {"width": 354, "height": 260, "end_labels": False}


def _forest(table: ResultsTable, results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    return [
        (name, drawn(charts.interval_chart, rows, title=f"{name} of every arm with intervals", x_range=(0.0, 1.0)))
        for name, rows in result_intervals(table, results)
        if any(row.value is not None for row in rows)
    ]


def _differences(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Paired differences grouped by what they measure, each group with one interval chart."""
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for row in differences(results):
        groups.setdefault((row.metric, row.set, row.checkpoint_rule), []).append(row)
    return [
        {
            "metric": metric,
            "set": set_name,
            "checkpoint_rule": rule,
            "rows": rows,
            "chart": drawn(
                charts.interval_chart,
                [row.chart for row in rows],
                title=f"Paired differences in {metric} with intervals",
                as_percent=False,
                zero=True,
                wide={"width": 780},
                phone={"labels_above": True},
            ),
        }
        for (metric, set_name, rule), rows in groups.items()
    ]


def _learning(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for set_name, metric in curves.curve_names(results):
        by_steps = curves.curve_series(results, set_name, metric, "steps")
        by_rollouts = curves.curve_series(results, set_name, metric, "rollouts")
        share = reading.is_share(metric)
        common = curves.common_rollouts(by_rollouts)
        label = f"{reading.metric_label(metric)}, {set_name} problems"
        shared = {"y_label": label, "as_percent": share, "y_range": _from_zero(by_steps) if share else None}
        steps, rollouts, readings = curves.equal_budgets(results, set_name, metric)
        out.append(
            {
                "label": label,
                "metric": reading.metric_label(metric),
                "charts": [
                    drawn(
                        charts.line_chart,
                        by_steps,
                        title=f"{label}, over optimizer steps",
                        x_label="optimizer steps",
                        phone=PHONE_LINES,
                        **shared,
                    ),
                    drawn(
                        charts.line_chart,
                        by_rollouts,
                        title=f"{label}, over solver rollouts",
                        x_label="solver rollouts",
                        guide=(common, "equal rollouts") if common else None,
                        phone=PHONE_LINES,
                        **shared,
                    ),
                ],
                "steps": steps,
                "rollouts": rollouts,
                "readings": readings if share else [],
                "many_seeds": any(line.faint for line in by_steps),
                "close_up": drawn(
                    charts.line_chart,
                    curves.until(by_rollouts, common),
                    title=f"{label}, up to {common:,.0f} solver rollouts",
                    x_label="solver rollouts",
                    phone=PHONE_LINES,
                    **shared,
                )
                if common
                else None,
            }
        )
    return out


def _from_zero(series: list[charts.Series]) -> tuple[float, float]:
    """An axis of shares: from 0, to 100 % unless all curves stay in the lower half."""
    values = [value for line in series for value in (*line.y, *line.high) if value is not None]
    top = max(values, default=1.0)
    return (0.0, 1.0) if top > 0.5 or top <= 0 else (0.0, top)


def _health(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    out, silent = [], curves.silent_health(results)
    for key, (name, about, share) in curves.HEALTH.items():
        series = curves.health_series(results, key)
        if series and name.lower() not in silent:
            chart = charts.line_chart(
                series,
                title=f"{name} over optimizer steps",
                x_label="optimizer steps",
                y_label="",
                as_percent=share,
                y_range=(0.0, 1.0) if share else None,
                width=380,
                height=210,
                end_labels=False,
            )
            out.append({"name": name, "about": about, "chart": Markup(chart)})
    return out


def _phases(results: Mapping[str, Any]) -> Markup | None:
    rows = costs.phase_rows(results)
    title = "Seconds by phase, mean over the runs of an arm"
    return drawn(charts.stacked_bars, rows, title=title, phone={"width": 354}) if rows else None


def _every_metric(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    labels = {arm.name: arm.label for arm in reading.arms_of(results)}
    rows = results.get("metrics")
    return [
        {
            "arm": labels.get(str(row.get("arm")), str(row.get("arm"))),
            "seed": "all" if row.get("seed") is None else row["seed"],
            "set": row.get("set", MISSING),
            "metric": row.get("metric", MISSING),
            "k": MISSING if row.get("k") is None else row["k"],
            "n": MISSING if row.get("n") is None else row["n"],
            "rule": str(row.get("checkpoint_rule", MISSING)).replace("_", " "),
            "step": MISSING if row.get("step") is None else row["step"],
            "value": row,
            "share": reading.is_share(str(row.get("metric"))),
            "problems": MISSING if row.get("problems") is None else row["problems"],
        }
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping)
    ]
