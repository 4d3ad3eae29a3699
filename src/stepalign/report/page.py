"""The contents of the report, the token viewer and the lab; ``report.template`` makes a file of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

import stepalign
from stepalign.report import charts, costs, curves, localisation, summary_text
from stepalign.report.drawing import drawn
from stepalign.report.over_training import curve_charts
from stepalign.report.payload import page_elements
from stepalign.report.provenance import example_prompts, provenance_rows
from stepalign.report.results import ResultsTable, differences, result_intervals, results_tables
from stepalign.report.results_schema import CHECKPOINT_RULES, Results, is_share, metric_label, read_results
from stepalign.report.template import render_page
from stepalign.report.text import listing, megabytes, safe_json, seconds
from stepalign.storage.files import read_json, write_atomically


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``folder/results.json`` and, where there is one, ``folder/signal.json``.

    An unfinished comparison is shown as far as it goes, and its missing parts are named.

    Raises:
        ConfigError: when results.json is missing, or either file is not what docs/formats.md describes.
    """
    results = read_json(folder / "results.json", hint="run `stepalign compare RECIPE --out DIR` first")
    return write_run_report(results, folder, examples=folder)


def write_run_report(results: Mapping[str, Any], folder: Path, *, examples: Path | None = None) -> Path:
    """Write ``folder/report.html`` of training runs (``verbs.report.run_results``).

    Args:
        examples: a folder whose signal.json, where there is one, gives the token viewer.
    """
    signal = None
    if examples and (file := examples / "signal.json").exists():
        signal = read_json(file, hint="write it again with `stepalign signal`")
    target = folder / "report.html"
    write_atomically(target, report_html(results, signal))
    return target


def write_token_page(signal: Mapping[str, Any], path: Path) -> Path:
    """Write a page that holds the token viewer and the localisation table of one signal.json, nothing else."""
    write_atomically(path, token_html(signal))
    return path


def report_html(results: Mapping[str, Any], signal: Mapping[str, Any] | None = None) -> str:
    """The whole report as one HTML text."""
    return render_page("report.html.j2", {**_report_values(read_results(results)), **signal_values(signal)})


def token_html(signal: Mapping[str, Any]) -> str:
    """The token viewer by itself as one HTML text."""
    values = {"provenance": provenance_rows(signal, stepalign.__version__), "example_prompts": example_prompts(signal)}
    return render_page("tokens.html.j2", {**signal_values(signal), **values})


def frame_html(signal: Mapping[str, Any]) -> str:
    """The viewer of one rollout alone, for a frame inside another page."""
    return render_page("frame.html.j2", signal_values(signal))


def lab_html(beginning: Mapping[str, Any]) -> str:
    """The page of the lab: a form, and a viewer that asks this page's own server for what it draws.

    Args:
        beginning: what the form starts with: ``model``, ``temperature``, ``designs``, ``examples``.
    """
    values = {"beginning": beginning, "beginning_data": Markup(safe_json(dict(beginning)))}
    return render_page("lab.html.j2", values, parts=("lab.js",))


def _report_values(results: Results) -> dict[str, Any]:
    tables = results_tables(results)
    health, silent = curves.health_series(results)
    phases = costs.phase_rows(results)
    return {
        "results": results,
        "headline": summary_text.headline(results),
        "sentences": summary_text.summary_sentences(results),
        "changes": summary_text.changes(results),
        "notes": summary_text.notes(results),
        "tables": tables,
        "forest": _forest(tables[0], results),
        "rules": CHECKPOINT_RULES,
        "differences": _differences(results),
        "learning": [_learning(results, set_name, metric) for set_name, metric in curves.curve_names(results)],
        "health": [_health(key, series) for key, series in health.items()],
        "silent": listing(silent),
        "costs": costs.cost_rows(results),
        "phases": drawn(
            charts.stacked_bars, phases, title="Seconds by phase, mean over the runs of an arm", phone={"width": 354}
        )
        if phases
        else None,
        "strips": drawn(charts.time_strips, strips, title="Share of the phases over the run", phone={"width": 354})
        if (strips := costs.strip_rows(results))
        else None,
        "configuration": costs.config_rows(results),
        "findings": costs.finding_rows(results),
        "warnings": summary_text.warnings_of(results),
        "timings": [(name, seconds(value)) for name, value in results.timings.items()],
        "memory": megabytes(results.peak_memory_bytes),
    }


