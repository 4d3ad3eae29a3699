"""Rows of a file or of a Hub data set, numbered as a person counts them.

JSON and JSON lines need nothing; Parquet and Hub data sets need the extra ``data``.
"""

from __future__ import annotations

import difflib
import gzip
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from stepalign.config import recipe_folder
from stepalign.errors import ConfigError
from stepalign.hub import is_reachable
from stepalign.outside import encodable, parse_json

_INSTALL_DATA = 'pip install "stepalign[data]"'
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
TORN = (EOFError, gzip.BadGzipFile, zlib.error)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no row, and why."""

    reason: str


SHIPPED = {"embedded:python": "data/python_problems.jsonl"}
"""Small sets that come with the recipes, by name."""


def is_hub(source: str) -> bool:
    return source.startswith("hub:")


def read_rows(source: str) -> Iterator[tuple[int, Row | Malformed]]:
    """(number from 1, row) of every row; of JSON lines the number is that of the line.

    Args:
        source: a ``.jsonl`` or ``.json`` file, also with ``.gz``, a ``.parquet`` file, or
            ``hub:OWNER/NAME[/CONFIG][@SPLIT]``. The local copy of a data set is ``hub:./FOLDER[:CONFIG][@SPLIT]``.

    Raises:
        ConfigError: no such file, a file that is not what its name says, a missing extra, no network.
    """
    if is_hub(source):
        return _read_hub(source)
    if source.startswith("embedded:") and source not in SHIPPED:
        raise ConfigError(
            f"There is no shipped set {source}.",
            where=source,
            hint=f"shipped: embedded:arithmetic, {', '.join(SHIPPED)}",
        )
    path = recipe_folder() / SHIPPED[source] if source in SHIPPED else Path(source).expanduser()
    if not path.exists():
        raise ConfigError("There is no such file.", where=source, hint=_where_it_may_be(source, path))
    if path.is_dir():
        raise ConfigError(
            "This is a folder; name a .jsonl, .json or .parquet file in it.",
            where=source,
            hint=f"A folder that holds a data set of the Hub is read with hub:{path.absolute()}",
        )
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return {".parquet": _read_parquet, ".json": _read_json, ".eval": _read_log}.get(suffix, _read_json_lines)(path)


def is_nested(value: Any) -> bool:
    """Whether a cell holds a list or an object, which is no text."""
    return isinstance(value, list | tuple | Mapping)


def cell_text(value: Any) -> str:
    """A cell as text; numbers as one writes them (33.0 is "33"). "" for nothing, and for lists and objects."""
    if value is None or (isinstance(value, float) and value != value) or is_nested(value):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value).strip()


def did_you_mean(word: str, known: Iterable[str], introduction: str) -> str:
    """A hint with the nearest known word, if one is near, and all of them."""
    known = list(known)
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    question = f'Did you mean "{folded[close[0]]}"? ' if close else ""
    return f"{question}{introduction[0].upper()}{introduction[1:]}: {', '.join(known)}"


def _where_it_may_be(source: str, path: Path) -> str:
    """The mend for a path that leads nowhere: the file meant, those that are there, or how the Hub is written."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and path.suffix not in _SUFFIXES and not path.parent.is_dir():
        return (
            f"A file, or a folder that stepalign select has written, is looked for in {Path.cwd()}; "
            f"a data set on the Hub is written hub:{source}"
        )
    if not path.parent.is_dir():
        return f"The folder {path.parent.absolute()} does not exist either; relative paths start at {Path.cwd()}"
    siblings = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, siblings, n=1)
    if close:
        return f'Did you mean "{path.parent / close[0]}"?'
    readable = [name for name in siblings if name.endswith(_SUFFIXES)]
    there = f"it holds {', '.join(readable[:8])}" if readable else "it holds no .jsonl, .json or .parquet file"
    return f"Looked in {path.parent.absolute()}: {there}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _row(row: Any) -> Row | Malformed:
    return row if isinstance(row, dict) else Malformed("not an object with named columns")


