"""Write a corrected attempt in the solver's own words: only what changes is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.thinking import thinking_end
from stepalign.feedback.equations import OVER, Equation, Token, find_equations, tokens_of
from stepalign.feedback.steps import ANSWER, ANSWER_HASHES, ANSWER_TAG, CLOSING_TAG, STEP_TAG, split_steps
from stepalign.records import Step

_NUMBERED = re.compile(r"(\s*(?:<step[ _-]?|(?:\*\*)?step\s|\(?))(\d{1,3})(?=[>:)]|\.\s)", re.I)
_ANSWER_MARK = re.compile(rf"{ANSWER_TAG}|^{ANSWER_HASHES}", re.I | re.M)
_STEP_MARK = re.compile(STEP_TAG, re.I)
_UNIT = re.compile(r"[^=≈<\n]{0,40}?(?=\s{0,2}[=≈])")
_MINUS = re.compile(r"(?<![\w)])[-−]\s{0,2}\$?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The equations of an attempt and those that it should have, by name; a name from the attempt is an index."""

    equations: Sequence[Equation]
    lines: Mapping[int, Sequence[str]]
    """In their order; names that the attempt does not have are new."""
    results: Mapping[int, str]
    answer: str
    given: Sequence[Fraction]
    """Numbers of the question: a sentence that has one does not repeat a result."""


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
    if len(late) > 1 or (late and late[0].group()[0] == "<" and "</" not in text[late[0].end() :]):
        text = text[: _piece_end(text, late[0])].rstrip() if text[_piece_end(text, late[0]) :].strip() else text
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
    template, signs = _template(body, change), _signs(text, change)
    for step in body:
        results = _renamed_results(change, step)
        own = [n for n, e in enumerate(change.equations) if step.start <= e.start < step.end]
        if not own:
            if step is not body[-1] or len(steps) > len(body):  # the end of an attempt that was cut leads nowhere
                pieces.append(_with_numbers(step.text, results))
            continue
        kept = [name for name in own if name in pending]
        inside: dict[int, list[str]] = {}
        for name in kept:
            while pending[0] != name:
                new = pending.pop(0)
                if name == own[0]:
                    _append(pieces, _new_step(new, change, template, signs), template)
                else:
                    inside.setdefault(name, []).append(_new_step(new, change, ("", template[1], ""), signs))
            pending.pop(0)
        if kept:
            pieces.append(_edited(step, own, kept, change, results, signs, inside))
    for name in pending:
        _append(pieces, _new_step(name, change, template, signs), template)
    answer = next((step for step in reversed(steps) if step.label == ANSWER), None)
    if answer or answer_value(extract_answer("".join(pieces)) or "") != _value(change.answer):
        pieces.append(_answer(answer, change.answer, pieces))
    return "".join(_renumbered(pieces) if _NUMBERED.match(body[0].text) else pieces)


def _append(pieces: list[str], step: str, template: tuple[str, str, str]) -> None:
    """A new step behind one that may be the last of an attempt, without a line end."""
    mark, _, end = template
    if pieces and not pieces[-1][-1:].isspace():
        pieces.append(end if mark else "\n")
    pieces.append(step)


def _signs(text: str, change: Change) -> dict[str, str]:
    """Sign -> how the attempt writes it; calculator notes have signs of their own."""
    lefts = [left for e in change.equations for left in e.lefts if not text.endswith("<<", 0, left[0].start)]
    return {token.sign: token.text for left in lefts for token in left if token.kind == "sign" and token.text != OVER}


def _edited(
    step: Step,
    own: Sequence[int],
    kept: Sequence[int],
    change: Change,
    results: Mapping[Fraction, str],
    signs: Mapping[str, str],
    inside: Mapping[int, Sequence[str]],
) -> str:
    edits: dict[tuple[int, int], str] = {}
    renamed: dict[Fraction, str] = dict(results)
    for name in own:
        equation = change.equations[name]
        if name not in kept:
            edits[equation.start, equation.end] = ""
            continue
        if name in inside:
            gap = step.text[change.equations[name - 1].end - step.start : equation.start - step.start]
            gap = gap if len(gap) < 8 and not re.search(r"[^\W_]", gap) else "; "
            edits[equation.start, equation.start] = "".join(f"{new}{gap}" for new in inside[name])
        line = change.lines[name]
        for left in equation.lefts:
            noted = step.text.endswith("<<", 0, left[0].start - step.start)
            if len(line) == len(left):
                for token, new in zip(left, line, strict=True):
                    if token.kind == "number":
                        _edit(edits, token, new, renamed, change)
                    elif token.sign != new:
                        edits[token.start, token.end] = new if noted else signs.get(new, new)
            elif (span := _term(step, left, line)) is not None:
                edits[span] = ""
            else:
                edits[left[0].start, left[-1].end] = " ".join(line)
        for token in equation.results:
            _edit(edits, token, change.results[name], renamed, change)
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


