"""Whether two answers in normal form are equal: everything but the equality of two single expressions.

The rest, one expression against one expression, goes to a ``Leaf``: a function that the caller brings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from stepalign.domains.math.answers import Answer, canonical_answer, is_prose, normal_form
from stepalign.domains.math.exact import read_polynomial as _polynomial
from stepalign.domains.math.grade import Grade, correct, incorrect
from stepalign.domains.math.notation import Sequence, as_interval, is_balanced, split_sequence, split_top
from stepalign.domains.math.units import contradict, conversion

Leaf = Callable[[str, str], Grade]
_NAMED = re.compile(
    r"((?:\\[A-Za-z]{2,12} ?|[A-Za-z])(?:_\{?\w{1,8}\}?)?'?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|(?:\\angle ?)?[A-Z]{2,3}|\([A-Za-z](?:,[A-Za-z])+\))"
    r"(?:=|\\in(?![A-Za-z]) ?)(.+)",
    re.DOTALL,
)
_FLIPPED = re.compile(r"([^=]+)=([A-Za-z])")
_INITIALS = re.compile(r"[A-Z]{2,3}")
_LETTERS = re.compile(r"[A-Za-z]{3}")
_ROMAN = re.compile(r"[IVXLCM]{2,4}")
_CELL = re.compile(r"(?<![\\A-Za-z_^{])[A-Za-z]\d|[fgh]\^\{-1\}\(")
"""B2, 3R1, and the inverse of a function: math-verify reads products and powers."""
_VARIABLES = ("abcd", "xyz", "pqrs", "klmn", "uvw", "rst", "abr", "abh", "abx", "abxy", "kxy", "mnp")
_DECIMAL = re.compile(r"[-+]?\d*\.?\d+", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_FIGURE = re.compile(
    r"(?:\\(overline|overrightarrow|overleftarrow|overleftrightarrow|vec|angle|triangle|widehat) ?)?\{?([A-Z]{2,4})\}?"
)
_KINDS = {"vec": "overrightarrow", "overleftarrow": "overrightarrow"}
_BASED = re.compile(r"([0-9][0-9A-Fa-f]*|[A-F]+[0-9]+[0-9A-F]*)_\{?(\d+)\}?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"([-+]?(?:\d{1,3}(?:\.\d{3})+|\d+)),([1-9]|\d\d|\d{4,})", re.ASCII)
_UNSEEN_MARKS = ("'", "\\ldots")
"""Signs that math-verify reads over: f' would be f, and 1, 2, ... would be 1, 2."""
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_MAX_UNORDERED = 12
"""Elements of a set that are matched in every order, once the plainly equal ones are paired."""


def equal_answers(gold: Answer, answer: Answer, leaf: Leaf) -> Grade:
    """Whether two normal forms are equal, and why. "105,210" is also the list that a list asks for."""
    grade = _equal_as_read(gold, answer, leaf)
    if grade.verdict == "correct" or not (gold.listed or answer.listed):
        return grade
    if answer.listed and split_sequence(gold.text):
        again = _equal_as_read(gold, normal_form(answer.listed, grouped=False), leaf)
        return again if again.verdict == "correct" else grade
    same = gold.listed and normal_form(gold.listed, grouped=False).text == answer.text
    return correct("equal text") if same else grade


