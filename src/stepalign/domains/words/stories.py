"""Stories: the kinds of arithmetic word problems, as sentences and two routes of calculations to the answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NAMES = ("Mia", "Ben", "Lea", "Tom", "Ida", "Max", "Zoe", "Sam", "Eva", "Leo", "Ana", "Jon")
THINGS = ("stamps", "shells", "cards", "coins", "pens", "books", "apples", "stones", "cups", "keys")
GOODS = ("pen", "cup", "book", "card", "hat", "bag", "kite", "lamp")
MAX_VALUE = 999

_VALUES: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else -1,
}


class Unfit(Exception):  # noqa: N818 - no error: the draw is repeated
    """The numbers drawn lead through a negative, broken or too large value."""


@dataclass(frozen=True, slots=True)
class Calculation:
    """``left operator right = result``, whole and never negative. Raises Unfit otherwise."""

    left: int
    operator: str
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.result <= MAX_VALUE:
            raise Unfit

    @property
    def result(self) -> int:
        return _VALUES[self.operator](self.left, self.right)

    @property
    def text(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


Route = tuple[Calculation, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A problem before it has an id."""

    kind: str
    sentences: tuple[str, ...]
    """The last one asks."""
    route: Route
    """The calculations in the order of the story, which solutions follow."""
    other: Route
    """Another way to the same answer."""

    @property
    def question(self) -> str:
        return " ".join(self.sentences)

    @property
    def answer(self) -> int:
        return self.route[-1].result


def chain(start: int, *changes: tuple[str, int]) -> Route:
    """Calculations one after another, each on the result of the one before."""
    steps: list[Calculation] = []
    for operator, operand in changes:
        steps.append(Calculation(steps[-1].result if steps else start, operator, operand))
    return tuple(steps)


def _together(start: int, changes: Sequence[tuple[str, int]]) -> Route:
    """Additions and subtractions apart, then both at once."""
    more, less = ([x for sign, x in changes if sign == wanted] for wanted in "+-")
    sums = [chain(xs[0], *(("+", x) for x in xs[1:])) for xs in (more, less) if xs]
    gain, loss = sum(more), sum(less)
    steps = [step for steps in sums for step in steps]
    if more and less:
        steps.append(Calculation(max(gain, loss), "-", min(gain, loss)))
    return (*steps, Calculation(start, "+" if gain >= loss else "-", abs(gain - loss)))


# ---------------------------------------------------------------------------------------------------------------------
# Kinds. Each draws numbers up to ``top`` and a number of calculations.

Draw = tuple[tuple[str, ...], Route, Route]


def _changes(rng: random.Random, top: int, steps: int) -> Draw:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start, changes = rng.randint(2, top), [(rng.choice("+-"), rng.randint(2, top)) for _ in range(steps)]
    verbs = {
        "+": ("finds {} more", "gets {} from a friend", "buys {} more", "wins {}"),
        "-": ("loses {}", "gives {} away", "sells {}", "breaks {}"),
    }
    told = [f"{name} {rng.choice(verbs[sign]).format(x)}." for sign, x in changes]
    begin = rng.choice((f"{name} has {start} {thing}.", f"There are {start} {thing} in the box of {name}."))
    ask = rng.choice((f"How many {thing} does {name} have now?", f"How many {thing} are there in the end?"))
    return (begin, *told, ask), chain(start, *changes), _together(start, changes)


