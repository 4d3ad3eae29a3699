"""Damage to every file of every folder: is it named, mended or refused, or silently read?

A trial damages one file, asks ``doctor``, and gives the command that reads the folder. What that command says and
writes is held against what it says and writes of the whole folder.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_trials.kills import words_of
from fault_trials.lab import GRPO, SMALL, Lab, setting_words

WAYS = ("cut", "flipped", "emptied", "removed")
UNREAD = ("run.lock", "superseded", "tracking.json", ".log", "critic-ledger.jsonl", "timeline")
TINY = {**SMALL, "training.max_steps": 2, "evaluation.eval_steps": 2}


def make_folders(lab: Lab) -> dict[str, tuple[Path, list[str]]]:
    """One finished folder of every kind, and the command that reads it again."""
    root = lab.folder / "folders"
    words = setting_words(TINY)
    run = root / "run"
    critic = ["--critic", "{critic}", "--model", "critic"]
    commands = {
        "run": ["train", "arithmetic", "--out", str(run), *words],
        "GRPO": ["train", "arithmetic", "--out", str(root / "GRPO"), *words, *setting_words(GRPO)],
        "comparison": words_of("compare", lab, root / "comparison", **TINY),
        "selection": [
            "select",
            "arithmetic",
            "--out",
            str(root / "selection"),
            *words,
            *setting_words(
                {
                    "data.max_train": 12,
                    "selection.num_samples": 2,
                    "selection.critic_solves": "false",
                    "selection.average_below": 1.1,
                    "selection.average_above": -1,
                }
            ),
        ],
        "critique": ["critique", str(run), *critic, "--out", str(root / "critique")],
        "signal": [
            "signal",
            str(run),
            "--out",
            str(root / "signal"),
            "--num",
            "4",
            "--contexts",
            "step_aligned,reference",
        ],
        "evaluation": [
            "evaluate",
            str(run),
            "--problems",
            "embedded:arithmetic",
            "--out",
            str(root / "evaluation" / "e.json"),
            "--n",
            "2",
            "--set",
            "data.max_test=4",
        ],
    }
    readers = {
        "run": ["report", "{folder}"],
        "GRPO": [*commands["GRPO"], "--resume"],
        "comparison": ["report", "{folder}"],
        "selection": [
            "train",
            "arithmetic",
            "--out",
            "{new}",
            *words,
            "--set",
            "data.train={folder}",
            "--set",
            "data.validation_share=0.0",
        ],
        "critique": [*commands["critique"], "--resume"],
        "signal": ["show", "{folder}"],
        "evaluation": commands["evaluation"],
    }
    for name, command in commands.items():
        done = root / f"{name}.done"  # else a trial that was killed has left half of it
        if not done.exists():
            shutil.rmtree(root / name, ignore_errors=True)
            ended = lab.run(command)
            if ended.code:
                raise RuntimeError(f"{name}: {ended.code} {ended.err[-2000:]}")
            done.touch()
    return {name: (root / name, readers[name]) for name in commands}


def damages(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: all files of all folders in turn, each in one of four ways."""
    folders = make_folders(lab)
    places = [(kind, file, way) for kind, (folder, _) in folders.items() for file in _files(folder) for way in WAYS]
    random.Random(0).shuffle(places)
    sound: dict[str, str] = {}
    for trial in range(first, first + number):
        kind, file, way = places[trial % len(places)]
        folder, reader = folders[kind]
        if kind not in sound:
            sound[kind] = _read(lab, folder, reader)[1]
        kept = lab.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True)
        row: dict[str, Any] = {"kind": kind, "file": str(file), "way": way, "seed": trial}
        row["changed"] = damage(folder / file, way, random.Random(trial))
        checked = lab.run(["doctor", str(folder)])
        row["doctor"] = [
            checked.code,
            file.name in checked.out or str(file.parent) in checked.out,
            checked.has_traceback,
        ]
        ended, said = _read(lab, folder, reader)
        printed = ended.err + "".join(line for line in ended.out.splitlines(True) if "warning" in line)
        named = file.name in printed or (len(file.parts) > 1 and str(file.parent) in printed)
        row["reader"] = {
            "code": ended.code,
            "named": named,
            "traceback": ended.has_traceback,
            "as_whole": said == sound[kind],
        }
        if ended.has_traceback or checked.has_traceback:
            row["err"] = (checked.err + ended.err)[-1500:]
        row["says"] = ended.err[:200]
        row["outcome"] = _outcome(row)
        if row["outcome"] == "silent":
            row["said"] = (ended.out + ended.err)[-600:]
        shutil.rmtree(folder)
        kept.rename(folder)
        yield row