def _equal_as_read(gold: Answer, answer: Answer, leaf: Leaf) -> Grade:
    if not answer.text:
        return incorrect("empty answer")
    if labels := _equal_labels(gold, answer):
        return labels
    if contradict(gold.unit, answer.unit):
        return _equal_amounts(gold, answer)
    if gold.number is not None and answer.number is not None:
        return _equal_numbers(gold, answer)
    if gold.text == answer.text or (gold.text.isalnum() and gold.text.lower() == answer.text.lower()):
        return correct("equal text")
    if not is_balanced(answer.text):
        return incorrect("unreadable answer")
    if is_prose(gold.text) or is_prose(answer.text):
        return _equal_prose(gold.text, answer.text)
    if based := _equal_in_bases(gold.text, answer.text):
        return based
    texts = (_expression(gold), _expression(answer))
    if all(map(_is_name, texts)) or any(_ROMAN.fullmatch(text) or _CELL.search(text) for text in texts):
        return incorrect("different text")
    if gold.text.lower() == answer.text.lower() and "\\" in gold.text:  # math-verify takes \\Delta for \\delta
        return incorrect("different expression")
    if gold.number is not None and answer.decimal_comma and _as_decimal_comma(answer.text) == gold.number:
        return correct("equal number")
    if (
        related := _equal_times(gold, answer)
        or _equal_ratios(gold.text, answer.text)
        or _equal_figures(gold.text, answer.text)
    ):
        return related
    gold_items, items = split_sequence(gold.text), split_sequence(answer.text)
    gold_interval, interval = as_interval(gold.text), as_interval(answer.text)
    if gold_interval and not interval and (items is None or items.ordered):
        return equal_answers(replace(gold, text=gold_interval[1]), answer, leaf)
    if interval and not gold_interval and (gold_items is None or gold_items.ordered):
        return equal_answers(gold, replace(answer, text=interval[1]), leaf)
    if gold_interval and interval and gold_interval[0] == interval[0]:
        return equal_answers(replace(gold, text=gold_interval[1]), replace(answer, text=interval[1]), leaf)
    if gold_items and items:
        return _equal_sequences(gold_items, items, leaf)
    if any(len(split_top(text, "=")) > 1 or _MEMBER.search(text) for text in (gold.text, answer.text)):
        related = _equal_relations(gold.text, answer, leaf)
        if related:
            return related
    if (gold_items and answer.number is not None) or (items and gold.number is not None):
        return incorrect("different number of elements")
    if bool(gold_interval) != bool(interval):
        return incorrect("different shape")
    if any(gold.text.count(mark) != answer.text.count(mark) for mark in _UNSEEN_MARKS):
        return incorrect("different expression")
    if "degree" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return leaf(_in_radians(gold, answer), _in_radians(answer, gold))
    return leaf(_expression(gold), _expression(answer))


def _expression(answer: Answer) -> str:
    """The text for a reader of LaTeX, to whom 2e3 is 2 times e times 3: numbers but plain decimals are written out."""
    if answer.number is None or _DECIMAL.fullmatch(answer.text):
        return answer.text
    numerator, denominator = answer.number.as_integer_ratio()
    return f"\\frac{{{numerator}}}{{{denominator}}}" if denominator > 1 else str(numerator)


def _is_name(text: str) -> bool:
    """Capitals, three letters that are no product of usual variables, or a Roman number; xy is yx, but AB is not BA."""
    product = any(set(text.lower()) <= set(letters) for letters in _VARIABLES)
    return bool(_INITIALS.fullmatch(text) or (_LETTERS.fullmatch(text) and not product) or _ROMAN.fullmatch(text))


def _equal_times(gold: Answer, answer: Answer) -> Grade | None:
    """Times of day, which are no ratios, as written or by 24 hours; None where neither is one."""
    if not any(_CLOCK.fullmatch(one.text) for one in (gold, answer)):
        return None
    wanted, given = _times(gold), _times(answer)
    same = wanted[:1] == given[:1] or wanted[1:] == given[1:]
    return correct("equal time") if wanted and given and same else incorrect("different time")


def _times(answer: Answer) -> list[tuple[int, ...]]:
    """Hours, minutes and seconds as written and by 24 hours; empty where it is no time. 6 pm is 6:00 pm."""
    has_half = answer.unit in ("am", "pm")
    clock = _CLOCK.fullmatch(answer.text) or (_CLOCK.fullmatch(f"{answer.text}:00") if has_half else None)
    if clock is None:
        return []
    hour, *rest = (int(part or 0) for part in clock.groups())
    return [(hour, *rest), (hour % 12 + 12 * (answer.unit == "pm") if has_half else hour, *rest)]


def _equal_ratios(gold: str, answer: str) -> Grade | None:
    """Ratios part by part; None where neither is one."""
    parts, given = split_top(gold, ":"), split_top(answer, ":")
    if max(len(parts), len(given)) == 1 or any(_polynomial(part) is None for part in (*parts, *given)):
        return None
    if len(parts) != len(given):
        return None if max(len(parts), len(given)) == 2 else incorrect("different number of parts")
    products = [(f"({parts[0]})({mine})", f"({given[0]})({other})") for other, mine in zip(parts, given, strict=True)]
    same = all(_polynomial(one) == _polynomial(other) for one, other in products)
    return correct("equal ratio") if same else incorrect("different ratio")


