"""The funnel of a selection: a table for the terminal and one small page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from stepalign.report import charts
from stepalign.report.drawing import drawn
from stepalign.report.template import render_page
from stepalign.report.text import visible
from stepalign.storage.files import write_atomically


def funnel_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per gate: how many met it, fell, were unknown, are left."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("Gate")
    for name in ("before", "fell", "unknown", "left"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("before", "fell", "unknown", "kept"))
        table.add_row(Text(visible(row["label"])), *counts)
        for reason, count in row.get("reasons", {}).items():
            table.add_row(Text(f"  {visible(reason)}", style="dim"), "", Text(f"{count:,}", style="dim"), "", "")
    return table


def write_funnel(manifest: Mapping[str, Any], path: Path) -> Path:
    """The page of a selection: the funnel as bars and as a table, and what was measured with which model."""
    rows = manifest["funnel"]
    bars = drawn(
        charts.stacked_bars,
        [(row["label"], [("left", row["kept"]), ("fell", row["fell"]), ("unknown", row["unknown"])]) for row in rows],
        title="How many problems each gate lets through",
        unit="",
        wide={"width": 860},
        phone={"width": 354},
    )
    write_atomically(path, render_page("funnel.html.j2", {"manifest": manifest, "bars": bars}))
    return path
