"""Is a critique aligned with the attempt it is about? Match its steps to the solver's and say what became of each.

The self-teacher copies what it reads. So three things decide what a critique teaches: whether the right steps stand in
it word for word, where the first change is, and whether the text of the wrong step occurs again.

Matching: equal steps at both ends are paired first; in between an order-preserving pairing of the greatest similarity
is found by dynamic programming, bounded in size, with equal steps as anchors where it would be too large. Similarity is
the Dice coefficient of the two steps' words and numbers. Answer steps are paired with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice, takewhile
from typing import Literal

from stepalign.feedback.steps import ANSWER, PREAMBLE, StepStyle, detect_style, split_steps, step_body
from stepalign.records import Critique, Rollout, Step

MatchStatus = Literal["copied", "edited", "missing", "added"]
Pairs = list[tuple[int | None, int | None]]
"""(index of a solver step, index of a critique step), None for no partner."""

_MAX_PAIRS = 20_000
"""Pairs of steps compared by similarity; beyond that, equal steps are anchors and the rest is paired in order."""
_MAX_WORDS = 400
"""Words of a step that count for its similarity."""
_PAIRED = 0.3
"""Worth of any pair: a lone changed step is an edit, but two poor pairs do not beat a good one."""
_SIMILAR = 0.5
"""Steps at least this similar are versions of each other."""

_MAX_FINDS = 64
"""Places of a text that are looked at for one quote."""
_MIN_QUOTE = 8
"""Characters from which on a repeated step is more than chance."""

# Chinese and Japanese write no spaces: there a character counts as a word.
_WORD = re.compile(r"\d+(?:[.,]\d+)*+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d\u3040-\u30ff\u3400-\u9fff]+")
_SIGN = re.compile(r"\S")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*+")
_VARIABLE = r"(?<![^\W\d])[^\W\d](?![^\W\d])"
_FORMULA = re.compile(rf"(?:[\d(]|{_VARIABLE})(?:[\d+*/(){{}}.,;=<>^%$£€ ×÷·−–-]|{_VARIABLE})*+")
_CLAUSE = re.compile(r"[.,;] ")
_CORRECTS = re.compile(r"\b(?:wrong(?:ly)?|incorrect(?:ly)?|mistaken?)\b|\A\W*(?:no|not|should (?:be|read))\b", re.I)
"""Words behind a copied step that take it back."""
_DENIED = re.compile(r"\b(?:not|instead of|rather than)[ \t]{1,3}[$€£]?(\d+(?:[.,]\d+)*+)", re.I)
_SPACE = re.compile(r"\s+")


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
    same_numbers: bool
    """Whether both state the same numbers in the same order: then an edit is a rewording."""
    kept: bool
    """Whether the critique has the solver's whole text in this place: copied, at the beginning of a step that goes on,
    or cut into other steps. Nothing was taken back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """What became of the solver's steps in a critique. Preambles (text before the first step) are left out."""

    matches: tuple[StepMatch, ...]
    """In reading order; every step of both texts, preambles apart, occurs exactly once."""
    solver_steps: tuple[Step, ...]
    """Spans in the completion."""
    critique_steps: tuple[Step, ...]
    """Spans in the critique."""
    first_edit: int | None
    """Index of the first solver step that is not copied; None where all are."""
    first_error: int | None
    """Index of the solver step at which the critique departs from the attempt in substance: the first whose numbers
    change or that is missing, else, where the answers differ, the first edit. None where it only completes, condenses
    or rewords."""
    verbatim_share: float
    """Share of the characters of the steps before ``first_error`` (all steps without one) that are copied verbatim;
    NaN where there are none. Low: the critic rewords right steps, and the self-teacher loses its anchor."""
    wrong_text_repeated: bool
    """Whether the text of the step at ``first_error``, or a statement of it that the correction drops, occurs in the
    critique: the self-teacher will copy it."""
    full_solution: bool
    """Whether the critique keeps nothing of the attempt and is a solution of its own."""
    solver_answer: str | None
    critique_answer: str | None
    answer_right: bool | None
    """Whether the corrected trace reaches the expected answer; None where that, or the trace's answer, is not known."""
    case: str
    """A reproduced, B completed by a reason, C finished or condensed, D corrected, F full solution instead."""

    @property
    def copied(self) -> int:
        return self._count("copied")

    @property
    def edited(self) -> int:
        return self._count("edited")

    @property
    def missing(self) -> int:
        return self._count("missing")

    @property
    def added(self) -> int:
        return self._count("added")

    @property
    def solver_statuses(self) -> tuple[MatchStatus, ...]:
        """Copied, edited or missing, per solver step."""
        return tuple(match.status for match in self.matches if match.solver is not None)

    @property
    def first_error_label(self) -> str:
        """Label of the first wrong step as the solver wrote it, "" where there is none."""
        return "" if self.first_error is None else self.solver_steps[self.first_error].label

    def _count(self, status: MatchStatus) -> int:
        return sum(match.status == status for match in self.matches)


