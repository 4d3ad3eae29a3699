"""Problems in: rows of a JSONL or Parquet file, or of a Hub data set, as :class:`~stepalign.records.Problem`.

A column map says which column holds what; presets know the common layouts. A row that cannot be used is counted with
its reason and never silently lost; a file none of whose rows can be used is an error that names the first line.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepalign.domains.math.answers import MAX_LENGTH
from stepalign.domains.math.extraction import extract_answer
from stepalign.errors import ConfigError
from stepalign.events import Listener, line
from stepalign.problems.columns import ColumnMap, as_preset, choose_map
from stepalign.problems.rows import Malformed, Row, cell_text, is_hub, is_nested, read_rows
from stepalign.problems.sets import problem_id
from stepalign.records import Problem
from stepalign.storage.files import write_atomically
from stepalign.storage.fingerprint import sha256, sha256_of_file

_FROZEN = ColumnMap(reference="reference", metadata=("metadata",), verbatim=True)
"""The layout in which problems are frozen: nothing in it is searched for again."""
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems and what was left out."""

    problems: tuple[Problem, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    num_rows: int = 0
    """Rows read. With a limit, reading stops early."""

    def say_skipped(self, listener: Listener, name: str = "") -> None:
        for reason, count in self.skipped.items():
            listener(line(f"{name}{count} rows skipped: {reason}"))


def load_problems(
    path: str | os.PathLike[str],
    columns: str | ColumnMap | Mapping[str, Any] = "stepalign",
    *,
    limit: int | None = None,
) -> ProblemSet:
    """The problems of a file or of a Hub data set, without duplicates, in the order of the rows.

    Args:
        path: see :func:`~stepalign.problems.rows.read_rows`. A Hub data set is read once and then taken from a frozen
            copy on this machine, so that a run neither depends on the network nor changes when it is resumed.
        columns: the name of a preset ("stepalign", "gsm8k", "math", "openmathreasoning", "aime", "messages",
            "python"), a :class:`ColumnMap`, or its fields as a dictionary.
        limit: stop after so many problems.

    Raises:
        ConfigError: no such file, wrong column, a line that is not JSON, no usable row, a missing extra.
    """
    source = os.fspath(path)
    if is_hub(source):
        return _load_frozen(source, columns, limit)
    return problems_of_rows(read_rows(source), source, columns, limit=limit)


def problems_of_rows(
    rows: Iterable[tuple[int, Row | Malformed | str]],
    source: str,
    columns: str | ColumnMap | Mapping[str, Any] = "stepalign",
    *,
    limit: int | None = None,
) -> ProblemSet:
    """Numbered rows as problems; a row that is a text is the reason to skip it. See ``load_problems``."""
    preset = as_preset(columns)
    column_map: ColumnMap | None = None
    problems: dict[str, Problem] = {}
    skipped: Counter[str] = Counter()
    first_skip = ""
    num_rows = 0
    for number, row in rows:
        if limit is not None and len(problems) >= limit:
            break
        num_rows += 1
        if isinstance(row, Malformed):  # a damaged file, not a row that does not fit
            raise ConfigError(f"This line cannot be read: {row.reason}.", where=f"{source}, line {number}")
        row = row if isinstance(row, str) else preset.prepare(row)
        if column_map is None and not isinstance(row, str):
            column_map = choose_map(preset.maps, row, source)
        reason = row if isinstance(row, str) else _add(row, column_map or preset.maps[0], problems)
        if reason:
            skipped[reason] += 1
            first_skip = first_skip or f"{source}, line {number}: {reason}"
    if not num_rows:
        raise ConfigError(
            "The file holds no problems: it has no rows.", where=source, hint="one JSON object a line: docs/problems.md"
        )
    if not problems:
        counts = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common())
        raise ConfigError(
            f"None of the {num_rows} rows can be used: {counts}.",
            where=first_skip,
            hint="Check the column map (data.columns): which column holds the question, which the answer?",
        )
    return ProblemSet(problems=tuple(problems.values()), skipped=dict(skipped.most_common()), num_rows=num_rows)


def save_problems(problems: Iterable[Problem], path: str | os.PathLike[str]) -> str:
    """Freeze problems to a JSONL file in the layout of the preset "stepalign", atomically.

    Returns:
        The SHA-256 checksum of the file, in hexadecimal: what a manifest or a recipe records.
    """
    lines = [json.dumps(asdict(problem), ensure_ascii=False, default=str) + "\n" for problem in problems]
    content = "".join(lines).encode()
    path = Path(path)
    write_atomically(path, content)
    return sha256(content)


