"""How soon the guards of a run see that it collapses, and whether they leave healthy runs in peace.

    python benchmarks/guards.py record --out FOLDER      # trains embedded runs; goes on where it stopped
    python benchmarks/guards.py record --out OTHER --runs held-out      # those that the rule was not chosen on
    python benchmarks/guards.py replay --out FOLDER      # asks the guards about every recorded step; prints tables
    python benchmarks/guards.py comparisons --out FOLDER      # of the runs of a comparison, by how they ended
    python benchmarks/guards.py export --out FOLDER      # writes the runs of the tests into tests/data/guards

A recorded run is its metrics.jsonl: guards look at nothing else.
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
MEDIUM: Keys = {"training.max_steps": 30}
LORA: Keys = {"model.lora": {"r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}}

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
    "not-a-number": {RATE: 1e30, "objective.teacher.weights": "initial"} | SHORT,
}
"""Runs that were expected to break, and that the rule was chosen on; the replay says at which step each did."""

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
FEW: Keys = {"training.problems_per_step": 16, "training.max_steps": 16}
GROUPS: Keys = {"sampling.num_generations": 4, "training.problems_per_step": 4, "training.max_steps": 16}
FAST: Keys = LIVE | {RATE: 3e-3} | MEDIUM
HELD_OUT_COLLAPSES: dict[str, Keys] = {
    "live-3e-3-20": FAST | {"training.seed": 20},
    "rate-1e6-20": {RATE: 1e6, "training.seed": 20} | SHORT,
    "grpo-1e-3-20": EQUAL | {RATE: 1e-3, "training.seed": 20} | MEDIUM,
    "live-jensen-shannon-20": FAST | {"objective.divergence": "jensen_shannon", "training.seed": 20},
    "live-3e-3-21": FAST | {"training.seed": 21},
    "rate-1e-2-20": {RATE: 1e-2, "training.seed": 20} | MEDIUM,
    "grpo-1e-3-21": EQUAL | {RATE: 1e-3, "training.seed": 21} | MEDIUM,
    "refsol-live-20": FAST | {"condition": "refsol", "training.seed": 20},
    "live-3e-3-22": FAST | {"training.seed": 22},
    "lora-1e-1-20": LORA | {RATE: 1e-1, "training.seed": 20} | MEDIUM,
    "grpo-3e-3-20": EQUAL | {RATE: 3e-3, "training.seed": 20} | MEDIUM,
    "live-forward-20": FAST | {"objective.divergence": "forward_kl", "training.seed": 20},
    "text-3e-3-20": GROUPS | {"recipe": "text", RATE: 3e-3, "training.seed": 20} | MEDIUM,
}
"""Recorded when the rule had been chosen."""
HELD_OUT = HELD_OUT_COLLAPSES | {
    f"{name}-{seed}": keys | {"training.seed": seed}
    for seed in (20, 21)
    for name, keys in {
        "answer": FEW | {"condition": "answer"},
        "full-repeat": FEW | {"condition": "full_repeat"},
        "lora": FEW | LORA | {RATE: 3e-3},
        "text": GROUPS | {"recipe": "text"},
        "no-repeat": FEW | {"condition": "no_repeat"},
        "siblings": GROUPS | {"condition": "peer_demonstration"},
        "grpo-3e-4": GROUPS | {"condition": "grpo", RATE: 3e-4},
        "tools": GROUPS | {"recipe": "tools", "training.problems_per_step": 2},
        "jensen-shannon": FEW | {"objective.divergence": "jensen_shannon"},
        "reference": FEW | {"condition": "refsol"},
    }.items()
}
FRESH: dict[str, Keys] = {
    "live-3e-3-30": FAST | {"training.seed": 30},
    "live-3e-3-31": FAST | {"training.seed": 31},
    "live-3e-3-32": FAST | {"training.seed": 32},
    "live-jensen-shannon-30": FAST | {"objective.divergence": "jensen_shannon", "training.seed": 30},
    "live-forward-30": FAST | {"objective.divergence": "forward_kl", "training.seed": 30},
    "refsol-live-30": FAST | {"condition": "refsol", "training.seed": 30},
    "rate-1e6-30": {RATE: 1e6, "training.seed": 30} | SHORT,
    "grpo-3e-3-30": EQUAL | {RATE: 3e-3, "training.seed": 30} | MEDIUM,
    "lora-1e-1-30": LORA | {RATE: 1e-1, "training.seed": 30} | MEDIUM,
    "text-3e-3-30": GROUPS | {"recipe": "text", RATE: 3e-3, "training.seed": 30} | MEDIUM,
}
"""Kinds of collapse with seeds of their own, recorded when the first held-out runs had been looked at."""
ROLLED_BACK: dict[str, Keys] = {
    f"{name}-rolled-back": HELD_OUT_COLLAPSES[name] | {"guards.policy": "roll_back"}
    for name in ("live-3e-3-20", "live-3e-3-21", "live-3e-3-22")
}
RUNS = {"chosen": COLLAPSES | HEALTHY, "held-out": HELD_OUT, "fresh": FRESH, "rolled-back": ROLLED_BACK}
DATA = Path(__file__).parents[1] / "tests" / "data" / "guards"
NO_EVALUATION: Keys = {
    "data.validation": None, "data.test": None, "evaluation.at_start": False, "training.save_steps": 0,
}  # fmt: skip


def record(out: Path, kind: str, only: Sequence[str]) -> None:
    from stepalign.config import changed, load_config
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    out.mkdir(parents=True, exist_ok=True)
    for name, keys in RUNS[kind].items():
        file, folder = out / f"{name}.jsonl", out / f"{name}.run"
        if file.exists() or folder.exists() or not any(part in name for part in only):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        start, keys = time.time(), NO_EVALUATION | {"guards.policy": "warn"} | keys
        base = load_config(keys.pop("recipe", "arithmetic"))
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


def least_delay(rows: Rows, step: int, every: float = 1000.0) -> float:
    """Steps that no test of the pass rate can beat on average, with a false alarm every so many steps.

    It knows both rates, and waits for the change alone: log(every) / KL(after || before) in independent rollouts.

    Source: G. Lorden, Procedures for reacting to a change in distribution, Ann. Math. Statist. 42 (1971).
    """
    from stepalign.training.breaks import independent, pooled

    counts, rates = independent(rows), [row["reward"] for row in rows]
    p, _ = pooled(rates[max(0, step - 11) : step - 1], counts[max(0, step - 11) : step - 1])
    q, n = pooled(rates[step - 1 : step + 9], counts[step - 1 : step + 9])
    each = n / len(rates[step - 1 : step + 9])
    nats = sum(a * math.log(a / b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0 < b)
    return math.log(every) / (each * nats) if nats else math.inf


def read_runs(folders: list[Path]) -> dict[str, Rows]:
    runs = {file.stem: read(file) for file in sorted(folders[0].glob("*.jsonl"))}
    for name, columns in json.loads((DATA / "embedded-runs.json").read_text()).items():  # of a version before
        number = {key: value if isinstance(value, list) else [value] * 62 for key, value in columns.items()}
        runs[f"earlier/{name}"] = [
            {key: math.nan if values[step] is None else values[step] for key, values in number.items()}
            for step in range(62)
        ]
    for folder in folders[1:]:
        for file in sorted(folder.rglob("metrics.jsonl")):
            if "superseded" not in file.parts:
                runs[str(file.parent.relative_to(folder.parent))] = read(file)
    return runs


def replay(folders: list[Path]) -> None:
    """A row a run that broke: where, where a guard says so, and how soon any test could; then the curve."""
    runs = read_runs(folders)
    lost = {name: step for name, rows in runs.items() if (step := broke_at(rows)) is not None}
    print(
        "| run | broke at step | seen at step | by | least delay | pass rate before | at its end |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, step in lost.items():
        rows, found = runs[name], seen(runs[name])
        at, guard = (found[0], found[1]) if found else ("-", "-")
        before, after = window(rows[max(0, step - 11) : step - 1]), window(rows[-10:])
        print(f"| {name} | {step} | {at} | {guard} | {least_delay(rows, step):.1f} | {before:.1f} | {after:.1f} |")
    expected = COLLAPSES | HELD_OUT_COLLAPSES | FRESH
    for name in (name for name in expected if name in runs and name not in lost):
        print(f"| {name} | not by its pass rate | {seen(runs[name])} | | | | {window(runs[name][-10:]):.1f} |")
    well = {name: rows for name, rows in runs.items() if name not in lost and name not in expected}
    alarms = {name: found for name, rows in well.items() if (found := seen(rows))}
    print(f"\n{len(well)} healthy runs, {sum(map(len, well.values()))} steps: {len(alarms)} stopped {alarms or ''}")
    curve(runs, lost, well)


def curve(runs: Mapping[str, Rows], lost: Mapping[str, int], well: Mapping[str, Rows]) -> None:
    """Sooner against more often wrong: the standard errors that are asked for, with and without the entropy."""
    from stepalign.training import breaks

    steps = sum(map(len, well.values()))
    print(
        "\n| standard errors | entropy counts | seen within 5 steps | within 10 | healthy stopped | per 1,000 steps |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    usual, sign = breaks.BREAK_Z, breaks.SIGN_Z
    for bound in (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0):
        for counts in (True, False):
            breaks.BREAK_Z, breaks.SIGN_Z = bound, sign if counts else math.inf
            delays = [found[0] - step if (found := seen(runs[name])) else math.inf for name, step in lost.items()]
            wrong = sum(seen(rows) is not None for rows in well.values())
            soon = [sum(delay <= most for delay in delays) for most in (5, 10)]
            cells = (f"{bound:g}", "yes" if counts else "no", f"{soon[0]} of {len(lost)}", soon[1])
            print("|", *(f"{cell} |" for cell in (*cells, f"{wrong} of {len(well)}", f"{1000 * wrong / steps:.1f}")))
    breaks.BREAK_Z, breaks.SIGN_Z = usual, sign


def comparisons(folders: list[Path]) -> None:
    """The runs of whole comparisons, sorted by how they ended; of each kind how many the guards stop, and how soon.

    Healthy: the last test pass rate is not below the 95 % interval of the untrained solver's, and by ``broke_at`` the
    run never broke. Lost: it broke. Worse: neither.
    """
    kinds: dict[str, dict[str, Rows]] = {"healthy": {}, "worse": {}, "lost": {}}
    for folder in folders:
        (least,) = (low for step, _, low in _tests(folder / "arms" / "base") if not step)
        for run in sorted(file.parent for file in folder.glob("arms/*/seed-*/summary.json")):
            rows, (_, end, _) = read(run / "metrics.jsonl"), _tests(run)[-1]
            kind = "lost" if broke_at(rows) is not None else "healthy" if end >= least else "worse"
            kinds[kind][str(run.relative_to(folder.parent))] = rows
    print(
        "| runs | number | steps | seen | of them within 5 steps of the break | share seen, 95 % interval |\n"
        + "| --- " * 6
        + "|"
    )
    for kind, runs in kinds.items():
        found = {name: at for name, rows in runs.items() if (at := seen(rows))}
        soon = sum(at[0] - (broke_at(runs[name]) or math.inf) <= 5 for name, at in found.items())
        low, high = exact_interval(len(found), len(runs))
        print(
            f"| {kind} | {len(runs)} | {sum(map(len, runs.values()))} | {len(found)} | "
            f"{soon if kind == 'lost' else '-'} | {low:.1%} to {high:.1%} |"
        )
        for name, at in found.items():
            print(f"    {name}: step {at[0]}, {at[1]}; broke at {broke_at(runs[name])}")


def _tests(run: Path) -> list[tuple[int, float, float]]:
    """Step, pass rate and the lower end of its interval of each evaluation of the test set."""
    lines = (json.loads(line) for line in (run / "evaluations.jsonl").read_bytes().splitlines())
    return [
        (row["step"], one["value"], one["low"]) for row in lines if row["set"] == "test" for one in row["metrics"][:1]
    ]


def exact_interval(found: int, total: int) -> tuple[float, float]:
    """95 %, of Clopper and Pearson."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, found, total - found + 1)) if found else 0.0
    return low, float(beta.ppf(0.975, found + 1, total - found)) if found < total else 1.0


COLUMNS = (
    "reward",
    "reward_std",
    "num_rollouts",
    "student_entropy",
    "grad_norm",
    "num_problems",
    "active_samples",
    "loss",
    "divergence",
)
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
    parser.add_argument("do", choices=["record", "replay", "comparisons", "export"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--runs", choices=RUNS, default="chosen", help="record: those that the rule was chosen on, or not."
    )
    parser.add_argument("--only", nargs="*", default=[""], help="record: runs whose name holds one of these.")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="replay: folders with further runs.")
    given = parser.parse_args()
    if given.do == "record":
        record(given.out, given.runs, given.only)
    elif given.do == "replay":
        replay([given.out, *given.more])
    elif given.do == "comparisons":
        comparisons([given.out, *given.more])
    else:
        export(given.out)


if __name__ == "__main__":
    main()
