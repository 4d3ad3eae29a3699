"""The embedded task: arithmetic on a clock with twenty hours, solved step by step.

A question is a chain such as ``19 + 6 + 5 - 5``; after 19 comes 0. A solution takes one operand a step::

    <step_1> 19 + 6 = 5 ; <step_2> 5 + 5 = 10 ; <step_3> 10 - 5 = 5 ; <answer> 5

A step is a *fact* (one of 20 values x 18 signed operands) that a tiny model can know well or badly. A reference
may differ from the solver's own way of working, by assumption: there are two valid *derivations*, operands taken from
the left (``L``) or from the right (``R``) with other values in between, and two *authors*, the solver who writes
``+ = ;`` and the reference author with ``plus gives .``. ``rho`` is the share of references in the order ``R``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from stepalign.records import Problem
from stepalign.storage.fingerprint import sha256

EMBEDDED = "embedded:arithmetic"
"""How a recipe names the shipped solver and its problems."""
MODULUS = 20
MAX_OPERAND = 9
MAX_STEPS = 8

Order = Literal["L", "R"]
Author = Literal["solver", "reference"]

# Each author draws every word by itself, so that wording is a distribution and not a password.
_WORDS: dict[Author, dict[str, tuple[tuple[str, ...], tuple[float, ...]]]] = {
    "solver": {
        "+": (("+", "plus"), (0.95, 0.05)),
        "-": (("-", "minus"), (0.95, 0.05)),
        "equals": (("=", "gives", "is"), (0.94, 0.03, 0.03)),
        "end": ((";", ".", ","), (0.94, 0.03, 0.03)),
    },
    "reference": {
        "+": (("plus", "+"), (0.92, 0.08)),
        "-": (("minus", "-"), (0.92, 0.08)),
        "equals": (("gives", "is", "="), (0.92, 0.04, 0.04)),
        "end": ((".", ",", ";"), (0.92, 0.04, 0.04)),
    },
}
_SIGN = {"+": 1, "plus": 1, "-": -1, "minus": -1}
_EQUALS = frozenset(("=", "gives", "is"))
_END = frozenset((";", ".", ","))
STEP_TAGS = tuple(f"<step_{number}>" for number in range(1, MAX_STEPS + 1))
ANSWER_TAG = "<answer>"
FEEDBACK_WORDS = ("Feedback", ":", "right", "wrong")
VOCABULARY = (
    *STEP_TAGS,
    ANSWER_TAG,
    *(str(value) for value in range(MODULUS)),
    *sorted(_SIGN),
    *sorted(_EQUALS),
    *sorted(_END),
    *FEEDBACK_WORDS,
)


# ---------------------------------------------------------------------------------------------------------------------
# Chains: the questions


@dataclass(frozen=True, slots=True)
class Chain:
    """A start value and signed operands, to be applied one a step, modulo 20."""

    start: int
    operands: tuple[int, ...]

    @property
    def question(self) -> str:
        """``19 + 6 - 5``."""
        return " ".join([str(self.start), *(f"{'+' if x > 0 else '-'} {abs(x)}" for x in self.operands)])

    @property
    def answer(self) -> int:
        return (self.start + sum(self.operands)) % MODULUS

    def in_order(self, order: Order) -> tuple[int, ...]:
        """The operands in the order in which a derivation takes them."""
        return self.operands if order == "L" else self.operands[::-1]


def parse_question(question: str) -> Chain:
    """The chain behind a question. Raises ValueError when the text is not one."""
    words = question.split()
    if len(words) < 3 or len(words) % 2 == 0 or not all(op in _SIGN for op in words[1::2]):
        raise ValueError(f"not a chain: {question!r}")
    operands = tuple(_SIGN[op] * int(x) for op, x in zip(words[1::2], words[2::2], strict=True))
    return Chain(int(words[0]), operands)


# ---------------------------------------------------------------------------------------------------------------------
# Traces: the solutions


@dataclass(frozen=True, slots=True)
class TraceStep:
    """Seven words: ``<step_2> 5 + 5 = 10 ;``."""

    number: int
    value: int
    operator: str
    operand: int
    equals: str
    result: int
    end: str

    @property
    def signed_operand(self) -> int:
        return _SIGN[self.operator] * self.operand

    @property
    def fact(self) -> tuple[int, int, int]:
        return self.value, self.signed_operand, self.result

    @property
    def text(self) -> str:
        tag = f"<step_{self.number}>"
        return f"{tag} {self.value} {self.operator} {self.operand} {self.equals} {self.result} {self.end}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The steps of a solution and its answer. An incomplete trace has no answer."""

    steps: tuple[TraceStep, ...]
    answer: int | None

    @property
    def text(self) -> str:
        closing = [] if self.answer is None else [f"{ANSWER_TAG} {self.answer}"]
        return " ".join([step.text for step in self.steps] + closing)


def parse_trace(text: str) -> Trace:
    """The longest well-formed beginning of a text: whole steps numbered 1, 2, ... and, behind them, the answer."""
    words = text.split()
    steps: list[TraceStep] = []
    position = 0
    while len(steps) < MAX_STEPS and (step := _parse_step(words[position : position + 7], len(steps) + 1)):
        steps.append(step)
        position += 7
    rest = words[position:]
    answered = len(rest) == 2 and rest[0] == ANSWER_TAG and _is_value(rest[1])
    return Trace(tuple(steps), int(rest[1]) if answered else None)


