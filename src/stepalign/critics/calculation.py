"""The calculation critic: a program that reads the equations of an attempt and corrects the first wrong one.

The calculations of a reference solution are the truth. An equation is wrong where its result is not the value of its
left side, or where changing it - a sign, a number, their order, leaving it out, one more in front - makes the attempt
end in the reference's expression. Expressions are compared as symbols, with the numbers of the question as unknowns:
another order of the same calculations is right, and a wrong calculation with a right value by chance is not.

The corrected trace keeps right steps to the letter, follows the solver's own plan and words, and answers once, at its
end. An attempt that the program does not understand gets no critique, with a reason that a run counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from stepalign.critics.repairs import completed, operands, repairs, signs, swaps
from stepalign.critics.rewriting import Change, answer_value, rewrite, without_stray_answers, write_steps
from stepalign.critics.truth import Program, ReferenceExpression, link, symbols_of, values_of
from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.thinking import thinking_end
from stepalign.feedback.equations import (
    OVER,
    Equation,
    Line,
    evaluate,
    find_equations,
    number_text,
    read_equations,
    states,
    symbol,
    tokens_of,
)
from stepalign.feedback.steps import ANSWER, PREAMBLE, split_steps, step_body
from stepalign.records import Attempt, Critique, CritiqueForm, Step

NAME = "calculation"
NO_EQUATION = "the attempt has no equation"
NO_REFERENCE = "the problem has no reference solution"
NO_TRUTH = "the reference solution shows no calculations that lead to the answer"
UNREAD = "the attempt calculates in a way that the program cannot read"
NOT_UNDERSTOOD = "the program does not understand where the attempt goes wrong"
NOTES = "calculator_notes"
"""Metadata of a problem: its reference solution with the calculator notes that readers do not see."""
MAX_LINES = 12
MAX_CHARACTERS = 1_000_000
_SPOKEN = re.compile(r"(?:\A|[.;!?\n]\s{1,8})([^.;!?=\n]{0,40}\banswer\b[^=]*)\Z", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """An attempt as the program understands it."""

    error: str
    """ "" nothing wrong, "arithmetic", "operation", "operand", "order", "extra", "missing", "answer", "several",
    "unfinished" right as far as it goes."""
    label: str = ""
    """Label of the first wrong step, "answer" included."""
    text: str = ""
    """The corrected trace."""
    reason: str = ""
    """Why there is none."""


class CalculationCritic:
    """Answers at once, without a network. An attempt that it does not understand gets a failed
    critique, which masks its sample.

    Args:
        form: "trace" is the corrected trace, "paraphrase" its calculations in words, "hint" names the first wrong step,
            "comment" names and corrects it.
    """

    def __init__(self, form: CritiqueForm = "trace") -> None:
        self._form: CritiqueForm = form
        self.name = NAME

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`; a second critique is the first one again."""
        return self.write(attempt)

    def write(self, attempt: Attempt) -> Critique:
        """The critique of one attempt."""
        problem, complete = attempt.problem, "calculations" in attempt.problem.metadata
        calculations = problem.metadata.get("calculations") or [problem.metadata.get(NOTES) or problem.reference or ""]
        found = examine(problem.question, attempt.text, calculations, problem.answer, thorough=complete)
        text = _WRITERS[self._form](found) if found.text else ""
        case = {"": "A", "unfinished": "C"}.get(found.error, "B" if attempt.verdict == "correct" else "D")
        return Critique(
            rollout_id=attempt.rollout_id,
            critic=f"programmatic:{self.name}" if complete else self.name,
            status="ok" if text else "failed",
            text=text,
            raw=text,
            reason=found.reason,
            case=case if text else "",
            first_error=found.label,
            truth=True if complete else None,
            form=self._form,
        )

    def close(self) -> None:
        """Nothing to let go of."""


_WORDS = {
    "+": "{} plus {} makes {}.",
    "-": "{} less {} leaves {}.",
    "*": "{} times {} is {}.",
    "/": "{} over {} is {}.",
}


