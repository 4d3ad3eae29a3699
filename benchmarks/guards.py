"""How soon the guards of a run see that it collapses, and whether they leave healthy runs in peace.

    python benchmarks/guards.py record --out FOLDER      # trains the embedded runs of RUNS; goes on where it stopped
    python benchmarks/guards.py replay --out FOLDER      # asks the guards about every recorded step

A recorded run is its metrics.jsonl, without evaluation: guards look at nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

Keys = dict[str, Any]
STEADY: Keys = {"condition": "stepalign"}
GRPO: Keys = {"condition": "grpo", "sampling.num_generations": 8}
EQUAL: Keys = GRPO | {"training.problems_per_step": 4}
LIVE: Keys = {"objective.teacher.weights": "live"}
RATE = "training.learning_rate"

COLLAPSES: dict[str, Keys] = {
    "live-0": LIVE | {"training.seed": 0},
    "rate-1e6": {RATE: 1e6, "training.max_steps": 20},
    "rate-10": {RATE: 10.0, "training.max_steps": 20},
    "grpo-equal-1e-3-0": EQUAL | {RATE: 1e-3},
    "jensen-shannon-5e-3": {"objective.divergence": "jensen_shannon", RATE: 5e-3},
    "live-1": LIVE | {"training.seed": 1},
    "rate-3e-2": {RATE: 3e-2},
    "grpo-equal-1e-3-1": EQUAL | {RATE: 1e-3, "training.seed": 1},
    "temperature-1e-8": {"sampling.temperature": 1e-8, "training.max_steps": 20},
    "refsol-live": LIVE | {"condition": "refsol"},
    "grpo-1e-3-0": GRPO | {RATE: 1e-3},
    "initial-2": {"objective.teacher.weights": "initial", "training.seed": 2},
    "forward-live": LIVE | {"objective.divergence": "forward_kl"},
    "grpo-3e-3": GRPO | {RATE: 3e-3, "training.max_steps": 30},
}
"""Runs that are expected to break; the replay says at which step each did."""

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
NO_EVALUATION: Keys = {
    "evaluation.num_samples": 1, "evaluation.at_start": False, "evaluation.eval_steps": 0, "training.save_steps": 0,
}  # fmt: skip


def record(out: Path, only: str) -> None:
    from stepalign.config import changed, load_config
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    base = changed(load_config("arithmetic"), NO_EVALUATION, "benchmark")
    out.mkdir(parents=True, exist_ok=True)
    for name, keys in (COLLAPSES | HEALTHY).items():
        file, folder = out / f"{name}.jsonl", out / f"{name}.run"
        if file.exists() or only not in name:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        start = time.time()
        try:
            train_config(changed(base, keys, name), folder, resume=False, listener=silent, stop=StopRequest())
        except Exception as error:  # a collapse may end the run
            print(f"{name}: {error}", flush=True)
        file.write_text((folder / "metrics.jsonl").read_text())
        print(f"{name}: {len(file.read_text().splitlines())} steps in {time.time() - start:.0f} s", flush=True)
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "replay"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="Runs whose name holds this.")
    given = parser.parse_args()
    record(given.out, given.only)


if __name__ == "__main__":
    main()