def _is_value(word: str) -> bool:
    return word.isascii() and word.isdigit() and int(word) < MODULUS


def _parse_step(words: Sequence[str], number: int) -> TraceStep | None:
    if len(words) != 7 or words[0] != f"<step_{number}>":
        return None
    _, value, operator, operand, equals, result, end = words
    known = operator in _SIGN and equals in _EQUALS and end in _END
    if not (known and all(map(_is_value, (value, operand, result)))):
        return None
    return TraceStep(number, int(value), operator, int(operand), equals, int(result), end)


def write_step(
    rng: random.Random, author: Author, number: int, value: int, signed_operand: int, result: int
) -> TraceStep:
    """A step in an author's words."""
    slots = ("+" if signed_operand > 0 else "-", "equals", "end")
    operator, equals, end = (rng.choices(*_WORDS[author][slot])[0] for slot in slots)
    return TraceStep(number, value, operator, abs(signed_operand), equals, result, end)


def write_solution(rng: random.Random, chain: Chain, order: Order, author: Author) -> Trace:
    """A correct solution."""
    steps, value = [], chain.start
    for number, x in enumerate(chain.in_order(order), 1):
        result = (value + x) % MODULUS
        steps.append(write_step(rng, author, number, value, x, result))
        value = result
    return Trace(tuple(steps), value)


def reworded(rng: random.Random, trace: Trace, author: Author) -> Trace:
    """The same derivation in an author's words."""
    steps = tuple(write_step(rng, author, s.number, s.value, s.signed_operand, s.result) for s in trace.steps)
    return replace(trace, steps=steps)


def make_problem(chain: Chain, *, rho: float, seed: int = 0) -> Problem:
    """A problem with a reference solution by the other author.

    ``rho`` is the probability that the reference takes the operands from the right. The draw depends on the question
    alone, so a problem keeps its reference and a larger ``rho`` only adds to the set of right-to-left references.
    """
    rng = random.Random(f"reference-{seed}-{chain.question}")
    order: Order = "R" if rng.random() < rho else "L"
    reference = write_solution(rng, chain, order, "reference")
    return Problem(
        problem_id=sha256(chain.question)[:12],
        question=chain.question,
        answer=str(chain.answer),
        reference=reference.text,
        metadata={"reference_order": order},
    )


# ---------------------------------------------------------------------------------------------------------------------
# The truth about an attempt: what the programmatic critic and the localisation numbers rest on


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where an attempt goes wrong, judged along the attempt's own order of operands."""

    attempt: Trace
    order: Order | None
    """None when no valid derivation begins like the attempt's first step: the whole approach is wrong."""
    num_right: int
    """Steps that are right, counted from the beginning."""
    first_error: str
    """Label of the first wrong step, "answer", or "" when everything written is right."""
    complete: bool
    """Whether the attempt reaches an answer in the expected format."""
    correction: Trace | None
    """The attempt's right steps verbatim, then the corrected rest in the attempt's own words."""


def diagnose(question: str, text: str) -> Diagnosis:
    """Follow an attempt step by step, in its own order."""
    chain, attempt = parse_question(question), parse_trace(text)
    order = _order_of(chain, attempt)
    if order is None:
        label = "1" if attempt.steps else ""
        return Diagnosis(attempt, None, 0, label, attempt.answer is not None, None)
    expected = write_solution(random.Random(0), chain, order, "solver")
    pairs = zip(attempt.steps, expected.steps, strict=False)
    num_right = sum(1 for _ in takewhile(lambda pair: pair[0].fact == pair[1].fact, pairs))
    steps = [_in_the_words_of(attempt, true) for true in expected.steps[num_right:]]
    correction = Trace((*attempt.steps[:num_right], *steps), expected.answer)
    complete = attempt.answer is not None
    first_error = ""
    if num_right < len(attempt.steps):
        first_error = str(num_right + 1)
    elif complete and (num_right, attempt.answer) != (len(expected.steps), expected.answer):
        first_error = "answer"  # a wrong one, or one from an intermediate value
    return Diagnosis(attempt, order, num_right, first_error, complete, correction)


def _order_of(chain: Chain, attempt: Trace) -> Order | None:
    """The order whose operands the attempt follows longest; left to right when both fit equally well."""

    def agreement(order: Order) -> int:
        pairs = zip(attempt.steps, chain.in_order(order), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].signed_operand == pair[1], pairs))

    left, right = agreement("L"), agreement("R")
    if not attempt.steps or attempt.steps[0].value != chain.start or max(left, right) == 0:
        return None
    return "L" if left >= right else "R"


def _in_the_words_of(attempt: Trace, true: TraceStep) -> TraceStep:
    """A correct step in the solver's own words: those of its step with this number, else of its last one."""
    own = attempt.steps[min(true.number, len(attempt.steps)) - 1]
    spelled = own.operator in ("plus", "minus")
    operator = {1: "plus" if spelled else "+", -1: "minus" if spelled else "-"}[_SIGN[true.operator]]
    return replace(true, operator=operator, equals=own.equals, end=own.end)