def align(
    completion: str | Rollout,
    critique: str | Critique,
    *,
    expected_answer: str | None = None,
    extract_answer: Callable[[str], str | None] | None = None,
    same_answer: Callable[[str, str], bool] | None = None,
    style: StepStyle = "auto",
) -> Alignment:
    """Match the steps of a critique to the steps of the attempt.

    Args:
        completion: the attempt.
        critique: the usable text of a critique, a step-tagged trace; any other style is split by evidence too.
        expected_answer: the problem's answer, where the caller knows it.
        extract_answer: text of a trace -> its final answer or None; the body of its answer step by default.
        same_answer: (answer, expected) -> whether they agree; by default equal but for white space, case, "$" and
            digit-grouping commas.
        style: how the attempt is written.
    """
    solver_text = completion.text if isinstance(completion, Rollout) else completion
    critique_text = critique.text if isinstance(critique, Critique) else critique
    solver_steps, solver_bodies = _read(solver_text, style)
    # An untagged critique follows the attempt's style; by itself it might give evidence for another.
    tagged = detect_style(critique_text) == "tags"
    critique_style = "tags" if tagged else detect_style(solver_text) if style == "auto" else style
    critique_steps, critique_bodies = _read(critique_text, critique_style)
    matches = _match(solver_steps, solver_bodies, critique_steps, critique_bodies)

    extract = extract_answer or _answer_of
    agree = same_answer or _same_answer
    solver_answer, critique_answer = extract(solver_text), extract(critique_text)
    answers_agree = None
    if solver_answer is not None and critique_answer is not None:
        answers_agree = agree(critique_answer, solver_answer)
    answer_right = None
    if expected_answer is not None and critique_answer is not None:
        answer_right = agree(critique_answer, expected_answer)
    taken_back = [match for match in matches if _takes_back(match, solver_steps, answers_agree)]
    first_edit = _first(matches, "edited", "missing")
    first_error = _first_error(matches, taken_back, solver_steps, answers_agree)
    quoted = _quoted_then_corrected(matches, solver_bodies, critique_steps, critique_bodies)
    if quoted is not None and (first_error is None or quoted < first_error):
        first_error = quoted
    full_solution = _is_full_solution(matches, solver_steps)
    return Alignment(
        matches=tuple(matches),
        solver_steps=tuple(solver_steps),
        critique_steps=tuple(critique_steps),
        first_edit=first_edit,
        first_error=first_error,
        verbatim_share=_verbatim_share(matches, solver_bodies, critique_bodies, first_error),
        wrong_text_repeated=first_error is not None
        and (first_error == quoted or _repeats(matches, solver_bodies, critique_bodies, first_error)),
        full_solution=full_solution,
        solver_answer=solver_answer,
        critique_answer=critique_answer,
        answer_right=answer_right,
        case=_case(
            matches,
            reproduced=" ".join(solver_bodies) == " ".join(critique_bodies),
            full_solution=full_solution,
            taken_back=bool(taken_back) or quoted is not None,
            finished=solver_answer is not None,
            answers_agree=answers_agree,
        ),
    )


