"""SHA-256, the one hash of the package: names by content, checksums of files, bytes that seed random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(content: str | bytes) -> bytes:
    """The 32 bytes of the hash; text is encoded as UTF-8, lone surrogates included."""
    return hashlib.sha256(_encoded(content)).digest()


def sha256(content: str | bytes) -> str:
    """64 hexadecimal digits; text is encoded as in :func:`digest`."""
    return digest(content).hex()


def sha256_of_parts(parts: Iterable[str | bytes]) -> str:
    """The hash of all parts joined, held in memory one at a time."""
    running = hashlib.sha256()
    for part in parts:
        running.update(_encoded(part))
    return running.hexdigest()


def sha256_of_file(path: str | Path, size: int | None = None) -> str:
    """The checksum of a file's content, or of its first ``size`` bytes."""
    with Path(path).open("rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        running = hashlib.sha256()
        while size and (part := file.read(min(size, 1 << 20))):
            running.update(part)
            size -= len(part)
        return running.hexdigest()


class RunningSum:
    """The checksum of a file that grows: only what is new is read."""

    def __init__(self) -> None:
        self._hash, self._size = hashlib.sha256(), 0

    def of(self, path: Path) -> str:
        """The checksum of the file as it is now."""
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._size)
                while part := file.read(1 << 20):
                    self._hash.update(part)
                    self._size += len(part)
        return self._hash.hexdigest()


def _encoded(content: str | bytes) -> bytes:
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