def _money(rng: random.Random, top: int, steps: int) -> Draw:
    name, (one, two) = rng.choice(NAMES), rng.sample(GOODS, 2)
    count, price, other = rng.randint(2, 5), rng.randint(2, max(3, top // 3)), rng.randint(2, top)
    cost = count * price
    bought = rng.choice((f"{name} buys {count} {one}s at {price} dollars each", f"One {one} costs {price} dollars"))
    bought += "." if bought.startswith(name) else f", and {name} buys {count} of them."
    if steps == 2:
        extra = rng.choice((f"A {two} costs {other} dollars more.", f"{name} also buys a {two} for {other} dollars."))
        if extra.startswith("A "):
            extra = f"{name} takes a {two} for {other} dollars as well."
        ask = rng.choice((f"How many dollars does {name} pay?", "How many dollars does that cost together?"))
        first = Calculation(count, "*", price)
        return (bought, extra, ask), (first, Calculation(cost, "+", other)), (first, Calculation(other, "+", cost))
    paid = (cost + other) // 10 * 10 + 10
    extra = f"{name} also buys a {two} for {other} dollars."
    pays = rng.choice((f"{name} pays with {paid} dollars.", f"{name} has {paid} dollars."))
    ask = "How many dollars are left?"
    first = Calculation(count, "*", price)
    route = (first, Calculation(cost, "+", other), Calculation(paid, "-", cost + other))
    turned = (first, *chain(paid, ("-", cost), ("-", other)))
    if steps == 3:
        return (bought, extra, pays, ask), route, turned
    gift = rng.randint(2, top)
    given = f"Then {name} gets {gift} dollars from {rng.choice([n for n in NAMES if n != name])}."
    ask = f"How many dollars does {name} have now?"
    end = paid - cost - other
    added = (first, *chain(paid, ("+", gift), ("-", cost), ("-", other)))
    return (bought, extra, pays, given, ask), (*route, Calculation(end, "+", gift)), added


def _times(rng: random.Random, top: int, steps: int) -> Draw:
    name = rng.choice(NAMES)
    does = rng.choice(("reads", "runs", "practises", "draws", "swims"))
    monday, more = rng.randint(5, top), rng.randint(2, max(3, top // 2))
    tuesday = monday + more
    begin = f"{name} {does} for {monday} minutes on Monday."
    second = rng.choice(
        (f"On Tuesday it is {more} minutes longer.", f"On Tuesday {name} {does} {more} minutes more than on Monday.")
    )
    first = Calculation(monday, "+", more)
    twice = Calculation(monday, "*", 2)
    if steps == 2:
        ask = rng.choice(("How many minutes are that on both days?", f"How many minutes does {name} need in all?"))
        return (
            (begin, second, ask),
            (first, Calculation(monday, "+", tuesday)),
            (twice, Calculation(2 * monday, "+", more)),
        )
    if steps == 3:
        rest = rng.randint(2, top)
        third = rng.choice((f"On Wednesday it is {rest} minutes.", f"{name} {does} for {rest} minutes on Wednesday."))
        route = (first, *chain(monday, ("+", tuesday), ("+", rest)))
        return (begin, second, third, "How many minutes are that on all three days?"), route, (
            twice, *chain(2 * monday, ("+", more), ("+", rest)),
        )  # fmt: skip
    third = "On Wednesday it is twice as long as on Monday."
    route = (first, twice, *chain(monday, ("+", tuesday), ("+", 2 * monday)))
    other = (Calculation(monday, "*", 4), Calculation(4 * monday, "+", more))
    return (begin, second, third, "How many minutes are that on all three days?"), route, other


def _comparison(rng: random.Random, top: int, steps: int) -> Draw:
    (one, two, three), thing = rng.sample(NAMES, 3), rng.choice(THINGS)
    first = rng.randint(3, top)
    (sign, x), (sign2, y) = ((rng.choice("+-"), rng.randint(2, top)) for _ in range(2))
    words = {"+": ("{} more", "{} more"), "-": ("{} fewer", "{} less")}

    def than(who: str, amount: int, sign: str, whom: str) -> str:
        return f"{who} has {rng.choice(words[sign]).format(amount)} than {whom}."

    begin = f"{one} has {first} {thing}."
    told = (begin, than(two, x, sign, one), than(three, y, sign2, two))
    route = chain(first, (sign, x), (sign2, y))
    second, third = route[0].result, route[1].result
    if steps == 2:
        return (*told, f"How many {thing} does {three} have?"), route, _together(first, [(sign, x), (sign2, y)])
    if steps == 3:
        ask = f"How many {thing} do {two} and {three} have together?"
        double = Calculation(second, "*", 2)
        other = (route[0], double, Calculation(double.result, sign2, y))
        return (*told, ask), (*route, Calculation(second, "+", third)), other
    ask = f"How many {thing} do the three have together?"
    return (*told, ask), (*route, *chain(first, ("+", second), ("+", third))), (
        *route, *chain(third, ("+", second), ("+", first)),
    )  # fmt: skip


def _groups(rng: random.Random, top: int, steps: int) -> Draw:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    boxes, each, extra = rng.randint(2, 6), rng.randint(2, max(3, top // 2)), rng.randint(2, top)
    begin = rng.choice(
        (f"{name} has {boxes} boxes with {each} {thing} each.", f"In {boxes} bags are {each} {thing} each.")
    )
    sign = rng.choice("+-")
    second = f"{name} {'finds' if sign == '+' else 'gives away'} {extra} {thing}."
    whole = Calculation(boxes, "*", each)
    total = Calculation(whole.result, sign, extra)
    route, told = (whole, total), (begin, second)
    turned = (Calculation(each, "*", boxes), total)
    if steps >= 3:
        children = rng.choice([n for n in range(2, 7) if total.result % n == 0] or [0])
        route = (*route, Calculation(total.result, "/", children))
        turned = (*turned, route[-1])
        told = (*told, f"The {thing} are shared equally by {children} children.")
        ask = f"How many {thing} does each child get?"
        if steps == 4:
            more = rng.randint(2, top)
            told, ask = (*told, f"Each child already has {more} {thing}."), f"How many {thing} does each child have?"
            route = (*route, Calculation(route[-1].result, "+", more))
            turned = (*turned, route[-1])
    else:
        ask = f"How many {thing} are there now?"
    return (*told, ask), route, turned


def _units(rng: random.Random, top: int, steps: int) -> Draw:
    name = rng.choice(NAMES)
    thing, big, small, factor = rng.choice(
        (("rope", "meters", "centimeters", 100), ("film", "hours", "minutes", 60), ("board", "feet", "inches", 12))
    )
    size = rng.randint(2, 4)
    changes = [("-", rng.randint(2, top)) for _ in range(steps - 1)]
    if rng.random() < 0.5:
        changes[-1] = ("+", changes[-1][1])
    verbs = {"+": f"{name} adds {{}} {small}.", "-": f"{name} cuts {{}} {small} off."}
    begin = rng.choice((f"A {thing} has {size} {big}.", f"{name} has a {thing} of {size} {big}."))
    told = [verbs[sign].format(x) for sign, x in changes]
    first = Calculation(size, "*", factor)
    start = first.result
    ask = f"How many {small} does the {thing} have now?"
    return (begin, *told, ask), (first, *chain(start, *changes)), (first, *_together(start, changes))


KINDS: dict[str, Callable[[random.Random, int, int], Draw]] = {
    "changes": _changes,
    "money": _money,
    "times": _times,
    "comparison": _comparison,
    "groups": _groups,
    "units": _units,
}

_DISTRACTIONS = (
    "{name} is {x} years old.",
    "The house has {x} windows.",
    "It is {x} o'clock.",
    "The shop is open for {x} hours.",
    "There are {x} trees in the garden.",
)


def draw_story(
    rng: random.Random, *, kinds: Iterable[str], steps: tuple[int, int], numbers: int, distractors: float
) -> Story:
    """A story of one of the kinds.

    Args:
        steps: fewest and most calculations.
        numbers: the largest number of a story, but for what follows from others.
        distractors: share of stories with a sentence whose number is of no use.
    """
    kinds = tuple(kinds)
    while True:
        kind = rng.choice(kinds)
        try:
            sentences, route, other = KINDS[kind](rng, numbers, rng.randint(*steps))
        except Unfit:
            continue
        if rng.random() < distractors:
            line = rng.choice(_DISTRACTIONS).format(name=rng.choice(NAMES), x=rng.randint(2, numbers))
            place = rng.randint(1, len(sentences) - 1)
            sentences = (*sentences[:place], line, *sentences[place:])
        return Story(kind=kind, sentences=sentences, route=route, other=other)
