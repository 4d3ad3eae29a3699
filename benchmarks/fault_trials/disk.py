"""A disk of a few megabytes that fills up in every command: one message with the path, nothing half-written.

A tmpfs is mounted for every trial, which needs the rights to mount; without them nothing is tried, and said so.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_trials.damage import TINY
from fault_trials.kills import words_of
from fault_trials.lab import GRPO, Lab, setting_words

SMALLEST, LARGEST = 24, 2600
"""Kibibytes of the disk. A run of two steps needs about 3 MB."""


def commands(lab: Lab, out: Path) -> dict[str, list[str]]:
    words, run = setting_words(TINY), lab.folder / "run"
    if not run.exists():
        lab.run(["train", "arithmetic", "--out", str(run), *words])
    critic = ["--critic", "{critic}", "--model", "critic"]
    small = {"selection.num_samples": 2, "selection.average_below": 1.1, "selection.average_above": -1}
    rows = run / "rows.jsonl"
    if not rows.exists():
        rows.write_text('{"completion": "so \\\\boxed{4}", "answer": "4"}\n' * 400, encoding="utf-8")
    return {
        "train": ["train", "arithmetic", "--out", str(out / "run"), *words],
        "train, GRPO": ["train", "arithmetic", "--out", str(out / "run"), *words, *setting_words(GRPO)],
        "critique": ["critique", str(run), *critic, "--out", str(out / "critique")],
        "select": [
            "select",
            "arithmetic",
            "--out",
            str(out / "selection"),
            *words,
            *setting_words(small | {"data.max_train": 12}),
        ],
        "signal": [
            "signal",
            str(run),
            "--out",
            str(out / "signal"),
            "--num",
            "4",
            "--contexts",
            "step_aligned,reference",
        ],
        "evaluate": [
            "evaluate",
            str(run),
            "--problems",
            "embedded:arithmetic",
            "--out",
            str(out / "e.json"),
            "--n",
            "2",
            "--set",
            "data.max_test=4",
        ],
        "grade": [
            "grade",
            str(rows),
            "--completion",
            "completion",
            "--answer",
            "answer",
            "--out",
            str(out / "verdicts.jsonl"),
            "--workers",
            "1",
        ],
        "report": ["report", str(run), "--out", str(out / "page")],
        "compare": words_of("compare", lab, out / "comparison"),
    }


def full_disks(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials over the commands in turn, each with a disk of another size, resumed when there is room."""
    disk = lab.folder / "disk"
    disk.mkdir(exist_ok=True)
    table = commands(lab, disk)
    for trial in range(first, first + number):
        name = list(table)[trial % len(table)]
        rng = random.Random(trial)
        size = (
            round(SMALLEST * (LARGEST / SMALLEST) ** rng.random())
            if name not in ("grade", "evaluate")
            else rng.choice((4, 8, 12, 16))
        )
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], capture_output=True, check=False
        )
        if mounted.returncode:
            yield {"kind": name, "skipped": "no rights to mount a tmpfs"}
            return
        try:
            yield {"kind": name, "seed": trial, "kibibytes": size, **_trial(lab, table[name], disk)}
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def _trial(lab: Lab, words: list[str], disk: Path) -> dict[str, Any]:
    ended = lab.run(words)
    if ended.code == 0:
        return {"outcome": "it was large enough"}
    row: dict[str, Any] = {"code": ended.code, "traceback": ended.has_traceback, "err": ended.err[-700:]}
    row["names_the_path"] = str(disk) in ended.err
    row["says_full"] = "No space left" in ended.err or "disk is full" in ended.err
    row["left_over"] = [str(p.relative_to(disk)) for p in disk.rglob(".*") if not p.name.endswith(".partial")]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    folder = next((p for p in disk.iterdir() if (p / "config.toml").exists()), None)
    if folder:
        row["doctor"] = lab.run(["doctor", str(folder)]).out.splitlines()[:3]
    again = [*words, "--resume"] if folder and words[0] in ("train", "critique", "select", "compare") else words
    resumed = lab.run(again)
    row["resumed"] = resumed.code
    if resumed.code:
        row["resume_err"] = resumed.err[-700:]
    good = (
        not row["traceback"]
        and row["names_the_path"]
        and row["says_full"]
        and not row["left_over"]
        and not resumed.code
    )
    return {"outcome": "one message, nothing lost" if good else "not as promised", **row}