def frozen_folder() -> Path:
    """Where copies of Hub data sets lie: ``$STEPALIGN_CACHE/problems``, or below the user's cache folder."""
    ours, users = os.environ.get("STEPALIGN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    below = Path(ours or f"{users or '~/.cache'}/stepalign")
    return below.expanduser() / "problems"


def _load_frozen(source: str, columns: str | ColumnMap | Mapping[str, Any], limit: int | None) -> ProblemSet:
    """The frozen copy of what a source gives with a column map; made when it is read for the first time."""
    mapped = asdict(columns) if isinstance(columns, ColumnMap) else columns
    key = {"source": source, "columns": mapped, "limit": limit}
    key_hash = sha256(json.dumps(key, sort_keys=True, default=str))
    name = re.sub(r"[^\w.-]+", "-", source.removeprefix("hub:")).strip("-.")[-60:]
    copy = frozen_folder() / f"{name}-{key_hash[:12]}.jsonl"
    manifest = copy.with_suffix(".json")
    if copy.exists() and manifest.exists():
        kept = json.loads(manifest.read_bytes())
        if sha256_of_file(copy) != kept["sha256"]:
            raise ConfigError(
                f"The frozen copy of {source} was changed since it was made.",
                where=str(copy),
                hint=f"rm {manifest} makes it anew from the Hub; to keep the changed problems, name the copy itself",
            )
        return ProblemSet(problems=problems_of_rows(read_rows(str(copy)), str(copy), _FROZEN).problems, **kept["rows"])
    loaded = problems_of_rows(read_rows(source), source, columns, limit=limit)
    checksum = save_problems(loaded.problems, copy)
    rows = {"skipped": loaded.skipped, "num_rows": loaded.num_rows}
    write_atomically(manifest, json.dumps({**key, "sha256": checksum, "rows": rows}, indent=1, default=str))
    return loaded


def is_selection(source: str) -> bool:
    """Whether a source is a folder that ``stepalign select`` has written."""
    folder = Path(source).expanduser()
    return not is_hub(source) and any((folder / name).is_file() for name in ("manifest.json", "funnel.json"))


def load_selection(folder: str, name: str, *, limit: int | None = None) -> ProblemSet:
    """The "train" or "test" problems that a selection has frozen.

    Raises:
        ConfigError: the selection has no such set, or the file was changed since.
    """
    path = Path(folder).expanduser()
    manifest = path / "manifest.json"
    try:
        entries = json.loads(manifest.read_bytes())["files"]
        files = {name: (path / entry["file"], entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        what = "This is no manifest of a selection." if manifest.exists() else "The selection's manifest is missing."
        raise ConfigError(what, where=str(manifest), hint=f"stepalign doctor {folder} says how it is mended") from None
    if name not in files:
        hint = f"--set data.{name}=FILE names other problems; stepalign select sets some aside for the test by "
        hint += "selection.test_share"
        has = ", ".join(files) or "none"
        raise ConfigError(f"The selection has no {name} problems; it has {has}.", where=folder, hint=hint)
    file, expected = files[name]
    if not file.is_file() or sha256_of_file(file) != expected:
        raise ConfigError(
            "The selected problems were changed or removed since they were frozen.",
            where=str(file),
            hint="select them again; to use changed ones, name the file itself",
        )
    return problems_of_rows(read_rows(str(file)), str(file), _FROZEN, limit=limit)


# ---------------------------------------------------------------------------------------------------------------------
# One row


def _add(row: Row, columns: ColumnMap, problems: dict[str, Problem]) -> str:
    """Add the problem of a row; the reason why not, or ""."""
    for name, column in (("question", columns.question), ("answer", columns.answer), ("reference", columns.reference)):
        if column and is_nested(row.get(column)):
            return f"the {name} is a list or an object, not a text"
    question = cell_text(row.get(columns.question))
    if not question:
        return "no question"
    given = cell_text(row.get(columns.answer)) if columns.answer else ""
    reference = cell_text(row.get(columns.reference)) if columns.reference else ""
    source = given or ("" if columns.answer else reference)
    marked = None if columns.verbatim else extract_answer(source)
    if not source:
        return "no answer"
    if marked is None and (columns.marked or columns.answer is None):
        return "no marked answer"
    answer = (marked or source).strip()
    if len(answer) > MAX_LENGTH and not columns.verbatim:
        return "answer too long to be one"
    if not reference and marked is not None and source != marked:
        reference = source
    metadata = {name: row[name] for name in columns.metadata if name in row}
    if set(metadata) == {"metadata"} and isinstance(metadata["metadata"], Mapping):
        metadata = dict(metadata["metadata"])
    if not columns.verbatim and _CALCULATOR_NOTE.search(reference):
        metadata["calculator_notes"] = reference
    problem = Problem(
        problem_id=problem_id(question),
        question=question,
        answer=answer,
        reference=(reference if columns.verbatim else _CALCULATOR_NOTE.sub("", reference)) or None,
        metadata=metadata,
    )
    known = problems.setdefault(problem.problem_id, problem)
    if known is problem:
        return ""
    return "duplicate question" if known.answer == answer else "duplicate question with another answer"
