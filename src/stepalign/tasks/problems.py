"""Problems in: rows of a JSONL or Parquet file, or of a Hub data set, as :class:`~stepalign.records.Problem`.

A column map says which column holds what; presets know the common layouts. A row that cannot be used is counted with
its reason and never silently lost; a file none of whose rows can be used is an error that names the first line.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from stepalign.errors import ConfigError
from stepalign.records import Problem
from stepalign.tasks.answers import MAX_LENGTH, extract_answer

_INSTALL_DATA = 'pip install "stepalign[data]"'
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Which column of a row holds what."""

    question: str = "question"
    answer: str | None = "answer"
    """The expected answer, bare or as a worked solution that marks its answer (a box, ``####``, an answer tag).
    None: the answer is the one that ``reference`` marks."""
    reference: str | None = None
    """A worked solution. None: the answer column, where that holds one."""
    metadata: tuple[str, ...] = ()
    """Columns to keep as they are."""
    marked: bool = False
    """The answer column must mark its answer: a row without a mark is skipped, not taken for a bare answer."""


@dataclass(frozen=True, kw_only=True)
class _Preset:
    maps: tuple[ColumnMap, ...]
    """Layouts in use; the first one whose columns all exist is taken."""
    prepare: Callable[[Row], Row | str] = lambda row: row
    """Changes a row before it is mapped, or gives the reason to skip it."""


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems and what was left out."""

    problems: tuple[Problem, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    num_rows: int = 0
    """Rows read. With a limit, reading stops early."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A problem that two sets share."""

    first: str
    second: str
    """Names of the two sets."""
    kind: Literal["exact", "normalised"]
    first_id: str
    second_id: str


def load_problems(
    path: str | os.PathLike[str],
    columns: str | ColumnMap | Mapping[str, Any] = "stepalign",
    *,
    limit: int | None = None,
) -> ProblemSet:
    """The problems of a file or of a Hub data set, without duplicates, in the order of the rows.

    Args:
        path: a ``.jsonl`` or ``.json`` file, a ``.parquet`` file, or ``hub:OWNER/NAME[/CONFIG][@SPLIT]`` (split "train"
            unless given). The last two need the extra ``data``. A Hub data set is read once, here; for training freeze
            it with :func:`save_problems`, so that a run does not depend on the network.
        columns: the name of a preset ("stepalign", "gsm8k", "math", "openmathreasoning", "aime", "messages"), a
            :class:`ColumnMap`, or its fields as a dictionary.
        limit: stop after so many problems.

    Raises:
        ConfigError: no such file, wrong column, a line that is not JSON, no usable row, a missing extra.
    """
    where = os.fspath(path)
    preset = _as_preset(columns)
    rows = _read(where)
    try:
        first_line, first_row = next(rows)
    except StopIteration:
        raise ConfigError("The file holds no problems: it has no rows.", where=where) from None
    column_map: ColumnMap | None = None
    problems: dict[str, Problem] = {}
    skipped: Counter[str] = Counter()
    first_skip = ""
    num_rows = 0
    for line, row in itertools.chain([(first_line, first_row)], rows):
        if limit is not None and len(problems) >= limit:
            break
        num_rows += 1
        row = preset.prepare(row)
        if column_map is None and not isinstance(row, str):
            column_map = _choose_map(preset.maps, row, where)
        reason = row if isinstance(row, str) else _add(row, column_map or preset.maps[0], problems)
        if reason:
            skipped[reason] += 1
            first_skip = first_skip or f"{where}, line {line}: {reason}"
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return hashlib.sha256(content).hexdigest()


def problem_id(question: str) -> str:
    """16 hexadecimal digits that depend on the question's text only, not on spacing, case or dollar signs."""
    return hashlib.sha256(normalise_question(question).encode()).hexdigest()[:16]


def normalise_question(question: str) -> str:
    """A question without spacing, case, dollar signs and final punctuation. Operators stay: 2 + 3 is not 2 - 3."""
    text = unicodedata.normalize("NFC", question).casefold()
    return "".join(text.replace("$", "").split()).rstrip(".?!:;")


