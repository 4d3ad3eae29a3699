"""Which step of a critique is which step of the attempt.

Equal steps at both ends are paired first; in between an order-preserving pairing of the greatest similarity is found by
dynamic programming, bounded in size, with equal steps as anchors where it would be too large. Similarity is the Dice
coefficient of the two steps' words and numbers. Answer steps are paired with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, takewhile
from typing import Literal

from stepalign.feedback.statements import common_start, dice, numbers, words
from stepalign.feedback.steps import ANSWER, PREAMBLE, StepStyle, split_steps, step_body
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
    """The steps of a text that say something: its preamble is left out."""

    spans: tuple[Step, ...]
    bodies: tuple[str, ...]
    """What each step says, without its tag or number, white space evened out."""

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
    """Whether the critique's step states no number that the solver's does not, and ends in the same one: then an edit
    is a rewording."""
    kept: bool
    """Whether the critique has the solver's whole text in this place: copied, at the beginning of a step that goes on,
    or cut into other steps. Nothing was taken back."""


def read_steps(text: str, style: StepStyle) -> Steps:
    """The steps of a text, split as the style says."""
    spans = tuple(step for step in split_steps(text, style) if step.label != PREAMBLE)
    return Steps(spans, tuple(_SPACE.sub(" ", step_body(text, step)) for step in spans))


def match_steps(attempt: Steps, corrected: Steps) -> list[StepMatch]:
    """Pair the steps of an attempt with those of its critique, in reading order; every step occurs once."""
    solver, critique = attempt.bodies, corrected.bodies
    solver_end, critique_end = attempt.answer, corrected.answer
    front = 0
    while front < min(solver_end, critique_end) and solver[front] == critique[front]:
        front += 1
    back = 0
    while back < min(solver_end, critique_end) - front and (
        solver[solver_end - 1 - back] == critique[critique_end - 1 - back]
    ):
        back += 1
    middle = _pair(solver, range(front, solver_end - back), critique, range(front, critique_end - back))
    pairs: Pairs = [(index, index) for index in range(front)]
    pairs += middle
    pairs += [(solver_end - back + k, critique_end - back + k) for k in range(back)]
    # Answers belong together; a second answer or text behind it counts as missing or added.
    pairs += _in_order(range(solver_end, len(solver)), range(critique_end, len(critique)))
    open_end = len(solver) - 1 if solver_end == len(solver) else None
    matches = [_step_match(i, j, solver, critique, i is not None and i == open_end) for i, j in pairs]
    recut = _recut([pair for pair in pairs if _stands_before(pair, solver_end, critique_end)], solver, critique)
    return [replace(match, kept=True) if match.solver in recut else match for match in matches]


def _stands_before(pair: tuple[int | None, int | None], solver_end: int, critique_end: int) -> bool:
    i, j = pair
    return (i is None or i < solver_end) and (j is None or j < critique_end)


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
    row_words = [words(solver[i]) for i in rows]
    column_words = [words(critique[j]) for j in columns]
    worth = [[_PAIRED + dice(left, right) for right in column_words] for left in row_words]
    for row, i in enumerate(rows):
        for column, j in enumerate(columns):
            if solver[i] == critique[j]:
                worth[row][column] = _PAIRED + 1.5  # equal text beats equal words
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
    i: int | None, j: int | None, solver: Sequence[str], critique: Sequence[str], may_be_cut: bool
) -> StepMatch:
    status: MatchStatus = "copied"
    similarity, same_result, kept = 1.0, True, True
    if i is None or j is None:
        status = "added" if i is None else "missing"
        similarity, same_result, kept = 0.0, False, False
    elif solver[i] != critique[j]:
        status = "edited"
        similarity = dice(words(solver[i]), words(critique[j]))
        before, after = numbers(solver[i]), numbers(critique[j])
        same_result = before[-1:] == after[-1:] and set(after) <= set(before)
        kept = _continues(solver[i], critique[j], may_be_cut)
    return StepMatch(status=status, solver=i, critique=j, similarity=similarity, same_result=same_result, kept=kept)


def _continues(text: str, longer: str, may_be_cut: bool) -> bool:
    """Whether ``longer`` goes on from ``text``; only an attempt's unfinished end may be continued inside a number."""
    if not text or not longer.startswith(text):
        return False
    splits_number = text[-1].isdigit() and re.match(r"[.,]?\d", longer[len(text) :]) is not None
    return may_be_cut or not splits_number


def _recut(pairs: Pairs, solver: Sequence[str], critique: Sequence[str]) -> set[int]:
    """Solver steps that a critique has word for word, but split, or joined with their neighbours."""
    found: set[int] = set()
    for equal, run in groupby(
        pairs, key=lambda p: p[0] is not None and p[1] is not None and solver[p[0]] == critique[p[1]]
    ):
        changed = list(run)
        rows = [i for i, _ in changed if i is not None]
        columns = [j for _, j in changed if j is not None]
        if equal or len(changed) < 2 or not rows or not columns:
            continue
        left, right = [solver[i] for i in rows], [critique[j] for j in columns]
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
    common = set(left_ends) & set(right_ends)
    return left_ends.index(max(common))
