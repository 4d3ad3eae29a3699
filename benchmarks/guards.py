"""How soon the guards of a run see that it collapses, and whether they leave healthy runs in peace.

    python benchmarks/guards.py record --out FOLDER      # trains the embedded runs of RUNS; goes on where it stopped
    python benchmarks/guards.py replay --out FOLDER      # asks the guards about every recorded step; prints tables
    python benchmarks/guards.py export --out FOLDER      # writes the runs of the tests into tests/data/guards

A recorded run is its metrics.jsonl, with one completion a problem at its only evaluation: guards look at nothing else.
Folders of other runs, such as those of a study, are read with --more.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Keys = dict[str, Any]
Rows = list[dict[str, float]]
STEADY: Keys = {"condition": "stepalign"}
GRPO: Keys = {"condition": "grpo", "sampling.num_generations": 8}
EQUAL: Keys = GRPO | {"training.problems_per_step": 4}
LIVE: Keys = {"objective.teacher.weights": "live"}
RATE = "training.learning_rate"
SHORT: Keys = {"training.max_steps": 20}

COLLAPSES: dict[str, Keys] = {
    "live-0": LIVE | {"training.seed": 0},
    "rate-1e6": {RATE: 1e6} | SHORT,
    "rate-10": {RATE: 10.0} | SHORT,
    "grpo-equal-1e-3-0": EQUAL | {RATE: 1e-3},
    "jensen-shannon-5e-3": {"objective.divergence": "jensen_shannon", RATE: 5e-3},
    "live-1": LIVE | {"training.seed": 1},
    "rate-3e-2": {RATE: 3e-2},
    "grpo-equal-1e-3-1": EQUAL | {RATE: 1e-3, "training.seed": 1},
    "temperature-1e-8": {"sampling.temperature": 1e-8} | SHORT,
    "refsol-live": LIVE | {"condition": "refsol"},
    "grpo-1e-3-0": GRPO | {RATE: 1e-3},
    "initial-2": {"objective.teacher.weights": "initial", "training.seed": 2},
    "forward-live": LIVE | {"objective.divergence": "forward_kl"},
    "not-a-number": {RATE: 1e30, "objective.teacher.weights": "initial"} | SHORT,
    "grpo-3e-3": GRPO | {RATE: 3e-3, "training.max_steps": 30},
}
"""Runs that were expected to break; the replay says at which step each did."""

HEALTHY: dict[str, Keys] = {
    f"{name}-{seed}": keys | {"training.seed": seed}
    for seed in range(12)
    for name, keys in {
        "stepalign": STEADY,
        "refsol": {"condition": "refsol"},
        "grpo-equal-1e-4": EQUAL | {RATE: 1e-4},
        "stepalign-3e-4": STEADY | {RATE: 3e-4},
        "refsol-forward": {
            "condition": "refsol", "objective.divergence": "forward_kl", "objective.teacher.weights": "initial",
        },
        "stepalign-forward": {"objective.divergence": "forward_kl", "objective.teacher.weights": "initial"},
    }.items()
}  # fmt: skip
"""Settings whose published runs ended well."""
DATA = Path(__file__).parents[1] / "tests" / "data" / "guards"
NO_EVALUATION: Keys = {
    "evaluation.num_samples": 1, "evaluation.at_start": False, "evaluation.eval_steps": 0, "training.save_steps": 0,
}  # fmt: skip


def record(out: Path, only: str) -> None:
    from stepalign.config import changed, load_config
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    base = changed(load_config("arithmetic"), NO_EVALUATION | {"guards.policy": "warn"}, "benchmark")
    out.mkdir(parents=True, exist_ok=True)
    for name, keys in (COLLAPSES | HEALTHY).items():
        file, folder = out / f"{name}.jsonl", out / f"{name}.run"
        if file.exists() or only not in name:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        start = time.time()
        train_config(changed(base, keys, name), folder, resume=False, listener=silent, stop=StopRequest())
        file.write_text((folder / "metrics.jsonl").read_text())
        print(f"{name}: {len(file.read_text().splitlines())} steps in {time.time() - start:.0f} s", flush=True)
        shutil.rmtree(folder)


def read(file: Path) -> Rows:
    rows = (json.loads(line) for line in file.read_bytes().splitlines())
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def broke_at(rows: Rows) -> int | None:
    """The step (from 1) at which a run was lost: the likeliest single change of its pass rate, knowing the whole run.

    None where at the end more than one rollout in ten is right, or half as many as in the best ten steps."""
    rewards, n = [row["reward"] for row in rows], len(rows)
    end = rewards[-max(2, min(10, n // 3)) :]
    best = max(
        sum(part) / len(part) for last in range(min(10, n), n + 1) if (part := rewards[max(0, last - 10) : last])
    )
    if sum(end) / len(end) > min(0.1, best / 2):
        return None

    def likelihood(part: list[float]) -> float:
        p = sum(part) / len(part)
        return sum(len(part) * a * math.log(a) for a in (p, 1 - p) if a > 0)

    return 1 + max(range(1, n), key=lambda step: likelihood(rewards[:step]) + likelihood(rewards[step:]))


def seen(rows: Rows) -> tuple[int, str, int] | None:
    """Step, guard and length of the first break that a guard sees."""
    from stepalign.config import GuardsSection
    from stepalign.training.breaks import find_break

    section = GuardsSection()
    found = ((end, find_break(rows[:end], section)) for end in range(1, len(rows) + 1))
    return next(((end, broke.guard, broke.length) for end, broke in found if broke is not None), None)


def window(rows: Sequence[Mapping[str, float]]) -> float:
    """Mean pass rate of the rollouts, in percent."""
    return 100 * sum(row["reward"] for row in rows) / len(rows) if rows else math.nan


def replay(folders: list[Path]) -> None:
    """A row a run: the step at which it broke and at which a guard says so; the pass rate before and at its end."""
    runs = {file.stem: read(file) for file in sorted(folders[0].glob("*.jsonl"))}
    for name, columns in json.loads((DATA / "embedded-runs.json").read_text()).items():  # of a version before
        number = {key: value if isinstance(value, list) else [value] * 62 for key, value in columns.items()}
        runs[f"earlier/{name}"] = [
            {key: math.nan if values[step] is None else values[step] for key, values in number.items()}
            for step in range(62)
        ]
    for folder in folders[1:]:
        for file in sorted(folder.rglob("metrics.jsonl")):
            runs[str(file.parent.relative_to(folder.parent))] = read(file)
    lost = {name: step for name, rows in runs.items() if (step := broke_at(rows)) is not None}
    print(
        "| run | broke at step | seen at step | by | pass rate before | at its end |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for name, step in lost.items():
        rows, found = runs[name], seen(runs[name])
        at, guard = (found[0], found[1]) if found else ("-", "-")
        before, after = window(rows[max(0, step - 11) : step - 1]), window(rows[-10:])
        print(f"| {name} | {step} | {at} | {guard} | {before:.1f} | {after:.1f} |")
    for name in (name for name in COLLAPSES if name in runs and name not in lost):
        print(f"| {name} | not by its pass rate | {seen(runs[name])} | | | {window(runs[name][-10:]):.1f} |")
    well = {name: rows for name, rows in runs.items() if name not in lost and name not in COLLAPSES}
    alarms = {name: found for name, rows in well.items() if (found := seen(rows))}
    print(f"\n{len(well)} healthy runs, {sum(map(len, well.values()))} steps: {len(alarms)} stopped {alarms or ''}")


COLUMNS = ("reward", "student_entropy", "grad_norm", "num_problems", "active_samples", "loss", "divergence")
COLUMNS += ("completions/answered_ratio", "completions/repetitive_ratio")


def export(out: Path) -> None:
    """The columns that breaks are seen in, to five digits: all collapses and the first three healthy runs of a kind."""
    names = [name for name in COLLAPSES | HEALTHY if name in COLLAPSES or name.rpartition("-")[2] in "012"]
    runs = {name: read(out / f"{name}.jsonl") for name in names if (out / f"{name}.jsonl").exists()}

    def short(value: float) -> float | None:
        return float(f"{value:.5g}") if math.isfinite(value) else None

    columns = {name: {key: [short(row[key]) for row in rows] for key in COLUMNS} for name, rows in runs.items()}
    (DATA / "breaks.json").write_text(json.dumps(columns, separators=(",", ":")) + "\n")
    found = {name: list(one[:2]) for name, rows in runs.items() if (one := seen(rows))}
    (DATA / "breaks_seen.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "replay", "export"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="Runs whose name holds this.")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="replay: folders with further runs.")
    given = parser.parse_args()
    if given.do == "record":
        record(given.out, given.only)
    elif given.do == "replay":
        replay([given.out, *given.more])
    else:
        export(given.out)


if __name__ == "__main__":
    main()
