"""The checksums of a folder's files as its last command left them: later damage is named and not read.

A killed command leaves none; its records are guarded by those that every checkpoint remembers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.storage.files import MANIFEST, WRECK, damaged_file, finite, read_json, step_folders, write_json
from stepalign.storage.fingerprint import sha256, sha256_of_file

SUMS = "sums.json"
_OTHERS = ("superseded", "tensorboard", "wandb", "critiques.sqlite", "run.lock")
"""Files that change between commands, or are never read again."""


def files_of(folder: Path) -> Iterator[Path]:
    """The files that a folder's sums cover: not those of run folders and sealed folders in it, which have their own."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", *_OTHERS)) or path.suffix == ".log" or path.name == SUMS:
            continue
        if path.is_dir():
            if not (path / "run.lock").exists() and not (path / MANIFEST).exists():
                yield from files_of(path)
        elif path.is_file():
            yield path


def write_sums(folder: Path) -> None:
    """Remember all files of a folder."""
    note_sums(folder, *files_of(folder), anew=True)


def note_sums(folder: Path, *paths: Path, anew: bool = False) -> None:
    """Remember files that were written after the folder's last command, where the folder has sums at all."""
    if not anew and not (folder / SUMS).exists():
        return
    known = {} if anew else read_sums(folder)
    for path in paths:
        known[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    write_json(folder / SUMS, {"format": 1, "files": known, "sha256": _sum_of(known)})


def read_sums(folder: Path) -> dict[str, Any]:
    """What is known of every file, by name; nothing where the folder has no sums.

    Raises:
        ConfigError: the file of the sums is damaged.
    """
    if not (folder / SUMS).exists():
        return {}
    found = read_json(folder / SUMS)
    files = found.get("files")
    if (
        found.get("sha256", _sum_of(files)) != _sum_of(files)
        or not isinstance(files, dict)
        or not all(isinstance(one, dict) and "sha256" in one for one in files.values())
    ):
        raise ConfigError(f"{SUMS} is damaged", where=str(folder / SUMS), hint=f"stepalign doctor {folder}")
    return files


def _sum_of(files: Any) -> str:
    return sha256(json.dumps(files, sort_keys=True))


def sum_of_tree(tree: Mapping[str, Any]) -> str:
    """Of everything in a JSON object but its own checksum, written or read back."""
    return _sum_of(finite({key: value for key, value in tree.items() if key != "sha256"}))


def damaged_since(folder: Path, *names: str) -> list[tuple[str, str]]:
    """(file, what is wrong) of all files, or of these, that are not as they were left. A name may be a folder."""
    found = []
    for name, one in read_sums(folder).items():
        if not _is_asked(name, names):
            continue
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            found.append((name, "is missing"))
        elif size != one.get("bytes"):
            found.append((name, f"has {size} bytes and was left with {one.get('bytes')}"))
        elif sha256_of_file(path) != one["sha256"]:
            found.append((name, "has other content than it was left with"))
    return found


def file_of(name: str) -> str:
    """The file that a checkpoint calls so: the name alone of JSON lines."""
    return name if name.endswith(".json") else f"{name}.jsonl"


def _is_asked(name: str, names: Sequence[str]) -> bool:
    return not names or any(name == wanted or name.startswith(wanted + "/") for wanted in names)


def short_of_checkpoint(folder: Path, *names: str) -> list[tuple[str, str]]:
    """(file, what is wrong) of records and samples that do not begin as a killed run's newest checkpoint saw them.

    A run that ended has its sums instead; without them its files are used as they are. A checkpoint that is damaged, or
    a wreck, is none that a run goes on from.
    """
    if (folder / SUMS).exists() or (folder / "summary.json").exists():
        return []
    for checkpoint in reversed(step_folders(folder / "checkpoints")):
        try:
            state = read_json(checkpoint / "state.json")
            sizes = {file_of(name): size for name, size in state["sizes"].items()}
            sums = {file_of(name): one for name, one in state.get("sums", {}).items()}
        except (ConfigError, OSError, LookupError, AttributeError):
            continue
        found = [
            (name, what)
            for name, size in sizes.items()
            if _is_asked(name, names) and (what := changed_in(folder / name, size, sums.get(name), checkpoint.name))
        ]
        if not found or not ((checkpoint / WRECK).exists() or damaged_file(checkpoint, ("state.json",))):
            return found
    return []


def changed_in(file: Path, size: int, checksum: str | None, then: str) -> str:
    """What is wrong with the first ``size`` bytes of a file that had them at the step ``then``; "" where nothing is."""
    now = file.stat().st_size if file.is_file() else None
    if (now or 0) < size:
        return "is missing" if now is None else f"has {now} bytes and had {size} at {then}"
    changed = size and checksum is not None and sha256_of_file(file, size) != checksum
    return f"has other content than at {then}" if changed else ""


def check_sums(folder: Path, *names: str) -> None:
    """Raise ConfigError where a file is not as the folder's last command left it, or a checkpoint of a killed one."""
    if found := damaged_since(folder, *names) or (short_of_checkpoint(folder, *names) if names else []):
        (name, what), *more = found
        raise ConfigError(
            f"the file {name} {what}" + (f", and {len(more)} other files are damaged" if more else ""),
            where=str(folder / name),
            hint=f"stepalign doctor {folder}; put the file back as it was"
            + (f", or remove {SUMS} to use it as it is" if (folder / SUMS).exists() else ""),
        )
