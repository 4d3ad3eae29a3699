"""The file of ``stepalign signal FILE``: attempts and contexts, one JSON object a line. Loads no torch.

Required columns: question, completion (or completion_ids), contexts (name -> text). Everything else is optional; see
docs/formats.md.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stepalign.config import recipe_folder
from stepalign.errors import ConfigError, meant
from stepalign.events import Listener, line
from stepalign.outside import encodable, parse_json
from stepalign.problems.rows import TORN, Row, open_file
from stepalign.storage.fingerprint import sha256_of_parts

_TEXTS = (
    *("id", "question", "completion", "answer", "reference", "verdict", "case", "wrong_step", "wrong_text", "system"),
)  # fmt: skip
_OBJECTS = ("chat_options", "prompts")
_COLUMNS = {*_TEXTS, *_OBJECTS, "completion_ids", "contexts"}
VERDICTS = ("correct", "incorrect", "undecided")


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file that was read once and found in order."""

    path: Path
    total: int
    contexts: tuple[str, ...]
    """Names in order of appearance, those that are asked for."""
    empty: Mapping[str, int]
    """Per context: rows in which it has no text."""
    sha256: str
    own_prompts: int
    """Rows that bring prompts, a system message or chat options of their own."""


def find_file(name: str) -> Path:
    """A file by path, or a shipped example by name.

    Raises:
        ConfigError: neither.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    folder = recipe_folder() / "examples"
    examples = sorted(p.stem for p in folder.glob("*.jsonl"))
    if name in examples:
        return folder / f"{name}.jsonl"
    raise ConfigError(
        f"there is no file, run folder or example {name}",
        where=str(path.absolute()),
        hint=meant(name, examples) or f"shipped examples: {', '.join(examples)}",
    )


def check_file(path: Path, contexts: Sequence[str], num: int | None) -> PlainFile:
    """Read the whole file once, before anything heavy happens.

    Args:
        contexts: names to keep; all of them when empty.
        num: rows to take, from the first on; all of them when None.

    Raises:
        ConfigError: with file and line; or an unknown context, an empty file, two rows with one id.
    """
    found: dict[str, None] = {}
    filled: Counter[str] = Counter()
    ids: dict[str, int] = {}
    own = 0
    for number, row in islice(read_plain_rows(path), num):
        name = row_id(row, number)
        if name in ids:
            lines = f"lines {ids[name]} and {number}"
            raise ConfigError(f"two rows have the id {name!r}: {lines}", where=f"{path}:{number}")
        ids[name] = number
        own += bool(own_keys(row))
        found |= dict.fromkeys(row["contexts"])
        filled.update(name for name, text in row["contexts"].items() if text)
    if not ids:
        raise ConfigError("the file holds no rows", where=str(path))
    for name in contexts:
        if name not in found:
            hint = meant(name, found) or f"the file has {', '.join(found)}"
            raise ConfigError(f"no row has a context {name}", where="--contexts", hint=hint)
    names = tuple(name for name in found if not contexts or name in contexts)
    empty = {name: len(ids) - filled[name] for name in names}
    checksum = sha256_of_parts(json.dumps(row, sort_keys=True) for _, row in islice(read_plain_rows(path), num))
    return PlainFile(path, len(ids), names, empty, checksum, own)


def check_row(row: Any, where: str) -> dict[str, Any]:
    """The row, with numbers in its text columns as text. Raises ConfigError for what cannot be scored."""
    if not isinstance(row, dict):
        raise ConfigError("this line is no JSON object", where=where)
    if isinstance(row.get("answer"), (int, float)) or isinstance(row.get("id"), int):
        row = {**row, **{k: str(row[k]) for k in ("answer", "id") if row.get(k) is not None}}
    found = _fault(row)
    if found is not None:
        raise ConfigError(found[0], where=where, hint=found[1])
    return encodable(row)


def _fault(row: Row) -> tuple[str, str] | None:
    """(what, hint) of the first thing that keeps a row from being scored."""
    for name in row.keys() - _COLUMNS:
        if hint := meant(name, _COLUMNS, cutoff=0.8):
            return f"unknown column {name!r}", hint
    for name in _TEXTS:
        if row.get(name) is not None and not isinstance(row[name], str):
            return f"{name} must be text, not {type(row[name]).__name__}", ""
    if not row.get("question"):
        return "the row has no question", ""
    if row.get("verdict") and row["verdict"] not in VERDICTS:
        return f"unknown verdict {row['verdict']!r}", f"one of {', '.join(VERDICTS)}"
    if row.get("case") == "correct" and (row.get("wrong_step") or row.get("wrong_text")):
        return "a correct attempt has no wrong step", "drop wrong_step and wrong_text, or give another case"
    ids, contexts = row.get("completion_ids"), row.get("contexts")
    if ids is not None and not (isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)):
        return "completion_ids must be a list of token ids", ""
    if ids is None and not row.get("completion"):
        return "the row has no completion", "give completion or completion_ids"
    if not isinstance(contexts, dict) or not contexts:
        return "the row has no contexts", 'give them by name: "contexts": {"critique": "..."}'
    for name, text in contexts.items():
        if not name or (text is not None and not isinstance(text, str)):
            return f"the context {name!r} must be text", ""
    for name in _OBJECTS:
        if not isinstance(row.get(name), (dict, type(None))):
            return f"{name} must be an object", ""
    return None


def read_plain_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, checked row)."""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, check_row(_parsed(line, f"{path}:{number}"), f"{path}:{number}")
    except (OSError, UnicodeDecodeError, *TORN) as error:
        raise ConfigError(f"cannot read the file: {error}", where=str(path)) from error


def _parsed(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this line is no JSON: {error}", where=where, hint="one JSON object a line") from None


def row_id(row: Row, line: int) -> str:
    return str(row.get("id") or line)


def own_keys(row: Row) -> dict[str, Any]:
    """The keys of the section ``prompts`` that a row changes."""
    own = {f"prompts.{key}": value for key, value in (row.get("prompts") or {}).items()}
    if row.get("system"):
        own["prompts.system"] = row["system"]
    if row.get("chat_options"):
        own["prompts.student_chat_options"] = own["prompts.teacher_chat_options"] = row["chat_options"]
    return own


def say_left_out(listener: Listener, name: str, reasons: Mapping[str, int], total: int) -> None:
    left = sum(reasons.values())
    if left:
        why = ", ".join(f"{reason} ({count})" if len(reasons) > 1 else reason for reason, count in reasons.items())
        what = "nothing to score, left out" if left == total else f"{left} of {total} rollouts have none"
        listener(line(f"context {name}: {what}: {why}"))
