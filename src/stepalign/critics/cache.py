"""Replies of critics on disk, paid for once: content-addressed, shared by runs and processes.

The key is a hash of everything the reply depends on, the value canonical JSON; nothing is pickled. A claim keeps two
processes from paying for the same reply: its holder makes the call, the others wait for the reply, for the end of the
holder's process, or for the lease to run out.

Every write is one ``BEGIN IMMEDIATE`` transaction in WAL mode, so a process killed at any instant leaves the file sound
and readers never block. The file must be on a local disk: sqlite's locks do not hold on network file systems.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from stepalign.errors import ConfigError
from stepalign.outside import parse_json
from stepalign.storage.fingerprint import sha256

T = TypeVar("T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
"""
_SCHEMA_VERSION = 1
_CHECKSUM = "sha256"
"""In a stored reply: of its key and everything else in it."""
_LEAST_ROOM = 2**18
"""Bytes below which an error of the disk is taken for a full one."""
_KIBIBYTES = 64
"""Of the file that are kept in memory: sqlite's own two mebibytes fill up over the first thousand steps of a run."""
_BUSY_SECONDS = 30.0
"""How long a write waits for another process's write."""


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(content: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of whatever a reply depends on."""
    return sha256(canonical_json(content))


class ReplyCache:
    """Replies by content key, with claims.

    Safe to share between threads and, opened by path, between processes. After a fork the child opens the file anew.

    Args:
        path: the sqlite file; it and its folder are made where missing.
        lease_seconds: how long a claim lasts. A holder that was killed blocks its keys for at most this long; not at
            all on the same machine, where its process can be seen to be gone.
        clock: seconds since the epoch, the same for every process on the machine.

    Raises:
        ConfigError: the file cannot be opened or is not a cache.
    """

    def __init__(
        self, path: str | Path, *, lease_seconds: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self.damaged = self.taken_over = 0
        """Replies removed because they were damaged; claims of killed processes that this one took over."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                self._check_version(connection)
        except (OSError, sqlite3.Error) as error:
            why = str(error)
            hint = "name a writable file on a local disk, or delete the file if it is not a stepalign cache"
            if any(sign in why for sign in ("disk I/O error", "disk is full", "No space left")):
                hint = "make room on the disk, or name a file on another one with critic.cache"
                if "I/O" in why and shutil.disk_usage(self.path.parent).free < _LEAST_ROOM:
                    why = "the disk is full"  # sqlite does not say so of every file that it makes
            raise ConfigError(f"cannot use the critic cache: {why}", where=str(self.path), hint=hint) from error

    def get(self, key: str, read: Callable[[dict[str, Any]], T] = lambda value: value) -> T | None:
        """The stored reply, or None. A damaged one is removed and counted, so that it is asked for again.

        Args:
            read: makes the reply of what is stored; its TypeError or ValueError says that it is damaged.
        """
        with self._open() as connection:
            row = connection.execute("SELECT value FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return read(_checked(key, row[0]))
        except (ValueError, TypeError, RecursionError):
            with self._write() as connection:  # unless another process has replaced it
                row = connection.execute("DELETE FROM replies WHERE key = ? AND value IS ?", (key, row[0]))
                self.damaged += row.rowcount
            return None

    def is_claimed(self, key: str) -> bool:
        """Whether the reply is being paid for now."""
        with self._open() as connection:
            row = connection.execute("SELECT owner, expires FROM claims WHERE key = ?", (key,)).fetchone()
        return bool(row) and row[1] > self._clock() and not is_gone(row[0])

    def claim(self, key: str, owner: str) -> bool:
        """Take the key if it has no reply and no holder; True: the call is the owner's to make.

        A claim that a killed process has left is counted: its call may have been paid for.

        Args:
            owner: a name no other claimant has, so that a late holder cannot drop its successor's claim; see
                :func:`owner_name`.
        """
        with self._write() as connection:
            if connection.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone() or self.is_claimed(key):
                return False
            self.taken_over += connection.execute("DELETE FROM claims WHERE key = ?", (key,)).rowcount
            expires = self._clock() + self.lease_seconds
            connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, owner, expires))
            return True

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store a reply and drop its claim. The first reply stays: what was once read is what a replay reads."""
        text = canonical_json({**value, _CHECKSUM: content_key({key: value})})
        with self._write() as connection:
            connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", (key, text, self._clock()))
            connection.execute("DELETE FROM claims WHERE key = ?", (key,))

    def release(self, key: str, owner: str) -> None:
        """Drop a claim without a reply, so that others may try."""
        with self._write() as connection:
            connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner))

    def release_all(self, owner: str) -> None:
        """Drop every claim of an owner who goes away."""
        with self._write() as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def __len__(self) -> int:
        with self._open() as connection:
            return connection.execute("SELECT count(*) FROM replies").fetchone()[0]

    def close(self) -> None:
        """Close the file; using the cache again opens it again."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            # A connection carried over a fork would corrupt the file, so each process has its own.
            if self._connection is None or self._pid != os.getpid():
                self._connection = self._connect()
                self._pid = os.getpid()
            yield self._connection

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that takes the write lock first: a read that turns into a write fails as "locked" instead."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{_KIBIBYTES}")
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                # Several processes that make the file at once: this statement alone does not wait for the others.
                connection.execute("PRAGMA journal_mode = WAL")
                return connection
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    connection.close()
                    raise
                time.sleep(0.01)

    def _check_version(self, connection: sqlite3.Connection) -> None:
        with self._write():
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"format {version}, this version reads {_SCHEMA_VERSION}")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def damaged_keys(path: Path) -> list[str]:
    """The keys of replies that do not match their checksums. Raises sqlite3.Error for a file that is no sound cache."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
        ((state, *_), *_) = connection.execute("PRAGMA quick_check").fetchall()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        rows = connection.execute("SELECT key, value FROM replies")
        return [key for key, text in rows if not _is_sound(key, text)]


def _checked(key: str, text: str) -> dict[str, Any]:
    """A stored reply. Raises ValueError or TypeError where it does not match its checksum."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise TypeError("no reply")
    checksum = value.pop(_CHECKSUM, None)  # replies of older versions have none
    if checksum not in (None, content_key({key: value})):
        raise ValueError("damaged")
    return value


def _is_sound(key: str, text: str) -> bool:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        return _checked(key, text) is not None
    return False


def owner_name() -> str:
    """A name for a claimant that tells others on this machine whether it still lives."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"


def is_gone(owner: str) -> bool:
    """Whether a claimant is a process of this machine that no longer runs. In doubt it is not gone."""
    host, _, rest = owner.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def holds_replies(path: Path) -> bool:
    """Whether a file is a cache with at least one reply."""
    if not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT 1 FROM replies LIMIT 1").fetchone() is not None
    return True  # not ours to judge
