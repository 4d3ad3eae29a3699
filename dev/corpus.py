"""The text that the embedded solver reads before the experiment starts: its warm-start corpus.

Two things must come out of it, both measured by ``make_embedded.py`` and by a test on the shipped weights:

* *a fallible solver*: for some facts ("weak" ones) the corpus states one fixed wrong result with some probability and
  carries on consistently, so errors are local to a step and repeat across attempts;
* *a self-teacher that reads*: shown a solution, it copies whatever the text says, true or false. Only then does what
  the student learns come from the context and not from something the weights knew all along. That is why contexts are
  perturbed: a corpus whose contexts are always right teaches selective copying.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from stepalign.domains.arithmetic.task import (
    MAX_OPERAND,
    MODULUS,
    Author,
    Chain,
    Order,
    Trace,
    TraceStep,
    write_solution,
    write_step,
)
from stepalign.storage.fingerprint import digest

Fact = tuple[int, int]
"""(value, signed operand)."""


def draw_chain(rng: random.Random, num_steps: tuple[int, int]) -> Chain:
    """A uniformly drawn chain with between ``num_steps[0]`` and ``num_steps[1]`` operands."""
    count = rng.randint(*num_steps)
    operands = tuple(rng.choice((1, -1)) * rng.randint(1, MAX_OPERAND) for _ in range(count))
    return Chain(rng.randrange(MODULUS), operands)


def split_of(question: str) -> str:
    """The one split a question can ever belong to: "test", "validation", "train" or "warmstart".

    Decided by a hash of the text, so the splits are disjoint by construction.
    """
    bucket = digest(question)[0] % 8
    return {0: "test", 1: "validation", 2: "train"}.get(bucket, "warmstart")


def draw_chains(seed: int, split: str, num_steps: tuple[int, int]) -> Iterator[Chain]:
    """An endless stream of different chains of one split."""
    rng = random.Random(f"{split}-{seed}")
    seen: set[Chain] = set()
    while True:
        chain = draw_chain(rng, num_steps)
        if chain not in seen and split_of(chain.question) == split:
            seen.add(chain)
            yield chain


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Which facts the solver knows badly: fact -> (the wrong result it states, how often it states it)."""

    weak: Mapping[Fact, tuple[int, float]]

    def result(self, rng: random.Random, value: int, operand: int) -> int:
        """The result that the solver believes the step gives, this time."""
        wrong, probability = self.weak.get((value, operand), (0, 0.0))
        return wrong if rng.random() < probability else (value + operand) % MODULUS


