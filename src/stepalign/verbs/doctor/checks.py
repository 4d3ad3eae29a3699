"""The checks of one folder: each yields what is not as it should be."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stepalign.config import load_config
from stepalign.critics import CACHE, LEDGER
from stepalign.critics.cache import damaged_keys
from stepalign.errors import ConfigError, UserError
from stepalign.outside import parse_json
from stepalign.storage import jsonl
from stepalign.storage.files import (
    MANIFEST,
    damaged_file,
    is_sealed,
    read_json,
    restore_sealed,
    set_aside,
    step_folders,
    step_of,
    tidy,
)
from stepalign.storage.fingerprint import sha256_of_file
from stepalign.storage.sums import SUMS, changed_in, damaged_since, file_of, sum_of_tree, write_sums
from stepalign.verbs.report import PAGES, write_reports

AGAIN = {
    "summary.json": "train --resume writes it again",
    "results.json": "stepalign report writes it again",
    "report.html": "stepalign report writes it again",
    "signal.json": "the same stepalign signal command writes it again",
    "index.html": "the command of this folder writes it again",
    "findings.json": "stepalign critique --resume writes it again",
    "funnel.json": "stepalign select --resume writes it again",
    "versions.json": "it is provenance: no number depends on it",
    "timeline.json": "it is a picture of times: no number depends on it",
    "config.toml": "nothing can be resumed or read without it; the recipe and its --set words make it again",
}
FINISHED = ("summary.json", "results.json", "findings.json", "funnel.json", "signal.json", "prepare.json")
"""The file that a command of each kind writes last."""
_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    path: Path
    what: str
    meaning: str
    mend: Callable[[], object] | None = None
    """The safe repair, where there is one."""
    repair: str = ""
    """What it does."""


def check(folder: Path) -> Iterator[Finding]:
    """Everything that is wrong with a folder, those in it left out. The first finding about a file tells most."""
    yield from _left_overs(folder)
    if is_sealed(folder):
        yield from _sealed(folder)
        return
    yield from _evaluations(folder)
    if (folder / "run.lock").exists() or (folder / "config.toml").exists():
        yield from _recipe(folder)
    for sealed in (folder / "final", folder / "solver"):
        if sealed.is_dir() and ((sealed / MANIFEST).exists() or _has_lock(folder)):  # older versions sealed none
            yield from _sealed(sealed, instead=folder / "checkpoints")
    state = yield from _checkpoints(folder / "checkpoints")
    yield from _selection(folder)
    left = list(_as_left(folder))
    changed_since = {one.path for one in left}
    damaged = list(_records(folder, state))  # a torn end is no harm, unless the last command ended behind it
    yield from (replace(one, mend=None) if one.path in changed_since else one for one in damaged)
    yield from check_cache(folder / CACHE)
    yield from _ledger(folder)
    yield from left
    if not any(one.path.parent == folder for one in damaged):  # else their lines tell nothing
        yield from _missing(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Left-overs, sealed folders, checkpoints


def _left_overs(folder: Path) -> Iterator[Finding]:
    """What a killed command had not finished: the next command removes it, or puts it in its place."""
    for place in (folder, folder / "checkpoints", folder / "arrays"):
        for path in place.glob(".*") if place.is_dir() else ():
            temporary = _TEMPORARY.fullmatch(path.name)
            if path.is_dir() and path.suffix in (".tmp", ".old", ".gone"):
                yield Finding(
                    path=path,
                    what="is left over from a killed command",
                    meaning="the next command here tidies it up",
                    mend=partial(tidy, place),
                    repair="tidied up",
                )
            elif temporary and path.is_file() and not Path("/proc", temporary["pid"]).exists():
                yield Finding(
                    path=path,
                    what="is half a file of a killed command",
                    meaning="nothing reads it",
                    mend=partial(path.unlink, missing_ok=True),
                    repair="removed",
                )


def _sealed(folder: Path, instead: Path | None = None) -> Iterator[Finding]:
    """Weights in Hugging Face layout, or a checkpoint, against their manifest."""
    name = damaged_file(folder)
    if name is None:
        return
    spare = next((c for c in reversed(step_folders(instead)) if damaged_file(c) is None), None) if instead else None
    whole = spare is not None and _last_step(folder.parent) == step_of(spare)
    yield Finding(
        path=folder / name,
        what="is not what the manifest says" if (folder / MANIFEST).exists() else "is missing",
        meaning=("these weights are refused" if (folder / MANIFEST).exists() else "nothing guards these weights")
        + (f"; {spare.name} has the same" if spare and whole else ""),
        mend=partial(restore_sealed, folder, spare) if spare and whole else None,
        repair=f"the weights of {spare.name} are there again" if spare else "",
    )


def _last_step(run: Path) -> int:
    """The last step on record."""
    with contextlib.suppress(ConfigError, OSError):
        return max((row.get("step", 0) for row in jsonl.read_json_lines(run / "metrics.jsonl")), default=0)
    return -1


def _checkpoints(root: Path) -> Iterator[Finding]:  # returns the state of the newest whole one
    """Every checkpoint against its manifest. Returns the state of the newest whole one, {} without any."""
    state: dict[str, Any] = {}
    folders = step_folders(root)
    faults = {folder: damaged_file(folder, ("state.json",)) for folder in folders}
    whole = [folder for folder in folders if faults[folder] is None]
    for folder, name in faults.items():
        if name is not None:
            yield Finding(
                path=folder / name,
                what="is damaged or missing",
                meaning=f"the run goes on from {whole[-1].name}"
                if whole
                else "no whole checkpoint is left to go on from",
                mend=partial(set_aside, folder) if whole else None,
                repair="the checkpoint is set aside in superseded/",
            )
    if whole:
        state = json.loads((whole[-1] / "state.json").read_text(encoding="utf-8"))
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Files of a run


def _recipe(folder: Path) -> Iterator[Finding]:
    file = folder / "config.toml"
    if not file.exists():
        yield Finding(path=file, what="is missing", meaning=AGAIN[file.name])
        return
    try:
        load_config(str(file))
    except UserError as error:
        yield Finding(path=file, what=f"cannot be read: {error.what}", meaning=AGAIN[file.name])
    versions = folder / "versions.json"
    if (folder / "run.lock").exists() and not versions.exists() and not (folder / SUMS).exists():  # they would name it
        yield Finding(path=versions, what="is missing", meaning="it is not known what made this; no number needs it")


def _records(folder: Path, state: dict[str, Any]) -> Iterator[Finding]:
    """Every file of JSON lines: a torn end, lines that are none, and what a checkpoint knows of it."""
    sizes, sums = ({file_of(name): one for name, one in state.get(key, {}).items()} for key in ("sizes", "sums"))
    names = {folder / name for name, size in sizes.items() if size}
    for path in sorted(names | {*folder.glob("*.jsonl"), *folder.glob("samples/*.jsonl")}):
        name = str(path.relative_to(folder))
        if what := changed_in(path, sizes.get(name, 0), sums.get(name), "the newest checkpoint"):
            yield Finding(path=path, what=what, meaning="the run cannot go on with it; put the file back as it was")
        if what or path.suffix == ".json":
            continue
        number = _first_bad_line(path)
        if number:
            yield Finding(
                path=path,
                what=f"is damaged in line {number}",
                meaning="what reads it stops there; put the file back as it was",
            )
        elif torn := (size := path.stat().st_size) - jsonl.whole_size(path):
            yield Finding(
                path=path,
                what=f"ends in {torn} bytes of a record that was being written",
                meaning="readers leave it out, and the next command cuts it off",
                mend=partial(jsonl.rewind, path, size - torn),
                repair="the torn end is in superseded/",
            )


def _first_bad_line(path: Path) -> int:
    for number, line in enumerate(jsonl.whole_lines(path), 1):
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            return number
        if not isinstance(row, dict):
            return number
    return 0


def _missing(folder: Path) -> Iterator[Finding]:
    """Pieces that a folder should have, and records that do not fit each other."""
    if not (folder / "metrics.jsonl").exists():
        return
    if (folder / "summary.json").exists() and not (folder / "final").is_dir():
        yield Finding(
            path=folder / "final",
            what="is missing",
            meaning="the run is finished and has no weights: train --resume writes them again",
        )
    try:
        steps = Counter(int(row["step"]) for row in jsonl.read_json_lines(folder / "metrics.jsonl"))
        counts = {
            name: Counter(int(row["record_step"]) for row in jsonl.read_json_lines(folder / f"{name}.jsonl"))
            for name in ("rollouts", "contexts")
        }
    except (ConfigError, OSError, LookupError, TypeError, ValueError):
        return  # named above, or by the checksums
    if list(steps) != list(range(1, len(steps) + 1)) or set(steps.values()) - {1}:
        yield Finding(
            path=folder / "metrics.jsonl",
            what="does not have every step once",
            meaning="lines are lost or doubled; the figures of these steps are not whole",
        )
    for name, found in counts.items():
        behind = [step for step in found if step not in steps]
        lost = [
            step for step in steps if counts["rollouts"].get(step) != counts["contexts"].get(step) or not found[step]
        ]
        if (behind and min(behind) <= max(steps, default=0)) or lost:
            yield Finding(
                path=folder / f"{name}.jsonl",
                what=f"lacks lines of step {min(lost)}" if lost else "has lines of unknown steps",
                meaning="rollouts, contexts and metrics do not fit each other",
            )


def _evaluations(folder: Path) -> Iterator[Finding]:
    """The files of ``stepalign evaluate``: completions beside the numbers that were computed from them."""
    again = "the same stepalign evaluate command writes it again from the completions"
    for samples in {file.with_suffix(".jsonl") for file in folder.glob("*.samples.json*")}:
        numbers = samples.with_name(samples.name.removesuffix(".samples.jsonl") + ".json")
        meaning = {
            samples: "the evaluation is refused; put the file back as it was",
            samples.with_suffix(".json"): "the completions cannot be told from those of another evaluation",
            numbers: again,
        }
        missing = [file for file in meaning if not file.exists()]
        yield from (Finding(path=file, what="is missing", meaning=meaning[file]) for file in missing)
        if numbers in missing:
            continue
        try:
            before = read_json(numbers)
        except ConfigError as error:
            yield Finding(path=numbers, what=f"is damaged: {error.what}", meaning=again)
            continue
        if before.get("sha256", sum_of_tree(before)) != sum_of_tree(before):
            yield Finding(path=numbers, what="is damaged", meaning=again)
            continue
        for file, key in ((samples, "samples_sha256"), (samples.with_suffix(".json"), "settings_sha256")):
            if file not in missing and before.get(key) and sha256_of_file(file) != before[key]:
                what = "is not what the numbers beside it were computed from"
                yield Finding(path=file, what=what, meaning=meaning[file])


def _selection(folder: Path) -> Iterator[Finding]:
    """The frozen problems of a selection against their checksums."""
    file = folder / MANIFEST
    refused = f"a run on it is refused; rm {folder / SUMS}, then stepalign select --resume writes it again"
    if not file.exists():
        if (folder / "funnel.json").exists():
            yield Finding(path=file, what="is missing", meaning=refused)
        return
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["files"].values()
        expected = {entry["file"]: entry["sha256"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        yield Finding(path=file, what="is no manifest of a selection", meaning=refused)
        return
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != checksum:
            yield Finding(path=path, what="is not what the manifest says", meaning=refused)


def _as_left(folder: Path) -> Iterator[Finding]:
    """Every file against the checksums that the last command left."""
    try:
        found = damaged_since(folder)
    except ConfigError as error:
        yield Finding(
            path=folder / SUMS,
            what="is damaged",
            meaning=f"it guards the other files, and holds nothing else ({error.what})",
            mend=partial(write_sums, folder),
            repair="written anew from the files as they are",
        )
        return
    if not (folder / SUMS).exists() and any((folder / name).exists() for name in FINISHED) and _has_lock(folder):
        yield Finding(
            path=folder / SUMS,
            what="is missing",
            meaning="it guards the files of finished work; a command was killed here, or it was removed",
            mend=partial(write_sums, folder),
            repair="written anew from the files as they are",
        )
    pages = [folder / name for name, _ in found if name in PAGES]
    for name, what in found:
        is_page = name in PAGES and len(pages) == len(found)
        yield Finding(
            path=folder / name,
            what=what,
            meaning=AGAIN.get(Path(name).name, "numbers from it are not to be trusted; put the file back as it was"),
            mend=partial(_write_pages, folder) if is_page else None,
            repair="written again",
        )


def _has_lock(folder: Path) -> bool:
    """Whether the folder is of a version that writes sums: its versions.json has a lock of the packages."""
    with contextlib.suppress(ConfigError):
        return "packages" in read_json(folder / "versions.json")
    return False


def _write_pages(folder: Path) -> None:
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)
    write_reports([folder])


# ---------------------------------------------------------------------------------------------------------------------
# Replies that were paid for


def check_cache(path: Path) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        keys = damaged_keys(path)
    except (sqlite3.Error, UserError) as error:
        yield Finding(
            path=path,
            what=f"is no sound cache: {error}",
            meaning="replies in it cannot be read; the critic is asked and paid again",
            mend=partial(set_aside, path),
            repair="set aside in superseded/, for sqlite3's .recover",
        )
        return
    if keys:
        yield Finding(
            path=path,
            what=f"has {len(keys)} damaged replies",
            meaning="they are asked for, and paid, again when they are needed",
        )


def _ledger(folder: Path) -> Iterator[Finding]:
    """Replies that the ledger says were paid for, in a folder whose cache is gone."""
    recipe, ledger = folder / "config.toml", folder / LEDGER
    with contextlib.suppress(UserError, OSError):
        if not ledger.exists() or load_config(str(recipe)).critic.cache or (folder / CACHE).exists():
            return
        paid = sum(not row["fault"] for row in jsonl.read_json_lines(ledger))
        if paid:
            yield Finding(
                path=folder / CACHE,
                what="is missing",
                meaning=f"{paid} replies that the ledger knows would be paid again by a command that needs them",
            )
