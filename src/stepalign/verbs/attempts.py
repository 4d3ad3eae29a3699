"""Attempts to be criticised, from where they lie: a run folder, its rollouts.jsonl, a dump of another trainer, or any
JSON lines. Loads no torch.

A plain file has one attempt a row. Its columns are found by their usual names (``COLUMNS``), or named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepalign.config import Config, load_config
from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.grading import Grader
from stepalign.domains.table import load_set
from stepalign.errors import ConfigError
from stepalign.problems.dumps import LAYOUTS, Dump, open_dump, read_dump
from stepalign.problems.rows import Malformed, Row, cell_text, read_rows
from stepalign.problems.sets import problem_id
from stepalign.records import Attempt, Problem, Rollout, rollout_from_json
from stepalign.storage.fingerprint import sha256_of_file
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.sums import check_sums

COLUMNS: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem"),
    "completion": ("completion", "attempt", "solution", "response", "generated_solution"),
    "answer": ("answer", "expected_answer"),
    "reference": ("reference", "reference_solution"),
    "rollout_id": ("rollout_id", "id"),
    "finish_reason": ("finish_reason",),
}
"""Our name -> names that a column may have in a plain file; the first that is there counts. Only question and
completion must be there. A worked solution in the answer column serves as reference too."""
_NEEDED = ("question", "completion")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAttempts:
    """The attempts of a file, and the rows that were left out."""

    attempts: Sequence[Attempt]
    """In the order of the file. Attempts of a plain file are not graded yet: see :func:`graded`."""
    source: str
    sha256: str
    """Of the file."""
    skipped: Mapping[str, int]
    """Reason -> rows."""
    config: Config | None
    """Of the run that made them; None for a plain file and for a dump."""
    about: str = ""
    """The layout of a dump and how it was recognised."""


def read_attempts(path: Path, columns: Mapping[str, str] | None = None) -> StoredAttempts:
    """The attempts of a run folder, of its rollouts.jsonl, or of a plain file.

    Args:
        columns: our name -> column, for a plain file whose columns have other names than ``COLUMNS``.

    Raises:
        ConfigError: no such file, no usable row, a column that is not there, a run without its recipe.
    """
    file = path / "rollouts.jsonl" if path.is_dir() else path
    dump = None if columns or not path.exists() or (path / "config.toml").exists() else open_dump(path)
    if dump is not None:
        return _of_dump(dump)
    if not file.is_file():
        what = "the folder holds no rollouts.jsonl" if path.is_dir() else "there is no such file"
        raise ConfigError(
            what,
            where=str(path),
            hint="give a run folder, its rollouts.jsonl, JSON lines with question and completion, or a dump: "
            + ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS)),
        )
    _, first = next(iter(read_rows(str(file))), (0, {}))
    from_run = isinstance(first, Mapping) and isinstance(first.get("completion"), Mapping)
    if from_run and columns:
        raise ConfigError("a run's rollouts need no columns", where=str(file), hint="leave --columns out")
    skipped: Counter[str] = Counter()
    config, attempts = _of_run(file) if from_run else (None, list(_of_rows(file, columns or {}, skipped)))
    _refuse_empty(attempts, skipped, file)
    names = Counter(attempt.rollout_id for attempt in attempts)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"two attempts are called {twice!r}", where=str(file), hint="give every attempt its own id")
    return StoredAttempts(
        attempts=attempts, source=str(path), sha256=sha256_of_file(file), skipped=dict(skipped), config=config
    )


def _of_dump(dump: Dump) -> StoredAttempts:
    skipped: Counter[str] = Counter()
    attempts: list[Attempt] = []
    for one in read_dump(dump, skipped):
        if one.question and one.text:
            attempts.append(one.attempt())
        else:
            skipped["token ids without their text"] += 1
    _refuse_empty(attempts, skipped, dump.path)
    known = {"source": str(dump.path), "sha256": dump.sha256, "about": dump.message}
    return StoredAttempts(attempts=attempts, skipped=dict(skipped), config=None, **known)


def _refuse_empty(attempts: Sequence[Attempt], skipped: Mapping[str, int], file: Path) -> None:
    if not attempts:
        reasons = "".join(f"; {count} rows: {reason}" for reason, count in skipped.items())
        raise ConfigError(f"the file holds no attempts{reasons}", where=str(file))


def graded(attempt: Attempt, grader: Grader) -> Attempt:
    """The attempt with a grade; one that is decided, or has no expected answer, stays as it is."""
    if attempt.verdict != "undecided" or not attempt.problem.answer:
        return attempt
    return replace(attempt, grade=grader.grade(attempt.text, attempt.problem.answer))


def _of_run(file: Path) -> tuple[Config, list[Attempt]]:
    recipe = file.parent / "config.toml"
    if not recipe.is_file():
        raise ConfigError(
            "the rollouts of a run need its recipe, which names their problems: config.toml is missing beside them",
            where=str(file),
            hint="give the run folder, or a plain file with question and completion",
        )
    check_sums(file.parent, "config.toml", "rollouts.jsonl")
    config = load_config(str(recipe))
    problems = {problem.problem_id: problem for problem in load_set(config.data, "train").problems}
    return config, [rollout.attempt for rollout in read_rollouts(file, problems)]


def read_rollouts(file: Path, problems: Mapping[str, Problem]) -> Iterator[Rollout]:
    """The rollouts of a rollouts.jsonl. Raises ConfigError for one of a problem that is gone."""
    for row in read_json_lines(file):
        if row["problem_id"] not in problems:
            raise ConfigError(
                f"rollout {row['rollout_id']} belongs to a problem that the recipe's training set no longer has",
                where=str(file),
            )
        yield rollout_from_json(row, problems[row["problem_id"]])


def _of_rows(file: Path, columns: Mapping[str, str], skipped: Counter[str]) -> Iterator[Attempt]:
    unknown = sorted(columns.keys() - COLUMNS.keys())
    if unknown:
        raise ConfigError(f"unknown column name {unknown[0]}", where="--columns", hint=f"known: {', '.join(COLUMNS)}")
    names: dict[str, str] = {}
    for number, row in read_rows(str(file)):
        if isinstance(row, Malformed):
            skipped[row.reason] += 1
            continue
        names = names or _columns_of(row, columns, file)
        cells = {name: cell_text(row.get(column)) for name, column in names.items()}
        if not cells["question"]:
            skipped["no question"] += 1
        elif not isinstance(row.get(names["completion"]), str):
            skipped["no completion"] += 1
        else:
            yield _attempt(number, cells, str(row[names["completion"]]))


def _columns_of(row: Row, chosen: Mapping[str, str], file: Path) -> dict[str, str]:
    """Our name -> column of this file."""
    found = {name: next((c for c in usual if c in row), None) for name, usual in COLUMNS.items()} | dict(chosen)
    for name, column in found.items():
        if column not in row and (name in chosen or name in _NEEDED):
            raise ConfigError(
                f"there is no column {column or name}",
                where=f"{file}, line 1",
                hint=f"--columns {name}=COLUMN; the file has {', '.join(map(str, row))}",
            )
    return {name: column for name, column in found.items() if column is not None}


def _attempt(number: int, cells: Mapping[str, str], text: str) -> Attempt:
    given, reference = cells.get("answer", ""), cells.get("reference", "")
    marked = extract_answer(given or reference)
    question = cells["question"]
    problem = Problem(
        problem_id=problem_id(question),
        question=question,
        answer=(marked or given).strip(),
        reference=reference or (given if marked is not None and given != marked else None) or None,
    )
    return Attempt(
        rollout_id=cells.get("rollout_id") or f"line-{number:06d}",
        problem=problem,
        text=text,
        grade=Grade(score=float("nan"), answer=extract_answer(text)),
        truncated=cells.get("finish_reason") in ("length", "max_tokens"),
    )
