"""Write a corrected attempt in the solver's own words: only what changes is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.thinking import thinking_end
from stepalign.feedback.equations import Equation, Token, find_equations, tokens_of
from stepalign.feedback.steps import ANSWER, ANSWER_HASHES, ANSWER_TAG, STEP_TAG, split_steps
from stepalign.records import Step

_NUMBERED = re.compile(r"(\s*(?:<step[ _-]?|(?:\*\*)?step\s|\(?))(\d{1,3})(?=[>:)]|\.\s)", re.I)
_ANSWER_MARK = re.compile(rf"{ANSWER_TAG}|^{ANSWER_HASHES}", re.I | re.M)
_STEP_MARK = re.compile(STEP_TAG, re.I)
_MINUS = re.compile(r"(?<![\w)])[-−]\s{0,2}\$?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The equations of an attempt and those that it should have, by name; a name from the attempt is an index."""

    equations: Sequence[Equation]
    lines: Mapping[int, Sequence[str]]
    """In their order; names that the attempt does not have are new."""
    results: Mapping[int, str]
    answer: str


def answer_value(text: str) -> Fraction | None:
    """The number that an answer states."""
    found = extract_answer(text) or text
    numbers = _numbers(found)
    return numbers[0].value if len(numbers) == 1 else None


def without_stray_answers(text: str) -> str:
    """An attempt that answers once, at its end: an answer in front of a calculation is dropped, a calculation that is
    marked as an answer is a step, and nothing follows the first answer behind the last calculation but its line."""
    begin = thinking_end(text)
    marks = [mark for mark in _ANSWER_MARK.finditer(text, begin) if _numbers(text[mark.end() : _piece_end(text, mark)])]
    equations = find_equations(text)
    last = max((begin, *(e.end for e in equations), *(m.end() for m in _STEP_MARK.finditer(text, begin))))
    late = [mark for mark in marks if mark.start() >= last]
    if len(late) > 1:
        text = text[: _piece_end(text, late[0])].rstrip()
    for mark in reversed(marks[: len(marks) - len(late)]):
        end = _piece_end(text, mark)
        if not any(mark.end() <= e.start < end for e in equations):
            text = text[: mark.start()] + text[end:]
        elif mark.group().startswith("<"):
            text = f"{text[: mark.start()]}<step_0>{text[mark.end() :]}"
    return text


def _piece_end(text: str, mark: re.Match[str]) -> int:
    """Where an answer ends: with its line, or in front of the next mark."""
    line = text.find("\n", mark.end()) + 1 or len(text)
    following = (m.start() for pattern in (_ANSWER_MARK, _STEP_MARK) if (m := pattern.search(text, mark.end(), line)))
    return min((line, *following))


def write_steps(text: str, calculations: Sequence[str], answer: str) -> str:
    """A trace of given calculations behind the thoughts of an attempt, marked as it marks its answer."""
    closing = next((step for step in split_steps(text) if step.label == ANSWER), None)
    tagged = closing is None or closing.text.lstrip().startswith("<")
    lines = [f"<step_{n}> {c}\n" if tagged else f"{c}\n" for n, c in enumerate(calculations, 1)]
    return text[: thinking_end(text)] + "".join(
        [*lines, f"<answer> {answer}" if tagged else _answer(closing, answer, lines)]
    )


def _numbers(text: str) -> list[Token]:
    """The numbers of a text, a minus in front of one included."""
    found = []
    for token in (token for token in tokens_of(text) if token.kind == "number"):
        minus = _MINUS.search(text[: token.start])
        found.append(Token("number", f"-{token.text}", minus.start(), token.end) if minus else token)
    return found


def rewrite(text: str, steps: Sequence[Step], change: Change) -> str:
    """The attempt with its equations changed: steps without a change keep every character."""
    pieces: list[str] = []
    pending = list(change.lines)  # names in the order in which they are to be written
    body = [step for step in steps if step.label != ANSWER]
    template, results = _template(body, change), _renamed_results(change)
    for step in body:
        own = [n for n, e in enumerate(change.equations) if step.start <= e.start < step.end]
        if not own:
            if step is not body[-1] or len(steps) > len(body):  # the end of an attempt that was cut leads nowhere
                pieces.append(_with_numbers(step.text, results))
            continue
        kept = [name for name in own if name in pending]
        for name in kept:
            while pending[0] != name:
                _append(pieces, _new_step(pending.pop(0), change, template), template)
            pending.pop(0)
        if kept:
            pieces.append(_edited(step, own, kept, change))
    for name in pending:
        _append(pieces, _new_step(name, change, template), template)
    answer = next((step for step in reversed(steps) if step.label == ANSWER), None)
    if answer or answer_value(extract_answer("".join(pieces)) or "") != Fraction(change.answer):
        pieces.append(_answer(answer, change.answer, pieces))
    return "".join(_renumbered(pieces) if _NUMBERED.match(body[0].text) else pieces)


def _append(pieces: list[str], step: str, template: tuple[str, str, str]) -> None:
    """A new step behind one that may be the last of an attempt, without a line end."""
    mark, _, end = template
    if pieces and not pieces[-1][-1:].isspace():
        pieces.append(end if mark else "\n")
    pieces.append(step)


