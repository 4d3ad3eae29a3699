"""A run that Ray places on a cluster of this one machine; the server's actor is killed, then the learner's.

    pip install "stepalign[ray]"
    python benchmarks/ray_actors.py --python build/vllm/bin/python      # of an environment with vLLM: make test-vllm

The embedded solver trains adapters on completions of a real vLLM server. Prints how long each death held the run up
(the longest gap between two steps that contains it, beside the median step), and what the run folder holds at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

JOB = Path(__file__).parents[1] / "recipes" / "cluster" / "ray_job.py"
STEPS, SAMPLED = 14, 16
SETTINGS = (
    *(f"training.max_steps={STEPS}", "training.problems_per_step=4", "sampling.num_generations=4"),
    *("training.save_steps=1", "evaluation.at_start=false", "evaluation.num_samples=1", "model.lora={r=8, alpha=16}"),
    *("data.max_validation=4", "data.max_test=4", "condition=grpo"),
)


def holder_of(word: str) -> int:
    """The actor that holds a command of this package."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if (
                b"stepalign" in words
                and word.encode() in words
                and b"ray::" in Path(f"/proc/{parent}/cmdline").read_bytes()
            ):
                return parent
        except OSError:
            continue
    raise SystemExit(f"no actor holds {word}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of the environment that has vLLM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out, log = Path(name) / "run", Path(name) / "log"
        words = [sys.executable, str(JOB), "arithmetic", "--out", str(out), "--servers", "1", "--ranks", "1", "--cpu"]
        words += ["--model", "embedded:arithmetic", "--lora-rank", "8", "--python", options.python]
        words += [word for setting in SETTINGS for word in ("--set", setting)]
        with log.open("w") as file:
            job = subprocess.Popen(words, stdout=file, stderr=file)
        ends, killed = list[float](), dict[str, float]()
        while job.poll() is None:
            steps = (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0
            ends += [time.monotonic()] * (steps - len(ends))
            for word, at in (("serve", 3), ("train", 7)):
                if steps >= at and word not in killed:
                    killed[word] = time.monotonic()
                    os.kill(holder_of(word), signal.SIGKILL)
            time.sleep(0.02)
        if job.returncode:
            raise SystemExit(log.read_text()[-5000:])
        gaps = [(one, other, other - one) for one, other in pairwise(ends)]
        print(f"median step: {median(gap for *_, gap in gaps):.1f} s")
        for word, moment in killed.items():
            seconds = next(gap for one, other, gap in gaps if one <= moment <= other)
            print(f"actor of {word} killed: {seconds:.1f} s from the step before to the step behind")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        ids = [json.loads(line)["rollout_id"] for line in (out / "rollouts.jsonl").read_text().splitlines()]
        print(f"steps on record: {[row['step'] for row in rows] == [*range(1, STEPS + 1)] and len(rows)} of {STEPS}")
        print(f"completions: {len(ids)}, {len(set(ids))} of them different, {SAMPLED * STEPS} expected")


if __name__ == "__main__":
    main()
