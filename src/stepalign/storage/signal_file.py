"""signal.jsonl, one line per rollout and context, and what is made of it. Formats: docs/formats.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError

Row = dict[str, Any]

RECORDS = "signal.jsonl"
PAGE_DATA = "signal.json"

_PER_CONTEXT = (
    "log_ratio", "student_log_prob", "teacher_log_prob", "forward_kl", "student_entropy", "teacher_entropy",
    "top_student", "top_teacher",
)  # fmt: skip


def read_rows(folder: Path) -> Iterator[Row]:
    """The lines of a signal folder, one at a time; a torn last line is left out.

    Raises:
        ConfigError: a line is no JSON object.
    """
    path = folder / RECORDS
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not {"rollout_id", "context"} <= row.keys():
                raise ConfigError(
                    "this line is no record of a signal",
                    where=f"{path}:{number}",
                    hint="write the file again with `stepalign signal`",
                ) from None
            yield row


def grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The lines of each rollout together; they stand next to each other in the file."""
    for _, group in groupby(rows, key=lambda row: row["rollout_id"]):
        yield list(group)


def page_rollout(rows: Sequence[Row]) -> dict[str, Any]:
    """One rollout under its contexts as signal.json has it."""
    first = rows[0]
    special = set(first["special"])
    shared = ("rollout_id", "case", "verdict", "question", "expected_answer", "reference", "text")
    return {
        **{key: first.get(key) for key in shared},
        "unknown_tokens": first.get("unknown_tokens", 0),
        "tokens": [
            {"text": text, "start": start, "end": end, "id": token_id, "special": index in special}
            for index, (text, (start, end), token_id) in enumerate(
                zip(first["tokens"], first["spans"], first["token_ids"], strict=True)
            )
        ],
        "steps": [{key: step[key] for key in ("label", "start", "end", "status")} for step in first["steps"]],
        "contexts": [
            {
                "name": row["context"],
                "text": row["context_text"],
                "case": row["critic_case"],
                "first_error": row["first_error"],
                **{key: row[key] for key in _PER_CONTEXT if key in row},
            }
            for row in rows
        ],
    }


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
    from stepalign.report.page import read_json

    signal = read_json(path, hint="write it again with `stepalign signal`")
    shown = signal.get("rollouts") or []
    if rollout is None or any(rollout == str(r.get("rollout_id")) for r in shown):
        return signal
    if rollout.isdigit() and int(rollout) < len(shown):
        return signal
    if folder.is_dir() and (folder / RECORDS).exists():
        for rows in grouped(read_rows(folder)):
            if rows[0]["rollout_id"] == rollout:
                return {**signal, "rollouts": [*shown, page_rollout(rows)]}
    some = ", ".join(str(r.get("rollout_id")) for r in shown[:6])
    raise ConfigError(
        f"there is no rollout {rollout!r}",
        where=str(path),
        hint=f"choose from {some}{', ...' if len(shown) > 6 else ''}",
    )
