"""Does the place of the signal before training predict the gain after it? Over the arms of comparison folders.

    python benchmarks/localisation_and_gain.py runs/study [runs/study-2 ...] [--figure FILE.svg]

A folder needs results.json and signal.json: ``stepalign compare`` writes both, ``stepalign report`` the first again
for the runs that are finished. Arms that change more than the context are left out (``token_signal.foresight``).
The folder of ``benchmarks/preflight.py`` is read too: its arms, and the looks at them before training, on several
solvers; an arm with a faulty critic has the signal of that critic.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paired import accuracy
from stepalign.evaluation.statistics import RankCorrelation, paired_difference
from stepalign.token_signal.foresight import TrainedContext, foresight, trained_contexts
from stepalign.token_signal.localisation import LABELS

DRAWN = "auroc_wrong_result"


def read(folder: Path) -> list[TrainedContext]:
    files = [folder / name for name in ("results.json", "signal.json")]
    if missing := [file.name for file in files if not file.is_file()]:
        sys.exit(f"{folder} holds no {' and no '.join(missing)}: stepalign compare writes both")
    results, signal = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return trained_contexts(results, signal, folder.name)


def read_preflight(folder: Path) -> dict[str, list[TrainedContext]]:
    """By base solver, from arms/BASE/ARM and verdicts/BASE/LOOK/signal.json."""
    groups: dict[str, list[TrainedContext]] = {}
    for file in sorted(folder.glob("verdicts/*/*/signal.json")):
        base, look = file.parts[-3:-1]
        for entry in json.loads(file.read_text(encoding="utf-8"))["localisation"]:
            arm = entry["context"] if look in ("plain", "siblings") else look
            run, start = (folder / "arms" / base / name for name in (arm, "untrained"))
            if (look not in ("plain", "siblings") and entry["context"] != "step_aligned") or not all(
                (place / "summary.json").exists() for place in (run, start)
            ):
                continue
            newest = [max((place / "samples").glob("step-*-test.jsonl")) for place in (run, start)]
            gain = paired_difference(*([*accuracy(file).values()] for file in newest), share=True)
            numbers = {n["name"]: math.nan if n["value"] is None else n["value"] for n in entry["numbers"]}
            names = {
                "comparison": base,
                "context": entry["context"],
                "label": arm.replace("_", " "),
                "numbers": numbers,
            }
            interval = {"gain": gain.difference, "low": gain.low, "high": gain.high, "seeds": 1}
            groups.setdefault(base, []).append(TrainedContext(**names, **interval))
    return groups


def correlation(found: RankCorrelation) -> str:
    if math.isnan(found.value):
        return "-"
    interval = "" if math.isnan(found.low) else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.value:+.2f}{interval}"


def points_table(points: Sequence[TrainedContext]) -> str:
    head = f"| solver | context | seeds | {LABELS[DRAWN]} | Mean A on the wrong result | gain in Avg, points |"
    lines = [head, "|" + " --- |" * 6]
    for point in sorted(points, key=lambda point: -point.gain):
        shown = [point.numbers.get(name, math.nan) for name in (DRAWN, "mean_log_ratio_wrong_result")]
        gain = f"{100 * point.gain:+.1f} [{100 * point.low:+.1f}, {100 * point.high:+.1f}]"
        cells = [point.comparison, point.label, str(point.seeds), f"{shown[0]:.2f}", f"{shown[1]:+.2f}", gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def correlations_table(points: Sequence[TrainedContext]) -> str:
    lines = ["| number before training | arms | rank correlation with the gain | p |", "| --- | --- | --- | --- |"]
    found = {name: value for name, value in foresight(points).items() if not math.isnan(value.value)}
    for name, value in sorted(found.items(), key=lambda item: -abs(item[1].value)):
        label = LABELS[name].replace("|", r"\|")
        lines.append(f"| {label} | {value.num_pairs} | {correlation(value)} | {value.p_value:.4f} |")
    return "\n".join(lines)


def draw(points: Sequence[TrainedContext], path: Path) -> None:
    """A panel for each solver. Of many arms those have names that surely gain, or lie far from chance."""
    from matplotlib.figure import Figure

    solvers = list(dict.fromkeys(p.comparison for p in points))
    columns = min(2, len(solvers))
    rows = math.ceil(len(solvers) / columns)
    settings: dict[str, Any] = {"figsize": (1 + 5.0 * columns, 0.4 + 3.6 * rows), "layout": "constrained"}
    figure = Figure(**settings)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for comparison, axes in zip(solvers, panels.flat, strict=False):
        own = [p for p in points if p.comparison == comparison and not math.isnan(p.numbers.get(DRAWN, math.nan))]
        x, y = [p.numbers[DRAWN] for p in own], [100 * p.gain for p in own]
        errors = [[100 * (p.gain - p.low) for p in own], [100 * (p.high - p.gain) for p in own]]
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.errorbar(x, y, yerr=errors, fmt="o", markersize=4, elinewidth=0.8, capsize=2, alpha=0.8)
        for point, at in zip(own, zip(x, y, strict=True), strict=True):
            if len(own) <= 12 or point.low > 0 or abs(at[0] - 0.5) > 0.25:
                side: dict[str, Any] = {"ha": "right", "xytext": (-5, 4)} if at[0] > 0.6 else {"xytext": (5, 4)}
                axes.annotate(point.label, at, textcoords="offset points", fontsize=7, **side)
        axes.set_title(comparison, fontsize=9)
    for axes in panels.flat[len(solvers) :]:
        axes.set_visible(False)
    figure.supxlabel(f"{LABELS[DRAWN]}, untrained solver (0.5 is chance)", fontsize=9)
    figure.supylabel("gain in Avg after training, points", fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    groups: dict[str, list[TrainedContext]] = {}
    for folder in arguments.folders:
        groups |= read_preflight(folder) if (folder / "verdicts").is_dir() else {folder.name: read(folder)}
    points = [point for group in groups.values() for point in group]
    print(points_table(points))
    for name, group in groups.items():
        print(f"\n{name}\n\n{correlations_table(group)}")
    if len(groups) > 1:
        print(f"\nall\n\n{correlations_table(points)}")
    if arguments.figure:
        draw(points, arguments.figure)


if __name__ == "__main__":
    main()