def named(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` damages, and what ``doctor`` says: is that file named, and no other folder's?"""
    from stepalign.errors import UserError
    from stepalign.verbs.doctor import doctor, finding_lines

    folders = make_folders(lab)
    places = [(kind, file, way) for kind, (folder, _) in folders.items() for file in _files(folder) for way in WAYS]
    random.Random(1).shuffle(places)
    for trial in range(first, first + number):
        kind, file, way = places[trial % len(places)]
        path = folders[kind][0] / file
        content, stat = path.read_bytes(), path.stat()
        row: dict[str, Any] = {"kind": kind, "file": str(file), "way": way, "seed": trial}
        changed = damage(path, way, random.Random(trial))
        try:
            found = doctor(folders[kind][0])[0]
            beside = {one.path.parent for one in found} == {path.parent} and file.name == "manifest.json"
            row["said"] = finding_lines(folders[kind][0], found)[:3]
            is_named = beside or any(one.path in (path, path.parent) for one in found)
            row["outcome"] = "named" if is_named else "nothing changed" if not changed else "not named"
        except UserError as error:
            row |= {"said": [str(error)], "outcome": "named" if file.name in str(error) else "refused without its name"}
        except Exception as error:
            row |= {"said": [repr(error)], "outcome": "traceback"}
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        yield row


def _outcome(row: dict[str, Any]) -> str:
    reader, named_by_doctor = row["reader"], row["doctor"][0] == 1 and row["doctor"][1]
    if reader["traceback"] or row["doctor"][2]:
        return "traceback"
    if not row["changed"]:
        return "nothing changed"
    if reader["code"]:
        return (
            "refused, named"
            if reader["named"]
            else "refused, named by doctor"
            if named_by_doctor
            else "refused, unnamed"
        )
    if reader["named"]:
        return "read, named"
    if reader["as_whole"]:  # not needed, or made anew
        return "not needed" if named_by_doctor else "not needed, unnamed"
    return "silent"


def _files(folder: Path) -> list[Path]:
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in found if not any(word in str(path) for word in UNREAD)]


def damage(path: Path, way: str, rng: random.Random) -> bool:
    content = path.read_bytes()
    if way == "removed":
        path.unlink()
        return True
    if way == "emptied":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(content[: rng.randrange(len(content) or 1)])
    elif content:
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
    return path.read_bytes() != content


def _read(lab: Lab, folder: Path, reader: list[str]) -> tuple[Any, str]:
    """The command that reads a folder, and everything that numbers could be read from afterwards."""
    new = lab.folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    ended = lab.run([word.replace("{folder}", str(folder)).replace("{new}", str(new)) for word in reader])
    said = [line for line in ended.out.splitlines() if " s " not in line]
    for name in ("results.json", "findings.json", "e.json"):
        if (folder / name).exists():
            try:
                tree = json.loads((folder / name).read_bytes())
            except ValueError:
                tree = "no JSON"
            said.append(
                json.dumps(
                    {k: v for k, v in tree.items() if k not in ("timings", "paid", "cached")}
                    if isinstance(tree, dict)
                    else tree,
                    sort_keys=True,
                )
            )
    for name in ("final/model.safetensors", "metrics.jsonl", "rollouts.jsonl"):
        for place in (folder, new):
            if (place / name).exists() and name != "metrics.jsonl":
                said.append(f"{name} {hash((place / name).read_bytes())}")
    return ended, "\n".join(said)
