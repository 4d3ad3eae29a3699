"""Damage to every file of every folder: is it named, mended or refused, or silently read?

A trial damages one file and gives one of the commands that read the folder. What that command says and writes is held
against what it says and writes of the whole folder.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_trials.kills import words_of
from fault_trials.lab import GRPO, SMALL, Ended, Lab, setting_words

WAYS = ("cut", "flipped", "emptied", "removed")
UNREAD = ("run.lock", "superseded", "tracking.json", ".log", "critic-ledger.jsonl", "timeline")
TINY = {**SMALL, "training.max_steps": 2, "evaluation.eval_steps": 2}
WORDS = shlex.join(setting_words(TINY))
SELECTION = {"selection.num_samples": 2, "selection.average_below": 1.1, "selection.average_above": -1}
SELECTED = shlex.join(setting_words({**SELECTION, "data.max_train": 12, "selection.critic_solves": False}))
CRITIQUE = "critique {run} --critic {critic} --model critic --out {root}/critique"
EVALUATE = "evaluate {run} --problems embedded:arithmetic --n 2 --set data.max_test=4 --out"
READ_FINAL = {
    "evaluate": "evaluate {folder} --problems embedded:arithmetic --n 1 --set data.max_test=2 --out {new}/e.json",
    "lab": "lab {folder}",
}
READ_RUN = {
    "verify": "verify {folder} --num 2",
    "report": "report {folder}",
    "signal": "signal {folder} --num 2 --contexts step_aligned,reference --out {new}",
    "export": "export {folder} --to jsonl --out {new}/rows.jsonl",
}
TRAIN_AGAIN = f"train arithmetic --out {{folder}} {WORDS}"
READERS: dict[str, dict[str, str]] = {
    "run": {**READ_FINAL, **READ_RUN, "resume": f"{TRAIN_AGAIN} --resume"},
    "GRPO": {
        **READ_FINAL,
        "verify": READ_RUN["verify"],
        "resume": f"{TRAIN_AGAIN} {shlex.join(setting_words(GRPO))} --resume",
    },
    "killed run": {"resume": f"{TRAIN_AGAIN} --resume", **READ_RUN},
    "comparison": {"report": "report {folder}", "verify": "verify {folder} --num 2"},
    "selection": {
        "train": f"train arithmetic --out {{new}} {WORDS} --set data.train={{folder}} --set data.validation_share=0.0"
        f" {shlex.join(setting_words(GRPO))}",
        "verify": "verify {folder} --num 2",
    },
    "critique": {"resume": f"{CRITIQUE} --resume", "verify": "verify {folder}"},
    "signal": {"show": "show {folder}", "verify": "verify {folder} --num 2"},
    "evaluation": {
        "evaluate": f"{EVALUATE} {{folder}}/e.json",
        "report": "report {folder}/e.samples.jsonl --out {new}",
        "verify": "verify {folder}/e.json",
    },
}
"""Kind of folder -> the commands that read it."""
UNFINISHED = ("sums.json", "summary.json", "final", "timeline.json")
"""Of a run, written after its last step."""


def make_folders(lab: Lab) -> dict[str, Path]:
    """One folder of every kind, beside those of the trials, which share them."""
    root, run = lab.folder.parent / "folders", a_run(lab)
    texts = {
        "GRPO": f"train arithmetic --out {root / 'GRPO'} {WORDS} {shlex.join(setting_words(GRPO))}",
        "selection": f"select arithmetic --out {root / 'selection'} {WORDS} {SELECTED}",
        "critique": CRITIQUE,
        "signal": f"signal {run} --out {root / 'signal'} --num 4 --contexts step_aligned,reference",
        "evaluation": f"{EVALUATE} {root / 'evaluation' / 'e.json'}",
    }
    commands = {name: _words(text, root) for name, text in texts.items()}
    commands["comparison"] = words_of("compare", lab, root / "comparison", **TINY)
    for name, command in commands.items():
        _make(lab, root / name, command)
    if not (killed := root / "killed run").exists():
        shutil.copytree(run, killed, ignore=shutil.ignore_patterns(*UNFINISHED))
    return {name: root / name for name in READERS}


def a_run(lab: Lab) -> Path:
    """A finished run that trials read."""
    run = lab.folder.parent / "folders" / "run"
    _make(lab, run, shlex.split(f"train arithmetic --out {run} {WORDS}"))
    return run


def _make(lab: Lab, folder: Path, command: Sequence[str]) -> None:
    done = folder.with_suffix(".done")  # else a trial that was killed has left half of it
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        ended = lab.run(command)
        if ended.code:
            raise RuntimeError(f"{folder.name}: {ended.code} {ended.err[-2000:]}")
        done.touch()


def _words(text: str, root: Path, **places: Path) -> list[str]:
    places = {"root": root, "run": root / "run", **places}
    words = shlex.split(text)
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", str(place)) for word in words]
    return words


def damages(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: kinds of folders and their readers in turn, a random file in a random way each."""
    folders = make_folders(lab)
    for kept in lab.folder.glob("kept/*"):  # a trial was killed
        shutil.rmtree(folders[kept.name], ignore_errors=True)
        kept.rename(folders[kept.name])
    turns = [(kind, reader) for kind, readers in READERS.items() for reader in readers]
    random.Random(0).shuffle(turns)
    sound: dict[tuple[str, str], dict[Path, str]] = {}
    for trial in range(first, first + number):
        kind, reader = turns[trial % len(turns)]
        rng = random.Random(trial)
        names = sorted({path.name for path in _files(folders[kind])})
        name = names[trial // len(turns) % len(names)] if trial % 3 else rng.choice(names)  # every name has its turn
        file = rng.choice([path for path in _files(folders[kind]) if path.name == name])
        if (kind, reader) not in sound:
            with _kept(folders[kind], lab.folder / "kept"):
                ended, sound[kind, reader] = _read(lab, folders, kind, reader)
            if ended.code:
                raise RuntimeError(f"{kind}, {reader}: {ended.code} {ended.err[-2000:]}")
        row: dict[str, Any] = {"kind": kind, "reader": reader, "file": str(file), "way": rng.choice(WAYS)}
        with _kept(folders[kind], lab.folder / "kept"):
            changed = damage(folders[kind] / file, row["way"], rng)
            ended, said = _read(lab, folders, kind, reader)
        printed = ended.err + "".join(line for line in ended.out.splitlines(True) if "arning" in line or ended.code)
        is_named = file.name in printed or (len(file.parts) > 1 and file.parent.name in printed)
        row |= {"seed": trial, "code": ended.code, "says": ended.err[:300]}
        alike = {**said, folders[kind] / file: ""} == {**sound[kind, reader], folders[kind] / file: ""}
        row["outcome"] = _outcome(ended, changed, is_named, alike)
        if row["outcome"] not in ("nothing changed", "not needed"):
            row["said"] = (ended.out + ended.err)[-1500:]
        yield row


@contextmanager
def _kept(folder: Path, place: Path) -> Iterator[None]:
    """The folder is as before afterwards: what reads it may write there, too."""
    place = place / folder.name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place, symlinks=True)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        place.rename(folder)


