"""Align a critique with its attempt: each of the solver's steps is copied, edited or missing in it.

The self-teacher copies what it reads, so three things decide the effect of a critique: whether it has the right steps
word for word, its first change, and whether the text of the wrong step occurs again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepalign.feedback.statements import calculations, common_ends, equations, find_whole, numbers, results_of
from stepalign.feedback.step_matching import MatchStatus, StepMatch, Steps, match_steps, read_steps
from stepalign.feedback.steps import ANSWER, StepStyle, detect_style, split_steps, step_body
from stepalign.records import Attempt, Critique, Step

__all__ = ["Alignment", "MatchStatus", "StepMatch", "align"]

_SIMILAR = 0.5
"""Steps at least this similar are versions of each other."""
_MIN_QUOTE = 8
"""Characters from which on a repeated step is more than chance."""

_CORRECTS = re.compile(r"\b(?:wrong(?:ly)?|incorrect(?:ly)?|mistaken?)\b|\A\W*(?:no|not|should (?:be|read))\b", re.I)
"""Words behind a copied step that take it back."""
_DENIED = re.compile(r"\b(?:not|instead of|rather than)[ \t]{1,3}[$€£]?(\d+(?:[.,]\d+)*+)", re.I)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The solver's steps in a critique. Preambles (text before the first step) are left out."""

    matches: tuple[StepMatch, ...]
    """In reading order; every step of both texts, preambles apart, occurs exactly once."""
    solver_steps: tuple[Step, ...]
    """Spans in the completion."""
    critique_steps: tuple[Step, ...]
    """Spans in the critique."""
    first_edit: int | None
    """Index of the first solver step that is not copied; None where all are."""
    first_error: int | None
    """Index of the first solver step that the critique changes in substance: its numbers change or it is missing, else,
    where the answers differ, the first edit. None where the critique only completes, condenses or rewords."""
    verbatim_share: float
    """Share of the characters of the steps before ``first_error`` (all steps without one) that are copied verbatim;
    NaN where there are none."""
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
        return sum(match.status == "copied" for match in self.matches)

    @property
    def edited(self) -> int:
        return sum(match.status == "edited" for match in self.matches)

    @property
    def missing(self) -> int:
        return sum(match.status == "missing" for match in self.matches)

    @property
    def added(self) -> int:
        return sum(match.status == "added" for match in self.matches)

    @property
    def solver_statuses(self) -> tuple[MatchStatus, ...]:
        """Copied, edited or missing, per solver step."""
        return tuple(match.status for match in self.matches if match.solver is not None)

    @property
    def first_error_label(self) -> str:
        """Label of the first wrong step as the solver wrote it, "" where there is none."""
        return "" if self.first_error is None else self.solver_steps[self.first_error].label


