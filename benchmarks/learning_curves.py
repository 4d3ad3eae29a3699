"""Accuracy on validation problems while training, of comparisons side by side, over rollouts and optimizer steps.

    python benchmarks/learning_curves.py runs/study-15 runs/study-30 --figure docs/images/study.png [--arms NAME ...]

A panel for each comparison, a line for each arm: the mean of its seeds, with a band of one standard error of them. All
arms of a panel take as many rollouts a step: both axes belong to each line.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


def curves_of(results: dict[str, Any], arm: str) -> tuple[list[int], list[int], np.ndarray]:
    """Steps, rollouts, and [S, T] accuracies in per cent of the seeds that have all points."""
    metric = f"avg@{results['num_samples']}"
    found = [
        curve["points"]
        for curve in results["curves"]
        if (curve["arm"], curve["set"], curve["metric"]) == (arm, "validation", metric)
    ]
    longest = max(map(len, found))
    whole = [points for points in found if len(points) == longest]
    values = np.array([[100 * point["value"] for point in points] for points in whole])
    return [p["step"] for p in whole[0]], [p["rollouts"] for p in whole[0]], values


def apart(heights: list[float], distance: float) -> list[float]:
    """Places for labels near these heights, in their order, none closer than a distance: the mean of those pushed up
    and those pushed down."""
    order = np.argsort(heights)
    up, down = np.array(heights, float), np.array(heights, float)
    for below, above in pairwise(order):
        up[above] = max(up[above], up[below] + distance)
    for above, below in pairwise(order[::-1]):
        down[below] = min(down[below], down[above] - distance)
    return ((up + down) / 2).tolist()


def draw(axes: Any, folder: Path, wanted: list[str]) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    arms = {arm["name"]: arm["label"] for arm in results["arms"] if arm["runs"]}
    curves = {name: curves_of(results, name) for name in arms if name in (wanted or arms)}
    axis = {(*steps, *rollouts) for steps, rollouts, _ in curves.values()}
    if len(axis) > 1:
        sys.exit(f"{folder}: arms differ in rollouts a step; --arms names those of one kind")
    steps, rollouts, _ = next(iter(curves.values()))
    for index, (_, _, values) in enumerate(curves.values()):
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
        axes.plot(rollouts, mean, marker="o", markersize=3, linewidth=1.4, color=f"C{index}")
        axes.fill_between(rollouts, mean - error, mean + error, alpha=0.15, color=f"C{index}", linewidth=0)
    low, high = axes.get_ylim()
    places = apart([values[:, -1].mean() for _, _, values in curves.values()], 0.048 * (high - low))
    for index, (name, place) in enumerate(zip(curves, places, strict=True)):
        axes.text(rollouts[-1] * 1.03, place, arms[name], va="center", fontsize=8.5, color=f"C{index}")
    axes.set_xlim(0, rollouts[-1] * 1.6)
    axes.set_ylim(min(low, min(places) - 0.03 * (high - low)), high)
    axes.set_xticks(rollouts)
    axes.set_xlabel("rollouts", fontsize=8)
    top = axes.secondary_xaxis("top")
    top.set_xticks(rollouts, [str(step) for step in steps])
    top.set_xlabel("optimizer steps", fontsize=8)
    axes.set_title(folder.name, fontsize=10)
    axes.spines[["right"]].set_visible(False)


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=[])
    arguments = parser.parse_args()
    figure = Figure(figsize=(6.6, 3.5 * len(arguments.folders)), layout="constrained")
    panels = figure.subplots(len(arguments.folders), 1, squeeze=False)[:, 0]
    for folder, axes in zip(arguments.folders, panels, strict=True):
        draw(axes, folder, arguments.arms)
    figure.supylabel("Avg on validation problems, %", fontsize=9)
    figure.savefig(arguments.figure, dpi=130)


if __name__ == "__main__":
    main()