def signal_values(signal: Mapping[str, Any] | None) -> dict[str, Any]:
    if signal is None:
        return {"signal": None, "levels": Markup(), "localisation": ([], [])}
    index, rollouts, first = page_elements(signal)
    numbered, counted = list(enumerate(map(Markup, rollouts))), [signal, *signal.get("localisation", ())]
    return {
        "signal": signal,
        "signal_index": Markup(index),
        "signal_first": numbered[first : first + 1],
        "signal_rest": numbered[:first] + numbered[first + 1 :],
        "num_drawn": len(rollouts),
        "num_rollouts": max(len(rollouts), *(row.get("num_rollouts", 0) for row in counted)),
        "localisation": localisation.localisation_rows(signal),
        "over_training": curve_charts(signal.get("over_training", ())),
    }


def _forest(table: ResultsTable, results: Results) -> list[tuple[str, Markup]]:
    return [
        (name, drawn(charts.interval_chart, rows, title=f"{name} of every arm with intervals", x_range=(0.0, 1.0)))
        for name, rows in result_intervals(table, results)
        if any(row.value is not None for row in rows)
    ]


def _differences(results: Results) -> list[dict[str, Any]]:
    """Paired differences grouped by what they measure, each group with one interval chart."""
    return [
        {
            "metric": metric,
            "set": set_name,
            "checkpoint_rule": rule,
            "rows": rows,
            "chart": drawn(
                charts.interval_chart,
                [row["chart"] for row in rows],
                title=f"Paired differences in {metric} with intervals",
                as_percent=False,
                zero=True,
                wide={"width": 780},
                phone={"labels_above": True},
            ),
        }
        for (metric, set_name, rule), rows in differences(results).items()
    ]


def _learning(results: Results, set_name: str, metric: str) -> dict[str, Any]:
    """One held-out metric over steps, over rollouts, and over the rollouts that every arm reached."""
    by_steps, by_rollouts = (curves.curve_series(results, set_name, metric, axis) for axis in ("step", "rollouts"))
    common = curves.common_rollouts(by_rollouts)
    share = is_share(metric)
    label = f"{metric_label(metric)}, {set_name} problems"
    y_range = _from_zero(by_steps) if share else None

    def chart(series: list[charts.Series], title: str, x_label: str, guide: tuple[float, str] | None = None) -> Markup:
        return drawn(
            charts.line_chart,
            series,
            title=f"{label}, {title}",
            x_label=x_label,
            y_label=label,
            as_percent=share,
            y_range=y_range,
            guide=guide,
            phone={"width": 354, "height": 260, "end_labels": False},
        )

    steps, rollouts, readings = curves.equal_budgets(results, set_name, metric)
    guide = (common, "equal rollouts") if common else None
    return {
        "label": label,
        "charts": [
            chart(by_steps, "over optimizer steps", "optimizer steps"),
            chart(by_rollouts, "over solver rollouts", "solver rollouts", guide),
        ],
        "steps": steps,
        "rollouts": rollouts,
        "readings": readings if share else [],
        "many_seeds": any(line.faint for line in by_steps),
        "close_up": chart(curves.until(by_rollouts, common), f"up to {common:,.0f} solver rollouts", "solver rollouts")
        if common
        else None,
    }


def _from_zero(series: list[charts.Series]) -> tuple[float, float]:
    """An axis of shares: from 0, to 100 % unless all curves stay in the lower half."""
    values = [value for line in series for value in (*line.y, *line.high) if value is not None]
    top = max(values, default=1.0)
    return (0.0, 1.0) if top > 0.5 or top <= 0 else (0.0, top)


def _health(key: str, series: list[charts.Series]) -> dict[str, Any]:
    name, about, share = curves.HEALTH[key]
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
    return {"name": name, "about": about, "chart": Markup(chart)}
