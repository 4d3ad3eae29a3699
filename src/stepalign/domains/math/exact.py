"""Equality of expressions that need no algebra system: polynomials in letters, square roots of numbers and pi.

Such an expression has one normal form over the rationals: the square roots of different primes are independent
(Besicovitch 1940), pi is transcendental, letters are free, and i is the imaginary unit. So two are equal exactly
where their normal forms are: 0.1 ms, where a parse and a simplification cost 8. For everything else - functions, ``e``,
other roots, quotients by a sum, anything that can be read in two ways - the answer is None.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import isqrt

_TOKEN = re.compile(
    r" ?(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:frac|binom|sqrt|times|pi)(?![A-Za-z]))"
    r"|(?P<name>[A-Za-z](?:_(?:\w|\{\w{1,8}\}))?)|(?P<sign>[-+*/^(){}]))",
    re.ASCII,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_AMBIGUOUS = re.compile(r"[A-Za-z]{3}|e|[A-Zfghp] ?\(")
"""Words, e, and what may be a function of something; looked for between the commands."""
_MIXED_NUMBER = re.compile(r"\d ?\\frac")

_MAX_TERMS = 200
_MAX_EXPONENT = 24
_MAX_BITS = 4_096
_MAX_RADICAND = 10**8
"""Square roots of larger numbers are not taken apart."""

Monomial = tuple[tuple[str, int], ...]
"""(generator, exponent) in the order of the generators: a letter, "pi", or the square root of a prime, "√3"."""
Polynomial = dict[Monomial, Fraction]


def equal_expressions(one: str, other: str) -> bool | None:
    """Whether two normal forms (``answers.normal_form``) are equal; None where we cannot tell.

    Unequal expressions with a decimal number are left open: against an irrational number a few places may suffice.
    """
    first = read_polynomial(one)
    second = read_polynomial(other) if first is not None else None
    if first is None or second is None:
        return None
    if first == second:
        return True
    open_to_doubt = "." in one + other or one.lower() != one or other.lower() != other
    return None if open_to_doubt else False


def read_polynomial(text: str) -> Polynomial | None:
    """The normal form of an expression, without terms that are zero; None where it is not one we know."""
    if _MIXED_NUMBER.search(text) or _AMBIGUOUS.search(_COMMAND.sub("\\\\", text)):
        return None
    found = list(_TOKEN.finditer(text))
    if sum(len(token[0]) for token in found) < len(text):  # something between them is no token
        return None
    tokens = [(token.lastgroup or "", token[token.lastgroup or 0]) for token in found]
    try:
        reader = _Reader(tokens)
        value = reader.sum()
        return value if reader.at_end() else None
    except (_UnknownError, ZeroDivisionError):
        return None


class _UnknownError(Exception):
    """This is not an expression we know."""


class _Reader:
    """Recursive descent: sum, product, power, atom."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._tokens)

    def _next(self) -> str:
        return "" if self.at_end() else self._tokens[self._at][1]

    def _take(self, wanted: str) -> bool:
        taken = self._next() == wanted
        self._at += taken
        return taken

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise _UnknownError

    def sum(self) -> Polynomial:
        negative = self._take("-")
        if not negative:
            self._take("+")
        total = _scaled(self._product(), -1 if negative else 1)
        while self._next() in ("+", "-"):
            sign = -1 if self._take("-") or not self._take("+") else 1
            total = _plus(total, _scaled(self._product(), sign))
        return total

    def _product(self) -> Polynomial:
        value = self._power()
        while True:
            if self._take("*") or self._take("\\times"):
                value = _times(value, self._power())
            elif self._take("/"):
                value = _times(value, _inverse(self._power()))
                if self._starts_factor():  # 1/2x can be read in two ways
                    raise _UnknownError
            elif self._starts_factor():
                value = _times(value, self._power())
            else:
                return value

    def _starts_factor(self) -> bool:
        if self.at_end():
            return False
        kind, text = self._tokens[self._at]
        if kind == "number" and self._tokens[self._at - 1][0] == "number":
            raise _UnknownError
        return kind in ("number", "name") or text in ("(", "{", "\\frac", "\\binom", "\\sqrt", "\\pi")

    def _power(self) -> Polynomial:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = _as_integer(self._group("{", "}") if self._next() == "{" else self._digit())
        if self._next() == "^" or abs(exponent) > _MAX_EXPONENT:
            raise _UnknownError
        value: Polynomial = {(): Fraction(1)}
        for _ in range(abs(exponent)):
            value = _times(value, base)
        return _inverse(value) if exponent < 0 else value

    def _digit(self) -> Polynomial:
        """An exponent without braces is one digit: in x^23 it is 2 for LaTeX and 23 for people."""
        if self.at_end() or self._tokens[self._at][0] != "number" or len(self._next()) > 1:
            raise _UnknownError
        return self._atom()

    def _atom(self) -> Polynomial:
        if self.at_end():
            raise _UnknownError
        kind, text = self._tokens[self._at]
        if text in ("(", "{"):
            return self._group(text, ")" if text == "(" else "}")
        self._at += 1
        if kind == "number":
            return {(): value} if (value := Fraction(text)) else {}
        if kind == "name":
            return {((text, 1),): Fraction(1)}
        if text == "\\pi":
            return {(("pi", 1),): Fraction(1)}
        if text == "\\frac":
            return _times(self._group("{", "}"), _inverse(self._group("{", "}")))
        if text == "\\binom":
            return _binomial(self._group("{", "}"), _as_integer(self._group("{", "}")))
        if text == "\\sqrt":
            return _square_root(self._group("{", "}"))
        raise _UnknownError

    def _group(self, opening: str, closing: str) -> Polynomial:
        self._expect(opening)
        value = self.sum()
        self._expect(closing)
        return value


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic of normal forms