def draw_knowledge(seed: int, *, weak_share: float = 0.30, error_rate: tuple[float, float] = (0.40, 0.95)) -> Knowledge:
    """A fixed set of weak facts: ``weak_share`` of all 360, each wrong at its own rate, by one or two hours."""
    rng = random.Random(f"knowledge-{seed}")
    facts = [(v, s * x) for v in range(MODULUS) for s in (1, -1) for x in range(1, MAX_OPERAND + 1)]
    weak = sorted(rng.sample(facts, round(weak_share * len(facts))))
    return Knowledge(
        {(v, x): ((v + x + rng.choice((-2, -1, 1, 2))) % MODULUS, rng.uniform(*error_rate)) for v, x in weak}
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares and rates of one phase of the corpus. All are assumptions of the embedded task."""

    num_steps: tuple[int, int] = (5, 7)
    in_context: float = 0.56
    """Share of examples that carry a context."""
    verdict_only: float = 0.07
    drafts: float = 0.15
    """Shares of the in-context examples; the rest shows a plain solution text."""
    perturbed: float = 0.40
    """Share of contexts in which results are replaced by other values."""
    max_perturbed: int = 2
    uniform: float = 0.60
    """Share of replacements drawn from all values; the others are off by one or two."""
    follow: float = 0.75
    """How often the response takes the context's order of operands when its own choice would be the other one."""
    copy_word: float = 0.90
    slip: float = 0.006
    """Per step: a result that should have been copied comes out as another value. Teaches to stay consistent with an
    error in the prefix, which is exactly what scoring a student's wrong trace needs."""


@dataclass(frozen=True, slots=True)
class Example:
    """Words of the user turn and of the response."""

    prompt: str
    response: str


def own_order(rng: random.Random) -> Order:
    """The solver works from the left in 85 of 100 cases."""
    return "L" if rng.random() < 0.85 else "R"


def own_author(rng: random.Random) -> Author:
    return "solver" if rng.random() < 0.90 else "reference"


def own_solution(rng: random.Random, chain: Chain, order: Order, author: Author, knowledge: Knowledge) -> Trace:
    """A solution from the solver's own noisy knowledge."""
    steps, value = [], chain.start
    for number, x in enumerate(chain.in_order(order), 1):
        result = knowledge.result(rng, value, x)
        steps.append(write_step(rng, author, number, value, x, result))
        value = result
    return Trace(tuple(steps), value)


def other_result(rng: random.Random, true: int, uniform: float) -> int:
    """A value that is not the true one: any, or off by one or two."""
    if rng.random() < uniform:
        return (true + rng.randrange(1, MODULUS)) % MODULUS
    return (true + rng.choice((-2, -1, 1, 2))) % MODULUS


def perturb(rng: random.Random, trace: Trace, positions: set[int], uniform: float) -> Trace:
    """Replace the results at some positions; the text always carries on consistently from the replaced value."""
    steps, value = [], trace.steps[0].value
    for index, step in enumerate(trace.steps):
        result = (value + step.signed_operand) % MODULUS
        if index in positions:
            result = other_result(rng, result, uniform)
        steps.append(replace(step, value=value, result=result))
        value = result
    return Trace(tuple(steps), value)


def follow(rng: random.Random, chain: Chain, guide: Trace, knowledge: Knowledge, mixture: Mixture) -> Trace:
    """The response of a solver that reads: words and results of the guide, except for slips.

    After a slip the response goes on from its own wrong value by its own knowledge, since the guide's results no
    longer apply.
    """
    author = own_author(rng)
    steps, value = [], chain.start
    for said in guide.steps:
        on_track = value == said.value
        if not on_track:
            result = knowledge.result(rng, value, said.signed_operand)
        elif rng.random() < mixture.slip:
            result = other_result(rng, said.result, uniform=0.5)
        else:
            result = said.result
        own = write_step(rng, author, said.number, value, said.signed_operand, result)
        steps.append(_copy_words(rng, own, said, mixture.copy_word))
        value = result
    return Trace(tuple(steps), value)


def _copy_words(rng: random.Random, own: TraceStep, said: TraceStep, copy_word: float) -> TraceStep:
    def pick(slot: str) -> str:
        return getattr(said if rng.random() < copy_word else own, slot)

    return replace(own, operator=pick("operator"), equals=pick("equals"), end=pick("end"))


def marked_draft(guide: Trace, wrong: TraceStep) -> str:
    """Right steps, the wrong step, the word "wrong", then the correction and the rest."""
    before, after = guide.steps[: wrong.number - 1], guide.steps[wrong.number - 1 :]
    rest = Trace(after, guide.answer)
    return " ".join([*(s.text for s in before), wrong.text, "wrong", rest.text])


def with_feedback(question: str, text: str) -> str:
    """The user turn of the self-teacher."""
    return f"{question} Feedback : {text}"


def draw_example(rng: random.Random, knowledge: Knowledge, mixture: Mixture, *, in_context: bool) -> Example:
    """One example of the corpus. Its question belongs to the warm-start split."""
    chain = draw_chain(rng, mixture.num_steps)
    while split_of(chain.question) != "warmstart":
        chain = draw_chain(rng, mixture.num_steps)
    mine = own_solution(rng, chain, own_order(rng), own_author(rng), knowledge)
    if not in_context:
        return Example(chain.question, mine.text)

    kind = rng.random()
    if kind < mixture.verdict_only:  # a verdict drawn at random tells nothing, and the response shows it
        return Example(with_feedback(chain.question, rng.choice(("right", "wrong"))), mine.text)

    guide = write_solution(rng, chain, rng.choice(("L", "R")), rng.choice(("solver", "reference")))
    if rng.random() < mixture.perturbed:
        count = rng.randint(1, mixture.max_perturbed)
        positions = set(rng.sample(range(len(guide.steps)), min(count, len(guide.steps))))
        guide = perturb(rng, guide, positions, mixture.uniform)

    shown = guide.text
    if kind < mixture.verdict_only + mixture.drafts:
        step = rng.choice(guide.steps)
        shown = marked_draft(guide, replace(step, result=other_result(rng, step.result, mixture.uniform)))

    takes_guide = rng.random() < mixture.follow or _same_order(mine, guide)
    response = follow(rng, chain, guide, knowledge, mixture) if takes_guide else mine
    return Example(with_feedback(chain.question, shown), response.text)


def _same_order(one: Trace, other: Trace) -> bool:
    return [s.signed_operand for s in one.steps] == [s.signed_operand for s in other.steps]
