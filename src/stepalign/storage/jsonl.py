"""JSON lines: one strict JSON object a line, appended, read and cut back.

A process that is killed while it appends leaves a last line without its newline. Such a torn end is no record: readers
leave it out and the next append cuts it off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stepalign.errors import ConfigError
from stepalign.outside import encodable, parse_json
from stepalign.storage.files import SUPERSEDED, finite, write_atomically, writing


def to_json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON, without its newline; NaN and infinities become null."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):  # long records are rarely the ones with a NaN
        return json.dumps(finite(record), ensure_ascii=False, allow_nan=False)


def whole_lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines from a byte position on, newline included, without a torn end. Nothing for a missing file.

    Lines are bytes: only a newline ends one, whatever separators of Unicode a model wrote, and a torn end may be no
    text.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        yield from (line for line in file if line.endswith(b"\n"))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, one at a time.

    Raises:
        ConfigError: a line is no JSON object.
    """
    for number, line in enumerate(whole_lines(path), 1):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ConfigError("this line is no JSON object: the file is damaged", where=f"{path}:{number}")
        yield record


class JsonLines:
    """A file that records are appended to; opened, and made, with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records, one write for all of them."""
        content = encodable("".join(to_json_line(record) + "\n" for record in records)).encode()
        if not content:
            return
        with writing(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                cut(self.path, whole_size(self.path))
                self._file = self.path.open("ab", buffering=0)
            left = memoryview(content)
            while left:  # a disk that is nearly full takes a part of it, and refuses the next
                left = left[self._file.write(left) :]

    def sync(self) -> None:
        """Make what was appended durable."""
        if self._file is not None:
            with writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a file that is not kept open."""
    lines = JsonLines(path)
    try:
        lines.append(records)
    finally:
        lines.close()


def cut(path: Path, size: int) -> None:
    """Cut a file to ``size`` bytes; a shorter or missing one stays as it is."""
    if path.exists() and path.stat().st_size > size:
        with path.open("rb+") as file:
            file.truncate(size)


def rewind(path: Path, size: int) -> None:
    """Cut a file to ``size`` bytes; the tail moves to the same name under ``superseded/``."""
    if not path.exists() or path.stat().st_size <= size:
        return
    with path.open("rb") as file:
        file.seek(size)
        _set_aside(path, file.read())
    cut(path, size)


def keep_records(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """The records that pass, and a file of these alone; other lines and a torn end move to ``superseded/``."""
    kept, others, records = [], [], []
    content = path.read_bytes() if path.exists() else b""
    for line in content.split(b"\n")[:-1]:
        record = parse_json(line)
        if keep(record):
            records.append(record)
            kept.append(line + b"\n")
        else:
            others.append(line + b"\n")
    torn = content.rpartition(b"\n")[2]
    if others or torn:
        _set_aside(path, b"".join([*others, torn]))
        write_atomically(path, b"".join(kept))
    return records


def whole_size(path: Path) -> int:
    """Bytes up to the last newline, found from the end."""
    end = path.stat().st_size if path.exists() else 0
    while end:
        start = max(0, end - 65536)
        with path.open("rb") as file:
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _set_aside(path: Path, tail: bytes) -> None:
    folder = path.parent / SUPERSEDED
    folder.mkdir(exist_ok=True)
    with (folder / path.name).open("ab") as kept:
        kept.write(tail if tail.endswith(b"\n") else tail + b"\n")
        kept.flush()
        os.fsync(kept.fileno())
