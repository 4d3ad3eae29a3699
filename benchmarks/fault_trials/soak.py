"""A long run with faults in critic, sampler and disk: memory, handles, threads, and the account of its rollouts.

A tenth of the requests to critic and sampler fail all the time. In the first sixth of the time the disk, a tmpfs, fills
up ten times: the run ends with its message and goes on when there is room. Behind that one process runs to the end,
where it is stopped while a step is buffered.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fault_trials.lab import CRITIC, SAMPLER, SMALL, Child, Lab, setting_words

SETTINGS = {
    **SMALL,
    **CRITIC,
    **SAMPLER,
    "rollouts.ahead": 1,
    "sampling.max_completion_length": 48,
    "training.max_steps": 1_000_000,
    "training.save_steps": 20,
    "training.learning_rate": 1e-5,
    "evaluation.eval_steps": 100,
    "guards.policy": "warn",
}
FILLS = 10
"""Times that the disk fills up."""
KIBIBYTES = 512 * 1024


def soak(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """One run of ``number`` seconds; a point every few of them."""
    if first:
        return
    disk = lab.folder / "disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={KIBIBYTES}k", "none", str(disk)], capture_output=True, check=False
    )
    out = disk / "run"
    words = ["train", "arithmetic", "--out", str(out), *setting_words(SETTINGS), "--resume"]
    lab.ask_servers("faults 0.1")
    begun = time.monotonic()
    row: dict[str, Any] = {
        "kind": "critic, sampler and disk",
        "seconds": number,
        "full": [],
        "by_itself": [],
        "points": [],
    }
    try:
        child = lab.start(words)
        for at in [number / 6 * (place + 1) / FILLS for place in range(FILLS)] if not mounted.returncode else []:
            row["points"] += _points(child, out, begun, begun + at)
            if child.has_ended:  # a dead run's last update may reach the server late: the next run ends with that
                ended = child.wait()
                row["by_itself"].append([ended.code, ended.err[-500:]])
            else:
                row["full"].append(_filled(child, disk))
            child = lab.start(words)
        row["points"] += _points(child, out, begun, begun + number)
        child.kill(signal.SIGINT)
        ended = child.wait()
        row |= {"code": ended.code, "err": ended.err[-500:], **account(out)}
        for name in ("rollouts.jsonl", "contexts.jsonl", "metrics.jsonl"):
            shutil.copy(out / name, lab.folder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    yield row


def _filled(child: Child, disk: Path) -> list[Any]:
    """Fill the disk until the run has ended: [code, whether the message has path and reason, traceback, message]."""
    ballast = disk / "ballast"
    while not child.has_ended:
        free = shutil.disk_usage(disk).free
        with ballast.open("ab") as file, suppress(OSError):  # what was free is taken meanwhile
            os.posix_fallocate(file.fileno(), ballast.stat().st_size, max(free, 1))
        time.sleep(0.05)
    ended = child.wait()
    ballast.unlink(missing_ok=True)
    says_why = any(reason in ended.err for reason in ("No space left", "disk is full"))  # the system; the cache
    return [ended.code, str(disk) in ended.err and says_why, ended.has_traceback, ended.err[-300:]]


def _points(child: Child, out: Path, begun: float, until: float) -> list[list[float]]:
    """[seconds, steps, resident MB, handles, threads, MB of these that are no file's] every few seconds."""
    points = []
    while time.monotonic() < until and not child.has_ended:
        time.sleep(2)
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.split()[1:]}
            steps = (out / "metrics.jsonl").read_bytes().count(b"\n")
            handles = len(os.listdir(f"/proc/{child.pid}/fd"))
            resident, own = (int(found[name]) / 1024 for name in ("VmRSS", "RssAnon"))
            threads = int(found["Threads"])
        except (OSError, KeyError):  # no step yet, or it has just ended
            continue
        seconds = round(time.monotonic() - begun, 1)
        points.append([seconds, steps, resident, handles, threads, own])
    return points


def account(out: Path) -> dict[str, Any]:
    """sampled = trained + masked + buffered, from the last checkpoint and the records."""
    states = sorted(out.glob("checkpoints/step-*/state.json"), key=lambda file: int(file.parent.name[5:]))
    state = json.loads(states[-1].read_bytes())
    buffered = sum(len(group["rollouts"]) for line in state["collected_early"] for group in json.loads(line)["groups"])
    rows = [json.loads(line) for line in (out / "contexts.jsonl").read_bytes().splitlines()]
    return {
        "sampled": (out / "rollouts.jsonl").read_bytes().count(b"\n") + buffered,
        "counted": state["progress"]["num_rollouts"] + buffered,
        "trained": sum(row["text"] is not None for row in rows),
        "masked": Counter(row["masked"] for row in rows if row["masked"]),
        "buffered": buffered,
        "critic": state["progress"]["critic"],
    }


def slope(points: list[list[float]], column: int = 2) -> float:
    """Per 1,000 steps: least squares."""
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (1, column))
    spread = sum((p[1] - mean_x) ** 2 for p in points)
    return 1000 * sum((p[1] - mean_x) * (p[column] - mean_y) for p in points) / spread if spread else 0.0
