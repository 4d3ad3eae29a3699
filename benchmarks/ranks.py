"""How long two ranks outlive one of them: killed at a random moment, or stopped, behind torchrun.

    python benchmarks/ranks.py --trials 6

Prints a table: seconds from the signal to the end of torchrun, and in how many trials the output names the rank.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TIMEOUT = 20
"""``training.rank_timeout`` of the trials, in seconds."""
SETTINGS = (
    *("training.max_steps=100000", "training.problems_per_step=4", "training.save_steps=1"),
    *("evaluation.at_start=false", f"training.rank_timeout={TIMEOUT}"),
)


def trial(rank: int, number: signal.Signals, rng: random.Random) -> tuple[float, bool]:
    """Seconds until the end, and whether the rank is named."""
    with tempfile.TemporaryDirectory() as name:
        out, log = Path(name) / "run", Path(name) / "log"
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stepalign", "train"]
        words += ["arithmetic", "--out", str(out), *(word for setting in SETTINGS for word in ("--set", setting))]
        with log.open("w") as file:
            torchrun = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file)
        while not list(out.glob("checkpoints/*/manifest.json")):
            if torchrun.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 3.0))
        os.kill(ranks_of(torchrun.pid)[rank], number)
        begin = time.monotonic()
        torchrun.wait()
        seconds, text = time.monotonic() - begin, log.read_text()
    signs = (f"rank {rank} of 2", f"rank      : {rank} (local_rank: {rank})", f"rank {rank} at ")
    return seconds, any(sign in text for sign in signs)


def ranks_of(pid: int) -> dict[int, int]:
    """The processes of a torchrun by rank."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            environment = Path(f"/proc/{child}/environ").read_text().split("\0")
            found |= {int(word.partition("=")[2]): int(child) for word in environment if word.startswith("RANK=")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6, help="of each kind")
    options = parser.parse_args()
    rng = random.Random(0)
    print("| rank | signal | trials | seconds, median | most | named |\n| --- | --- | --- | --- | --- | --- |")
    for rank, number in ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)):
        found = [trial(rank, number, rng) for _ in range(options.trials)]
        seconds, named = [one for one, _ in found], sum(known for _, known in found)
        print(
            f"| {rank} | {number.name} | {len(found)} | {median(seconds):.1f} | {max(seconds):.1f} | {named} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