def _edited(step: Step, own: Sequence[int], kept: Sequence[int], change: Change) -> str:
    edits: dict[tuple[int, int], str] = {}
    renamed: dict[Fraction, str] = {}
    for name in own:
        equation = change.equations[name]
        if name not in kept:
            edits[equation.start, equation.end] = ""
            continue
        for left in equation.lefts:
            for token, new in zip(left, change.lines[name], strict=False):
                _edit(edits, token, new, renamed)
            if len(change.lines[name]) != len(left):
                edits[left[0].start, left[-1].end] = " ".join(change.lines[name])
        for token in equation.results:
            _edit(edits, token, change.results[name], renamed)
    written = [t for n in own for side in (*change.equations[n].lefts, change.equations[n].results) for t in side]
    spans = [(token.start, token.end) for token in written]
    for token in _repeated(step.text, renamed):
        start = token.start + step.start
        if not any(a <= start < b for a, b in spans):
            edits[start, token.end + step.start] = renamed[token.value]
    out, position = [], step.start
    for (start, end), new in sorted(edits.items()):
        if start >= position:
            out += [step.text[position - step.start : start - step.start], new]
            position = end
    return "".join([*out, step.text[position - step.start :]])


def _renamed_results(change: Change) -> dict[Fraction, str]:
    """Results of the attempt that have become others."""
    pairs = [(e.results[0], change.results[n]) for n, e in enumerate(change.equations) if n in change.results]
    return {token.value: new for token, new in pairs if not _same(token, new)}


def _with_numbers(text: str, renamed: Mapping[Fraction, str]) -> str:
    """A step without equations, in which results are repeated."""
    for token in reversed(_repeated(text, renamed)):
        text = text[: token.start] + renamed[token.value] + text[token.end :]
    return text


def _repeated(text: str, renamed: Mapping[Fraction, str]) -> list[Token]:
    """The numbers of a text that have become others; the number of a step is none of them."""
    known = [token for token in tokens_of(text) if token.kind == "number" and token.value in renamed]
    return [token for token in known if not text[: token.start].endswith(("_", "#"))]


def _edit(edits: dict[tuple[int, int], str], token: Token, new: str, renamed: dict[Fraction, str]) -> None:
    old = str(token.value) if token.kind == "number" else token.sign
    if token.kind == "number" and token.value.denominator != 1:
        old = token.text
    if old != new and not (token.kind == "number" and _same(token, new)):
        edits[token.start, token.end] = new
        if token.kind == "number":
            renamed[token.value] = new


def _same(token: Token, new: str) -> bool:
    """Whether a number is written well enough: 1.0 for 1, 3.3 for 3.33."""
    decimals = len(token.text.partition(".")[2])
    return abs(token.value - Fraction(new)) <= (Fraction(1, 2 * 10**decimals) if decimals else 0) or (
        not decimals and "." in new and abs(token.value - Fraction(new)) < 1
    )


def _template(body: Sequence[Step], change: Change) -> tuple[str, str, str]:
    """How the solver writes a step: (mark in front, a blank or nothing around signs, line end)."""
    step = next(step for step in body if step.start <= change.equations[-1].start < step.end)
    first = next(e for e in change.equations if step.start <= e.start < step.end)
    mark = _NUMBERED.match(step.text)
    closing = step.text[: first.start - step.start] if mark and first.start - step.start <= mark.end() + 3 else ""
    blank = " " if " " in step.text[first.lefts[0][0].start - step.start : first.lefts[0][-1].end - step.start] else ""
    end = step.text[len(step.text.rstrip()) :] or (
        "\n" if "\n" in "".join(s.text for s in body) or not body[1:] else " "
    )
    return closing or (mark.group() + "> " if mark and "<" in mark.group() else ""), blank, end


def _new_step(name: int, change: Change, template: tuple[str, str, str]) -> str:
    mark, blank, end = template
    return f"{mark}{blank.join(change.lines[name])}{blank}={blank}{change.results[name]}{end}"


def _answer(step: Step | None, answer: str, before: list[str]) -> str:
    if step is None:
        tagged = any("<step" in piece for piece in before)
        gap = "" if not before or before[-1].endswith(("\n", " ")) else "\n"
        return f"{gap}<answer> {answer}" if tagged else f"{gap}#### {answer}"
    numbers = _numbers(step.text)
    if not numbers:
        return f"{step.text.rstrip()} {answer}"
    text = step.text
    for token in reversed(numbers):
        if token.value == numbers[-1].value and not _same(token, answer):
            text = text[: token.start] + answer + text[token.end :]
    return text


def _renumbered(pieces: Sequence[str]) -> list[str]:
    """Steps with their numbers, one after another."""
    count, out = 0, []
    for piece in pieces:
        if match := _NUMBERED.match(piece):
            count += 1
            piece = piece if int(match[2]) == count else f"{match[1]}{count}{piece[match.end() :]}"
        out.append(piece)
    return out
