"""Pair the steps of a critique with those of the attempt.

Equal steps at both ends are paired first; in between dynamic programming finds the order-preserving pairing of greatest
similarity (Dice coefficient of words and numbers), or, where that is too large, equal steps are anchors. Answer steps
are paired with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, takewhile
from typing import Literal

from stepalign.feedback.statements import common_start, dice, numbers, words
from stepalign.feedback.steps import ANSWER, PREAMBLE, StepStyle, code_spans, split_steps, step_body
from stepalign.records import Step

MatchStatus = Literal["copied", "edited", "missing", "added"]
Pairs = list[tuple[int | None, int | None]]
"""(index of a solver step, index of a critique step), None for no partner."""

_MAX_PAIRS = 20_000
"""Pairs of steps compared by similarity; beyond that, equal steps are anchors and the rest is paired in order."""
_PAIRED = 0.3
"""Worth of any pair: a lone changed step is an edit, but two poor pairs do not beat a good one."""

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a text without its preamble."""

    spans: tuple[Step, ...]
    bodies: tuple[str, ...]
    """Each step without its tag or number, white space evened out."""
    code: tuple[bool, ...] = ()
    """Whether each step is code, where every sign counts."""

    @property
    def answer(self) -> int:
        """Index of the first answer step; the number of steps where there is none."""
        return next((index for index, step in enumerate(self.spans) if step.label == ANSWER), len(self.spans))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMatch:
    """One step of the solver, of the critique, or a pair of both."""

    status: MatchStatus
    solver: int | None
    """Index into ``Alignment.solver_steps``; None for an added step."""
    critique: int | None
    """Index into ``Alignment.critique_steps``; None for a missing one."""
    similarity: float
    """0 to 1; 1 for copied, 0 without a partner."""
    same_result: bool
    """Whether the critique's step has no new number and ends in the same one, or is the same code with other blanks: an
    edit is then a rewording."""
    kept: bool
    """Whether the critique has the solver's whole text in this place: copied, continued, or cut into other steps."""


def read_steps(text: str, style: StepStyle) -> Steps:
    """The steps of a text in a writing style."""
    spans = tuple(step for step in split_steps(text, style) if step.label != PREAMBLE)
    code = code_spans(text)
    return Steps(
        spans,
        tuple(_SPACE.sub(" ", step_body(text, step)) for step in spans),
        tuple(any(start <= step.start < end for start, end in code) for step in spans),
    )


def match_steps(attempt: Steps, corrected: Steps) -> list[StepMatch]:
    """Pair the steps of an attempt with those of its critique, in reading order; every step occurs once."""
    solver, critique = attempt.bodies, corrected.bodies
    solver_end, critique_end = attempt.answer, corrected.answer
    shorter = min(solver_end, critique_end)
    front = 0
    while front < shorter and solver[front] == critique[front]:
        front += 1
    back = 0
    while back < shorter - front and solver[solver_end - 1 - back] == critique[critique_end - 1 - back]:
        back += 1
    steps: Pairs = [
        *((index, index) for index in range(front)),
        *_pair(solver, range(front, solver_end - back), critique, range(front, critique_end - back)),
        *((solver_end - back + k, critique_end - back + k) for k in range(back)),
    ]
    # Answers belong together; a second answer or text behind it counts as missing or added.
    answers = _in_order(range(solver_end, len(solver)), range(critique_end, len(critique)))
    unfinished = len(solver) - 1 if solver_end == len(solver) else None
    matches = [
        _step_match(i, j, solver, critique, i is not None and i == unfinished, i is not None and attempt.code[i])
        for i, j in steps + answers
    ]
    recut = _recut(steps, solver, critique)
    return [replace(match, kept=True) if match.solver in recut else match for match in matches]


def _pair(solver: Sequence[str], rows: range, critique: Sequence[str], columns: range) -> Pairs:
    """Order-preserving pairs of the steps in two ranges."""
    if not rows or not columns:
        return _in_order(rows, columns)
    if len(rows) * len(columns) <= _MAX_PAIRS:
        return _best_pairing(solver, rows, critique, columns)
    pairs: Pairs = []
    row, column = rows.start, columns.start
    for i, j in _anchors(solver, rows, critique, columns):
        pairs += [*_in_order(range(row, i), range(column, j)), (i, j)]
        row, column = i + 1, j + 1
    return pairs + _in_order(range(row, rows.stop), range(column, columns.stop))


def _anchors(solver: Sequence[str], rows: range, critique: Sequence[str], columns: range) -> list[tuple[int, int]]:
    """Pairs of equal steps that occur once in each range, greedily in order: linear time, for very long traces."""
    row_counts = Counter(solver[i] for i in rows)
    column_counts = Counter(critique[j] for j in columns)
    places = {critique[j]: j for j in columns if column_counts[critique[j]] == 1}
    anchors: list[tuple[int, int]] = []
    for i in rows:
        j = places.get(solver[i])
        if j is not None and row_counts[solver[i]] == 1 and (not anchors or j > anchors[-1][1]):
            anchors.append((i, j))
    return anchors


