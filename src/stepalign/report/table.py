"""The results as a table for the terminal and for Markdown: the page's numbers, with the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stepalign.report.results import Cell, ResultsTable, results_tables
from stepalign.report.results_schema import CHECKPOINT_RULES, level_text
from stepalign.report.summary_text import notes
from stepalign.report.text import visible

_COLOURS = ("cyan", "yellow", "magenta", "red", "green", "blue", "white", "bright_black")


# What fits into 80 columns and answers the first questions; the page and the Markdown table hold the rest.
_FIRST_WORDS = ("pass@", "maj@", "avg@", "mean length", "length", "rollouts", "train s")


def results_table(results: Mapping[str, Any]) -> Group:
    """The main results table for a terminal of 80 columns, with checkpoint rule and caveats under it."""
    table = results_tables(results)[0]
    shown = [i for i, (name, _) in enumerate(table.columns) if name.lower().startswith(_FIRST_WORDS)]
    out = Table(
        title=Text(caption(table, results)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="dim",
    )
    out.add_column("Arm", min_width=14)
    for index in shown:
        out.add_column(visible(table.columns[index][0]), justify="right", no_wrap=True)
    for row in table.rows:
        style = "dim" if row.arm.colour < 0 else _COLOURS[row.arm.colour % len(_COLOURS)]
        cells = [_rich_cell(row.cells[index]) for index in shown]
        out.add_row(Text(visible(row.label), style=f"bold {style}"), *cells)
    return Group(out, *(Text("  " + visible(note), style="dim") for note in _footnotes(table, results)))


def results_markdown(results: Mapping[str, Any]) -> str:
    """The main results table as GitHub-flavoured Markdown, with numerators and denominators spelled out below it."""
    table = results_tables(results)[0]
    lines = [
        f"**{_escape(caption(table, results))}**",
        "",
        "| Arm | " + " | ".join(_escape(name) for name, _ in table.columns) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    lines += [
        f"| {_escape(row.label)} | " + " | ".join(_markdown_cell(cell) for cell in row.cells) + " |"
        for row in table.rows
    ]
    lines += ["", "Numerators and denominators:", ""]
    for row in table.rows:
        details = [
            f"{name} {cell.detail}"
            for (name, _), cell in zip(table.columns, row.cells, strict=True)
            if not cell.missing
        ]
        lines.append(f"- {_escape(row.label)}: {_escape('. '.join(details) or 'not measured yet')}.")
    lines += ["", *(f"> {_escape(note)}\n>" for note in _footnotes(table, results))]
    return "\n".join(lines).rstrip(">\n") + "\n"


def caption(table: ResultsTable, results: Mapping[str, Any]) -> str:
    """Problems, n, level and checkpoint rule of a results table in one line."""
    rule = CHECKPOINT_RULES.get(table.checkpoint_rule, table.checkpoint_rule)
    problems = (results.get("problems") or {}).get(table.set)
    size = f"{problems} {table.set} problems" if problems is not None else f"{table.set} problems"
    n = f", n = {results['num_samples']}" if results.get("num_samples") is not None else ""
    return visible(f"{size}{n}, {level_text(results)} intervals; checkpoint: {rule}")


def _footnotes(table: ResultsTable, results: Mapping[str, Any]) -> list[str]:
    seeds = results.get("seeds") or []
    text = f"Seeds: {', '.join(map(str, seeds))}; costs are means over runs." if seeds else "No seed has run yet."
    return [text, *notes(results)]


def _rich_cell(cell: Cell) -> Text:
    text = Text(visible(cell.text + (f" {cell.unit}" if cell.unit else "")), style="dim" if cell.missing else "")
    if cell.interval:
        text.append("\n" + cell.interval.replace(" to ", "–"), style="dim")
    return text


def _markdown_cell(cell: Cell) -> str:
    text = cell.text + (f" {cell.unit}" if cell.unit else "")
    return _escape(text + (f" ({cell.interval})" if cell.interval else ""))


def _escape(text: str) -> str:
    """Text that Markdown shows as it stands: no table borders, links, emphasis or HTML."""
    out = visible(text).replace("\\", "\\\\").replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "|*_`[]":
        out = out.replace(sign, "\\" + sign)
    return out