def _in_words(found: Examination) -> str:
    """The corrected calculations in other words, each behind its own tag."""
    lines = []
    for number, equation in enumerate(find_equations(found.text), 1):
        left, result = equation.line, number_text(equation.result)
        plain = " ".join(item if isinstance(item, str) else number_text(Fraction(item)) for item in left)
        sign = str(left[1]) if len(left) == 3 else ""
        parts = plain.split(f" {sign} ") if sign in _WORDS else []
        lines.append(f"<step_{number}> {_WORDS[sign].format(*parts, result) if parts else f'{plain} makes {result}.'}")
    answer = answer_value(split_steps(found.text)[-1].text)
    return "\n".join([*lines, f"<answer> {'' if answer is None else number_text(answer)}".strip()])


def _hint(found: Examination) -> str:
    if not found.error:
        return "right"
    label = found.label or ANSWER
    return f"<step_{label}> wrong" if label.isdigit() else f"<{label}> wrong"


def _comment(found: Examination) -> str:
    if not found.error:
        return "right"
    step = next((s for s in split_steps(found.text) if s.label == (found.label or ANSWER)), None)
    return f"{_hint(found)}, right is: {step_body(found.text, step)}" if step else _hint(found)


_WRITERS = {
    **dict.fromkeys(("trace", "edit"), lambda found: found.text),
    "paraphrase": _in_words,
    "hint": _hint,
    "comment": _comment,
}


# ---------------------------------------------------------------------------------------------------------------------
# Reading an attempt


def examine(
    question: str, text: str, calculations: Sequence[str], answer: str, *, thorough: bool = False
) -> Examination:
    """Find the first wrong equation of an attempt and correct it.

    Args:
        calculations: equations of a right solution, in their order.
        answer: the expected answer.
        thorough: correct also what no single change mends, by what the truth allows: where the calculations are
            complete, and no other way to the answer is to be expected. An attempt without an equation gets theirs.
    """
    expected = answer_value(answer)
    truth = None if expected is None else _truth(tuple(calculations), question, expected)
    if truth is None or truth.goal is None:
        return Examination(error="", reason=NO_TRUTH if any(calculations) else NO_REFERENCE)
    if len(text) > MAX_CHARACTERS:
        return Examination(error="", reason=NOT_UNDERSTOOD)
    plain = without_stray_answers(text)
    found = _examine(plain, truth, thorough)
    if thorough and found.reason == NO_EQUATION and not _may_calculate(plain):
        written = write_steps(plain, calculations, answer)
        return Examination(error="missing", label=_first_difference(text, written), text=written)
    if plain == text or not found.text:
        return found
    error = "extra" if found.error in ("", "unfinished") else found.error
    return replace(found, error=error, label=_first_difference(text, found.text))


def _may_calculate(text: str) -> bool:
    """Whether an attempt without an equation has two numbers in front of its answer, as a calculation in words has."""
    text = text[thinking_end(text) :]
    bodies = [step_body(text, step) for step in _with_spoken_answer(split_steps(text)) if step.label != ANSWER]
    return sum(token.kind == "number" for body in bodies for token in tokens_of(body)) > 1


@lru_cache(maxsize=64)
def _truth(calculations: tuple[str, ...], question: str, answer: Fraction) -> ReferenceExpression:
    """Of a problem, whose attempts are read one after another."""
    return ReferenceExpression(calculations, question, answer)


def _first_difference(text: str, corrected: str) -> str:
    """Label of the step of an attempt from which its correction differs."""
    steps = split_steps(text)
    place = next((n for n, (a, b) in enumerate(zip(text, corrected, strict=False)) if a != b), len(corrected))
    return next((step.label for step in steps if place < step.end), ANSWER)


def _examine(text: str, truth: ReferenceExpression, thorough: bool) -> Examination:
    """An attempt that answers once, at its end."""
    steps = _with_spoken_answer(split_steps(text))
    closing = next((s for s in reversed(steps) if s.label == ANSWER), None)
    body = text if closing is None else text[: closing.start]
    thought = steps[0].end if steps and steps[0].label == PREAMBLE else 0
    equations, unread = read_equations(body)
    equations = [equation for equation in equations if equation.start >= thought]
    marked = text[closing.start :] if closing else extract_answer(body)
    stated = answer_value(marked) if marked else None
    if not equations:
        return Examination(error="", reason=NO_EQUATION)
    if len(equations) > MAX_LINES:
        return Examination(error="", reason=NOT_UNDERSTOOD)
    attempt = _Attempt(text, steps, closing, equations, stated, truth)
    found = attempt.examine(thorough)
    if found.error and any(place >= thought for place in unread):
        return Examination(error="", reason=UNREAD)
    return found