def _equal_figures(gold: str, answer: str) -> Grade | None:
    """Segments, angles, rays and the like by the names of their points; None where these are none."""
    figures = [_FIGURE.fullmatch(text) for text in (gold, answer)]
    if not all(figures) or not any(figure and figure[1] for figure in figures):
        return None
    kinds, names = set[str](), set[str]()
    for figure in figures:
        assert figure
        kind, name = _KINDS.get(figure[1], figure[1]) or "", figure[2]
        name = name[::-1] if figure[1] == "overleftarrow" else name
        kinds.add(kind)
        names.add(name if kind == "overrightarrow" else min(name, name[::-1]))
    same = len(names) == 1 and (len(kinds) == 1 or kinds <= {"", "overline"} or kinds <= {"", "triangle"})
    return correct("equal figure") if same else incorrect("different figure")


def _equal_labels(gold: Answer, answer: Answer) -> Grade | None:
    """Choices such as "(B) 12" against "(B)" and each other; None where their values are to be compared."""
    if gold.label == answer.label:
        return None
    if gold.label and answer.label:
        return incorrect("different choice")
    labelled, other = (gold, answer) if gold.label else (answer, gold)
    if not re.fullmatch(r"[A-Ja-j]", other.text):
        return None
    same = labelled.label.lower() == other.text.lower()
    return correct("equal choice") if same else incorrect("different choice")


def _equal_amounts(gold: Answer, answer: Answer) -> Grade:
    """Numbers with different units: 2 hours are 120 minutes."""
    factor = conversion(gold.unit, answer.unit)
    if factor is None or gold.number is None or answer.number is None or gold.number * factor != answer.number:
        return incorrect("different units")
    return correct("equal number")


def _equal_numbers(gold: Answer, answer: Answer) -> Grade:
    """Exact, where a per cent sign may be missing on one side: 50 % is 50 and is 0.5, but 50 is not 0.5."""
    assert gold.number is not None
    assert answer.number is not None
    equal = gold.number == answer.number
    if "%" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        per_cent, other = (gold.number, answer.number) if gold.unit == "%" else (answer.number, gold.number)
        equal = equal or per_cent == 100 * other
    return correct("equal number") if equal else incorrect("different number")


def _equal_prose(gold: str, answer: str) -> Grade:
    """Words; "Alice and Bob" is in no order, "Alice, Bob" may be in one."""
    if " and " in gold and " and " in answer:
        parts, given = (sorted(re.split(r", and |, | and ", text)) for text in (gold, answer))
        if parts == given:
            return correct("equal text")
    return incorrect("different text")


def _equal_in_bases(gold: str, answer: str) -> Grade | None:
    """Numbers with their base as subscript, which math-verify does not see; None for anything else.

    A base may be left out, as a unit may.
    """
    numbers = [match for match in (_BASED.fullmatch(gold), _BASED.fullmatch(answer)) if match]
    if not numbers or "=" in gold + answer:
        return None
    try:
        values = {int(number[1], int(number[2]) or 1) for number in numbers}
    except ValueError:  # a digit or a base that does not exist
        return incorrect("different number")
    equal = len(values) == 1 if len(numbers) == 2 else numbers[0][1] in (gold, answer)
    return correct("equal number") if equal else incorrect("different number")


def _as_decimal_comma(text: str) -> Fraction | None:
    """The number that "3,5" or "1.234,5" is in Europe; "2,0" is more often a list."""
    match = _DECIMAL_COMMA.fullmatch(text)
    return Fraction(f"{match[1].replace('.', '')}.{match[2]}") if match else None


def _in_radians(angle: Answer, other: Answer) -> str:
    """An angle in degrees as a multiple of pi where the other one is such a multiple."""
    in_degrees = angle.unit == "degree" and "\\pi" in other.text
    return f"({angle.text})\\times\\frac{{\\pi}}{{180}}" if in_degrees else angle.text


