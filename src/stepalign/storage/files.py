"""Whole files and folders: a reader sees the old one or the new one, never a part, whenever the writer is killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stepalign.errors import ConfigError
from stepalign.outside import encodable, parse_json
from stepalign.storage.fingerprint import sha256_of_file

FORMAT = 1
"""Version of the JSON objects that the package reads again: results.json, signal.json."""
MANIFEST = "manifest.json"
"""Name -> size and checksum of every other file of a sealed folder; written last."""
WRECK = "wreck"
"""A file beside the others of a checkpoint whose weights a guard has found broken, with the reason."""
SUPERSEDED = "superseded"
"""The folder beside a file that keeps what was cut from it, and damaged files that were set aside."""


def finite(node: Any) -> Any:
    """A tree in which NaN and infinities are None: strict JSON has neither."""
    if isinstance(node, float) and not math.isfinite(node):
        return None
    if isinstance(node, Mapping):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    return node


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none: a full disk, a broken one. Also in safetensors' own."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or none, and make it durable. Folders above it are made; text is UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(encodable(content).encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, tree: Any, *, indent: int | None = 1) -> None:
    """Write a tree as strict JSON, atomically; NaN and infinities become null."""
    write_atomically(path, json.dumps(finite(tree), ensure_ascii=False, allow_nan=False, indent=indent) + "\n")


def read_json(path: Path, *, hint: str = "") -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ConfigError: the file is missing, no JSON object, or of another ``FORMAT``.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path.name} in this folder", where=str(path.parent), hint=hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error.strerror}", where=str(path), hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not valid JSON: {error}", where=str(path), hint=hint) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} should hold one JSON object", where=str(path), hint=hint)
    if data.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"{path.name} has format {data['format']!r}; this version reads format {FORMAT}",
            where=str(path),
            hint="use the stepalign version that wrote it, or write it again",
        )
    return data


def open_log(path: Path) -> BinaryIO:
    """A file for the output of a child process, after what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def make_durable(path: Path) -> None:
    """Write a file's content to the disk itself."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def move_file(finished: Path, target: Path) -> None:
    """Make a file durable and give it its final name."""
    make_durable(finished)
    finished.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# Sealed folders: checkpoints and final weights


def seal(folder: Path) -> None:
    """Make all files of a folder durable and write their checksums last."""
    manifest = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST):
        make_durable(path)
        manifest[path.name] = {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2))  # without its last byte it is no JSON


def is_sealed(folder: Path) -> bool:
    """Whether ``seal`` wrote the folder's manifest; a selection and other programs have files of that name."""
    try:
        content = (folder / MANIFEST).read_bytes()
        return b'"sha256"' in content and b'"bytes"' in content
    except OSError:
        return False


def damaged_file(folder: Path, needs: Sequence[str] = ()) -> str | None:
    """The first file of a sealed folder that does not match the manifest; None when all do.

    ``needs``: names that the manifest must have. It must have every JSON and safetensors file that is there, too.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return MANIFEST
    data = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors") and p.name != MANIFEST]
    if unlisted := [name for name in (*needs, *data) if name not in expected]:
        return unlisted[0]
    for name, (size, checksum) in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or sha256_of_file(path) != checksum:
            return name
    return None


def move_into_place(folder: Path, target: Path) -> None:
    """Rename a finished folder to its name; one that has this name is replaced, never merged."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends; after an error nothing of it is left."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with writing(target):
            yield temporary
            seal(temporary)
            move_into_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it can be taken for the whole."""
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def step_folders(root: Path) -> list[Path]:
    """The folders ``step-N`` of a folder of checkpoints, whole or not, oldest first."""
    found = [folder for folder in root.glob("step-*") if folder.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of a folder ``step-N``."""
    return int(folder.name.removeprefix("step-"))


def set_aside(path: Path) -> None:
    """Move a damaged file or folder into ``superseded/`` beside it, under a name that is free."""
    folder = path.parent / SUPERSEDED
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists():
        target = target.with_name(f"{target.name}~")
    path.rename(target)
    sync_folder(folder)


def restore_sealed(folder: Path, source: Path) -> None:
    """Make a sealed folder again from another one that holds files of the same names. A full disk changes nothing."""
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        names += json.loads((folder / MANIFEST).read_text(encoding="utf-8")).keys()
    mended = folder.with_name(f".{folder.name}.old")  # ``tidy`` puts it in place where this is killed
    with whole_folder(mended) as filled:
        for name in {*names}:
            if (source / name).is_file():
                shutil.copyfile(source / name, filled / name)
    set_aside(folder)
    mended.rename(folder)
    sync_folder(folder.parent)


def tidy(root: Path) -> None:
    """Finish what a killed process has left half done: a folder that was about to be replaced comes back.

    Half-written files go, but those of this process, which another thread may be writing.
    """
    for path in root.glob(".*.*"):
        if path.is_file() and path.suffix[1:].isdigit() and int(path.suffix[1:]) != os.getpid():
            path.unlink(missing_ok=True)
    for path in [p for p in root.glob(".*") if p.is_dir()]:
        target = root / path.stem[1:]
        if path.suffix == ".old" and not target.exists():
            path.rename(target)
        elif path.suffix in (".old", ".tmp", ".gone"):
            shutil.rmtree(path, ignore_errors=True)
