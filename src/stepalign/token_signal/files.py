"""The files of a signal, read: signal.jsonl, one line per rollout and context, and signal.json (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.storage.files import read_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.sums import check_sums
from stepalign.token_signal.table import ScoredCompletion, from_rows, to_page

Row = dict[str, Any]

AGAIN = "write it again with `stepalign signal`"
RECORDS = "signal.jsonl"
PAGE_DATA = "signal.json"


def read_rows(folder: Path) -> Iterator[Row]:
    """The lines of a signal folder, one at a time; a torn last line is left out.

    Raises:
        ConfigError: a line that no analysis has written.
    """
    for number, row in enumerate(read_json_lines(folder / RECORDS), 1):
        if not {"rollout_id", "context"} <= row.keys():
            raise ConfigError("this line is no record of a signal", where=f"{folder / RECORDS}:{number}", hint=AGAIN)
        yield row


def read_completions(folder: Path) -> Iterator[ScoredCompletion]:
    """The completions of a signal folder; the lines of each stand next to each other in the file."""
    for _, rows in groupby(read_rows(folder), key=lambda row: row["rollout_id"]):
        yield from_rows(list(rows))


def load_signal(folder: Path, rollout: str | None = None) -> dict[str, Any]:
    """The content of signal.json, and in it the rollout that is asked for.

    Args:
        folder: what ``stepalign signal`` or ``stepalign compare`` has written.
        rollout: a rollout_id, or a position among the rollouts of signal.json; others are looked up in signal.jsonl.

    Raises:
        ConfigError: the folder holds no signal, or a damaged one.
    """
    path = folder / PAGE_DATA if folder.is_dir() else folder
    if not path.exists():
        is_run = (folder / "rollouts.jsonl").exists()
        raise ConfigError(
            "this run has no signal yet" if is_run else "there is no signal here",
            where=str(path),
            hint=f"write one with: stepalign signal {folder if is_run else 'FILE --model DIR'} --out NEW-FOLDER",
        )
    check_sums(path.parent, PAGE_DATA, RECORDS)
    signal = read_json(path, hint=AGAIN)
    shown = signal.get("rollouts") or []
    if rollout is None or any(rollout == str(r.get("rollout_id")) for r in shown):
        return signal
    if rollout.isdigit() and int(rollout) < len(shown):
        return signal
    if folder.is_dir() and (folder / RECORDS).exists():
        for scored in read_completions(folder):
            if scored.rollout_id == rollout:
                return {**signal, "rollouts": [*shown, to_page(scored)]}
    some = ", ".join(str(r.get("rollout_id")) for r in shown[:6])
    raise ConfigError(
        f"there is no rollout {rollout!r}",
        where=str(path),
        hint=f"choose from {some}{', ...' if len(shown) > 6 else ''}",
    )