def split_problems(
    problems: Iterable[Problem], shares: Mapping[str, float], *, salt: str = ""
) -> dict[str, tuple[Problem, ...]]:
    """Assign each problem to a split by the hash of its content.

    A problem keeps its split when others are added, removed or reordered, so that a test set stays one. The shares are
    met in expectation.

    Args:
        shares: name of the split -> share; together 1.
        salt: another salt makes another split.

    Raises:
        ValueError: for shares that are negative or do not sum to 1.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1, got {dict(shares)}")
    names = list(shares)
    bounds = list(itertools.accumulate(shares.values()))
    splits: dict[str, list[Problem]] = {name: [] for name in names}
    for problem in problems:
        digest = hashlib.sha256(f"{salt}\0{normalise_question(problem.question)}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        chosen = next((name for name, bound in zip(names, bounds, strict=True) if position < bound), names[-1])
        splits[chosen].append(problem)
    return {name: tuple(members) for name, members in splits.items()}


def find_overlaps(sets: Mapping[str, Iterable[Problem]]) -> list[Overlap]:
    """Problems that stand in more than one set: with the same text, or the same but for spacing, case and punctuation.

    A test set that shares problems with the training set measures memory. Empty when the sets are disjoint.
    """
    overlaps: list[Overlap] = []
    seen: dict[str, list[tuple[str, Problem]]] = {}
    for name, problems in sets.items():
        for problem in problems:
            key = re.sub(r"[\s$.,;:!?'\"`]+", "", unicodedata.normalize("NFKC", problem.question).casefold())
            for other_name, other in seen.get(key, ()):
                if other_name != name:
                    kind = "exact" if other.question == problem.question else "normalised"
                    overlaps.append(
                        Overlap(
                            first=other_name,
                            second=name,
                            kind=kind,
                            first_id=other.problem_id,
                            second_id=problem.problem_id,
                        )
                    )
            seen.setdefault(key, []).append((name, problem))
    return overlaps


# ---------------------------------------------------------------------------------------------------------------------
# One row


def _add(row: Row, columns: ColumnMap, problems: dict[str, Problem]) -> str:
    """Add the problem of a row; the reason why not, or ""."""
    question = _text(row.get(columns.question))
    if not question:
        return "no question"
    given = _text(row.get(columns.answer)) if columns.answer else ""
    reference = _text(row.get(columns.reference)) if columns.reference else ""
    source = given or ("" if columns.answer else reference)
    marked = extract_answer(source)
    if not source:
        return "no answer"
    if marked is None and (columns.marked or columns.answer is None):
        return "no marked answer"
    answer = (marked or source).strip()
    if len(answer) > MAX_LENGTH:
        return "answer too long to be one"
    if not reference and marked is not None and source != marked:
        reference = source
    metadata = {name: row[name] for name in columns.metadata if name in row}
    if set(metadata) == {"metadata"} and isinstance(metadata["metadata"], Mapping):
        metadata = dict(metadata["metadata"])
    problem = Problem(
        problem_id=problem_id(question),
        question=question,
        answer=answer,
        reference=_CALCULATOR_NOTE.sub("", reference) or None,
        metadata=metadata,
    )
    known = problems.setdefault(problem.problem_id, problem)
    if known is problem:
        return ""
    return "duplicate question" if known.answer == answer else "duplicate question with another answer"


def _text(value: Any) -> str:
    """A cell as text; numbers as one writes them (33.0 is "33")."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value).strip()


def _from_messages(row: Row) -> Row | str:
    """A chat: the last user message is the question, the assistant message after it a worked solution."""
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        return "no list of messages"
    asked = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not asked:
        return "no user message"
    replies = [message.get("content") for message in messages[asked[-1] + 1 :] if message.get("role") == "assistant"]
    return {**row, "question": messages[asked[-1]].get("content"), "solution": replies[-1] if replies else None}


def _from_open_math_reasoning(row: Row) -> Row | str:
    """All columns are strings, a missing pass rate is "n/a", and only some rows have a checkable answer."""
    if row.get("problem_type", "has_answer_extracted") != "has_answer_extracted":
        return f"problem_type is {row['problem_type']}"
    try:
        pass_rate = float(row.get("pass_rate_72b_tir", "n/a"))
    except (TypeError, ValueError):
        pass_rate = None
    return {**row, "pass_rate_72b_tir": pass_rate}