def open_file(path: Path) -> BinaryIO:
    """A file, its bytes unpacked where it ends in ``.gz``: reading may raise one of ``TORN``."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[bytes | Malformed]:
    with open_file(path) as file:
        try:
            yield from file
        except TORN as error:
            yield Malformed(f"the compressed file cannot be read on: {error}")


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row | Malformed]]:
    for number, line in enumerate(_lines(path), start=1):
        if isinstance(line, Malformed):
            yield number, line
        elif line.strip():
            try:
                yield number, _row(parse_json(line.decode("utf-8-sig")))
            except ValueError as error:
                yield number, Malformed(f"not JSON: {error}")
            except RecursionError:
                yield number, Malformed("nested too deeply")


def _read_json(path: Path) -> Iterator[tuple[int, Row | Malformed]]:
    """A list of objects; a file that holds JSON lines in spite of its name is read as that."""
    try:
        with open_file(path) as file:
            rows = parse_json(file.read())
    except (ValueError, *TORN):
        return _read_json_lines(path)
    return enumerate(map(_row, rows if isinstance(rows, list) else [rows]), start=1)


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("Reading Parquet needs an extra.", where=str(path), hint=_INSTALL_DATA) from None
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        rows = (encodable(row) for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"This file cannot be read as Parquet: {error}.", where=str(path)) from None


_ZSTANDARD = 93
"""Method of compression in a zip file that Python knows from 3.14 on, and inspect_ai uses."""


def _read_log(file: Path) -> Iterator[tuple[int, Row | Malformed]]:
    """The samples of an inspect_ai log in its zipped form."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [e for e in archive.infolist() if e.filename.startswith("samples/")]
            for number, entry in enumerate(entries, 1):
                packed = entry.compress_type == _ZSTANDARD
                yield number, _row(parse_json(_unpacked(file, entry) if packed else archive.read(entry)))
    except (zipfile.BadZipFile, ImportError, OSError, ValueError) as error:
        needed = f"{_INSTALL_DATA}, or " if isinstance(error, ImportError) else ""
        raise ConfigError(
            f"this log cannot be opened: {error}",
            where=str(file),
            hint=f"{needed}write it as JSON: inspect log convert {file} --to json --output-dir FOLDER",
        ) from None


def _unpacked(file: Path, entry: zipfile.ZipInfo) -> bytes:
    """A member that is compressed by Zstandard."""
    import pyarrow  # pyright: ignore[reportMissingImports]

    with file.open("rb") as raw:
        raw.seek(entry.header_offset + 26)  # the lengths of name and extra field end the header of 30 bytes
        behind = sum(struct.unpack("<HH", raw.read(4)))
        raw.seek(behind, 1)
        return pyarrow.CompressedInputStream(pyarrow.BufferReader(raw.read(entry.compress_size)), "zstd").read()


# ---------------------------------------------------------------------------------------------------------------------
# The Hub

_HUB = re.compile(r"hub:(?P<name>[^@:\s]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
_ON_THE_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?")


def _read_hub(source: str) -> Iterator[tuple[int, Row]]:
    name, configuration, split = _hub_name(source)
    offline = not os.path.isdir(name) and not is_reachable()
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("Reading a Hub data set needs an extra.", where=source, hint=_INSTALL_DATA) from None
    try:
        # Streamed, because a limit may need a thousandth of the 50 GB; all of it happens before a run starts.
        rows = datasets.load_dataset(name, configuration, split=split, streaming=True)
        yield from enumerate(map(encodable, rows), start=1)
    except Exception as error:  # the library raises a dozen types for "not found" and "no network"
        fetch = f"hf download --repo-type dataset {name}, where there is a network, gives a folder: hub:./FOLDER"
        raise ConfigError(
            f"The data set cannot be read: {type(error).__name__}: {str(error)[:300]}",
            where=source,
            hint=f"The Hub does not answer; {fetch}" if offline else "Check the name, the configuration and the split",
        ) from None


def _hub_name(source: str) -> tuple[str, str | None, str]:
    """Name or folder, configuration and split. Raises ConfigError."""
    whole = _HUB.fullmatch(source)
    if whole and whole["name"].startswith((".", "/", "~")):
        folder = os.path.expanduser(whole["name"])
        if not os.path.isdir(folder):
            raise ConfigError("There is no such folder.", where=source, hint="hub:./FOLDER names a local data set")
        return folder, whole["config"], whole["split"] or "train"
    on_the_hub = _ON_THE_HUB.fullmatch(whole["name"]) if whole else None
    if not whole or not on_the_hub:
        raise ConfigError(
            "This is no name of a Hub data set.", where=source, hint="Write hub:OWNER/NAME[/CONFIG][@SPLIT]"
        )
    return on_the_hub["name"], whole["config"] or on_the_hub["config"], whole["split"] or "train"
