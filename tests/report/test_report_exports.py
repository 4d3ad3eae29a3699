"""The exported tables hold the numbers of results.json, and LaTeX takes whatever an arm is called."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures

from stepalign.report.table import latex, results_csv, results_latex, write_tables


def test_csv_holds_every_metric_unrounded() -> None:
    results = fixtures.make_results()
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert len(rows) == len(results["metrics"])
    for row, metric in zip(rows, results["metrics"], strict=True):
        for key in ("value", "low", "high", "numerator"):
            assert (float(row[key]) if row[key] else None) == metric[key]
        assert row["seed"] == ("" if metric["seed"] is None else str(metric["seed"]))
        assert (row["arm"], row["metric"], row["checkpoint_rule"]) == tuple(
            metric[key] for key in ("arm", "metric", "checkpoint_rule")
        )


def test_latex_has_a_row_of_values_and_one_of_intervals_per_arm() -> None:
    results = fixtures.make_results()
    text = results_latex(results)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line.strip().removesuffix(r" \\").split(" & ") for line in body.strip().splitlines()]
    columns = re.search(r"\\begin\{tabular\}\{l(r+)\}", text)
    assert columns is not None
    assert {len(row) for row in rows} == {len(columns.group(1)) + 1}
    pooled = {m["arm"]: m for m in results["metrics"] if m["metric"] == "avg@12" and m["seed"] is None}
    heads = text.split(r"\toprule")[1].split(r"\midrule")[0].strip().removesuffix(r" \\").split(" & ")
    at = heads.index("Avg@12")
    labels = {arm["label"]: arm["name"] for arm in results["arms"]} | {"Untrained solver": "base"}
    seen = 0
    for values, intervals in zip(rows[::2], rows[1::2], strict=True):
        metric = pooled[labels[values[0]]]
        assert values[at] == rf"{100 * metric['value']:.1f} \%"
        assert f"[{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]" in intervals[at]
        seen += 1
    assert seen == len(labels)
    assert "checkpoint: the last checkpoint of every run" in text


def test_latex_sets_the_table_within_the_line_whatever_an_arm_is_called(tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("no pdflatex on this machine")
    results = fixtures.make_results()
    results["arms"][0]["label"] = r"\input{x} 100% & $x_1$ #~^{} <|> – − ’"
    (tmp_path / "results.tex").write_text(results_latex(results), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs, graphicx}\begin{document}\input{results}\end{document}"
    )
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    assert "Missing character" not in (tmp_path / "paper.log").read_text(errors="replace")


def test_hostile_labels_stay_text() -> None:
    hostile = r"\input{/etc/passwd} 100% & $x_1$ #~^{}"
    assert not re.search(r"(?<!\\)[%&$#_]", latex(hostile).replace("$-$", ""))
    assert r"\input" not in latex(hostile)
    results = fixtures.make_results()
    results["arms"][0]["label"] = hostile
    assert r"\input{" not in results_latex(results)


def test_all_four_files_are_written(tmp_path: Path) -> None:
    results: dict[str, Any] = fixtures.make_results()
    paths = write_tables(results, tmp_path)
    assert [path.name for path in paths] == ["results.json", "results.md", "results.tex", "results.csv"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["arms"] == results["arms"]
