"""Changes of a program of equations: every single one, and what leads an unfinished program to its goal."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from stepalign.critics.truth import Program, ReferenceExpression, symbols_of
from stepalign.feedback.equations import Line, symbol


def repairs(program: Program, truth: ReferenceExpression) -> Iterator[tuple[str, int, Program]]:
    """(kind, name of the equation, changed program) for every single change.

    An attempt that is right as far as it goes is led on first. Then come the places that the reference does not have,
    in their order, and the others from the last one, so that most of the attempt stays; at each the smallest kinds
    first.
    """
    symbols, own = symbols_of(program, truth.symbol), set(truth.symbols.values())
    new = {symbols[name]: name for name in reversed(program)}  # what is calculated again says nothing
    known = {name for name in program if symbols[name] in own and new[symbols[name]] == name}
    names = sorted(program, key=lambda name: (name in known, -name if name in known else name))
    if len(known) == len(program):
        yield from (("missing", names[0], changed) for changed in _led_on(program, truth))
    for name in names:
        for kind, changes in (("operation", signs), ("operand", _shortened), ("operand", operands), ("order", swaps)):
            yield from ((kind, name, {**program, name: line}) for line in changes(program, name, truth))
        for heir in dict.fromkeys(item for item in program[name] if not isinstance(item, str)):
            yield "extra", name, _without(program, name, heir)
        yield from (("missing", name, changed) for changed in _with_one_before(program, name, truth))
    yield from (("missing", names[0], changed) for changed in _led_on(program, truth))


def signs(program: Program, name: int, truth: ReferenceExpression) -> Iterator[Line]:
    line = program[name]
    for place, item in enumerate(line):
        if isinstance(item, str) and item in "+-*/":
            yield from ((*line[:place], sign, *line[place + 1 :]) for sign in "+-*/" if sign != item)


def operands(program: Program, name: int, truth: ReferenceExpression) -> Iterator[Line]:
    line, earlier = program[name], [n for n in program if n < name]
    for place, item in enumerate(line):
        if not isinstance(item, str):
            others = (o for o in (*reversed(earlier), *truth.leaves) if (type(o), o) != (type(item), item))
            yield from ((*line[:place], other, *line[place + 1 :]) for other in others)


def _shortened(program: Program, name: int, truth: ReferenceExpression) -> Iterator[Line]:
    """A sum or product without one of its members."""
    line = program[name]
    if len(line) > 3 and not {"(", ")", "%"}.intersection(item for item in line if isinstance(item, str)):
        yield from ((*line[: place - 1], *line[place + 1 :]) for place in range(len(line) - 1, 0, -2))


def swaps(program: Program, name: int, truth: ReferenceExpression) -> Iterator[Line]:
    line = program[name]
    if len(line) == 3 and line[1] in ("-", "/"):
        yield line[::-1]


def _without(program: Program, name: int, heir: Fraction | int) -> Program:
    return {
        other: tuple(heir if type(item) is int and item == name else item for item in line)
        for other, line in program.items()
        if other != name
    }


def _led_on(program: Program, truth: ReferenceExpression) -> Iterator[Program]:
    """One more equation at the end. It is called -1."""
    last = list(program)[-1]
    yield from ({**program, -1: line} for line in _steps_from(last, program, truth))


def _with_one_before(program: Program, name: int, truth: ReferenceExpression) -> Iterator[Program]:
    """One more equation, called -1, in front of one that uses its result."""
    before = {n: line for n, line in program.items() if n < name}
    behind = {n: line for n, line in program.items() if n > name}
    for place, item in enumerate(program[name]):
        if isinstance(item, str):
            continue
        changed = (*program[name][:place], -1, *program[name][place + 1 :])
        for sign, leaf in ((sign, leaf) for sign in "+-*/" for leaf in truth.leaves):
            yield from (
                {**before, -1: line, name: changed, **behind} for line in ((item, sign, leaf), (leaf, sign, item))
            )


def completed(program: Program, truth: ReferenceExpression) -> Program | None:
    """A program whose equations are all right, led to the goal: one or two more from its last one, else the rest of the
    reference. New equations have names from 1000 on."""
    symbols = symbols_of(program, truth.symbol)
    last = list(program)[-1] if program else None
    if last is not None:
        for first in _steps_from(last, program, truth):
            value = symbol(first, symbols, truth.symbol)
            if value == truth.goal:
                return {**program, 1000: first}
        for first in _steps_from(last, program, truth):
            value = symbol(first, symbols, truth.symbol)
            if value in truth.parts and value not in symbols.values():
                longer, known = {**program, 1000: first}, {**symbols, 1000: value}
                for second in _steps_from(1000, longer, truth):
                    if symbol(second, known, truth.symbol) == truth.goal:
                        return {**longer, 1001: second}
    names: dict[int, int] = {}
    rest = dict(program)
    have = {value: name for name, value in symbols.items()}
    for name, line in truth.program.items():
        if (value := truth.symbols[name]) is None:
            return None
        if value not in have:
            have[value] = 1000 + name
            rest[1000 + name] = tuple(names[item] if type(item) is int else item for item in line)
        names[name] = have[value]
        if value == truth.goal:
            return rest
    return None


def _steps_from(name: int, program: Program, truth: ReferenceExpression) -> Iterator[Line]:
    others = (*[n for n in program if n != name], *truth.leaves)
    for sign, other in ((sign, other) for sign in "+-*/" for other in others):
        yield (name, sign, other)
        if sign in "-/":
            yield (other, sign, name)
