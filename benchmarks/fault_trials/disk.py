"""A disk of a few megabytes that fills up in every command: one message with the path, nothing half-written.

A tmpfs is mounted for every trial, which needs the rights to mount; without them nothing is tried, and said so.
"""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_trials.damage import SELECTED, WORDS, a_run
from fault_trials.kills import words_of
from fault_trials.lab import GRPO, Lab, setting_words

PREPARE = "--set prepare.examples=16 --set prepare.num_problems=2 --set prepare.pass_rate_above=0"
COMMANDS = {
    "train": (4000, f"train arithmetic --out {{disk}}/out {WORDS}"),
    "critique": (90, "critique {run} --critic {critic} --model critic --out {disk}/out"),
    "train, GRPO": (4000, f"train arithmetic --out {{disk}}/out {WORDS} {shlex.join(setting_words(GRPO))}"),
    "select": (70, f"select arithmetic --out {{disk}}/out {WORDS} {SELECTED}"),
    "signal": (400, "signal {run} --out {disk}/out --num 4 --contexts step_aligned,reference"),
    "evaluate": (
        16,
        "evaluate {run} --problems embedded:arithmetic --out {disk}/e.json --n 2 --set data.max_test=4",
    ),
    "grade": (28, "grade {rows} --completion completion --answer answer --out {disk}/verdicts.jsonl --workers 1"),
    "report": (200, "report {run} --out {disk}/out"),
    "export": (12, "export {run} --to jsonl --out {disk}/rows.jsonl"),
    "preflight": (400, f"preflight arithmetic --out {{disk}}/out --num 4 {WORDS}"),
    "prepare": (3000, f"prepare arithmetic --out {{disk}}/out {WORDS} {PREPARE}"),
    "doctor --repair": (0, "doctor {disk}/out --repair"),
    "compare": (12000, ""),
}
"""Command -> the largest disk in kibibytes (the command needs more), and its words."""
GOES_ON = ("train", "critique", "select", "compare", "prepare")


def full_disks(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials over the commands in turn, each with a disk of another size, resumed when there is room."""
    disk, run, rows = lab.folder / "disk", a_run(lab), lab.folder / "completions.jsonl"
    disk.mkdir(exist_ok=True)
    rows.write_text('{"completion": "so \\\\boxed{4}", "answer": "4"}\n' * 400, encoding="utf-8")
    for trial in range(first, first + number):
        name = list(COMMANDS)[trial % len(COMMANDS)]
        most, text = COMMANDS[name]
        words = words_of("compare", lab, disk / "out") if name == "compare" else shlex.split(text)
        for place in (("disk", disk), ("run", run), ("rows", rows)):
            words = [word.replace(f"{{{place[0]}}}", str(place[1])) for word in words]
        rng = random.Random(trial)
        size = 4 * max(1, round(most / 4 * rng.uniform(0.02, 1.0) ** 2)) if most else 16 * 1024
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], capture_output=True, check=False
        )
        if mounted.returncode:
            yield {"kind": name, "skipped": "no rights to mount a tmpfs"}
            return
        try:
            if not most:
                _damaged(run, disk, rng)
            yield {"kind": name, "seed": trial, "kibibytes": size, **_trial(lab, words, disk)}
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def _damaged(run: Path, disk: Path, rng: random.Random) -> None:
    """A run with final weights and pages to repair, and some kibibytes of room."""
    shutil.copytree(run, disk / "out")
    (disk / "out" / "sums.json").unlink()
    (disk / "out" / "final" / "model.safetensors").write_bytes(b"")
    with (disk / "out" / "rollouts.jsonl").open("a") as file:
        file.write('{"torn')
    free = shutil.disk_usage(disk).free // 1024 - rng.randrange(0, 400)
    (disk / "ballast").write_bytes(bytes(1024 * max(free, 0)))


def _trial(lab: Lab, words: list[str], disk: Path) -> dict[str, Any]:
    ended = lab.run(words)
    if ended.code in (0, 6):
        is_full = not shutil.disk_usage(disk).free
        return {"outcome": "ended well with no room left" if is_full else "it was large enough"}
    row: dict[str, Any] = {"code": ended.code, "traceback": ended.has_traceback, "err": ended.err[-700:]}
    row["names_the_path"] = str(disk) in ended.err
    row["says_full"] = "No space left" in ended.err or "disk is full" in ended.err
    row["left_over"] = [str(p.relative_to(disk)) for p in disk.rglob(".*") if not p.name.endswith(".partial")]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    folder = disk / "out" if (disk / "out" / "config.toml").exists() else None
    if folder and words[0] != "doctor":
        row["doctor"] = lab.run(["doctor", str(folder)]).out.splitlines()[:3]
    resumed = lab.run([*words, "--resume"] if folder and words[0] in GOES_ON else words)
    row["resumed"] = resumed.code
    if resumed.code not in (0, 6):
        row["resume_err"] = resumed.out[-300:] + resumed.err[-700:]
    good = (
        not row["traceback"]
        and row["names_the_path"]
        and row["says_full"]
        and not row["left_over"]
        and resumed.code in (0, 6)
    )
    return {"outcome": "one message, nothing lost" if good else "not as promised", **row}
