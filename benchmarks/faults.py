"""What survives a kill, damage, a full disk, hostile text and hours of faults? Real commands, on this machine.

    python benchmarks/faults.py --quick                   # the short form: a few minutes
    python benchmarks/faults.py kills --number 100        # the long form of one trial; goes on where it stopped

Every trial is a line of JSON in FOLDER/NAME.jsonl (``--folder``, outside of the repository by default).
docs/results/reliability.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fault_trials.damage import damages
from fault_trials.kills import kills
from fault_trials.lab import Lab

TRIALS = {"kills": kills, "damage": damages}
"""Name -> function of (lab, number of trials, first): one row a trial."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", nargs="?", choices=TRIALS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stepalign-faults")
    asked = parser.parse_args()
    for name in [asked.trial] if asked.trial else TRIALS:
        lab = Lab(asked.folder / name)
        try:
            record(lab, name, asked.number)
        finally:
            lab.close()


def record(lab: Lab, name: str, number: int) -> None:
    file = lab.folder / "rows.jsonl"
    done = len(file.read_bytes().splitlines()) if file.exists() else 0
    for row in TRIALS[name](lab, number - done, first=done):
        with file.open("a", encoding="utf-8") as to:
            to.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], flush=True)


if __name__ == "__main__":
    main()