# --- matching ---


def _read(text: str, style: StepStyle) -> tuple[list[Step], list[str]]:
    """The steps that say something and what they say, white space evened out."""
    steps = [step for step in split_steps(text, style) if step.label != PREAMBLE]
    return steps, [_SPACE.sub(" ", step_body(text, step)) for step in steps]


def _match(
    solver_steps: Sequence[Step], solver: Sequence[str], critique_steps: Sequence[Step], critique: Sequence[str]
) -> list[StepMatch]:
    solver_end, critique_end = _without_answer(solver_steps), _without_answer(critique_steps)
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


def _without_answer(steps: Sequence[Step]) -> int:
    return next((index for index, step in enumerate(steps) if step.label == ANSWER), len(steps))


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
    row_words = [_words(solver[i]) for i in rows]
    column_words = [_words(critique[j]) for j in columns]
    worth = [[_PAIRED + _dice(left, right) for right in column_words] for left in row_words]
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
    similarity, same_numbers, kept = 1.0, True, True
    if i is None or j is None:
        status = "added" if i is None else "missing"
        similarity, same_numbers, kept = 0.0, False, False
    elif solver[i] != critique[j]:
        status = "edited"
        similarity = _dice(_words(solver[i]), _words(critique[j]))
        same_numbers = _numbers(solver[i]) == _numbers(critique[j])
        kept = _continues(solver[i], critique[j], may_be_cut)
    return StepMatch(status=status, solver=i, critique=j, similarity=similarity, same_numbers=same_numbers, kept=kept)


def _continues(text: str, longer: str, may_be_cut: bool) -> bool:
    """Whether ``longer`` goes on from ``text``; only an attempt's unfinished end may be continued inside a number."""
    if not text or not longer.startswith(text):
        return False
    splits_number = text[-1].isdigit() and re.match(r"[.,]?\d", longer[len(text) :]) is not None
    return may_be_cut or not splits_number


def _stands_before(pair: tuple[int | None, int | None], solver_end: int, critique_end: int) -> bool:
    i, j = pair
    return (i is None or i < solver_end) and (j is None or j < critique_end)


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
    shared = _common_start(" ".join(left), " ".join(right))
    left_ends, right_ends = (
        list(takewhile(lambda end: end <= shared, accumulate((len(text) + 1 for text in texts), initial=-1)))
        for texts in (left, right)
    )
    common = set(left_ends) & set(right_ends)
    return left_ends.index(max(common))


def _words(text: str) -> Counter[str]:
    """Words and numbers; signs only where there is nothing else, for most steps share their "+" and "="."""
    found = _WORD.finditer(text) if _WORD.search(text) else _SIGN.finditer(text)
    return Counter(match.group().lower() for match in islice(found, _MAX_WORDS))


def _dice(left: Counter[str], right: Counter[str]) -> float:
    total = left.total() + right.total()
    return 2.0 * (left & right).total() / total if total else 0.0


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in _NUMBER.findall(text)]


# --- findings ---


def _takes_back(match: StepMatch, solver_steps: Sequence[Step], answers_agree: bool | None) -> bool:
    """Whether an edit changes what the solver's step says."""
    if match.solver is None or match.status != "edited" or match.same_numbers or match.kept:
        return False
    if solver_steps[match.solver].label == ANSWER:
        return not answers_agree
    # The torn end of an unfinished attempt may simply be dropped for something else.
    unfinished = match.solver == len(solver_steps) - 1
    return not unfinished or match.similarity >= _SIMILAR


def _first(matches: Sequence[StepMatch], *statuses: MatchStatus) -> int | None:
    return next((match.solver for match in matches if match.solver is not None and match.status in statuses), None)


