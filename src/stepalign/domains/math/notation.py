"""The signs of a normal form: plain numbers, brackets, and the elements between them. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_DECIMAL = re.compile(rf"[-+]?{_NUMBER}(?:[eE][-+]?\d{{1,3}})?", re.ASCII)
_RATIO = re.compile(rf"([-+]?{_NUMBER})/([-+]?{_NUMBER})", re.ASCII)
_LATEX_FRACTION = re.compile(rf"([-+]?)(\d*)\\frac\{{([-+]?{_NUMBER})\}}\{{([-+]?{_NUMBER})\}}", re.ASCII)
_SCIENTIFIC = re.compile(rf"(?:([-+]?{_NUMBER})(?:\\times ?|\*|x)|([-+]?))10\^\{{?([-+]?\d{{1,3}})\}}?", re.ASCII)
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar)\{(\d+)\}", re.ASCII)


def parse_number(text: str) -> Fraction | None:
    """The exact value of a decimal, fraction, mixed number, repeating decimal or power-of-ten form; else None.

    The text is one that :func:`normal_form` made. Exponents have at most three digits, so that the value stays small.
    """
    while len(text) > 2 and text[0] in "({" and text[-1] in ")}" and closing_bracket(text) == len(text) - 1:
        text = text[1:-1]
    try:
        if _DECIMAL.fullmatch(text):
            return Fraction(text)
        if match := _RATIO.fullmatch(text):
            return Fraction(match[1]) / Fraction(match[2])
        if match := _LATEX_FRACTION.fullmatch(text):
            part = Fraction(match[3]) / Fraction(match[4])
            return (-1 if match[1] == "-" else 1) * (int(match[2] or 0) + part)
        if match := _SCIENTIFIC.fullmatch(text):
            return Fraction(match[1] or f"{match[2]}1") * Fraction(10) ** int(match[3])
        if match := _REPEATING.fullmatch(text):
            fixed = Fraction(f"{match[2] or 0}.{match[3] or 0}")
            period = Fraction(int(match[4]), 10 ** len(match[4]) - 1)
            return (-1 if match[1] == "-" else 1) * (fixed + period / 10 ** len(match[3]))
    except ZeroDivisionError:
        return None
    return None


@dataclass(frozen=True, slots=True)
class Sequence:
    """The top-level elements of a tuple, interval, set or list."""

    opening: str
    """"(", "[", "\\{", or "" for a bare list."""
    items: tuple[str, ...]
    closing: str

    @property
    def ordered(self) -> bool:
        return self.opening in ("(", "[")


def split_sequence(text: str) -> Sequence | None:
    """The elements of a normal form between its top-level commas, or None where it has none."""
    bracketed = re.fullmatch(r"(\\\{)(.*)(\\\})|([(\[])(.*)([)\]])", text, re.DOTALL)
    if bracketed and closing_bracket(text) == len(text) - 1:
        opening, inside, closing = bracketed.groups()[:3] if bracketed[1] else bracketed.groups()[3:]
        items = split_top(inside, ",")
        return Sequence(opening, items, closing) if len(items) > 1 else None
    items = split_top(text, ",")
    return Sequence("", items, "") if len(items) > 1 and all(items) else None


_LEVELS = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}


def _nesting(text: str) -> Iterator[int]:
    """How many brackets of any kind are open behind each character."""
    return accumulate(_LEVELS.get(character, 0) for character in text)


def split_top(text: str, separator: str) -> tuple[str, ...]:
    """The parts between those occurrences of a character outside all brackets."""
    if separator not in text:
        return (text.strip(),)
    levels = enumerate(zip(text, _nesting(text), strict=True))
    ends = [index for index, (character, level) in levels if character == separator and level == 0]
    starts = [0, *(end + 1 for end in ends)]
    return tuple(text[start:end].strip() for start, end in zip(starts, [*ends, None], strict=True))


def closing_bracket(text: str) -> int:
    """Index of the bracket that closes the first one, whatever its kind (``[0, 1)`` is one pair), or -1."""
    levels = enumerate(zip(text, _nesting(text), strict=True))
    return next((index for index, (character, level) in levels if level == 0 and character in ")]}"), -1)


def depth(text: str) -> int:
    """The deepest nesting of brackets of any kind."""
    return max(_nesting(text), default=0)


def is_balanced(text: str) -> bool:
    """Whether every brace has its partner; parentheses and brackets may differ, as in ``[0, 1)``."""
    braces = re.findall(r"[{}]", re.sub(r"\\[\\{}]", "", text))
    levels = [0, *accumulate(1 if brace == "{" else -1 for brace in braces)]
    return min(levels) == 0 == levels[-1]


_RELATION = r"(<|>|\\le(?![A-Za-z]) ?|\\ge(?![A-Za-z]) ?)"
_INEQUALITY = re.compile(
    rf"(?:(?P<left>[^<>=,]+?){_RELATION})?(?P<name>[A-Za-z]|[A-Za-z]_\w)(?:{_RELATION}(?P<right>[^<>=,]+))?", re.ASCII
)


_JOINT = re.compile(r",|\\(?:vee|wedge|cup|cap)(?![A-Za-z]) ?")


def as_interval(text: str) -> tuple[str, str] | None:
    """The variable and the interval of ``1 < x \\le 2`` or of two inequalities; None for anything else.

    Two inequalities behind each other are a union only where no number satisfies both: ``x > 1, x < 2`` is (1, 2).
    """
    bounds = [_bounds(item) for item in _JOINT.split(text)]
    if any(bound is None for bound in bounds) or len({bound.name for bound in bounds if bound}) > 1 or len(bounds) > 2:
        return None
    found = sorted((bound for bound in bounds if bound), key=lambda bound: bound.low != "-\\infty")
    union = "\\cup ".join(map(str, found))
    if len(found) == 1 or "\\vee" in text or "\\cup" in text:
        return found[0].name, union
    first, second = found
    if first.low != "-\\infty" or second.high != "\\infty":  # not a ray to the left and one to the right
        return None
    end, start = parse_number(first.high), parse_number(second.low)
    if end is None or start is None:
        return (first.name, str(first.and_from(second))) if "\\wedge" in text or "\\cap" in text else None
    if start < end or (start == end and first.closing == "]" and second.opening == "["):
        return first.name, str(first.and_from(second))
    return first.name, "\\emptyset" if "\\wedge" in text or "\\cap" in text else union


class _Bounds(NamedTuple):
    name: str
    opening: str
    low: str
    high: str
    closing: str

    def __str__(self) -> str:
        return f"{self.opening}{self.low},{self.high}{self.closing}"

    def and_from(self, other: _Bounds) -> _Bounds:
        """The interval from where another one begins to the end of this one."""
        return self._replace(opening=other.opening, low=other.low)


def _bounds(text: str) -> _Bounds | None:
    """One inequality in one variable."""
    match = _INEQUALITY.fullmatch(text)
    if not match or not (match[2] or match[4]):
        return None
    (left, before), (after, right) = (match["left"], match[2]), (match[4], match["right"])
    downwards = {(relation or "").strip() in (">", "\\ge") for relation in (before, after) if relation}
    if len(downwards) > 1 or any(re.search(r"\\(?:le|ge|ne)(?![A-Za-z])", side or "") for side in (left, right)):
        return None
    if downwards == {True}:
        (left, before), (after, right) = (right, after), (before, left)
    opening, closing = ("[" if "e" in (before or "") else "("), ("]" if "e" in (after or "") else ")")
    return _Bounds(match["name"], opening, left or "-\\infty", right or "\\infty", closing)
