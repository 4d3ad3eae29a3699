"""The results for other programs and for papers: JSON, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepalign.report.results import Cell, results_tables
from stepalign.report.table import caption, results_markdown
from stepalign.report.template import write_page
from stepalign.report.text import finite, visible

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


def write_tables(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, .md, .tex and .csv into a folder: the same numbers four times."""
    texts = {
        "json": json.dumps(finite(results), indent=1) + "\n",
        "md": results_markdown(results),
        "tex": results_latex(results),
        "csv": results_csv(results),
    }
    paths = [folder / f"results.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_page(path, text)
    return paths


def results_latex(results: Mapping[str, Any]) -> str:
    r"""The main results table as a LaTeX table (\usepackage{booktabs}), intervals in brackets under the values."""
    table = results_tables(results)[0]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex(caption(table, results))}}}",
        r"  \label{tab:results}",
        rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \toprule",
        "    Arm & " + " & ".join(latex(name) for name, _ in table.columns) + r" \\",
        r"    \midrule",
    ]
    for row in table.rows:
        lines.append(f"    {latex(row.label)} & " + " & ".join(_value(cell) for cell in row.cells) + r" \\")
        if any(cell.interval for cell in row.cells):
            lines.append("    {} & " + " & ".join(_interval(cell) for cell in row.cells) + r" \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def latex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_TEX.get(sign, sign) for sign in visible(text).replace("\n", " "))


def _value(cell: Cell) -> str:
    return latex(cell.text + (f" {cell.unit}" if cell.unit else ""))


def _interval(cell: Cell) -> str:
    return rf"{{\scriptsize[{latex(cell.interval.replace(' to ', ', '))}]}}" if cell.interval else ""


COLUMNS = (
    "arm", "seed", "set", "metric", "k", "n", "checkpoint_rule", "step", "value", "low", "high", "numerator",
    "denominator", "problems", "seeds",
)  # fmt: skip


def results_csv(results: Mapping[str, Any]) -> str:
    """Every metric, one row each, unrounded; an empty field is undefined, an empty seed is all seeds pooled."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in results.get("metrics") or [] if isinstance(row, Mapping))
    return out.getvalue()
