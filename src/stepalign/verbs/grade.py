"""``stepalign grade``: a verdict for every row of a file of completions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.domains.math.answers import MAX_LENGTH
from stepalign.domains.math.grade import undecided
from stepalign.domains.math.grading import Grader
from stepalign.domains.math.thinking import assume_thought, find_thoughts, opened_thought
from stepalign.errors import ConfigError
from stepalign.events import Listener, progress, silent
from stepalign.problems.columns import is_chat
from stepalign.problems.rows import Malformed, Row, cell_text, did_you_mean, read_rows
from stepalign.storage.files import move_file
from stepalign.storage.fingerprint import sha256
from stepalign.storage.jsonl import JsonLines, read_json_lines

BATCH = 2_000
"""Rows graded and written at once: what an interruption can cost."""
_LOOKED_AT = 200
"""Rows of which one must have the columns; else the names are wrong, not the rows."""


def grade_file(
    source: str,
    out: Path,
    *,
    completion: str,
    answer: str,
    grader: Grader,
    prompt: str = "",
    thinking: bool = False,
    listener: Listener = silent,
) -> dict[str, Counter[str]]:
    """Grade every row; OUT gets one JSON line per row of the source, in its order.

    A line has ``row`` (its number in the source, from 1), ``verdict``, ``extracted`` (the final answer as written, cut
    above 512 characters, or null) and ``reason``. A row that cannot be graded - not JSON, no such column, not text - is
    "undecided" with that reason; so is one whose prompt is no text, where its completion does not show the end of a
    thought. OUT appears when all is done; a second call goes on where the first was stopped.

    Args:
        source: JSON lines, JSON or Parquet; see :func:`~stepalign.problems.rows.read_rows`.
        completion: the column with the completion, thinking included; "response.text" is "text" inside of "response".
        answer: the column with the expected answer, bare or as a worked solution that marks it.
        prompt: the column with the prompt as the model read it: one that ends with ``<think>`` or another such mark
            opens a thought, in which the completion begins. "": completions begin outside of thoughts.
        thinking: every prompt opened a thought.

    Returns:
        How many rows got each verdict ("verdicts") and each reason ("reasons").

    Raises:
        ConfigError: no such file, an empty one, none of the first rows has the columns, or OUT is the source.
    """
    if out.exists() and os.path.exists(source) and os.path.samefile(source, out):
        raise ConfigError("The output would replace the input.", where=str(out), hint="Give another --out")
    rows = list(read_rows(source))
    columns = [completion, answer, *([prompt] if prompt else [])]
    _check_columns(rows, columns, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = Path(source).expanduser()
    status = path.stat() if path.exists() else None
    state = [str(path.absolute()), status and status.st_size, status and status.st_mtime_ns]
    job = json.dumps([columns, thinking, grader.config.argument or grader.config.function, state])
    partial = out.with_name(f".{out.name}.{sha256(job)[:12]}.partial")
    counts = {"verdicts": Counter[str](), "reasons": Counter[str]()}
    done = _count(read_json_lines(partial), counts)
    graded = JsonLines(partial)
    for start in range(done, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        lines = list(_graded(batch, columns, thinking, grader))
        graded.append(lines)
        _count(lines, counts)
        listener(progress("grading", start + len(batch), len(rows)))
    graded.close()
    move_file(partial, out)
    return counts


def _check_columns(rows: list[tuple[int, Row | Malformed]], columns: Sequence[str], source: str) -> None:
    if not rows:
        raise ConfigError("The file has no rows.", where=source, hint="one JSON object a line, or Parquet")
    first = [row for _, row in rows[:_LOOKED_AT] if not isinstance(row, Malformed)]
    known = list(dict.fromkeys(name for row in first for name in row))
    for column in columns:
        if first and column not in known and all(_cell(row, column) is None for row in first):
            raise ConfigError(
                f'There is no column "{column}".', where=source, hint=did_you_mean(column, known, "the columns are")
            )


def _graded(
    rows: Sequence[tuple[int, Row | Malformed]], columns: Sequence[str], thinking: bool, grader: Grader
) -> Iterator[dict[str, Any]]:
    """The line of each row; those that can be graded are handed to the grader together."""
    read = [(number, _texts(row, columns, thinking)) for number, row in rows]
    good = [texts for _, texts in read if not isinstance(texts, str)]
    grades = iter(grader.grade_many([text for text, _ in good], [expected for _, expected in good]))
    for number, texts in read:
        grade = undecided(texts) if isinstance(texts, str) else next(grades)
        extracted = grade.answer
        if extracted is not None and len(extracted) > MAX_LENGTH:
            extracted = extracted[:MAX_LENGTH] + "..."
        yield {"row": number, "verdict": grade.verdict, "extracted": extracted, "reason": grade.reason}


def _texts(row: Row | Malformed, columns: Sequence[str], thinking: bool) -> tuple[str, str] | str:
    """Completion, with the mark of a thought that its prompt opened, and expected answer of a row; or why it cannot be
    graded."""
    if isinstance(row, Malformed):
        return f"malformed row: {row.reason}"
    cells = [_cell(row, column) for column in columns]
    for column, cell, kinds in zip(columns, cells, (str, str | int | float), strict=False):
        if cell is None:
            return f'malformed row: no "{column}"'
        if not isinstance(cell, kinds) or isinstance(cell, bool):
            return f'malformed row: "{column}" is no text'
    text = cells[0]
    for prompt in cells[2:]:
        if is_chat(prompt) and prompt[-1]["role"] == "assistant":  # the completion goes on with its words
            prompt = prompt[-1].get("content")
        if isinstance(prompt, str):
            text = opened_thought(prompt) + text
        elif not thinking and not find_thoughts(text)[0]:
            return f'"{columns[2]}" does not show whether it opened a thought'
    return assume_thought(text) if thinking else text, cell_text(cells[1])


def _cell(row: Row, column: str) -> Any:
    """The value of a column; "a.b" is the column b of what the column a holds, unless a column is called that."""
    if column in row:
        return row[column]
    first, _, rest = column.partition(".")
    inner = row.get(first) if rest else None
    return _cell(inner, rest) if isinstance(inner, Mapping) else None


def _count(lines: Iterable[dict[str, Any]], counts: dict[str, Counter[str]]) -> int:
    """Count the verdicts and reasons of some lines; the number of lines counted so far."""
    for line in lines:
        counts["verdicts"][line["verdict"]] += 1
        counts["reasons"][line["reason"]] += 1
    return counts["verdicts"].total()
