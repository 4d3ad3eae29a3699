"""``stepalign signal FILE --model DIR``: attempts and contexts from a JSONL file, no run needed.

Required columns: question, completion (or completion_ids), contexts (name -> text). Everything else is optional; see
docs/formats.md.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.build import make_prompts
from stepalign.config import Config, changed, recipe_folder
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder, decode, encode_with_spans, unknown_id
from stepalign.records import Attempt, Critique, Problem
from stepalign.signal.analyse import AttemptInContexts, Shown
from stepalign.signal.marks import Labels
from stepalign.storage.fingerprint import sha256, sha256_of_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    "id",
    "question",
    "completion",
    "answer",
    "reference",
    "verdict",
    "case",
    "wrong_step",
    "wrong_text",
    "system",
)
_COLUMNS = {*_TEXTS, "completion_ids", "contexts", "chat_options", "prompts"}
VERDICTS = ("correct", "incorrect", "undecided")
CRITIQUE = "step_aligned"
"""The context of this name is taken as a critique: where it first departs from the attempt, the attempt is wrong."""


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
    close = difflib.get_close_matches(name, examples, n=1)
    raise ConfigError(
        f"there is no file, run folder or example {name}",
        where=str(path.absolute()),
        hint=f"did you mean {close[0]}?" if close else f"shipped examples: {', '.join(examples)}",
    )


def check_file(path: Path, contexts: Sequence[str], num: int | None) -> PlainFile:
    """Read the whole file once, before anything heavy happens.

    Args:
        contexts: names to keep; all of them when empty.
        num: rows to take, from the first on; all of them when None.

    Raises:
        ConfigError: with file and line; or an unknown context, an empty file, two rows with one id.
    """
    found: dict[str, int] = {}
    empty: dict[str, int] = {}
    ids: dict[str, int] = {}
    total = own = 0
    for line, row in islice(_rows(path), num):
        row_id = _row_id(row, line)
        if row_id in ids:
            raise ConfigError(
                f"two rows have the id {row_id!r}: lines {ids[row_id]} and {line}", where=f"{path}:{line}"
            )
        ids[row_id] = line
        total += 1
        own += bool(_own_prompts(row))
        for name, text in row["contexts"].items():
            found[name] = found.get(name, 0) + 1
            empty[name] = empty.get(name, 0) + (not text)
    if not total:
        raise ConfigError("the file holds no rows", where=str(path))
    for name in contexts:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the file has {', '.join(found)}"
            raise ConfigError(f"no row has a context {name}", where="--contexts", hint=hint)
    names = [name for name in found if not contexts or name in contexts]
    missing = {name: total - found[name] + empty[name] for name in names}
    checksum = sha256_of_parts(json.dumps(row, sort_keys=True) for _, row in islice(_rows(path), num))
    return PlainFile(path, total, tuple(names), missing, checksum, own)


def read_attempts(
    file: PlainFile, config: Config, solver: Solver, prompts: PromptBuilder, num: int | None
) -> Iterator[AttemptInContexts]:
    """The rows as attempts, one at a time. Raises ConfigError with file and line."""
    builders: dict[str, PromptBuilder] = {"{}": prompts}
    for line, row in islice(_rows(file.path), num):
        if not any(row["contexts"].get(name) for name in file.contexts):
            continue
        where = f"{file.path}:{line}"
        own = _own_prompts(row)
        key = json.dumps(own, sort_keys=True)
        if key not in builders:
            try:
                builders[key] = make_prompts(changed(config, own, where), solver)
            except ConfigError as error:
                raise ConfigError(error.what, where=f"{where}: {error.where}", hint=error.hint) from error
        yield to_subject(row, _row_id(row, line), file.contexts, solver, where, builders[key] if own else None)


def to_subject(
    row: Mapping[str, Any],
    rollout_id: str,
    contexts: Iterable[str],
    solver: Solver,
    where: str,
    prompts: PromptBuilder | None = None,
) -> AttemptInContexts:
    """A row as the attempt that is scored, under those of the named contexts that it has a text for."""
    ids, spans = _completion_ids(row, solver, where)
    attempt = Attempt(
        rollout_id=rollout_id,
        problem=Problem(
            problem_id=sha256(row["question"])[:16],
            question=row["question"],
            answer=row.get("answer") or "",
            reference=row.get("reference"),
        ),
        text=row["completion"] if spans else decode(solver.tokenizer, ids),
        grade=Grade.of(row.get("verdict") or "undecided"),
    )
    shown = {name: Shown(text=row["contexts"][name]) for name in contexts if row["contexts"].get(name)}
    critique = None
    if CRITIQUE in shown:
        critique = Critique(rollout_id=rollout_id, critic="given", status="ok", text=shown[CRITIQUE].text)
    return AttemptInContexts(
        attempt=attempt,
        ids=ids,
        contexts=shown,
        critique=critique,
        labels=Labels(wrong_step=row.get("wrong_step"), wrong_text=row.get("wrong_text")),
        case=row.get("case") or "",
        spans=spans,
        prompts=prompts,
    )


def mostly_unknown(file: PlainFile, tokenizer: PreTrainedTokenizerBase, num: int | None) -> int:
    """Rows whose completion has more tokens that the vocabulary lacks than tokens that it knows."""
    unknown = unknown_id(tokenizer)
    if unknown is None:
        return 0
    count = 0
    for _, row in islice(_rows(file.path), num):
        ids = row.get("completion_ids") or encode_with_spans(tokenizer, row["completion"])[0]
        count += 2 * ids.count(unknown) > len(ids)
    return count


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, checked row)."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, check_row(_parsed(line, f"{path}:{number}"), f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the file: {error}", where=str(path)) from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this line is no JSON: {error}", where=where, hint="one JSON object a line") from None


def check_row(row: Any, where: str) -> dict[str, Any]:
    """The row with numbers in text columns as text. Raises ConfigError for what cannot be scored."""
    if not isinstance(row, dict):
        raise ConfigError("this line is no JSON object", where=where)
    for name in row.keys() - _COLUMNS:
        if close := difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.8):
            raise ConfigError(f"unknown column {name!r}", where=where, hint=f"did you mean {close[0]}?")
    if isinstance(row.get("answer"), (int, float)) or isinstance(row.get("id"), int):
        row = {**row, **{k: str(row[k]) for k in ("answer", "id") if row.get(k) is not None}}
    for name in _TEXTS:
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ConfigError(f"{name} must be text, not {type(row[name]).__name__}", where=where)
    if not row.get("question"):
        raise ConfigError("the row has no question", where=where)
    if row.get("verdict") and row["verdict"] not in VERDICTS:
        raise ConfigError(f"unknown verdict {row['verdict']!r}", where=where, hint=f"one of {', '.join(VERDICTS)}")
    ids = row.get("completion_ids")
    if ids is not None and not (isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)):
        raise ConfigError("completion_ids must be a list of token ids", where=where)
    if ids is None and not row.get("completion"):
        raise ConfigError("the row has no completion", where=where, hint="give completion or completion_ids")
    contexts = row.get("contexts")
    if not isinstance(contexts, dict) or not contexts:
        raise ConfigError(
            "the row has no contexts", where=where, hint='give them by name: "contexts": {"critique": "..."}'
        )
    for name, text in contexts.items():
        if not name or (text is not None and not isinstance(text, str)):
            raise ConfigError(f"the context {name!r} must be text", where=where)
    for name in ("chat_options", "prompts"):
        if not isinstance(row.get(name), (dict, type(None))):
            raise ConfigError(f"{name} must be an object", where=where)
    return row


def _row_id(row: Mapping[str, Any], line: int) -> str:
    return str(row.get("id") or line)


def _own_prompts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the section ``prompts`` that a row changes."""
    own = {f"prompts.{key}": value for key, value in (row.get("prompts") or {}).items()}
    if row.get("system"):
        own["prompts.system"] = row["system"]
    if row.get("chat_options"):
        own["prompts.student_chat_options"] = own["prompts.teacher_chat_options"] = row["chat_options"]
    return own


def _completion_ids(
    row: Mapping[str, Any], solver: Solver, where: str
) -> tuple[tuple[int, ...], list[tuple[int, int]] | None]:
    """Ids as they are given, or the text encoded, with spans where the ids alone do not spell it."""
    ids, spans = row.get("completion_ids"), None
    if ids is None:
        ids, spans = encode_with_spans(solver.tokenizer, row["completion"])
    if not ids:
        raise ConfigError("the completion has no tokens", where=where)
    if max(ids) >= len(solver.head_VH):
        raise ConfigError(f"the model has no token {max(ids)}", where=where, hint="are the ids of another tokenizer?")
    return tuple(ids), spans
