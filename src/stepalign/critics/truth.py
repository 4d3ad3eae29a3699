"""The expression that a reference solution calculates, as symbols, and its parts, which an attempt may calculate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations

from stepalign.feedback.equations import PRIME, Equation, Line, evaluate, find_equations, numbers_of, parse, symbol

Program = dict[int, Line]
"""Equations by name, in their order; an index in a line names an earlier one."""


class ReferenceExpression:
    """The expression that a reference solution calculates, and its parts."""

    def __init__(self, calculations: Sequence[str], question: str, answer: Fraction) -> None:
        self.answer = answer
        self.numbers = list(dict.fromkeys(numbers_of(question)))
        self._known: dict[Fraction, int] = {}
        self._percents = {n / 100: n for n in self.numbers} if "%" in question or "percent" in question else {}
        equations = [e for text in calculations for e in find_equations(text)]
        self.program = link(equations, self.numbers)
        values, self.symbols = values_of(self.program), symbols_of(self.program, self.symbol)
        wanted = [name for name, value in values.items() if value == answer]
        self.goal = self.symbols.get(wanted[-1]) if wanted else None
        self.leaves = list(dict.fromkeys(
            [item for line in self.program.values() for item in line if isinstance(item, Fraction)] + self.numbers
        ))  # fmt: skip
        self.parts = self._parts() if self.goal is not None else set[int]()

    def symbol(self, number: Fraction) -> int:
        """A number of the question is an unknown, any other is itself; 0.2 is 20 / 100 where the question has 20 %."""
        if number not in self._known:
            self._known[number] = self._new_symbol(number)
        return self._known[number]

    def _new_symbol(self, number: Fraction) -> int:
        if number in self.numbers:
            return random.Random(str(number)).randrange(PRIME)
        for given, whole in ((number, 0), (1 - number, 1), (number - 1, -1)):
            if given in self._percents:
                share = self.symbol(self._percents[given]) * pow(100, -1, PRIME)
                return (share if whole == 0 else 1 - share if whole == 1 else 1 + share) % PRIME
        return number.numerator * pow(number.denominator, -1, PRIME) % PRIME

    def _parts(self) -> set[int]:
        """Symbols of what a way to the goal may calculate: of a sum any terms, of a product any factors."""
        used = [item for line in self.program.values() for item in line if type(item) is int]
        found = {s for s in self.symbols.values() if s is not None}
        for name in self.program:
            for terms, combine in (
                (self._members(name, "+-", used), lambda group: sum(s * v for s, v in group) % PRIME),
                (self._members(name, "*/", used), _product),
            ):
                for size in range(2, min(len(terms), 8) + 1):
                    for group in combinations(terms[:8], size):
                        value = combine(group)
                        inverse = PRIME - value if combine is not _product else pow(value, -1, PRIME) if value else 0
                        found |= {value, inverse}
        return found

    def _members(self, name: int, signs: str, used: Sequence[int]) -> list[tuple[int, int]]:
        """(1 or -1, symbol) of the terms or factors of an equation; what only it uses of another is taken apart."""

        def members(tree: object, sign: int) -> list[tuple[int, int]]:
            if isinstance(tree, tuple) and tree[1] in signs:
                return [*members(tree[0], sign), *members(tree[2], sign if tree[1] in "+*" else -sign)]
            if type(tree) is int and used.count(tree) == 1:
                inner = parse(self.program[tree])
                if isinstance(inner, tuple) and inner[1] in signs:
                    return members(inner, sign)
            value = self._symbol_of(tree)
            return [] if value is None else [(sign, value)]

        return members(parse(self.program[name]), 1)

    def _symbol_of(self, tree: object) -> int | None:
        if isinstance(tree, tuple):
            left, right = self._symbol_of(tree[0]), self._symbol_of(tree[2])
            names = {-1: left, -2: right}
            return None if left is None or right is None else symbol((-1, tree[1], -2), names, self.symbol)
        return self.symbols.get(tree) if type(tree) is int else self.symbol(tree)  # type: ignore[arg-type]


def _product(group: Sequence[tuple[int, int]]) -> int:
    value = 1
    for sign, factor in group:
        value = value * (factor if sign > 0 else pow(factor, -1, PRIME) if factor else 0) % PRIME
    return value


def link(equations: Sequence[Equation], known: Sequence[Fraction]) -> Program:
    """Equations with their numbers replaced by the earlier equation that states them.

    A result that is not used yet comes before a number of the question, that one before a result that is.
    """
    program: Program = {}
    used: set[int] = set()
    for name, equation in enumerate(equations):
        line = []
        for item in equation.line:
            stated = [n for n in program if not isinstance(item, str) and equations[n].result == item]
            fresh = [n for n in stated if n not in used]
            chosen = fresh[-1:] or ([] if item in known else stated[-1:])
            used.update(chosen)
            line.append(chosen[0] if chosen else item)
        program[name] = tuple(line)
    return program


def values_of(program: Program) -> dict[int, Fraction | None]:
    """The exact values of the equations, each from those before it."""
    values: dict[int, Fraction | None] = {}
    for name, line in program.items():
        values[name] = evaluate(line, values)
    return values


def symbols_of(program: Program, symbols: Callable[[Fraction], int]) -> dict[int, int | None]:
    found: dict[int, int | None] = {}
    for name, line in program.items():
        found[name] = symbol(line, found, symbols)
    return found
