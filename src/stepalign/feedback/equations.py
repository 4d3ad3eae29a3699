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

_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,18})?|\.\d{1,18})|(?P<times>(?<=[\d\s%)])[xX×](?=[\s$\d(]))|"
    r"(?P<sign>[-+*/÷−·()=]|\\?%|\\(?:times|cdot|div)(?![a-z])|\}\{)|"
    r"(?P<skipped>[\s$£€¢}]+|\\(?:text|mathrm)\{[^{}]{0,40}\}|\\boxed\{|\\[$,;!()\[\]]|\\(?:left|right)(?![a-z])|"
    r"\\[dt]?frac\{(?=\d))|(?P<other>.)",
    re.S,
)
_FRACTION = re.compile(r"(?<![/÷v])(?<![/÷v]\s)\\[dt]?frac\{([\d,.]{1,18})(\}\{)[\d,.]{1,18}\}")
OVER = "}{"
"""The sign of a fraction of two numbers in LaTeX."""
_NOTE = re.compile(r"<<[^<>]{1,200}>>")
_OWN_MINUS = re.compile(r"(^|[-+*/(])-")
_ECHO = re.compile(r"\s{0,2}([-−]?[$£€]?)(\d[\d,]*(?:\.\d+)?|\.\d+)")
_SIGNS = {
    **{"×": "*", "x": "*", "X": "*", "·": "*", "÷": "/", "−": "-"},
    **{r"\times": "*", r"\cdot": "*", r"\div": "/", OVER: "/", r"\%": "%"},
}
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
        return Fraction(self.text.replace(",", ""))


def tokens_of(text: str) -> list[Token]:
    """Numbers, signs, white space, and whatever else there is, in order."""
    over = {fraction.start(2) for fraction in _FRACTION.finditer(text)}
    found = []
    for match in _TOKEN.finditer(text):
        kind = {"times": "sign"}.get(str(match.lastgroup), str(match.lastgroup))
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

    @property
    def line(self) -> Line:
        return _line(self.lefts[0])

    @property
    def result(self) -> Fraction:
        return self.results[0].value


def find_equations(text: str) -> list[Equation]:
    """The equations of a text, in their order."""
    notes = list(_NOTE.finditer(text))
    plain = _NOTE.sub(lambda note: " " * len(note.group()), text)
    found = _plain_equations(plain, 0)
    for note in notes[:MAX_EQUATIONS]:
        around = next((e for e in found if e.start < note.start() and e.end > note.end()), None)
        inside = _plain_equations(note.group()[2:-2], note.start() + 2)
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
    return sorted(found, key=lambda equation: equation.start)[:MAX_EQUATIONS]


def _plain_equations(text: str, offset: int) -> list[Equation]:
    tokens = _shifted([t for t in tokens_of(text) if t.kind != "skipped"], offset)
    found = []
    for place, token in enumerate(tokens):
        if token.text != "=" or len(found) >= MAX_EQUATIONS:
            continue
        left, result = _left_of(tokens, place), _result_behind(tokens, place + 1)
        if result is None or sum(t.kind == "number" for t in left) < 2:
            continue
        if parse(_line(left)) is not None:
            found.append(Equation(lefts=(left,), results=(result,), start=left[0].start, end=result.end))
    return found


def _left_of(tokens: Sequence[Token], place: int) -> tuple[Token, ...]:
    """The longest expression that ends in front of an equals sign; a chain of equations has one in front of each."""
    start = place
    while (
        start > 0 and place - start < MAX_LEFT and tokens[start - 1].kind != "other" and tokens[start - 1].text != "="
    ):
        start -= 1
    while start < place and (tokens[start].text in "*/+)-=%" or parse(_line(tokens[start:place])) is None):
        start += 1
    return tuple(tokens[start:place])


def _result_behind(tokens: Sequence[Token], place: int) -> Token | None:
    """The number behind an equals sign, with its minus; None for a share in percent, whose left side may be one too."""
    first, second, third = (*tokens[place : place + 3], *(Token("other", "", 0, 0),) * 3)[:3]
    if first.sign == "-" and second.kind == "number":
        first, second = Token("number", f"-{second.text}", first.start, second.end), third
    return first if first.kind == "number" and second.text != "%" else None


def _shifted(tokens: Sequence[Token], offset: int) -> list[Token]:
    return [Token(t.kind, t.text, t.start + offset, t.end + offset) for t in tokens]


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
    return None if any(token.kind == "other" for token in tokens) else evaluate(_line(tokens), {})


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