def _first_changed(matches: Sequence[StepMatch], *statuses: MatchStatus) -> int | None:
    return _first([match for match in matches if not match.kept], *statuses)


def _first_error(
    matches: Sequence[StepMatch],
    taken_back: Sequence[StepMatch],
    solver_steps: Sequence[Step],
    answers_agree: bool | None,
) -> int | None:
    changed = [m.solver for m in taken_back if m.solver is not None and solver_steps[m.solver].label != ANSWER]
    if changed:
        missing = _first_changed(matches, "missing")
        return changed[0] if missing is None else min(missing, changed[0])
    return _first_changed(matches, "edited", "missing") if answers_agree is False else None


def _quoted_then_corrected(
    matches: Sequence[StepMatch], solver: Sequence[str], critique_steps: Sequence[Step], critique: Sequence[str]
) -> int | None:
    """The first solver step that the critique copies and then writes once more, otherwise: a wrong step quoted in front
    of its correction. Told by a step number given twice, by another result for the same calculation, or, within one
    step, by words that take it back."""
    added = [match.critique for match in matches if match.status == "added" and match.critique is not None]
    rewritten = {critique_steps[index].label: index for index in added}
    results: dict[str, list[tuple[int, str]]] = {}
    for index in added:
        for left, right in _calculations(critique[index]):
            results.setdefault(left, []).append((index, right))
    for match in matches:
        if match.critique is None or match.solver is None or not match.kept:
            continue
        if match.status != "copied":
            if _takes_itself_back(solver[match.solver], critique[match.critique]):
                return match.solver
            continue
        step = critique_steps[match.critique]
        if step.label != ANSWER and rewritten.get(step.label, -1) > match.critique:
            return match.solver
        for left, right in _calculations(critique[match.critique]):
            if any(index > match.critique and other != right for index, other in results.get(left, ())):
                return match.solver
    return None


def _takes_itself_back(text: str, longer: str) -> bool:
    """Whether a step that begins with another's text corrects it further on: "3 + 4 = 8 is wrong, it is 7"."""
    if not text or not longer.startswith(text):
        return False
    rest = longer[len(text) :]
    results = _results(_equations(rest))
    return bool(_CORRECTS.search(rest)) or any(
        results.get(left, {right}) != {right} for left, right in _calculations(text)
    )


def _calculations(text: str) -> list[tuple[str, str]]:
    """The equations of a text that calculate something: ``3+4=7``, not ``x=7``, which may have two values."""
    return [(left, right) for left, right in _equations(text) if re.search(r"\d[^\d.,]+\d", left)]


def _verbatim_share(
    matches: Sequence[StepMatch], solver: Sequence[str], critique: Sequence[str], first_error: int | None
) -> float:
    kept = total = 0
    for match in matches:
        if match.solver is None or (first_error is not None and match.solver >= first_error):
            continue
        text = solver[match.solver]
        total += len(text)
        if match.kept:
            kept += len(text)
        elif match.critique is not None:
            kept += _common_ends(text, critique[match.critique])
    return kept / total if total else float("nan")


def _common_ends(left: str, right: str) -> int:
    """Characters that two steps share at their beginning and end; an induction head follows a copy until it breaks."""
    shorter = min(len(left), len(right))
    front = _common_start(left, right)
    back = 0
    while back < shorter - front and left[-1 - back] == right[-1 - back]:
        back += 1
    return front + back


def _common_start(left: str, right: str) -> int:
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