def _best_pairing(solver: Sequence[str], rows: range, critique: Sequence[str], columns: range) -> Pairs:
    column_words = [words(critique[j]) for j in columns]
    worth: list[list[float]] = []
    for i in rows:
        row_words = words(solver[i])
        # Equal text beats equal words.
        similar = [
            1.5 if solver[i] == critique[j] else dice(row_words, found)
            for j, found in zip(columns, column_words, strict=True)
        ]
        worth.append([_PAIRED + value for value in similar])
    # best[r][c]: greatest worth of pairing rows r.. with columns c..
    best = [[0.0] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    for row in reversed(range(len(rows))):
        for column in reversed(range(len(columns))):
            paired = worth[row][column] + best[row + 1][column + 1]
            best[row][column] = max(paired, best[row + 1][column], best[row][column + 1])
    pairs: Pairs = []
    row = column = 0
    while row < len(rows) and column < len(columns):
        if best[row][column] == worth[row][column] + best[row + 1][column + 1]:
            pairs.append((rows[row], columns[column]))
            row, column = row + 1, column + 1
        elif best[row][column] == best[row][column + 1]:
            pairs.append((None, columns[column]))
            column += 1
        else:
            pairs.append((rows[row], None))
            row += 1
    return pairs + _in_order(rows[row:], columns[column:], pair=False)


def _in_order(rows: range, columns: range, pair: bool = True) -> Pairs:
    """First with first, second with second; what is left over has no partner."""
    shared = min(len(rows), len(columns)) if pair else 0
    pairs: Pairs = list(zip(rows[:shared], columns[:shared], strict=True))
    return pairs + [(i, None) for i in rows[shared:]] + [(None, j) for j in columns[shared:]]


def _step_match(
    i: int | None, j: int | None, solver: Sequence[str], critique: Sequence[str], may_be_cut: bool, is_code: bool
) -> StepMatch:
    def match(status: MatchStatus, similarity: float, same_result: bool, kept: bool) -> StepMatch:
        return StepMatch(status=status, solver=i, critique=j, similarity=similarity, same_result=same_result, kept=kept)

    if i is None or j is None:
        return match("added" if i is None else "missing", 0.0, False, False)
    left, right = solver[i], critique[j]
    if left == right:
        return match("copied", 1.0, True, True)
    similarity = dice(words(left), words(right))
    if is_code:
        same_code = left.replace(" ", "") == right.replace(" ", "")
        return match("edited", similarity, same_code, may_be_cut and right.startswith(left))
    before, after = numbers(left), numbers(right)
    same_result = before[-1:] == after[-1:] and set(after) <= set(before)
    return match("edited", similarity, same_result, _continues(left, right, may_be_cut))


def _continues(text: str, longer: str, may_be_cut: bool) -> bool:
    """Whether ``longer`` goes on from ``text``; only an attempt's unfinished end may be continued inside a number."""
    if not text or not longer.startswith(text):
        return False
    splits_number = text[-1].isdigit() and re.match(r"[.,]?\d", longer[len(text) :]) is not None
    return may_be_cut or not splits_number


def _recut(pairs: Pairs, solver: Sequence[str], critique: Sequence[str]) -> set[int]:
    """Solver steps that a critique has word for word, but split, or joined with their neighbours."""

    def is_copied(pair: tuple[int | None, int | None]) -> bool:
        i, j = pair
        return i is not None and j is not None and solver[i] == critique[j]

    found: set[int] = set()
    for copied, run in groupby(pairs, key=is_copied):
        changed = list(run)
        rows = [i for i, _ in changed if i is not None]
        left, right = [solver[i] for i in rows], [critique[j] for _, j in changed if j is not None]
        if copied or len(changed) < 2 or not left or not right:
            continue
        front = _steps_within(left, right)
        back = _steps_within([text[::-1] for text in reversed(left)], [text[::-1] for text in reversed(right)])
        found.update(rows[:front], rows[len(rows) - back :])
    return found


def _steps_within(left: Sequence[str], right: Sequence[str]) -> int:
    """How many of the first steps on the left are the same text as some of the first on the right, cut otherwise."""
    shared = common_start(" ".join(left), " ".join(right))
    left_ends, right_ends = (
        list(takewhile(lambda end: end <= shared, accumulate((len(text) + 1 for text in texts), initial=-1)))
        for texts in (left, right)
    )
    return left_ends.index(max(set(left_ends) & set(right_ends)))
