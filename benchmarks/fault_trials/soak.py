"""A long run with faults in critic and sampler: memory, handles, threads, and the account of its rollouts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_trials.lab import CRITIC, SAMPLER, SMALL, Lab, setting_words

KINDS = {"no server": {}, "critic and sampler, 10 % faults": CRITIC | SAMPLER | {"sampling.max_completion_length": 24}}


def soak(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """One run of ``number`` steps for each kind; a point every two seconds."""
    for kind, keys in list(KINDS.items())[first:]:
        out = lab.folder / kind.partition(",")[0].replace(" ", "-")
        settings = {
            **SMALL,
            **keys,
            "training.max_steps": number,
            "training.save_steps": 20,
            "evaluation.eval_steps": 0,
        }
        if keys:
            lab.ask_servers("faults 0.1")
        child = lab.start(["train", "arithmetic", "--out", str(out), *setting_words(settings), "--resume"])
        points: list[list[float]] = []
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(2)
            points += _point(child.pid, out)
        ended = child.wait(1)
        yield {"kind": kind, "code": ended.code, "points": points, **account(out), "err": ended.err[-500:]}


def _point(pid: int, out: Path) -> list[list[float]]:
    """[steps, resident MB, handles, threads]."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.split()[1:]}
        steps = (out / "metrics.jsonl").read_bytes().count(b"\n")
        return [[steps, int(found["VmRSS"]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(found["Threads"])]]
    except (OSError, KeyError):
        return []


def account(out: Path) -> dict[str, Any]:
    """sampled = trained + masked, from the records."""
    rows = [json.loads(line) for line in (out / "contexts.jsonl").read_bytes().splitlines()]
    sampled = (out / "rollouts.jsonl").read_bytes().count(b"\n")
    masked: dict[str, int] = {}
    for row in rows:
        if row["masked"]:
            masked[row["masked"]] = masked.get(row["masked"], 0) + 1
    trained = sum(row["text"] is not None for row in rows)
    return {"sampled": sampled, "trained": trained, "masked": masked}


def slope(points: list[list[float]], column: int = 1) -> float:
    """Of the second half, per 1,000 steps: least squares."""
    half = points[len(points) // 2 :]
    mean_x, mean_y = (sum(p[i] for p in half) / len(half) for i in (0, column))
    spread = sum((p[0] - mean_x) ** 2 for p in half)
    return 1000 * sum((p[0] - mean_x) * (p[column] - mean_y) for p in half) / spread if spread else 0.0