def align(
    completion: str | Attempt,
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
        expected_answer: the problem's answer, where it is known.
        extract_answer: text of a trace -> its final answer or None; the body of its answer step by default.
        same_answer: (answer, expected) -> whether they agree; by default equal but for white space, case, "$" and
            digit-grouping commas.
        style: writing style of the attempt.
    """
    solver_text = completion.text if isinstance(completion, Attempt) else completion
    critique_text = critique.text if isinstance(critique, Critique) else critique
    solver = read_steps(solver_text, style)
    # An untagged critique follows the attempt's style; by itself it might give evidence for another.
    tagged = detect_style(critique_text) == "tags"
    critique_style = "tags" if tagged else detect_style(solver_text) if style == "auto" else style
    corrected = read_steps(critique_text, critique_style)
    matches = match_steps(solver, corrected)

    extract = extract_answer or _answer_of
    agree = same_answer or _same_answer
    solver_answer, critique_answer = extract(solver_text), extract(critique_text)
    answers_agree = answer_right = None
    if critique_answer is not None:
        answers_agree = None if solver_answer is None else agree(critique_answer, solver_answer)
        answer_right = None if expected_answer is None else agree(critique_answer, expected_answer)
    taken_back = [match for match in matches if _takes_back(match, solver, answers_agree)]
    first_error = _first_error(matches, taken_back, solver, answers_agree)
    quoted = _quoted_then_corrected(matches, solver, corrected)
    if quoted is not None:
        first_error = quoted if first_error is None else min(quoted, first_error)
    full_solution = _is_full_solution(matches, solver)
    return Alignment(
        matches=tuple(matches),
        solver_steps=solver.spans,
        critique_steps=corrected.spans,
        first_edit=_first(matches, "edited", "missing"),
        first_error=first_error,
        verbatim_share=_verbatim_share(matches, solver, corrected, first_error),
        wrong_text_repeated=first_error is not None
        and (first_error == quoted or _repeats(matches, solver, corrected, first_error)),
        full_solution=full_solution,
        solver_answer=solver_answer,
        critique_answer=critique_answer,
        answer_right=answer_right,
        case=_case(
            matches,
            reproduced=" ".join(solver.bodies) == " ".join(corrected.bodies),
            full_solution=full_solution,
            taken_back=bool(taken_back) or quoted is not None,
            finished=solver_answer is not None,
            answers_agree=answers_agree,
        ),
    )


def _takes_back(match: StepMatch, solver: Steps, answers_agree: bool | None) -> bool:
    """Whether an edit changes the solver's step in substance."""
    if match.solver is None or match.status != "edited" or match.same_result or match.kept:
        return False
    if solver.spans[match.solver].label == ANSWER:
        return not answers_agree
    # The torn end of an unfinished attempt may simply be dropped for something else.
    unfinished = match.solver == len(solver.spans) - 1
    return not unfinished or match.similarity >= _SIMILAR


def _first(matches: Sequence[StepMatch], *statuses: MatchStatus) -> int | None:
    return next((match.solver for match in matches if match.solver is not None and match.status in statuses), None)


def _first_error(
    matches: Sequence[StepMatch], taken_back: Sequence[StepMatch], solver: Steps, answers_agree: bool | None
) -> int | None:
    lost = [match for match in matches if not match.kept]
    changed = [m.solver for m in taken_back if m.solver is not None and solver.spans[m.solver].label != ANSWER]
    if changed:
        missing = _first(lost, "missing")
        return changed[0] if missing is None else min(missing, changed[0])
    return _first(lost, "edited", "missing") if answers_agree is False else None


def _quoted_then_corrected(matches: Sequence[StepMatch], solver: Steps, corrected: Steps) -> int | None:
    """The first solver step that the critique copies and then writes once more, otherwise: a wrong step quoted in front
    of its correction. The signs are a step number given twice, another result for the same calculation, or, within one
    step, words that take it back."""
    quoted: int | None = None
    rewritten: set[str] = set()
    results: dict[str, set[str]] = {}
    for match in reversed(matches):  # the loop has seen the later steps of the critique
        if match.critique is None:
            continue
        label, body = corrected.spans[match.critique].label, corrected.bodies[match.critique]
        if not match.kept:
            for left, right in calculations(body):
                results.setdefault(left, set()).add(right)
        elif match.status == "copied":
            again = any(results.get(left, {right}) != {right} for left, right in calculations(body))
            quoted = match.solver if again or label in rewritten else quoted
        elif match.solver is not None and _takes_itself_back(solver.bodies[match.solver], body):
            quoted = match.solver
        if label != ANSWER and (match.solver is None or label != solver.spans[match.solver].label):
            rewritten.add(label)
    return quoted


def _takes_itself_back(text: str, longer: str) -> bool:
    """Whether a step that begins with another's text corrects it further on: "3 + 4 = 8 is wrong, it is 7"."""
    if not text or not longer.startswith(text):
        return False
    rest = longer[len(text) :]
    results = results_of(equations(rest))
    contradicted = any(results.get(left, {right}) != {right} for left, right in calculations(text))
    return contradicted or bool(_CORRECTS.search(rest))


def _verbatim_share(matches: Sequence[StepMatch], solver: Steps, corrected: Steps, first_error: int | None) -> float:
    kept = total = 0
    for match in matches:
        if match.solver is None or (first_error is not None and match.solver >= first_error):
            continue
        text = solver.bodies[match.solver]
        total += len(text)
        if match.kept:
            kept += len(text)
        elif match.critique is not None:
            kept += common_ends(text, corrected.bodies[match.critique])
    return kept / total if total else float("nan")


def _repeats(matches: Sequence[StepMatch], solver: Steps, corrected: Steps, first_error: int) -> bool:
    """Whether the critique states again what the wrong step states and the correction does not keep."""
    match = next(match for match in matches if match.solver == first_error)
    body = solver.bodies[first_error]
    partner = corrected.bodies[match.critique] if match.critique is not None else ""
    others = [text for index, text in enumerate(corrected.bodies) if index != match.critique]
    earlier = solver.bodies[:first_error]
    # A correction may go on from the old text ("16 - 3 = 13, so ..."); one that has it further in quotes it.
    quotable = len(body) >= _MIN_QUOTE and body not in earlier
    if quotable and (find_whole(partner, body) > 0 or any(find_whole(text, body) >= 0 for text in others)):
        return True

    denied = {number.replace(",", "") for number in _DENIED.findall(partner)}
    if denied & set(numbers(body)):
        return True

    kept = {equation for text in earlier for equation in equations(text)}
    correction = set(equations(partner))
    results = results_of(correction)
    stated = {equation for text in corrected.bodies for equation in equations(text)}
    return any(
        results.get(left, set()) - {right} or (left, right) not in correction
        for left, right in (set(equations(body)) - kept) & stated
    )


def _is_full_solution(matches: Sequence[StepMatch], solver: Steps) -> bool:
    """Nothing kept: no step copied, and the first is no version of the solver's first."""
    if not any(match.critique is not None for match in matches):
        return False
    own = [match for match in matches if match.solver is not None and solver.spans[match.solver].label != ANSWER]
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


def _answer_of(text: str) -> str | None:
    steps = split_steps(text)
    if not steps or steps[-1].label != ANSWER:
        return None
    return step_body(text, steps[-1]) or None


def _same_answer(left: str, right: str) -> bool:
    def plain(answer: str) -> str:
        return re.sub(r"(?<=\d),(?=\d{3})", "", _SPACE.sub("", answer).lower().strip("$."))

    return plain(left) == plain(right)