def _repeats(
    matches: Sequence[StepMatch], solver: Sequence[str], critique: Sequence[str], first_error: int | None
) -> bool:
    """Whether the critique states again what the wrong step states and the correction does not keep."""
    if first_error is None:
        return False
    match = next(match for match in matches if match.solver == first_error)
    body = solver[first_error]
    partner = critique[match.critique] if match.critique is not None else ""
    others = [text for index, text in enumerate(critique) if index != match.critique]
    earlier = solver[:first_error]
    # A correction may go on from the old text ("16 - 3 = 13, so ..."); one that has it further in quotes it.
    quotable = len(body) >= _MIN_QUOTE and body not in earlier
    if quotable and (_find(partner, body) > 0 or any(_find(text, body) >= 0 for text in others)):
        return True

    numbers = set(_numbers(body))
    if any(number.replace(",", "") in numbers for number in _DENIED.findall(partner)):
        return True

    kept = {equation for text in earlier for equation in _equations(text)}
    corrected = set(_equations(partner))
    results = _results(corrected)
    stated = {equation for text in critique for equation in _equations(text)}
    for left, right in set(_equations(body)) - kept:
        contradicted = bool(results.get(left, set()) - {right})
        if (left, right) in stated and (contradicted or (left, right) not in corrected):
            return True
    return False


def _results(equations: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Left side -> its right sides."""
    results: dict[str, set[str]] = {}
    for left, right in equations:
        results.setdefault(left, set()).add(right)
    return results


def _equations(text: str) -> list[tuple[str, str]]:
    """(left of the first "=", rest) of every equation in a text, without spaces."""
    parts = [part for match in _FORMULA.finditer(text) for part in _CLAUSE.split(match.group()) if "=" in part]
    sides = [_balanced(part.replace(" ", "").strip(".,$")).partition("=") for part in parts]
    return [(left, right) for left, _, right in sides if left and right]


def _balanced(formula: str) -> str:
    """A formula without the brackets of the sentence around it."""
    surplus = formula.count("(") - formula.count(")")
    opening = len(formula) - len(formula.lstrip("("))
    closing = len(formula) - len(formula.rstrip(")"))
    return formula[min(opening, max(0, surplus)) : len(formula) - min(closing, max(0, -surplus))]


def _find(text: str, part: str) -> int:
    """Where a part stands in a text as a whole, -1 if nowhere: "3 + 4 = 8" does not stand in "13 + 4 = 87"."""
    start = text.find(part)
    for _ in range(_MAX_FINDS):
        if start < 0:
            break
        end = start + len(part)
        joined = (text[start - 1 : start] + part[0]).isalnum() and start > 0
        joined |= (part[-1] + text[end : end + 1]).isalnum() and end < len(text)
        if not joined:
            return start
        start = text.find(part, start + 1)
    return -1


def _is_full_solution(matches: Sequence[StepMatch], solver_steps: Sequence[Step]) -> bool:
    """Nothing kept: no step copied, and the first is no version of the solver's first."""
    if not any(match.critique is not None for match in matches):
        return False
    own = [match for match in matches if match.solver is not None and solver_steps[match.solver].label != ANSWER]
    if not own:
        return True
    if any(match.kept for match in own):
        return False
    similar = sum(match.similarity >= _SIMILAR for match in own)
    return own[0].similarity < _SIMILAR and similar <= len(own) / 4


def _case(
    matches: Sequence[StepMatch],
    *,
    reproduced: bool,
    full_solution: bool,
    taken_back: bool,
    finished: bool,
    answers_agree: bool | None,
) -> str:
    if all(match.critique is None for match in matches):
        return ""
    if reproduced:
        return "A"
    if full_solution:
        return "F"
    condensed = not finished or any(match.status == "missing" and not match.kept for match in matches)
    if condensed and not taken_back and answers_agree is not False:
        return "C"
    return "B" if answers_agree else "D"


# --- answers ---


def _answer_of(text: str) -> str | None:
    steps = split_steps(text)
    if not steps or steps[-1].label != ANSWER:
        return None
    return step_body(text, steps[-1]) or None


def _same_answer(left: str, right: str) -> bool:
    return _plain_answer(left) == _plain_answer(right)


def _plain_answer(answer: str) -> str:
    text = _SPACE.sub("", answer).lower().strip("$.")
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)