def _term(step: Step, left: Sequence[Token], line: Sequence[str]) -> tuple[int, int] | None:
    """Where a sum or product has the sign and the number, with its unit, that its new line does not have."""
    plain = [token.sign if token.kind == "sign" else str(token.value) for token in left]
    wanted = [item if item in "+-*/" else str(_value(item)) for item in line if item not in "()%"]
    for n in range(1, len(left) - 1, 2):
        if [*plain[:n], *plain[n + 2 :]] == wanted:
            if n + 2 < len(left):
                return left[n].start, left[n + 2].start
            begin, end = (token - step.start for token in (left[n].start, left[-1].end))
            unit = _UNIT.match(step.text, end)
            return len(step.text[:begin].rstrip()) + step.start, (unit.end() if unit else end) + step.start
    return None


def _renamed_results(change: Change, step: Step) -> dict[Fraction, str]:
    """Results in front of a step that have become others."""
    before = [(n, e) for n, e in enumerate(change.equations) if n in change.results and e.end <= step.start]
    pairs = [(equation.results[0], change.results[n]) for n, equation in before]
    return {t.value: new for t, new in pairs if not _same(t, new, change) and t.value not in change.given}


def _with_numbers(text: str, renamed: Mapping[Fraction, str]) -> str:
    """A step without equations, in which results are repeated."""
    for token in reversed(_repeated(text, renamed)):
        text = text[: token.start] + renamed[token.value] + text[token.end :]
    return text


def _repeated(text: str, renamed: Mapping[Fraction, str]) -> list[Token]:
    """The numbers of a text that have become others; the number of a step is none of them."""
    known = [token for token in tokens_of(text) if token.kind == "number" and token.value in renamed]
    return [token for token in known if not text[: token.start].endswith(("_", "#"))]


def _edit(
    edits: dict[tuple[int, int], str], token: Token, new: str, renamed: dict[Fraction, str], change: Change
) -> None:
    if not _same(token, new, change):
        edits[token.start, token.end] = renamed[token.value] = _like(token.text, new)


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _like(old: str, new: str) -> str:
    """A number with the currency and the cents of the one that it replaces."""
    whole, _, decimals = new.partition(".")
    if re.search(r"\.\d\d\Z", old) and len(decimals) < 2:
        new = f"{whole}.{decimals:0<2}"
    money = re.search(r"[$£€]", old)
    return re.sub(r"(?=\d)", money.group(), new, count=1) if money else new


def _same(token: Token, new: str, change: Change) -> bool:
    """Whether a number is written well enough: 1.0 for 1, 3.3 for 3.33; the answer is written as it is."""
    gap, decimals = abs(token.value - _value(new)), len(token.text.partition(".")[2])
    if new == change.answer or not gap:
        return not gap
    return gap <= Fraction(1, 2 * 10**decimals) if decimals else "." in new and gap < 1


def _template(body: Sequence[Step], change: Change) -> tuple[str, str, str]:
    """How the solver writes a step: (mark in front, a blank or nothing around signs, line end)."""
    step = next(step for step in body if step.start <= change.equations[-1].start < step.end)
    own = [e for e in change.equations if step.start <= e.start < step.end]
    front, behind = step.text[: own[0].start - step.start], step.text[own[-1].end - step.start :]
    numbered = _NUMBERED.match(step.text)
    blank = (
        " " if " " in step.text[own[0].lefts[0][0].start - step.start : own[0].lefts[0][-1].end - step.start] else ""
    )
    end = step.text[len(step.text.rstrip()) :] or (
        "\n" if "\n" in "".join(s.text for s in body) or not body[1:] else " "
    )
    if (numbered and len(front) <= numbered.end() + 3) or not re.search(r"[^\W_]", front):
        bare = behind.strip() and not re.search(r"[^\W_]", CLOSING_TAG.sub("", behind)) and len(behind) < 16
        return front, blank, behind.rstrip() + end if bare else end
    return numbered.group() + "> " if numbered and "<" in numbered.group() else "", blank, end


def _new_step(name: int, change: Change, template: tuple[str, str, str], signs: Mapping[str, str]) -> str:
    mark, blank, end = template
    return f"{mark}{blank.join(signs.get(i, i) for i in change.lines[name])}{blank}={blank}{change.results[name]}{end}"


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
        if token.value == numbers[-1].value and token.value != _value(answer):
            text = text[: token.start] + _like(token.text, answer) + text[token.end :]
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