def _with_spoken_answer(steps: list[Step]) -> list[Step]:
    """A sentence that states the answer behind the last equation of a line is a step of its own."""
    last = steps[-1] if steps else None
    found = _SPOKEN.search(last.text) if last else None
    if last is None or last.label == ANSWER or not found or extract_answer(found[1]) is None:
        return steps
    cut = last.start + found.start(1)
    answer = Step(label=ANSWER, start=cut, end=last.end, text=found[1])
    return [*steps[:-1], replace(last, end=cut, text=last.text[: found.start(1)]), answer]


@dataclass(slots=True)
class _Attempt:
    text: str
    steps: list[Step]
    closing: Step | None
    equations: list[Equation]
    stated: Fraction | None
    truth: ReferenceExpression

    def examine(self, thorough: bool) -> Examination:
        truth, program = self.truth, link(self.equations, self.truth.numbers)
        values = values_of(program)
        slip = next((n for n, line in program.items() if not self._is_stated(n, line)), None)
        last = list(program)[-1]
        right_answer = self.stated == truth.answer
        if slip is None and right_answer:
            return Examination(error="", text=self.text)
        if slip is None and self.stated is not None:  # the answer is the result that it repeats
            last = next((n for n in reversed(program) if self.equations[n].result == self.stated), last)
        symbols = symbols_of(program, truth.symbol)
        if truth.goal in (symbols[last], symbols[list(program)[-1]]) or (
            slip is not None and values[last] == truth.answer
        ):
            if slip is not None:
                return self._found("arithmetic", slip, program)
            if self.stated is None:
                return self._found("unfinished", None, program)
            return self._found("answer", None, program)
        repair = self._repair(program) if last == list(program)[-1] else None
        if repair is not None:
            kind, name, changed = repair
            at_end = kind == "missing" and list(changed)[-1] == -1
            if slip is not None and (at_end or slip < name):
                return self._found("arithmetic", slip, changed)
            if at_end and self.closing is None:
                return self._found("unfinished", None, changed)
            return self._found(kind, None if at_end else name, changed)
        return self._found_several(program, slip) if thorough else Examination(error="", reason=NOT_UNDERSTOOD)

    def _is_stated(self, name: int, line: Line) -> bool:
        """Whether an equation states the value of its left side as it is written."""
        value, results = evaluate(self.equations[name].line, {}), self.equations[name].results
        if value is None or not all(states(result, value) for result in results):
            return False
        return value != self.truth.answer or any(abs(r.value - value) <= abs(value) / 10**9 for r in results)

    def _repair(self, program: Program) -> tuple[str, int, Program] | None:
        """The first change that leads to the goal, through parts of the truth if there is one."""
        another = None
        for kind, name, changed in repairs(program, self.truth):
            if self._leads_to_goal(program, changed, name):
                symbols = symbols_of(changed, self.truth.symbol)
                if all(symbols[n] in self.truth.parts for n in (name, -1) if n in changed):
                    return kind, name, changed
                another = another or (kind, name, changed)
        return another

    def _leads_to_goal(self, program: Program, changed: Program, name: int) -> bool:
        """Whether a changed attempt ends in the right expression, calculates nothing twice where it was changed, and
        leaves no equation without a use that it had and that is no part of the truth."""
        symbols = symbols_of(changed, self.truth.symbol)
        last = list(changed)[-1] if changed else None
        if last is None or symbols[last] != self.truth.goal or not self._is_whole(changed):
            return False
        if name in changed and list(symbols.values()).count(symbols[name]) > 1:
            return False
        used, before = ({item for line in p.values() for item in line if type(item) is int} for p in (changed, program))
        return all(symbols[other] in self.truth.parts for other in before - used if other in changed)

    def _is_whole(self, program: Program) -> bool:
        """No negative and no broken value, where the truth has none."""
        true, found = list(values_of(self.truth.program).values()), list(values_of(program).values())
        if None in found:
            return False
        as_signed = any(value is None or value < 0 for value in true) or all(
            value >= 0 for value in found if value is not None
        )
        return as_signed and (
            any(value is None or value.denominator > 1 for value in true)
            or all(value.denominator == 1 for value in found if value is not None)
        )

    def _found_several(self, program: Program, slip: int | None) -> Examination:
        """Keep what is a part of the truth, mend the first equation that is not, and lead on from there."""
        truth, kept = self.truth, Program()
        symbols = symbols_of(program, truth.symbol)
        wrong = next((n for n in program if symbols[n] not in truth.parts), None)
        for name, line in program.items():
            if name == wrong:
                break
            kept[name] = line
        if wrong is not None:
            earlier = symbols_of(kept, truth.symbol)
            seen = {name: line for name, line in program.items() if name <= wrong}
            for changes in (signs, operands, swaps):
                for line in changes(seen, wrong, truth):
                    value = symbol(line, earlier, truth.symbol)
                    if value in truth.parts and value not in earlier.values():
                        whole = completed({**kept, wrong: line}, truth)
                        if whole is not None and self._is_whole(whole):
                            return self._found("several", _first(slip, wrong), whole)
        whole = completed(kept, truth)
        if whole is None:
            return Examination(error="", reason=NOT_UNDERSTOOD)
        if wrong is None and slip is None and self.closing is None:
            return self._found("unfinished", None, whole)
        return self._found("several", _first(slip, wrong), whole)

    def _found(self, error: str, name: int | None, program: Program) -> Examination:
        """The finding with its corrected trace."""
        values = values_of(program)
        if None in values.values():
            return Examination(error="", reason=NOT_UNDERSTOOD)
        write = _grouped if re.search(r"\d,\d{3}(?!\d)", self.text) else str
        change = Change(
            equations=self.equations,
            lines={n: tuple(write(item) for item in _written(line, values)) for n, line in program.items()},
            results={n: write(number_text(value)) for n, value in values.items() if value is not None},
            answer=write(number_text(self.truth.answer)),
            given=self.truth.numbers,
        )
        if any(
            _cannot_change(self.equations[n], line, change.results[n])
            for n, line in change.lines.items()
            if 0 <= n < len(self.equations)
        ):
            return Examination(error="", reason=NOT_UNDERSTOOD)
        label = "" if error == "unfinished" else ANSWER if name is None else self._label(name)
        return Examination(error=error, label=label, text=rewrite(self.text, self.steps, change))

    def _label(self, name: int) -> str:
        start = self.equations[name].start
        return next(step.label for step in reversed(self.steps) if step.start <= start)


