"""The tables of docs/results/arithmetic.md from comparison folders.

python benchmarks/results_tables.py runs/arithmetic-5-seeds
python benchmarks/results_tables.py runs/ablations
python benchmarks/results_tables.py --beside runs/study-15 runs/study-30 runs/study-60    # docs/results/study.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RULES = {"last": "last step", "best_on_validation": "best on validation", "best_per_metric_on_test": "best on test"}


def percent(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main_table(results: dict[str, Any], n: int) -> str:
    found = {
        (row["arm"], row["metric"]): row
        for row in results["metrics"]
        if row["seed"] is None and row["checkpoint_rule"] == "last"
    }
    seeds = {
        (row["arm"], row["seed"]): 100 * row["value"]
        for row in results["metrics"]
        if row["seed"] is not None and row["checkpoint_rule"] == "last" and row["metric"] == f"avg@{n}"
    }
    rows = [["untrained solver", "0", *(percent(found.get(("base", f"{m}@{n}"))) for m in ("avg", "maj", "pass")), ""]]
    for arm in results["arms"]:
        values = [percent(found.get((arm["name"], f"{m}@{n}"))) for m in ("avg", "maj", "pass")]
        each = " ".join(f"{seeds[arm['name'], run['seed']]:.1f}" for run in arm["runs"])
        rollouts = arm["runs"][0]["rollouts"] if arm["runs"] else 0
        rows.append([arm["label"], f"{rollouts:,}", *values, each])
    return table(["arm", "rollouts", f"Avg@{n}", f"Maj@{n}", f"Pass@{n}", f"Avg@{n} of each seed"], rows)


def rules_table(results: dict[str, Any], n: int) -> str:
    rows = []
    for arm in results["arms"]:
        cells = [arm["label"]]
        for metric in (f"avg@{n}", f"pass@{n}"):
            for rule in RULES:
                match = [
                    row
                    for row in results["metrics"]
                    if (row["arm"], row["seed"], row["checkpoint_rule"], row["metric"])
                    == (arm["name"], None, rule, metric)
                ]
                cells.append(f"{100 * match[0]['value']:.1f}" if match else "-")
        rows.append(cells)
    names = [f"{metric}@{n}, {rule}" for metric in ("Avg", "Pass") for rule in RULES.values()]
    return table(["arm", *names], rows)


def paired_table(results: dict[str, Any], n: int, *, to_base: bool) -> str:
    """Differences of arms, or of arms and the untrained solver, after the last step."""
    labels = {arm["name"]: arm["label"] for arm in results["arms"]} | {"base": "untrained solver"}
    rows = []
    for row in results["paired"]:
        rule = "last" if to_base else row["checkpoint_rule"]
        if (row["metric"], row["b"] == "base", row["checkpoint_rule"]) != (f"avg@{n}", to_base, rule):
            continue
        signs = " ".join(f"{100 * d:+.1f}" for d in row["seed_differences"])
        interval = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        rows.append([f"{labels[row['a']]} - {labels[row['b']]}", interval, f"{row['p_value']:.4f}", signs])
    return table(["difference", f"Avg@{n}, points", "p", "each seed"], rows)


def curve_table(results: dict[str, Any], n: int) -> str:
    """Mean validation accuracy over seeds at each evaluated step, with the rollouts behind it."""
    rows = []
    for arm in results["arms"]:
        curves = [
            c["points"]
            for c in results["curves"]
            if c["arm"] == arm["name"] and c["set"] == "validation" and c["metric"] == f"avg@{n}"
        ]
        points = [
            f"{100 * sum(p['value'] for p in at) / len(at):.1f} @ {at[0]['step']} / {at[0]['rollouts']:,}"
            for at in zip(*curves, strict=True)
        ]
        rows.append([arm["label"], *points])
    width = max(map(len, rows))
    return table(["arm", *[""] * (width - 1)], [row + [""] * (width - len(row)) for row in rows])


def beside_table(found: dict[str, dict[str, Any]], reference: str | None) -> str:
    """The same arms of several comparisons: Avg, and the paired difference from the untrained solver or from an arm."""
    first = next(iter(found.values()))
    against = reference or "base"
    rows = []
    for arm in first["arms"]:
        cells = [arm["label"]]
        for results in found.values():
            average = f"avg@{results['num_samples']}"
            value = next(
                (
                    f"{100 * row['value']:.1f}"
                    for row in results["metrics"]
                    if (row["arm"], row["metric"], row["seed"], row["checkpoint_rule"])
                    == (arm["name"], average, None, "last")
                ),
                "-",
            )
            difference = _difference(results["paired"], arm["name"], against, average)
            cells.append(f"{value} ({difference})" if difference else value)
        rows.append(cells)
    names = {arm["name"]: arm["label"] for arm in first["arms"]} | {"base": "the untrained solver"}
    return table([f"arm: Avg, and points over {names[against]}", *found], rows)


def _difference(paired: list[dict[str, Any]], arm: str, against: str, metric: str) -> str:
    for row in paired:
        if (row["metric"], row["checkpoint_rule"]) == (metric, "last") and {row["a"], row["b"]} == {arm, against}:
            sign = 1 if row["a"] == arm else -1
            low, high = sorted((sign * row["low"], sign * row["high"]))
            return f"{100 * sign * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return ""


def signal_table(signal: dict[str, Any]) -> str:
    names = [number["name"] for number in signal["localisation"][0]["numbers"]]
    rows = []
    for entry in signal["localisation"]:
        numbers = {number["name"]: number for number in entry["numbers"]}
        cells = []
        for name in names:
            number = numbers[name]
            value = (
                "-"
                if number["value"] is None
                else f"{number['value']:+.2f} [{number['low']:+.2f}, {number['high']:+.2f}]"
            )
            cells.append(value + (f" ({number['baseline']:.2f})" if number["baseline"] is not None else ""))
        rows.append([f"{entry['context']} ({entry['num_wrong']} wrong of {entry['num_rollouts']})", *cells])
    return table(["context", *(name.replace("_", " ") for name in names)], rows)


def read(folder: Path) -> dict[str, Any]:
    if not (folder / "results.json").is_file():
        sys.exit(f"{folder} holds no results.json: stepalign report {folder} writes it for finished runs")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def main() -> None:
    if sys.argv[1:2] == ["--beside"]:
        found = {folder.name: read(folder) for folder in map(Path, sys.argv[2:])}
        first = next(iter(found.values()))["arms"][0]["name"]
        print(beside_table(found, None), "\n")
        print(beside_table(found, first))
        return
    for folder in map(Path, sys.argv[1:]):
        results = read(folder)
        n = results["num_samples"]
        print(f"\n## {results['recipe']}, seeds {results['seeds']}, revision {results['revision']}\n")
        print(main_table(results, n), "\n")
        print(rules_table(results, n), "\n")
        print(paired_table(results, n, to_base=False), "\n")
        print(paired_table(results, n, to_base=True), "\n")
        print(curve_table(results, n), "\n")
        if (folder / "signal.json").exists():
            print(signal_table(json.loads((folder / "signal.json").read_text(encoding="utf-8"))), "\n")
        for arm in results["arms"]:
            for run in arm["runs"]:
                for warning in run["warnings"]:
                    print(f"- {arm['name']}, seed {run['seed']}: {warning}")


if __name__ == "__main__":
    main()
