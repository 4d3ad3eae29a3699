"""What survives a kill, damage, a full disk, hostile addresses and hours of faults? Real commands, on this machine.

    python benchmarks/faults.py --quick                   # the short form of every trial: some minutes
    python benchmarks/faults.py kills --number 100        # the long form of one; goes on where it stopped

Every trial is a line of JSON in FOLDER/TRIAL/rows.jsonl (``--folder``, outside of the repository by default); the
figures over all lines are printed at the end. docs/results/reliability.md has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_trials.canaries import hostile, secrets
from fault_trials.damage import damages, named
from fault_trials.disk import full_disks
from fault_trials.kills import kills
from fault_trials.lab import Lab
from fault_trials.signals import signals
from fault_trials.soak import slope, soak

Trial = Callable[[Lab, int, int], Iterator[dict[str, Any]]]
TRIALS: dict[str, tuple[Trial, int, int]] = {
    "kills": (kills, 100, 5),
    "damage-named": (named, 300, 100),
    "damage": (damages, 300, 12),
    "disk": (full_disks, 40, 4),
    "secrets": (secrets, 111, 10),
    "hostile": (hostile, 60, 10),
    "signals": (signals, 87, 6),
    "soak": (soak, 3600, 90),
}
"""Name -> (trials, their number in the long form and in the short one)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", nargs="?", choices=TRIALS)
    parser.add_argument("--quick", action="store_true", help="the short form, in a folder of its own")
    parser.add_argument("--number", type=int, help="trials, or seconds of the soak")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stepalign-faults")
    asked = parser.parse_args()
    for name in [asked.trial] if asked.trial else TRIALS:
        trials, long, short = TRIALS[name]
        lab = Lab(asked.folder / ("quick" if asked.quick else "long") / name)
        try:
            record(lab, trials, asked.number or (short if asked.quick else long), name == "soak")
        finally:
            lab.close()
        print(f"{name}: {figures(name, lab.folder / 'rows.jsonl')}", flush=True)


def record(lab: Lab, trials: Trial, number: int, is_one_run: bool) -> None:
    file = lab.folder / "rows.jsonl"
    done = len(file.read_bytes().splitlines()) if file.exists() else 0
    for row in trials(lab, number if is_one_run else max(0, number - done), done):
        with file.open("a", encoding="utf-8") as to:
            to.write(json.dumps(row) + "\n")


def figures(name: str, file: Path) -> str:
    rows = [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
    if name == "kills":
        return _of_kills(rows)
    if name == "soak":
        return "; ".join(map(_of_soak, rows))
    outcomes = Counter(map(_outcome, rows)).most_common()
    return f"{len(rows)} trials: " + ", ".join(f"{count} {what}" for what, count in outcomes)


def _outcome(row: Mapping[str, Any]) -> str:
    if "well" in row:
        return "left within ten seconds with its code and one line" if row["well"] else "not as promised"
    return row.get("outcome") or f"not tried ({row['skipped']})"


def _of_kills(rows: list[dict[str, Any]]) -> str:
    killed = [row for row in rows if any(code < 0 for _, code in row["kills"])]
    same = sum(row["code"] == 0 and not row["different"] for row in killed)
    kinds = Counter(row["kind"] for row in killed)
    paid = [row for row in killed if "paid_twice" in row]
    return (
        f"{sum(code < 0 for row in rows for _, code in row['kills'])} SIGKILLs in {len(killed)} runs "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items())}): {same} resumed to the same bits; "
        f"at most {max((row['lost'] for row in rows), default=0)} steps lost; "
        f"{sum(row['traceback'] for row in rows)} tracebacks, "
        f"{sum(bool(row['left_over']) for row in rows)} left-overs; "
        f"{sum(row['paid_twice'] for row in paid)} critiques paid twice in {len(paid)} runs, "
        f"{sum(row['said_in_flight'] for row in paid)} of them counted as in flight"
    )


def _of_soak(row: Mapping[str, Any]) -> str:
    steady = [point for point in row["points"] if point[0] > row["seconds"] / 6] or row["points"]
    account = (
        f"{row['sampled']} sampled (counted {row['counted']}) = {row['trained']} trained + "
        f"{sum(row['masked'].values())} masked {row['masked']} + {row['buffered']} buffered"
    )
    full = [code in (1, 2) and has_path and not has_traceback for code, has_path, has_traceback, *_ in row["full"]]
    handles, threads = ([point[column] for point in steady] for column in (3, 4))
    return (
        f"{row['seconds']} s, {steady[-1][1]:.0f} steps, exit code {row['code']}, {account}; the disk filled up "
        f"{len(full)} times, {sum(full)} of them with one message, and the run ended by itself "
        f"{len(row['by_itself'])} times; then memory {steady[0][2]:.0f} -> {steady[-1][2]:.0f} MB, "
        f"slope {slope(steady):+.1f} MB per 1,000 steps; "
        f"handles {min(handles):.0f} to {max(handles):.0f}, threads {min(threads):.0f} to {max(threads):.0f}"
    )


if __name__ == "__main__":
    main()
