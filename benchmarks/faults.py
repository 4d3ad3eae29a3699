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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_trials.kills import kills
from fault_trials.lab import Lab


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", nargs="?", choices=["kills"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stepalign-faults")
    asked = parser.parse_args()
    lab = Lab(asked.folder)
    try:
        record(asked.folder / "kills.jsonl", lambda done: kills(lab, asked.number - done, first=done))
    finally:
        lab.close()


def record(file: Path, trials: Any) -> None:
    done = len(file.read_bytes().splitlines()) if file.exists() else 0
    for row in trials(done):
        with file.open("a", encoding="utf-8") as to:
            to.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:300], flush=True)


if __name__ == "__main__":
    main()
