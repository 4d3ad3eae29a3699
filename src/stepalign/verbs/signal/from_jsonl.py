"""``stepalign signal FILE --model DIR``: attempts and contexts from a JSONL file, no run needed.

Required columns: question, completion (or completion_ids), contexts (name -> text). Everything else is optional; see
docs/formats.md.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
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
from stepalign.outside import encodable, parse_json
from stepalign.records import Attempt, Critique, Problem
from stepalign.storage.fingerprint import sha256, sha256_of_parts
from stepalign.token_signal.analyse import AttemptInContexts, Shown
from stepalign.token_signal.marks import Labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    *("id", "question", "completion", "answer", "reference", "verdict", "case", "wrong_step", "wrong_text", "system"),
)  # fmt: skip
_OBJECTS = ("chat_options", "prompts")
_COLUMNS = {*_TEXTS, *_OBJECTS, "completion_ids", "contexts"}
VERDICTS = ("correct", "incorrect", "undecided")
CRITIQUE = "step_aligned"
"""The context of this name is taken as a critique: where it first departs from the attempt, the attempt is wrong."""

Row = Mapping[str, Any]


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
        hint=_meant(name, examples) or f"shipped examples: {', '.join(examples)}",
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
    for line, row in islice(_rows(path), num):
        row_id = _row_id(row, line)
        if row_id in ids:
            raise ConfigError(
                f"two rows have the id {row_id!r}: lines {ids[row_id]} and {line}", where=f"{path}:{line}"
            )
        ids[row_id] = line
        own += bool(_own_keys(row))
        found |= dict.fromkeys(row["contexts"])
        filled.update(name for name, text in row["contexts"].items() if text)
    if not ids:
        raise ConfigError("the file holds no rows", where=str(path))
    for name in contexts:
        if name not in found:
            hint = _meant(name, found) or f"the file has {', '.join(found)}"
            raise ConfigError(f"no row has a context {name}", where="--contexts", hint=hint)
    names = tuple(name for name in found if not contexts or name in contexts)
    empty = {name: len(ids) - filled[name] for name in names}
    checksum = sha256_of_parts(json.dumps(row, sort_keys=True) for _, row in islice(_rows(path), num))
    return PlainFile(path, len(ids), names, empty, checksum, own)


def read_attempts(file: PlainFile, config: Config, solver: Solver, num: int | None) -> Iterator[AttemptInContexts]:
    """The rows as attempts, one at a time. Raises ConfigError with file and line."""
    builders: dict[str, PromptBuilder | None] = {}
    for line, row in islice(_rows(file.path), num):
        if any(row["contexts"].get(name) for name in file.contexts):
            where, key = f"{file.path}:{line}", json.dumps(_own_keys(row), sort_keys=True)
            if key not in builders:
                builders[key] = own_prompts(row, config, solver, where)
            yield to_subject(row, _row_id(row, line), file.contexts, solver, where, builders[key])


def to_subject(
    row: Row,
    rollout_id: str,
    contexts: Iterable[str],
    solver: Solver,
    where: str,
    prompts: PromptBuilder | None = None,
) -> AttemptInContexts:
    """A checked row as the attempt that is scored, under those of the named contexts that it has a text for.

    Raises:
        ConfigError: a completion without tokens, or with ids that the model does not have.
    """
    ids, spans = row.get("completion_ids"), None
    if ids is None:  # spans where the ids alone do not spell the text
        ids, spans = encode_with_spans(solver.tokenizer, row["completion"])
    if not ids:
        raise ConfigError("the completion has no tokens", where=where)
    if max(ids) >= len(solver.head_VH):
        raise ConfigError(f"the model has no token {max(ids)}", where=where, hint="are the ids of another tokenizer?")
    attempt = Attempt(
        rollout_id=rollout_id,
        problem=Problem(
            problem_id=sha256(row["question"])[:16],
            question=row["question"],
            answer=row.get("answer") or "",
            reference=row.get("reference") or None,
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


def own_prompts(row: Row, config: Config, solver: Solver, where: str) -> PromptBuilder | None:
    """The prompts that a row brings; None where it brings none. Raises ConfigError where they cannot be used."""
    keys = _own_keys(row)
    try:
        return make_prompts(changed(config, keys, where), solver) if keys else None
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}: {error.where}", hint=error.hint) from error


def mostly_unknown(file: PlainFile, tokenizer: PreTrainedTokenizerBase, num: int | None) -> int:
    """Rows whose completion has more tokens that the vocabulary lacks than tokens that it knows."""
    unknown = unknown_id(tokenizer)
    if unknown is None:
        return 0
    rows = (row for _, row in islice(_rows(file.path), num))
    encoded = (row.get("completion_ids") or encode_with_spans(tokenizer, row["completion"])[0] for row in rows)
    return sum(2 * ids.count(unknown) > len(ids) for ids in encoded)


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
        if hint := _meant(name, _COLUMNS, cutoff=0.8):
            return f"unknown column {name!r}", hint
    for name in _TEXTS:
        if row.get(name) is not None and not isinstance(row[name], str):
            return f"{name} must be text, not {type(row[name]).__name__}", ""
    if not row.get("question"):
        return "the row has no question", ""
    if row.get("verdict") and row["verdict"] not in VERDICTS:
        return f"unknown verdict {row['verdict']!r}", f"one of {', '.join(VERDICTS)}"
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
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this line is no JSON: {error}", where=where, hint="one JSON object a line") from None


def _row_id(row: Row, line: int) -> str:
    return str(row.get("id") or line)


def _own_keys(row: Row) -> dict[str, Any]:
    """The keys of the section ``prompts`` that a row changes."""
    own = {f"prompts.{key}": value for key, value in (row.get("prompts") or {}).items()}
    if row.get("system"):
        own["prompts.system"] = row["system"]
    if row.get("chat_options"):
        own["prompts.student_chat_options"] = own["prompts.teacher_chat_options"] = row["chat_options"]
    return own


def _meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {close[0]}?" if close else ""
