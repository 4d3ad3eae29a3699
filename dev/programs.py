"""A tiny language for a solver that writes Python: a question is a chain, a program has one statement an operation.

For ``7 + 6 * 5 from 9`` (``from 9`` is 9 minus the value so far) the solver writes::

    ```python
    x = 7 ; x = x + 6 ; x = x * 5 ; x = 9 - x ; print(x%20)
    ```

As a tool's call its output is the answer; with ``read`` in the place of the first number (``x = int(input())``) the
program itself is the answer. A *fact* is one of 36 pairs of operation and operand, with its statement. References are
another author's: ``y += 6 ;``. The context designs of the file know the truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stepalign.feedback.designs import Design, Group
from stepalign.rollouts.repliers import find_call

OPERATIONS = {
    "+": ("x = x + {}", "y += {}"),
    "-": ("x = x - {}", "y -= {}"),
    "*": ("x = x * {}", "y *= {}"),
    "from": ("x = {} - x", "y = {} - y"),
}
"""Word -> the statement of the solver and that of the reference author."""
_APPLY = {"+": lambda x, k: x + k, "-": lambda x, k: x - k, "*": lambda x, k: x * k, "from": lambda x, k: k - x}
OPERANDS = range(1, 10)
MODULUS = 20

Fact = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Program:
    """A first value (None: read from standard input) and operations."""

    start: int | None
    facts: tuple[Fact, ...]

    @property
    def question(self) -> str:
        start = "read" if self.start is None else str(self.start)
        return " ".join([start, *(f"{word} {k}" for word, k in self.facts)])

    def output(self, start: int = 0) -> int:
        value = start if self.start is None else self.start
        for word, k in self.facts:
            value = _APPLY[word](value, k)
        return value % MODULUS

    def write(self, author: int = 0, *, prints: bool = True) -> str:
        """The fenced program in an author's words: 0 is the solver, 1 the reference author."""
        name, start = "xy"[author], "int(input())" if self.start is None else self.start
        lines = [f"{name} = {start}", *(OPERATIONS[word][author].format(k) for word, k in self.facts)]
        end = f" ; print({name}%{MODULUS})" if prints else ""
        return f"```python\n{' ; '.join(lines)}{end}\n```"


def parse_question(question: str) -> Program:
    start, *rest = question.split()
    facts = tuple((word, int(k)) for word, k in zip(rest[::2], rest[1::2], strict=True))
    return Program(None if start == "read" else int(start), facts)


def draw_program(rng: random.Random, lengths: tuple[int, int], *, reads: bool) -> Program:
    """A uniformly drawn chain."""
    facts = [(rng.choice([*OPERATIONS]), rng.choice(OPERANDS)) for _ in range(rng.randint(*lengths))]
    return Program(None if reads else rng.randrange(MODULUS), tuple(facts))


# ---------------------------------------------------------------------------------------------------------------------
# Context designs: the program that knows the truth about an attempt


def corrected(question: str, text: str) -> str:
    """The attempt's own program with its wrong statements corrected in its own words; right ones come out verbatim, as
    an author has one statement a fact. An attempt without a program is answered with one in the solver's words."""
    return parse_question(question).write(int((find_call(text) or "").startswith("y")))


def _aligned(group: Group, index: int) -> str:
    attempt = group.attempts[index]
    calls = [turn.text for turn in attempt.turns if turn.role == "solver" and find_call(turn.text)]
    return corrected(group.problem.question, calls[-1] if calls else attempt.text)


aligned = Design(_aligned, "StepAlignFB")
