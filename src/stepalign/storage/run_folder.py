"""A run on disk: one lock, append-only records, nothing half-written, nothing lost.

Layout: docs/formats.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import stepalign
from stepalign.config import Config, GuardsSection, changed, difference, load_config, to_toml
from stepalign.errors import ConfigError, LockedError, UserError
from stepalign.outside import difference_shown
from stepalign.storage import jsonl
from stepalign.storage.files import write_atomically, write_json
from stepalign.storage.fingerprint import RunningSum, sha256_of_file
from stepalign.storage.sums import SUMS, check_sums, file_of, note_sums, write_sums

RECORDS = ("rollouts", "critiques", "contexts", "metrics", "evaluations", "timeline")


_REACHING = (
    "base_urls",
    "answers_as",
    "api_key_env",
    "concurrency",
    "timeout",
    "attempt_timeout",
    "cache",
    "cache_only",
)
_SPENDING = ("token_budget", "cost_budget")
_GATES = ("pass_rate_above", "average_above", "average_below", "formatted_above", "critic_solves", "test_share")
MAY_CHANGE = frozenset(
    [
        *(f"critic.{key}" for key in (*_REACHING, *_SPENDING)),
        *(f"critic.second.{key}" for key in ("base_urls", "api_key_env")),
        "objective.teacher.base_urls",
        *(f"selection.{key}" for key in _GATES),
        *(f"sampling.{key}" for key in ("base_urls", "sync_folder", "timeout", "check_steps")),
        *(f"guards.{key}" for key in GuardsSection.model_fields),
        *("compare.launcher", "compare.processes", "training.rank_timeout"),
    ]
)
"""Keys that may change when the work goes on: how the critic is reached and what it may cost, not what it says; the
bounds of a selection's gates, not what is measured for them; where the servers of rollouts and of a teacher are; how
the runs of a comparison are started."""
MAY_GROW = frozenset(["compare.arms", "compare.seeds"])
"""Keys whose list may become longer: what is there stays, and only what is new is run."""


def as_before(config: Config, folder: Path) -> Config:
    """A configuration that leaves device or number format open, with those that are pinned in a folder's config.toml.

    Folders from before "auto" pin both, and on another device or in another format their numbers would change.
    """
    file = folder / "config.toml"
    if not file.exists():
        return config
    pinned = load_config(str(file)).model
    kept = {f"model.{key}": getattr(pinned, key) for key in ("device", "dtype") if getattr(config.model, key) == "auto"}
    return changed(config, kept, str(file))


class RunFolder:
    """A locked folder that one process writes.

    Leaving it by a user's error before anything was recorded takes back what was made: the next attempt, with the
    error mended, finds no half-begun run.

    Args:
        path: the folder; made when missing.
        config: what the run does. A folder that holds another configuration is refused.
        resume: continue a run that is there already.
        extra: files beside the records that may be there before the run and that stay when the folder is taken back,
            by the beginning of their names: whether such a file is worth keeping.

    Raises:
        ConfigError: the folder cannot be made or written.
        LockedError: another process writes here, the folder holds a run and ``resume`` is off, or it holds a different
            run, or files that no run has made.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        resume: bool,
        kind: str = "run",
        extra: Mapping[str, Callable[[Path], bool]] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self._extra = extra
        self._files: dict[str, jsonl.JsonLines] = {}
        self._sums: dict[str, RunningSum] = {}
        self._made: list[Path] = []
        """Folders that were not there before, the innermost first."""
        self._is_new = False
        try:
            self._made = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            _refuse_strangers(path, extra)  # before the lock file joins them
            self._lock = _lock(path / "run.lock", path)
        except OSError as error:
            what = error.strerror or str(error)
            raise ConfigError(f"cannot write here: {what}", where=str(path), hint="give another --out") from error
        try:
            self._check_or_write_config(config, resume=resume, kind=kind)
        except BaseException:
            self.close()
            raise

    @classmethod
    def check(
        cls,
        path: Path,
        config: Config,
        *,
        resume: bool,
        kind: str = "run",
        extra: Mapping[str, Callable[[Path], bool]] = MappingProxyType({}),
    ) -> None:
        """Raise early what opening the folder would raise, before anything heavy; a folder that is new is not made."""
        if (path / "config.toml").exists():
            cls(path, config, resume=resume, kind=kind, extra=extra).close()
        elif path.is_dir():
            _refuse_strangers(path, extra)
            if (path / "run.lock").exists():
                _lock(path / "run.lock", path).close()

    def _check_or_write_config(self, config: Config, *, resume: bool, kind: str) -> None:
        file = self.path / "config.toml"
        if not file.exists():
            _refuse_strangers(self.path, self._extra)
            self._is_new = True
            write_json(self.path / "versions.json", versions(), indent=2)
            write_atomically(file, to_toml(config))
            return
        differing = difference(load_config(str(file)), config)
        refused = {key: values for key, values in differing.items() if not _may_become(key, *values)}
        if refused:
            key, (before, now) = next(iter(refused.items()))
            raise LockedError(
                f"the folder holds another {kind}: {key} is {difference_shown(before, now)}"
                + (f" ({len(refused)} keys differ)" if len(refused) > 1 else ""),
                where=str(self.path),
                hint="give another --out, or the settings of that run",
            )
        if not resume:
            raise LockedError(
                f"the folder already holds this {kind}",
                where=str(self.path),
                hint="continue it with --resume, or give another --out",
            )
        check_sums(self.path)
        if differing:
            write_atomically(file, to_toml(config))
            note_sums(self.path, file)

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records to NAME.jsonl, one write for all of them."""
        if name not in self._files:
            self._files[name] = jsonl.JsonLines(self.path / f"{name}.jsonl")
        self._files[name].append(records)

    def sizes(self, others: Iterable[str] = ()) -> dict[str, int]:
        """Bytes of every record file, made durable first, and of others: a checkpoint remembers them."""
        for file in self._files.values():
            file.sync()
        return {name: self._size(name) for name in (*RECORDS, *others)}

    def sums(self, others: Iterable[str] = ()) -> dict[str, str]:
        """The checksum of every record file, as it is now, and of others, which grow at most."""
        return {name: self._sums.setdefault(name, RunningSum()).of(self._record(name)) for name in (*RECORDS, *others)}

    def rewind(self, sizes: Mapping[str, int], sums: Mapping[str, str] = MappingProxyType({})) -> None:
        """Cut the record files back to a checkpoint. The rest moves to superseded/, it is never deleted.

        Raises:
            ConfigError: a file is missing, shorter than it was at the checkpoint, or has another beginning; nothing is
                cut then.
        """
        for name, size in sizes.items():
            if (there := self._size(name)) < size:
                raise ConfigError(
                    f"the records of {name} have {there} bytes, and the checkpoint was written after {size}",
                    where=str(self._record(name)),
                    hint="put the file back as it was; without it, begin anew with another --out",
                )
            if sums and size and sha256_of_file(self._record(name), size) != sums[name]:
                raise ConfigError(
                    f"the records of {name} are not those that the checkpoint was written after",
                    where=str(self._record(name)),
                    hint="put the file back as it was; without it, begin anew with another --out",
                )
        for name in RECORDS:
            jsonl.rewind(self._record(name), sizes.get(name, 0))

    def _record(self, name: str) -> Path:
        return self.path / file_of(name)

    def _size(self, name: str) -> int:
        return path.stat().st_size if (path := self._record(name)).exists() else 0

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
        self._lock.close()

    def __enter__(self) -> RunFolder:
        (self.path / SUMS).unlink(missing_ok=True)  # what is written now, a killed process may leave half done
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._is_new and isinstance(error, UserError):
            self._take_back()
        if (self.path / "config.toml").exists():
            with contextlib.suppress(OSError):  # a full disk: the error that is on its way says so
                write_sums(self.path)
        self.close()

    def _take_back(self) -> None:
        """Remove a folder in which nothing was recorded yet, except the extra files that are worth keeping."""
        extra = {path: name for name in self._extra for path in self.path.glob(name + "*")}
        own = {self.path / name for name in ("config.toml", "versions.json", "run.lock")} | extra.keys()
        if any(path not in own and not path.is_dir() for path in self.path.rglob("*")):
            return
        worth = {name for name, is_worth in self._extra.items() if is_worth(self.path / name)}
        kept = {path for path, name in extra.items() if name in worth}
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # holds no file
            elif path not in kept:
                path.unlink()
        with contextlib.suppress(OSError):  # not empty: another run, or the replies
            for folder in self._made:
                folder.rmdir()


def _may_become(key: str, before: Any, now: Any) -> bool:
    return key in MAY_CHANGE or (key in MAY_GROW and all(one in now for one in before))


def _refuse_strangers(path: Path, extra: Iterable[str]) -> None:
    """A folder without a run must hold nothing else, except what a process killed at its start has left."""
    if (path / "config.toml").exists():
        return
    found = sorted(p.name for p in path.iterdir())
    begun = ("run.lock", "versions.json", ".versions.json.", ".config.toml.") if "run.lock" in found else ()
    own = (*extra, *begun)
    strangers = [name for name in found if not name.startswith(own)]
    if "rollouts.jsonl" in strangers or "checkpoints" in strangers:
        raise LockedError(
            "config.toml is missing beside the records of a run",
            where=str(path),
            hint="put it back as it was, or give a new folder with --out",
        )
    if strangers:
        raise LockedError(
            f"the folder holds other files, such as {strangers[0]}",
            where=str(path),
            hint="give an empty or a new folder with --out",
        )


def refuse_in_use(lock: Path) -> None:
    """Raise LockedError where another process writes to the folder of a lock file; nothing is written."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read().decode(errors="replace").strip()
            raise LockedError(
                f"another process writes to this folder ({owner or 'unknown'})",
                where=str(lock.parent),
                hint="wait until it has ended",
            ) from None