_OPEN_MATH_METADATA = ("pass_rate_72b_tir", "problem_source", "generation_model", "inference_mode")
PRESETS: dict[str, _Preset] = {
    "stepalign": _Preset(
        maps=(
            ColumnMap(reference="reference", metadata=("metadata",)),
            ColumnMap(reference="reference"),
            ColumnMap(),
        )
    ),
    "gsm8k": _Preset(maps=(ColumnMap(marked=True),)),
    "math": _Preset(
        maps=(
            ColumnMap(question="problem", answer="answer", reference="solution", metadata=("level", "subject")),
            ColumnMap(question="problem", answer="answer", reference="solution"),
            ColumnMap(question="problem", answer=None, reference="solution", metadata=("level", "type")),
            ColumnMap(question="problem", answer=None, reference="solution"),
            ColumnMap(question="problem", answer="answer"),
        )
    ),
    "openmathreasoning": _Preset(
        maps=(
            ColumnMap(
                question="problem",
                answer="expected_answer",
                reference="generated_solution",
                metadata=_OPEN_MATH_METADATA,
            ),
            ColumnMap(question="problem", answer="expected_answer", reference="generated_solution"),
            ColumnMap(question="problem", answer="expected_answer", metadata=("pass_rate_72b_tir",)),
        ),
        prepare=_from_open_math_reasoning,
    ),
    "aime": _Preset(
        maps=(
            ColumnMap(question="problem", answer="answer", reference="solution"),
            ColumnMap(question="Problem", answer="Answer", reference="Solution", metadata=("ID",)),
            ColumnMap(question="problem", answer="answer"),
            ColumnMap(question="question", answer="answer"),
            ColumnMap(question="Question", answer="Answer"),
        )
    ),
    "messages": _Preset(
        maps=(
            ColumnMap(answer="answer", reference="solution"),
            ColumnMap(answer=None, reference="solution"),
        ),
        prepare=_from_messages,
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Column maps


def _as_preset(columns: str | ColumnMap | Mapping[str, Any]) -> _Preset:
    if isinstance(columns, ColumnMap):
        return _Preset(maps=(columns,))
    if isinstance(columns, str):
        if columns not in PRESETS:
            raise ConfigError(
                f'No column preset is called "{columns}".',
                where="columns",
                hint=_did_you_mean(columns, PRESETS, "the presets are"),
            )
        return PRESETS[columns]
    names = [entry.name for entry in fields(ColumnMap)]
    for key in columns:
        if key not in names:
            raise ConfigError(
                f'A column map has no key "{key}".', where="columns", hint=_did_you_mean(key, names, "the keys are")
            )
    values = dict(columns)
    if "metadata" in values:
        values["metadata"] = (values["metadata"],) if isinstance(values["metadata"], str) else tuple(values["metadata"])
    return _Preset(maps=(ColumnMap(**values),))


def _choose_map(maps: Sequence[ColumnMap], row: Row, where: str) -> ColumnMap:
    """The first layout whose columns are all there.

    Raises:
        ConfigError: none fits; names the first column that the layout nearest to fitting lacks.
    """
    lacking = [[name for name in _columns_of(columns) if name not in row] for columns in maps]
    best = min(range(len(maps)), key=lambda index: len(lacking[index]))
    if lacking[best]:
        missing = lacking[best][0]
        raise ConfigError(
            f'There is no column "{missing}".',
            where=where,
            hint=_did_you_mean(missing, [str(name) for name in row], "the columns are")
            + '; name them with data.columns, e.g. {question = "...", answer = "..."}',
        )
    return maps[best]


def _columns_of(columns: ColumnMap) -> list[str]:
    named = (columns.question, columns.answer, columns.reference, *columns.metadata)
    return [name for name in named if name is not None]


def _did_you_mean(word: str, known: Iterable[str], introduction: str) -> str:
    known = list(known)
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    question = f'Did you mean "{folded[close[0]]}"? ' if close else ""
    return f"{question}{introduction[0].upper()}{introduction[1:]}: {', '.join(known)}"


# ---------------------------------------------------------------------------------------------------------------------
# Rows of a source, numbered as their lines


def _read(source: str) -> Iterator[tuple[int, Row]]:
    if source.startswith("hub:"):
        return _read_hub(source)
    path = Path(source)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        raise ConfigError(
            "There is no such file.",
            where=source,
            hint=f'Did you mean "{path.parent / close[0]}"?'
            if close
            else "A data set on the Hub is written hub:OWNER/NAME",
        )
    if path.is_dir():
        raise ConfigError("This is a folder; name a .jsonl, .json or .parquet file in it.", where=source)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".json":
        return _read_json(path)
    return _read_json_lines(path)


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line, f"{path}, line {number}")


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    """A list of objects; a file that holds JSON lines in spite of its name is read as that."""
    try:
        rows = json.loads(path.read_bytes())
    except ValueError:
        yield from _read_json_lines(path)
        return
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise ConfigError("A row must be an object with named columns.", where=f"{path}, row {number}")
        yield number, row


def _object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"This line is not JSON: {error}.", where=where) from None
    except RecursionError:
        raise ConfigError("This line is nested too deeply.", where=where) from None
    if not isinstance(row, dict):
        raise ConfigError("A row must be an object with named columns.", where=where)
    return row


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("Reading Parquet needs an extra.", where=str(path), hint=_INSTALL_DATA) from None
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"This file cannot be read as Parquet: {error}.", where=str(path)) from None


def _read_hub(source: str) -> Iterator[tuple[int, Row]]:
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w.-]+))?", source)
    if not match:
        raise ConfigError(
            "This is no name of a Hub data set.", where=source, hint="Write hub:OWNER/NAME[/CONFIG][@SPLIT]"
        )
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("Reading a Hub data set needs an extra.", where=source, hint=_INSTALL_DATA) from None
    name, configuration, split = match.groups()
    try:
        # Streamed, because a limit may need a thousandth of the 50 GB; all of it happens before a run starts.
        rows = datasets.load_dataset(name, configuration, split=split or "train", streaming=True)
        yield from enumerate(rows, start=1)
    except Exception as error:  # the library raises a dozen types for "not found" and "no network"
        raise ConfigError(
            f"The data set cannot be read: {type(error).__name__}: {str(error)[:300]}",
            where=source,
            hint="Check the name, the split and the network",
        ) from None