def _plus(one: Polynomial, other: Polynomial) -> Polynomial:
    total = {monomial: one.get(monomial, 0) + other.get(monomial, Fraction(0)) for monomial in {**one, **other}}
    return _bounded({monomial: factor for monomial, factor in total.items() if factor})


def _scaled(value: Polynomial, factor: int) -> Polynomial:
    return {monomial: factor * coefficient for monomial, coefficient in value.items()}


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    if len(one) * len(other) > 10 * _MAX_TERMS:
        raise _UnknownError
    product: Polynomial = {}
    for left, factor in one.items():
        for right, other_factor in other.items():
            monomial, coefficient = _times_monomials(left, right)
            product[monomial] = product.get(monomial, Fraction(0)) + coefficient * factor * other_factor
    return _bounded({monomial: factor for monomial, factor in product.items() if factor})


def _times_monomials(one: Monomial, other: Monomial) -> tuple[Monomial, Fraction]:
    """The product, in which the square of a square root, and of i, has become a number."""
    powers = dict(one)
    for name, exponent in other:
        powers[name] = powers.get(name, 0) + exponent
    coefficient = Fraction(1)
    for name in [name for name in powers if name.startswith("√")]:
        whole, powers[name] = divmod(powers[name], 2)
        coefficient *= Fraction(int(name[1:])) ** whole
    if "i" in powers:
        whole, powers["i"] = divmod(powers["i"], 2)
        coefficient *= -1 if whole % 2 else 1
    return tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent)), coefficient


def _inverse(value: Polynomial) -> Polynomial:
    """One over a single term."""
    if len(value) != 1:
        raise ZeroDivisionError if not value else _UnknownError
    ((monomial, factor),) = value.items()
    inverted, coefficient = _times_monomials(tuple((name, -exponent) for name, exponent in monomial), ())
    return {inverted: coefficient / factor}


def _binomial(top: Polynomial, bottom: int) -> Polynomial:
    if not 0 <= bottom <= _MAX_EXPONENT:
        raise _UnknownError
    value: Polynomial = {(): Fraction(1)}
    for index in range(bottom):
        factor = _plus(top, {(): Fraction(-index)} if index else {})
        value = _times(value, {monomial: part / (index + 1) for monomial, part in factor.items()})
    return value


def _square_root(value: Polynomial) -> Polynomial:
    """Of a rational number: sqrt(a/b) = sqrt(ab)/b, and sqrt(-a) = i sqrt(a)."""
    if not value:
        return {}
    number = value.get((), Fraction(0))
    radicand = abs(number.numerator) * number.denominator
    if len(value) != 1 or not 0 < radicand <= _MAX_RADICAND:
        raise _UnknownError
    imaginary = [("i", 1)] if number < 0 else []
    outside, primes = Fraction(1, number.denominator), []
    factor = 2
    while factor * factor <= radicand:
        while radicand % (factor * factor) == 0:
            radicand //= factor * factor
            outside *= factor
        if radicand % factor == 0:
            radicand //= factor
            primes.append(factor)
        factor += 1
    if (root := isqrt(radicand)) * root == radicand:
        outside *= root
    else:
        primes.append(radicand)
    return {tuple(sorted([*imaginary, *((f"√{prime}", 1) for prime in primes)])): outside}


def _as_integer(value: Polynomial) -> int:
    number = value.get((), Fraction(0))
    if value.keys() - {()} or number.denominator != 1:
        raise _UnknownError
    return int(number)


def _bounded(value: Polynomial) -> Polynomial:
    """Give up before the numbers or the sum grow out of hand."""
    bits = (factor.numerator.bit_length() + factor.denominator.bit_length() for factor in value.values())
    if len(value) > _MAX_TERMS or max(bits, default=0) > _MAX_BITS:
        raise _UnknownError
    return value
