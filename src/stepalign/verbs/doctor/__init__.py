"""``stepalign doctor``: what is wrong with a folder, what that means, and what can safely be mended. Loads no torch.

A finding is a file with a sentence. Nothing that was paid for is removed: what is set aside goes to ``superseded/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepalign.errors import ConfigError
from stepalign.storage.files import MANIFEST
from stepalign.storage.run_folder import refuse_in_use
from stepalign.verbs.doctor.checks import Finding, check, check_cache


def doctor(folder: str | Path, *, repair: bool = False) -> tuple[list[Finding], list[str]]:
    """Check a folder that a command has written, with all folders in it, or a cache of replies.

    Args:
        repair: mend what can be mended safely.

    Returns:
        What is wrong (after the repair, where one was asked for), and what was mended, a line each.

    Raises:
        ConfigError: nothing there that a command has written.
        LockedError: a command is writing there.
    """
    folder = Path(folder)
    if folder.is_file():
        return list(check_cache(folder)), []
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=str(folder), hint="give the --out of a command")
    evaluations = list(folder.glob("*.samples.json*"))
    if not evaluations and not any((folder / name).exists() for name in ("run.lock", "config.toml", MANIFEST)):
        raise ConfigError("no command has written this folder", where=str(folder), hint="give the --out of a command")
    for lock in folder.rglob("run.lock"):
        refuse_in_use(lock)
    found, mended = list(examine(folder)), list[str]()
    if repair:
        for one in found:
            if one.mend is not None:
                one.mend()
                mended.append(f"{one.path}: {one.what}; {one.repair}")
        found = list(examine(folder)) if mended else found
    return found, mended


def examine(folder: Path) -> Iterator[Finding]:
    """What is wrong with a folder, and with those in it."""
    runs = sorted({lock.parent for lock in folder.rglob("run.lock")} | {folder})
    for run in runs:
        named = set[Path]()
        for finding in check(run):
            if finding.path not in named:  # the first sentence about a file is the most telling one
                named.add(finding.path)
                yield finding


def finding_lines(folder: Path, found: Sequence[Finding]) -> list[str]:
    """One line per finding."""
    lines = []
    for one in found:
        hint = f" (--repair: {one.repair})" if one.mend else ""
        lines.append(f"{os.path.relpath(one.path, folder)} {one.what}: {one.meaning}{hint}")
    return lines
