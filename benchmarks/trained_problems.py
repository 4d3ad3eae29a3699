"""Trained problems against held-out ones: is a gain learnt, or remembered?

    python benchmarks/trained_problems.py runs/words/arms/*/seed-0

Two looks at finished or running runs. Rollouts by visit: a problem is drawn before the solver has learnt on it (first
visit) and after (later ones), in the order of training, so that a rise over visits that the held-out set does not show
is memory. And, with --write FILE, the problems that the first run has trained on, for

    stepalign evaluate runs/words/arms/stepalign/seed-0 --problems FILE --out trained.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from stepalign.config import load_config
from stepalign.domains.table import load_set
from stepalign.evaluation.statistics import bootstrap_mean
from stepalign.storage.jsonl import read_json_lines


def by_visit(run: Path) -> dict[int, dict[str, list[float]]]:
    """Visit (from 1) -> problem -> rewards of its rollouts."""
    steps: dict[str, list[int]] = defaultdict(list)
    rewards: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_json_lines(run / "rollouts.jsonl"):
        visits = steps[row["problem_id"]]
        if row["step"] not in visits:
            visits.append(row["step"])
        rewards[len(visits)][row["problem_id"]].append(row["reward"])
    return rewards


def held_out(run: Path) -> str:
    cells = []
    for point in read_json_lines(run / "evaluations.jsonl"):
        row = next(row for row in point["metrics"] if row["metric"] == "avg@1")
        cells.append(f"{point['set']} {100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]")
    return ", ".join(cells[-2:]) or "-"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    print("| run | visit | problems | right, % | held out after the last step |\n| --- | --- | --- | --- | --- |")
    for run in arguments.runs:
        for visit, rewards in sorted(by_visit(run).items()):
            found = bootstrap_mean([sum(each) / len(each) for each in rewards.values()], share=True)
            share = f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
            last = held_out(run) if visit == 1 else ""
            print(f"| {run.parent.name}/{run.name} | {visit} | {len(rewards)} | {share} | {last} |")
    if arguments.write:
        run = arguments.runs[0]
        seen = {name for rewards in by_visit(run).values() for name in rewards}
        problems = load_set(load_config(str(run / "config.toml")).data, "train").problems
        rows = [{"question": p.question, "answer": p.answer} for p in problems if p.problem_id in seen]
        arguments.write.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
