"""Words, numbers and equations of a text, found in linear time: the text is untrusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from stepalign.feedback.equations import value_of

Equation = tuple[str, str]
"""(left of the first "=", the rest), without spaces."""

_MAX_WORDS = 400
"""Words of a text that count for its similarity."""
_MAX_FINDS = 64
"""Places of a text that are tried for one quote."""

# Chinese and Japanese write no spaces: there a character counts as a word.
_WORD = re.compile(r"\d+(?:[.,]\d+)*+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d\u3040-\u30ff\u3400-\u9fff]+")
_SIGN = re.compile(r"\S")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*+")
_VARIABLE = r"(?<![^\W\d])[^\W\d](?![^\W\d])"
_FORMULA = re.compile(rf"(?:[\d(]|{_VARIABLE})(?:[\d+*/(){{}}.,;=<>^%$£€ ×÷·−–-]|{_VARIABLE})*+")
_CLAUSE = re.compile(r"[.,;] ")


def words(text: str) -> Counter[str]:
    """Words and numbers; signs only where there is nothing else, for most steps share their "+" and "="."""
    found = _WORD.finditer(text) if _WORD.search(text) else _SIGN.finditer(text)
    return Counter(match.group().lower() for match in islice(found, _MAX_WORDS))


def dice(left: Counter[str], right: Counter[str]) -> float:
    """Similarity of two bags of words, 0 to 1: twice what they share over what they have; 0 where both are empty."""
    total = left.total() + right.total()
    return 2.0 * (left & right).total() / total if total else 0.0


def numbers(text: str) -> list[str]:
    """The numbers of a text in its order, without digit-grouping commas."""
    return [number.replace(",", "") for number in _NUMBER.findall(text)]


def equations(text: str) -> list[Equation]:
    """Every equation in a text."""
    parts = [part for match in _FORMULA.finditer(text) for part in _CLAUSE.split(match.group()) if "=" in part]
    sides = [_balanced(part.replace(" ", "").strip(".,$")).partition("=") for part in parts]
    return [(left, right) for left, _, right in sides if left and right]


def _balanced(formula: str) -> str:
    """A formula without the brackets of the sentence around it."""
    surplus = formula.count("(") - formula.count(")")
    opening = len(formula) - len(formula.lstrip("("))
    closing = len(formula) - len(formula.rstrip(")"))
    return formula[min(opening, max(0, surplus)) : len(formula) - min(closing, max(0, -surplus))]


def calculations(text: str) -> list[Equation]:
    """The equations of a text that calculate something: ``3+4=7``, not ``x=7``, which may have two values."""
    return [(left, right) for left, right in equations(text) if re.search(r"\d[^\d.,]+\d", left)]


_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": "", "€": "", "£": ""})
_LONGEST = 200


def plain_signs(text: str) -> str:
    """A text with the signs of a program for times, divided and minus, and without those of money."""
    return text.translate(_SIGNS)


def holds(equation: Equation) -> bool | None:
    """Whether a calculation is right, its result rounded or not; None where plain arithmetic cannot say."""
    result = equation[1].partition("=")[0]
    value, stated = (value_of(plain_signs(side[:_LONGEST])) for side in (equation[0], result))
    if value is None or stated is None:
        return None
    return round(value, len(result.partition(".")[2])) == stated if "." in result else value == stated


def results_of(stated: Iterable[Equation]) -> dict[str, set[str]]:
    """Left side -> its right sides."""
    results: dict[str, set[str]] = {}
    for left, right in stated:
        results.setdefault(left, set()).add(right)
    return results


def find_whole(text: str, part: str) -> int:
    """The start of a part that is whole in a text, -1 if there is none: "13 + 4 = 87" has no whole "3 + 4 = 8"."""
    start = -1
    for _ in range(_MAX_FINDS):
        start = text.find(part, start + 1)
        if start < 0:
            break
        end = start + len(part)
        joined = (text[start - 1 : start] + part[0]).isalnum() and start > 0
        if not joined and not ((part[-1] + text[end : end + 1]).isalnum() and end < len(text)):
            return start
    return -1


def common_start(left: str, right: str) -> int:
    """Characters that two texts share at their beginning."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


def common_ends(left: str, right: str) -> int:
    """Characters that two steps share at their beginning and end; an induction head follows a copy until it breaks."""
    shorter = min(len(left), len(right))
    front = common_start(left, right)
    back = 0
    while back < shorter - front and left[-1 - back] == right[-1 - back]:
        back += 1
    return front + back