def _equal_relations(gold: str, given: Answer, leaf: Leaf) -> Grade | None:
    """``x = 5`` against ``5`` and the like; None for two relations, which are compared as wholes.

    math-verify takes the right side of any equation for its value, so that ``3 = 2`` would be 2. Here every part of a
    chain must equal the expected answer.
    """
    answer = given.text
    gold_name, gold_value = _named(gold)
    name, value = _in_names_order(*_named(answer))
    if gold_name and gold_name == name:
        same = equal_answers(normal_form(gold_value), normal_form(value), leaf)
        return same if same.verdict != "incorrect" else None
    parts = split_top(value, "=")
    if not name and len(parts) == 1:
        if gold_name:
            return equal_answers(normal_form(split_top(gold_value, "=")[-1]), normal_form(answer), leaf)
        return None if _MEMBER.search(gold + answer) else incorrect("different shape")
    if gold_name or len(split_top(gold, "=")) > 1:
        return None
    result = incorrect("unreadable answer")
    for part in parts:
        result = equal_answers(normal_form(gold), replace(normal_form(part), decimal_comma=given.decimal_comma), leaf)
        if result.verdict != "correct":
            break
    return result


def _named(text: str) -> tuple[str, str]:
    """``x = 5`` and ``f(x) \\in A`` as name and value; the name is "" where there is none."""
    if flipped := _FLIPPED.fullmatch(text):
        text = f"{flipped[2]}={flipped[1]}"
    match = _NAMED.fullmatch(text)
    return (match[1].strip(), match[2]) if match else ("", text)


def _in_names_order(name: str, value: str) -> tuple[str, str]:
    """``(y, x) = (1, 2)`` as ``(x, y)`` and ``(2, 1)``: coordinates are asked for in the order of their names."""
    names, values = ([part.strip() for part in split_top(text.strip()[1:-1], ",")] for text in (name, value))
    if len(names) != len(values) or len(names) < 2 or not all(re.fullmatch("[A-Za-z]", one) for one in names):
        return name, value
    pairs = sorted(zip(names, values, strict=True))
    return f"({','.join(one for one, _ in pairs)})", f"({','.join(one for _, one in pairs)})"


def _equal_sequences(gold: Sequence, answer: Sequence, leaf: Leaf) -> Grade:
    """Element by element, in order where either side is a tuple. A bare list may mean a tuple or a set.

    The first undecided element ends the comparison, so that many slow elements cost no more time than one.
    """
    brackets, given = (gold.opening, gold.closing), (answer.opening, answer.closing)
    half_open = given in (("(", "]"), ("[", ")"))
    if given != brackets and ((gold.opening and answer.opening) or half_open):
        return incorrect("different brackets")
    if not gold.ordered and not answer.ordered:
        return _equal_sets(gold, answer, leaf)
    if len(gold.items) != len(answer.items):
        return incorrect("different number of elements")
    for expected, item in zip(gold.items, _in_order(gold, answer), strict=True):
        grade = equal_answers(normal_form(expected), normal_form(item), leaf)
        if grade.verdict != "correct":
            return grade
    return correct("equal elements")


def _in_order(gold: Sequence, answer: Sequence) -> tuple[str, ...]:
    """The elements of an answer; ``y = 2, x = 1`` for a pair of plain values by their names."""
    names = [_named(item)[0] for item in answer.items]
    if not all(re.fullmatch("[A-Za-z]", name) for name in names) or any(_named(item)[0] for item in gold.items):
        return answer.items
    return tuple(item for _, item in sorted(zip(names, answer.items, strict=True)))


def _equal_sets(gold: Sequence, answer: Sequence, leaf: Leaf) -> Grade:
    """In any order. The number of times of an element counts only where a bare list repeats one: 2, 2, 3."""
    expected = [(canonical_answer(item), item) for item in gold.items]
    given = [(canonical_answer(item), item) for item in answer.items]
    if gold.opening or len(dict(expected)) == len(expected):
        expected, given = list(dict(expected).items()), list(dict(given).items())
    missing, extra = _without(expected, given), _without(given, expected)
    if len(missing) != len(extra):
        return incorrect("different number of elements")
    if len(missing) > _MAX_UNORDERED:
        return incorrect("different elements")
    for item in missing:
        for candidate in extra:
            grade = equal_answers(normal_form(item), normal_form(candidate), leaf)
            if grade.verdict == "undecided":
                return grade
            if grade.verdict == "correct":
                extra.remove(candidate)
                break
        else:
            return incorrect("different elements")
    return correct("equal elements")


def _without(items: list[tuple[str, str]], others: list[tuple[str, str]]) -> list[str]:
    """The items, in canonical and written form, that have no partner of the same canonical form; as written."""
    partners = Counter(key for key, _ in others)
    left: list[str] = []
    for key, item in items:
        partners[key] -= 1
        if partners[key] < 0:
            left.append(item)
    return left
