"""The results as tables for the terminal, for papers and for other programs: the page's numbers, with the same text."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stepalign.report.results import Cell, ResultsTable, results_tables
from stepalign.report.results_schema import CHECKPOINT_RULES, Json, Results, metric_family, read_results
from stepalign.report.summary_text import notes
from stepalign.report.text import finite, visible
from stepalign.storage.files import write_atomically

_COLOURS = ("cyan", "yellow", "magenta", "red", "green", "blue", "white", "bright_black")
_NARROW = ("pass", "maj", "avg", "mean_length", "rollouts", "seconds")
"""Columns that fit into 80 characters and answer the first questions; the page and the other tables have them all."""
_CSV_COLUMNS = (
    "arm", "seed", "set", "metric", "k", "n", "checkpoint_rule", "step", "value", "low", "high", "numerator",
    "denominator", "problems", "seeds",
)  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",  # the next three are other signs in LaTeX's default font encoding
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "’": "'",
}
_TEX |= {sign: "\\" + sign for sign in "&%$#_{}"}


def write_tables(results: Json, folder: Path) -> list[Path]:
    """Write results.json, .md, .tex and .csv into a folder: the same numbers four times."""
    texts = {
        "json": json.dumps(finite(results), indent=1) + "\n",
        "md": results_markdown(results),
        "tex": results_latex(results),
        "csv": results_csv(results),
    }
    paths = [folder / f"results.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths


def results_table(results: Json) -> Group:
    """The main results table for a terminal of 80 columns, with checkpoint rule and caveats under it."""
    read, table = _main_table(results)
    out = Table(
        title=Text(caption(table, read)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="dim",
    )
    shown = [name for name in table.columns if metric_family(name) in _NARROW]
    out.add_column("Arm", min_width=14)
    for name in shown:
        out.add_column(visible(table.columns[name][0]), justify="right", no_wrap=True)
    for row in table.rows:
        style = "dim" if row.arm.colour < 0 else _COLOURS[row.arm.colour % len(_COLOURS)]
        cells = [_rich_cell(row.cells[name]) for name in shown]
        out.add_row(Text(visible(row.label), style=f"bold {style}"), *cells)
    return Group(out, *(Text("  " + visible(note), style="dim") for note in _footnotes(read)))


def results_markdown(results: Json) -> str:
    """The main results table as GitHub-flavoured Markdown, with numerators and denominators spelled out below it."""
    read, table = _main_table(results)
    lines = [
        f"**{_markdown(caption(table, read))}**",
        "",
        "| Arm | " + " | ".join(_markdown(heading) for heading, _ in table.columns.values()) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    for row in table.rows:
        cells = [_value(cell) + (f" ({cell.interval})" if cell.interval else "") for cell in row.cells.values()]
        lines.append(f"| {_markdown(row.label)} | " + " | ".join(map(_markdown, cells)) + " |")
    lines += ["", "Numerators and denominators:", ""]
    for row in table.rows:
        details = [f"{table.columns[name][0]} {c.detail}" for name, c in row.cells.items() if not c.missing]
        lines.append(f"- {_markdown(row.label)}: {_markdown('. '.join(details) or 'not measured yet')}.")
    lines += ["", *(f"> {_markdown(note)}\n>" for note in _footnotes(read))]
    return "\n".join(lines).rstrip(">\n") + "\n"


def results_latex(results: Json) -> str:
    r"""The main results table as a LaTeX table, intervals in brackets under the values, no wider than the line.

    Needs ``\usepackage{booktabs, graphicx}``.
    """
    read, table = _main_table(results)
    lines = [
        r"% \usepackage{booktabs, graphicx}",
        r"\begin{table}",
        r"  \centering",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{3pt}",
        rf"  \caption{{{latex(caption(table, read))}}}",
        r"  \label{tab:results}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \toprule",
        "    Arm & " + " & ".join(latex(heading) for heading, _ in table.columns.values()) + r" \\",
        r"    \midrule",
    ]
    for row in table.rows:
        intervals = [cell.interval.replace(" to ", ", ") for cell in row.cells.values()]
        lines.append(f"    {latex(row.label)} & " + " & ".join(latex(_value(c)) for c in row.cells.values()) + r" \\")
        if any(intervals):
            small = [rf"{{\scriptsize[{latex(interval)}]}}" if interval else "" for interval in intervals]
            lines.append("    {} & " + " & ".join(small) + r" \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}}", r"\end{table}"]) + "\n"


def results_csv(results: Json) -> str:
    """Every metric, one row each, unrounded; an empty field is undefined, an empty seed is all seeds pooled."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results.get("metrics") or [])
    return out.getvalue()


def caption(table: ResultsTable, results: Results) -> str:
    """Problems, n, level and checkpoint rule of a results table in one line."""
    problems = results.problems.get(table.set)
    size = f"{problems} {table.set} problems" if problems is not None else f"{table.set} problems"
    n = f", n = {results.num_samples}" if results.num_samples is not None else ""
    rule = CHECKPOINT_RULES.get(table.checkpoint_rule, table.checkpoint_rule)
    return visible(f"{size}{n}, {results.level} intervals; checkpoint: {rule}")


def latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_TEX.get(sign, sign) for sign in visible(text).replace("\n", " "))


def _main_table(results: Json) -> tuple[Results, ResultsTable]:
    read = read_results(results)
    return read, results_tables(read)[0]


def _footnotes(results: Results) -> list[str]:
    seeds = ", ".join(map(str, results.seeds))
    return [f"Seeds: {seeds}; costs are means over runs." if seeds else "No seed has run yet.", *notes(results)]


def _value(cell: Cell) -> str:
    return f"{cell.text} {cell.unit}" if cell.unit else cell.text


def _rich_cell(cell: Cell) -> Text:
    text = Text(visible(_value(cell)), style="dim" if cell.missing else "")
    if cell.interval:
        text.append("\n" + cell.interval.replace(" to ", "–"), style="dim")
    return text


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: no table borders, links, emphasis or HTML."""
    out = visible(text).replace("\\", "\\\\").replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "|*_`[]":
        out = out.replace(sign, "\\" + sign)
    return out
