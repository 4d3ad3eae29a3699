"""The equations of a text, each with the place of every number, and their values: exact, and as symbols."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

PRIME = 2**61 - 1
"""Symbols are values modulo this prime: two expressions with equal values at random places are the same expression."""

_OTHER_NUMBER = r"(?:percent|pi|squared|cubed|half|halves|dozen|hundred|thousand|million|billion|mod)\b"
"""Words behind a number that make another one of it."""
_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,18})?|\.\d{1,18})|"
    r"(?P<unit>(?<=[\d)$])[^\S\n]{0,2}(?:\([a-z ]{2,20}\)|/?(?!" + _OTHER_NUMBER + r")[a-z]{2,20}"
    r"(?:[ /-](?!" + _OTHER_NUMBER + r")[a-z]{1,20}){0,3})"
    r"(?=\s{0,2}(?:[-+*/÷−–·×∗⋅=≈→⇒)&}]|x[\s$\d(]|\\(?:times|cdot|div|approx)|"
    r"(?:plus|minus|times|multiplied by|divided by|is|equals|gives|makes|leaves)\b)))|"
    r"(?P<equals>={1,2}>?|[≈→⇒]|\\approx(?![a-z])|(?:is equal to|is|equals|gives|makes|leaves)\b)|"
    r"(?P<times>(?<=[\d\s%])x(?=[\s$\d(]))|"
    r"(?P<emphasis>(?<![\d*])\*\*(?=[^\s*])|(?<=[^\s*])\*\*(?![\d*]))|"
    r"(?P<sign>[-+*/÷−–·×∗⋅()]|\\\*|\\?%|\\(?:times|cdot|div)(?![a-z])|\}\{|"
    r"(?:plus|minus|times|multiplied by|divided by|percent)\b|(?:(?<=% )|(?<=percent )|(?<=\d/\d ))of\b)|"
    r"(?P<line>\n|\\\\)|"
    r"(?P<skipped>[^\S\n]+|[$£€¢}&`~]|\\(?:text|mathrm)\{[^{}]{0,40}\}|\\boxed\{|\\[$,;!()\[\]]|"
    r"\\(?:left|right|quad)(?![a-z])|\\[dt]?frac\{(?=\d))|"
    r"(?P<other>[a-z]+|.)",
    re.S | re.I,
)
_FRACTION = re.compile(r"(?<![/÷v])(?<![/÷v]\s)\\[dt]?frac\{([\d,.]{1,18})(\}\{)[\d,.]{1,18}\}")
OVER = "}{"
"""The sign of a fraction of two numbers in LaTeX."""
_NOTE = re.compile(r"<<[^<>]{1,200}>>")
_OWN_MINUS = re.compile(r"(^|[-+*/(])-")
_GOES_ON = re.compile(r"(?:[a-z\d^_√!]|\^\{|sqrt\{|\]\{)\Z", re.I)
_ANOTHER_NUMBER = re.compile(r"\s?" + _OTHER_NUMBER + r"|[\^²³!]|:\d|[kx]\b", re.I)
_ECHO = re.compile(r"\s{0,2}([-−]?[$£€]?)(\d[\d,]*(?:\.\d+)?|\.\d+)")
_SIGNS = {
    **dict.fromkeys(("×", "x", "X", "·", "∗", "⋅", r"\*", r"\times", r"\cdot", "times", "multiplied by", "of"), "*"),
    **dict.fromkeys(("÷", r"\div", OVER, "divided by"), "/"),
    **{"−": "-", "–": "-", "minus": "-", "plus": "+", r"\%": "%", "percent": "%"},
}
_MEASURES = re.compile(
    r"(?<![a-z])(dollar|cent|hour|minute|second|day|week|month|year|meter|centimeter|kilometer|feet|foot|inche?|yard|mile|"
    r"gram|kilogram|ounce|pound|liter|milliliter|quart|gallon|pint|cup|cm|km|kg|ml|min|hr)s?\b|([$¢€£])",
    re.I,
)
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBER_WORDS = {word: number for number, word in enumerate(_SMALL)} | {
    **{"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90},
    **{"dozen": 12, "hundred": 100},
}
MAX_EQUATIONS = 40
MAX_LEFT = 31
"""Numbers and signs of one left side."""

Item = str | Fraction | int
"""Of a left side: a sign or bracket, a number, or the index of the equation whose result it is."""
Line = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A number, sign or bracket in a text."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def sign(self) -> str:
        return _SIGNS.get(self.text, self.text)

    @property
    def value(self) -> Fraction:
        return Fraction(re.sub(r"[^-\d.]", "", self.text.replace("−", "-")))


def tokens_of(text: str) -> list[Token]:
    """Numbers, signs, units, white space, and whatever else there is, in order."""
    over = {fraction.start(2) for fraction in _FRACTION.finditer(text)}
    found = []
    for match in _TOKEN.finditer(text):
        kind = {"times": "sign", "emphasis": "skipped"}.get(str(match.lastgroup), str(match.lastgroup))
        if match.group() == OVER and match.start() not in over:
            kind = "other"
        found.append(Token(kind, match.group(), match.start(), match.end()))
    return found


@dataclass(frozen=True, slots=True)
class Equation:
    """``left = result`` in a text, with its calculator note where it has one: ``48/2 = <<48/2=24>>24``."""

    lefts: tuple[tuple[Token, ...], ...]
    """The left side as often as it is written, token by token the same."""
    results: tuple[Token, ...]
    """The result as often as it is written."""
    start: int
    end: int
    rigid: bool = False
    """Whether another expression is between them, as in ``2 * 6 + 3 = 12 + 3 = 15``: no change can be written."""

    @property
    def line(self) -> Line:
        return _line(self.lefts[0])

    @property
    def result(self) -> Fraction:
        return self.results[0].value


def find_equations(text: str) -> list[Equation]:
    """The equations of a text, in their order."""
    return read_equations(text)[0]


def read_equations(text: str) -> tuple[list[Equation], list[int]]:
    """The equations of a text, in their order, and the places of others that are not understood."""
    notes = list(_NOTE.finditer(text))
    plain = _NOTE.sub(lambda note: " " * len(note.group()), text)
    found, unread = _plain_equations(plain, 0)
    for note in notes[:MAX_EQUATIONS]:
        around = next((e for e in found if e.start < note.start() and e.end > note.end()), None)
        inside, _ = _plain_equations(note.group()[2:-2], note.start() + 2)
        echo = _ECHO.match(plain, note.end())
        if not inside:
            continue
        formal = inside[-1]
        sign = "-" if echo and echo[1][:1] in ("-", "−") else ""
        again = [Token("number", sign + echo[2], echo.start(1) if sign else echo.start(2), echo.end())] if echo else []
        results = (*formal.results, *(t for t in again if states(t, formal.result)))
        if around is not None:
            found.remove(around)
        same = around is not None and around.line == formal.line
        found.append(
            Equation(
                lefts=(*(around.lefts if around and same else ()), *formal.lefts),
                results=results,
                start=around.start if around else note.start(),
                end=echo.end() if echo else note.end(),
            )
        )
        unread = [place for place in unread if "\n" in plain[place : note.start()] or place > note.end()]
    return sorted(found, key=lambda equation: equation.start)[:MAX_EQUATIONS], unread


def _plain_equations(text: str, offset: int) -> tuple[list[Equation], list[int]]:
    tokens = _with_negatives(text, [t for t in tokens_of(text) if t.kind not in ("skipped", "unit")])
    found: dict[int, Equation] = {}
    unread: list[int] = []
    for place in [n for n, token in enumerate(tokens) if token.kind == "equals"][MAX_EQUATIONS - 1 :: -1]:
        (start, stop), (side, behind) = _left_of(tokens, place), _right_of(tokens, place + 1)
        left = tokens[start:stop]
        if sum(t.kind == "number" for t in left) < 2 or not side:
            if _calculates(tokens, place, behind):
                unread.append(tokens[place].start + offset)
            continue
        results, end, rigid = (side[0],), side[0].end, False
        value, whole = evaluate(_line(left), {}), evaluate(_line(side), {})
        unclear = _is_unclear(text, tokens[max(0, start - 2) : start], left, side[0], value)
        if len(side) > 1 and value is not None and not states(side[0], value):
            rigid = whole == value and behind in found  # an expression, equal to the left one
            chained = whole != value and len(left) == 3 and not tokens[place].text.isalpha()
            unclear = unclear or not (rigid or chained)
            if rigid:
                later = found.pop(behind)
                results, end = later.results, later.end - offset
        if unclear:
            unread.append(tokens[place].start + offset)
            continue
        results = results if rigid else _shifted(results, offset)
        lefts = (_shifted(left, offset),)
        found[place] = Equation(lefts, results, lefts[0][0].start, end + offset, rigid)
    return list(found.values()), unread


def _with_negatives(text: str, tokens: Sequence[Token]) -> list[Token]:
    """A minus at a number, where nothing is subtracted, belongs to it."""
    found: list[Token] = []
    for token in tokens:
        minus = found[-1] if found and token.kind == "number" and found[-1].sign == "-" else None
        before = found[-2] if len(found) > 1 else None
        free = before is None or (before.kind != "number" and before.sign not in (")", "%"))
        gap = "" if minus is None else text[minus.end : token.start]
        if minus and free and (gap in ("", "$", "£", "€") or (gap == " " and before and before.kind == "equals")):
            found[-1] = Token("number", text[minus.start : token.end], minus.start, token.end)
        else:
            found.append(token)
    return found


def _left_of(tokens: Sequence[Token], place: int) -> tuple[int, int]:
    """Where the longest expression in front of an equals sign is; a chain of equations has one before each."""
    start = end = place - 1 if place and tokens[place - 1].kind == "line" else place
    while start > 0 and end - start < MAX_LEFT and tokens[start - 1].kind in ("number", "sign"):
        start -= 1
    while start < end and (tokens[start].sign in "*/+)-%" or parse(_line(tokens[start:end])) is None):
        start += 1
    return start, end


def _right_of(tokens: Sequence[Token], place: int) -> tuple[list[Token], int]:
    """The longest expression behind an equals sign that begins with a number, and the place of an equals sign right
    behind it, -1 for none. Nothing for a share in percent, whose left side may be one too."""
    while place < len(tokens) and tokens[place].kind == "line":
        place += 1
    end = place
    while end < len(tokens) and end - place < MAX_LEFT and tokens[end].kind in ("number", "sign"):
        end += 1
    following = end + 1 if end + 1 < len(tokens) and tokens[end].kind == "line" else end
    closed = following < len(tokens) and tokens[following].kind == "equals"
    side = list(tokens[place:end])
    if not side or side[0].kind != "number" or (len(side) > 1 and (side[1].sign == "%" or side[1].kind == "number")):
        return [], -1
    while parse(_line(side)) is None:
        side.pop()
    return side, following if closed and len(side) == end - place else -1


def _calculates(tokens: Sequence[Token], place: int, behind: int) -> bool:
    """Whether an equals sign that is not understood belongs to a calculation: ``x + 3 = 8``, ``8 = 5 + 3``."""
    if tokens[place].text[0] not in "=≈":
        return False
    around, n = list(tokens[place + 1 : place + 4] if behind < 0 else ()), place - 1
    while n >= 0 and tokens[n].kind not in ("equals", "line") and tokens[n].text not in (".", ";", "!", "?"):
        around.append(tokens[n])
        n -= 1
    return any(t.kind == "sign" and t.sign in "+-*/" for t in around) and any(t.kind == "number" for t in around)


def _is_unclear(
    text: str, before: Sequence[Token], left: Sequence[Token], result: Token, value: Fraction | None
) -> bool:
    """Whether an equation may be a part of something else: ``2^3 * 2 = 16``, ``Day 1 - 5 + 12 = 17``."""
    near = before[-1] if before and before[-1].kind in ("number", "sign") else None
    owner = before[-2] if near and len(before) > 1 else None
    if _GOES_ON.search(text[max(0, left[0].start - 8) : left[0].start]) or (near and near.kind == "number"):
        return True
    named = owner is not None and owner.kind == "other" and owner.text.isalpha()
    if named and near and near.sign in "+*/-" and (near.sign != "-" or len(owner.text if owner else "") < 2):
        return True
    if value is None or states(result, value):
        return False
    shorter = [tuple(left[n + 1 :]) for n, token in enumerate(left) if token.sign == "-"]
    if left[0].text[0] in "-−":
        shorter.append((Token("number", left[0].text[1:], 0, 0), *left[1:]))
    values = [evaluate(_line(part), {}) for part in shorter if len(part) > 2]
    measures = {a.lower() or b for a, b in _MEASURES.findall(text[left[0].start : result.end + 12])}
    return (
        named
        or any(v is not None and states(result, v) for v in values)
        or len(measures) > 1
        or bool(_ANOTHER_NUMBER.match(text, result.end))
    )


def _shifted(tokens: Sequence[Token], offset: int) -> tuple[Token, ...]:
    return tuple(Token(t.kind, t.text, t.start + offset, t.end + offset) for t in tokens)


def _line(left: Sequence[Token]) -> Line:
    return tuple(t.value if t.kind == "number" else t.sign for t in left)


# ---------------------------------------------------------------------------------------------------------------------
# Values

_Tree = Item | tuple["_Tree", str, "_Tree"]


def parse(line: Line) -> _Tree | None:
    """A left side as a tree of (left, sign, right), None where it is no expression. ``20%`` is 20 / 100."""
    shape = _shape(tuple(item if isinstance(item, str) else "" for item in line))

    def filled(tree: Any) -> _Tree:
        if isinstance(tree, tuple):
            return filled(tree[0]), tree[1], filled(tree[2])
        return line[tree] if type(tree) is int else tree

    return None if shape is None else filled(shape)


@lru_cache(maxsize=4096)
def _shape(signs: tuple[str, ...]) -> Any:
    """The tree of a left side whose numbers are "": places stand for them."""
    rest = list(enumerate(signs))

    def next_is(*wanted: str) -> bool:
        return bool(rest) and rest[0][1] in wanted

    def sum_() -> Any:
        tree = product()
        while next_is("+", "-"):
            tree = (tree, rest.pop(0)[1], product())
        return tree

    def product() -> Any:
        tree = factor()
        while next_is("*", "/", "("):
            sign = "*" if next_is("(") else rest.pop(0)[1]
            tree = (tree, sign, factor())
        return tree

    def factor() -> Any:
        place, sign = rest.pop(0)
        if sign == "(":
            tree = sum_()
            if rest.pop(0)[1] != ")":
                raise ValueError
        elif sign:
            raise ValueError
        else:
            tree = place
        while next_is("%"):
            rest.pop(0)
            tree = (tree, "/", Fraction(100))
        return tree

    try:
        tree = sum_()
    except (ValueError, IndexError, RecursionError):
        return None
    return None if rest else tree


def evaluate(line: Line, results: Mapping[int, Fraction | None]) -> Fraction | None:
    """The exact value of a left side; None where it has none."""
    return _value(parse(line), lambda item: results.get(item) if type(item) is int else item, _EXACT)


def value_of(text: str) -> Fraction | None:
    """The exact value of a text without blanks that is one expression; a number or a bracket may have its minus."""
    text = _OWN_MINUS.sub(lambda sign: f"{sign[1]}(0-1){'/' if sign[1] == '/' else '*'}", text)
    tokens = [token for token in tokens_of(text) if token.kind != "skipped"]
    return evaluate(_line(tokens), {}) if all(t.kind in ("number", "sign") for t in tokens) else None


def symbol(line: Line, results: Mapping[int, int | None], symbols: Callable[[Fraction], int]) -> int | None:
    """The value of a left side modulo PRIME, numbers by their symbols."""
    return _value(parse(line), lambda item: results.get(item) if type(item) is int else symbols(item), _MODULAR)


def _value(tree: Any, leaf: Callable[[Any], Any], signs: Mapping[str, Callable[[Any, Any], Any]]) -> Any:
    if not isinstance(tree, tuple):
        return None if tree is None else leaf(tree)
    left, right = _value(tree[0], leaf, signs), _value(tree[2], leaf, signs)
    return None if left is None or right is None else signs[tree[1]](left, right)


_EXACT: dict[str, Callable[[Fraction, Fraction], Fraction | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}
_MODULAR: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: (a + b) % PRIME,
    "-": lambda a, b: (a - b) % PRIME,
    "*": lambda a, b: a * b % PRIME,
    "/": lambda a, b: a * pow(b, -1, PRIME) % PRIME if b else None,
}


def numbers_of(text: str) -> list[Fraction]:
    """The numbers of a question, those in words included."""
    tokens = tokens_of(text)
    words = re.findall(r"[a-z]+", text.lower())
    return [t.value for t in tokens if t.kind == "number"] + [
        Fraction(_NUMBER_WORDS[w]) for w in words if w in _NUMBER_WORDS
    ]


def number_text(value: Fraction) -> str:
    """As a person writes it: whole, or with two decimals at most where it does not end."""
    if value.denominator == 1:
        return str(value.numerator)
    exact = f"{float(value):.6f}".rstrip("0")
    return exact if Fraction(exact) == value else f"{float(value):.2f}"


def states(result: Token, value: Fraction) -> bool:
    """Whether a written number is a value: equal, rounded to its decimals, or cut to whole ones."""
    decimals = len(result.text.partition(".")[2])
    written = result.value
    gap = abs(written - value)
    if gap <= abs(value) / 10**9:  # the noise of a calculator
        return True
    if decimals or value.denominator != 1:
        return gap <= Fraction(1, 2 * 10**decimals) or (not decimals and gap < 1)
    return False