def _lock(path: Path, folder: Path) -> TextIO:
    """An exclusive lock that the kernel frees when the process dies, whatever kills it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError  # its owner has taken the folder back between our two calls
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise LockedError(
            f"another process writes to this folder ({owner or 'unknown'})",
            where=str(folder),
            hint="wait for it, or give another --out",
        ) from None
    file.seek(0)
    file.truncate()
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
    file.flush()
    return file


@cache
def versions() -> dict[str, Any]:
    """What ran, as a lock: package and revision, interpreter, every installed package, the machine."""
    installed = [path.stem for place in map(Path, sys.path) for path in place.glob("*.dist-info")]  # NAME-VERSION
    packages = {name: version for name, _, version in (one.partition("-") for one in reversed(installed))}
    return {
        "stepalign": stepalign.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: packages[name] for name in ("torch", "transformers") if name in packages},
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    """The parts that numbers and times depend on."""

    def found(path: str, key: str) -> str | None:
        with contextlib.suppress(OSError):
            for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith(key):
                    return line.partition(":")[2].strip()
        return None

    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "cpu": found("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": found("/proc/meminfo", "MemTotal"),
        "gpus": [found(str(file), "Model") for file in gpus],
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _revision() -> str | None:
    """The git commit of a source checkout, with a mark when files were changed."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