def _outcome(ended: Ended, changed: bool, is_named: bool, as_whole: bool) -> str:
    if ended.has_traceback:
        return "traceback"
    if not changed:
        return "nothing changed"
    if ended.code:
        return "refused, named" if is_named else "refused, unnamed"
    if is_named:
        return "read, named"
    return "not needed" if as_whole else "silent"


def named(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` damages, and what ``doctor`` says: is that file named, and no other folder's?"""
    from stepalign.errors import UserError
    from stepalign.verbs.doctor import doctor, finding_lines

    folders = make_folders(lab)
    places = [(kind, file, way) for kind, folder in folders.items() for file in _files(folder) for way in WAYS]
    random.Random(1).shuffle(places)
    for trial in range(first, first + number):
        kind, file, way = places[trial % len(places)]
        path = folders[kind] / file
        content, stat = path.read_bytes(), path.stat()
        row: dict[str, Any] = {"kind": kind, "file": str(file), "way": way, "seed": trial}
        changed = damage(path, way, random.Random(trial))
        try:
            found = doctor(folders[kind])[0]
            beside = {one.path.parent for one in found} == {path.parent} and file.name == "manifest.json"
            row["said"] = finding_lines(folders[kind], found)[:3]
            is_named = beside or any(one.path in (path, path.parent) for one in found)
            row["outcome"] = "named" if is_named else "nothing changed" if not changed else "not named"
        except UserError as error:
            row |= {"said": [str(error)], "outcome": "named" if file.name in str(error) else "refused without its name"}
        except Exception as error:
            row |= {"said": [repr(error)], "outcome": "traceback"}
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        yield row


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


def _read(lab: Lab, folders: Mapping[str, Path], kind: str, reader: str) -> tuple[Ended, dict[Path, str]]:
    """A command that reads a folder, and everything that numbers could be read from afterwards, by file."""
    new, folder = lab.folder / "new", folders[kind]
    shutil.rmtree(new, ignore_errors=True)
    words = _words(READERS[kind][reader], folder.parent, folder=folder, new=new)
    ended = opened(lab, words) if reader == "lab" else lab.run(words)
    lines = [re.sub(r"http\S+", "", line) for line in ended.out.splitlines() if not re.search(r"\ds?\b s\b", line)]
    said = {Path("terminal"): "\n".join(lines)}
    for place in [folder, new]:
        for name in ("results.json", "findings.json", "e.json", "signal.json", "rows.jsonl", "rollouts.jsonl"):
            said[place / name] = _numbers(place / name)
        weights = place / "final" / "model.safetensors"
        said[weights] = str(hash(weights.read_bytes())) if weights.exists() else ""
    return ended, said


def opened(lab: Lab, words: Sequence[str]) -> Ended:
    """The lab serves until it is asked to end: code 130 is a good end."""
    child = lab.start(words)
    while not child.has_ended and "http" not in child.files[0].read_text() + child.files[1].read_text():
        time.sleep(0.05)
    child.kill(signal.SIGINT)
    ended = child.wait()
    return Ended(0 if ended.code == 130 else ended.code, ended.out, ended.err, ended.seconds)


def _numbers(file: Path) -> str:
    """The content of a file of numbers, without times."""
    if not file.is_file():
        return ""
    if file.suffix == ".jsonl":
        return str(hash(file.read_bytes()))
    try:
        tree = json.loads(file.read_bytes())
    except ValueError:
        return "no JSON"
    return re.sub(r'"(\w*seconds\w*|made|date|timings|paid|cached)": [^,}\]]+', "", json.dumps(tree, sort_keys=True))