def _grouped(item: str) -> str:
    """A number with a comma at its thousands; a sign as it is."""
    whole, point, decimals = item.partition(".")
    return f"{int(whole):,}{point}{decimals}" if whole.lstrip("-").isdigit() else item


def _cannot_change(equation: Equation, line: Sequence[str], result: str) -> bool:
    """Whether the new form has no place: in a fraction that is written in LaTeX, or around a middle expression."""
    left = equation.lefts[0]
    plain = [token.sign if token.kind == "sign" else str(token.value) for token in left]
    if equation.rigid:
        same = [item if item in "+-*/()%" else str(Fraction(item.replace(",", ""))) for item in (*line, result)]
        return same != [*plain, str(equation.result)]
    return any(t.text == OVER for t in left) and (
        len(line) != len(left) or any(t.text == OVER and new != "/" for t, new in zip(left, line, strict=True))
    )


def _first(slip: int | None, wrong: int | None) -> int | None:
    return min((n for n in (slip, wrong) if n is not None), default=None)


def _written(line: Line, values: Mapping[int, Fraction | None]) -> tuple[str, ...]:
    """A line with its numbers as they are written."""
    return tuple(
        item
        if isinstance(item, str)
        else number_text((values[item] or Fraction(0)) if type(item) is int else Fraction(item))
        for item in line
    )
