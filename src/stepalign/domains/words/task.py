"""Word problems as problems: their names, sets, solutions and references.

A solution has one calculation a step::

    <step_1> 80 + 48 = 128
    <step_2> 128 - 31 = 97
    <answer> 97

A reference may be in other words ("Starting with 80, adding 48 gives 128.") and on another route; ``data.reworded`` and
``data.rho`` are the shares of these. Both are drawn from the question alone: a larger share only adds to the set.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from urllib.parse import parse_qsl

from stepalign.domains.words.stories import KINDS, Route, Story, draw_story
from stepalign.errors import ConfigError, meant
from stepalign.problems.sets import problem_id
from stepalign.records import Problem
from stepalign.storage.fingerprint import digest

SOURCE = "embedded:words"
SIZES = {"train": 600, "validation": 200, "test": 400, "warmup": 4000}
"""Problems of a set, unless the recipe limits it."""
MAX_IDLE = 20_000
"""Draws without a new story after which a set counts as exhausted."""
_BUCKETS = ("test", "validation", "train", "train", "warmup", "warmup", "warmup", "warmup")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which problems: ``embedded:words?kinds=changes+money&steps=2-4&numbers=20&distractors=0.2``."""

    kinds: tuple[str, ...] = tuple(KINDS)
    steps: tuple[int, int] = (2, 4)
    numbers: int = 20
    distractors: float = 0.2


def parse_source(source: str) -> Options:
    """The options in a source. Raises ConfigError for one that is unknown, doubled, or has no such value."""
    name, _, query = source.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    given, keys = dict(pairs), [field.name for field in fields(Options)]
    kinds = tuple(given.get("kinds", " ".join(KINDS)).replace(",", " ").split())
    low, dash, high = given.get("steps", "2-4").partition("-")
    strange = next((key for key in given if key not in keys), None)
    unknown = next((kind for kind in kinds if kind not in KINDS), None)
    fault = "" if name == SOURCE else "the word problems cannot be drawn"
    if strange is not None:
        fault = f"word problems have no key {strange!r}{_meant(strange, keys)}"
    elif len(given) < len(pairs):
        fault = "a key of the word problems is given twice"
    elif unknown is not None:
        fault = f"no kind of word problem is called {unknown}{_meant(unknown, KINDS)}"
    elif not kinds:
        fault = "no kind of word problem is named"
    try:
        steps = int(low), int(high if dash else low)
        numbers, distractors = int(given.get("numbers", 20)), float(given.get("distractors", 0.2))
        fit = 2 <= steps[0] <= steps[1] <= 4 and 6 <= numbers <= 200 and 0 <= distractors <= 1
    except ValueError:
        steps, numbers, distractors, fit = (0, 0), 0, 0.0, False
    if fault or not fit:
        raise ConfigError(
            fault or "the word problems cannot be drawn",
            where=source,
            hint=f"{SOURCE}?kinds=changes+money&steps=2-4&numbers=20&distractors=0.2; steps 2 to 4, numbers 6 to 200, "
            f"distractors 0 to 1, kinds: {', '.join(KINDS)}",
        )
    return Options(kinds=kinds, steps=steps, numbers=numbers, distractors=distractors)


def _meant(name: str, known: Iterable[str]) -> str:
    question = meant(name.lower(), known)
    return f"; {question}" if question else ""


def set_of(story: Story) -> str:
    """The one set a story can ever belong to, by its kind and calculations: the same ones with other names are no new
    problem, so that sets are disjoint by construction. Another kind of story with the same calculations is one."""
    calculations = " ".join(sorted(step.text for step in story.route))
    return _BUCKETS[digest(f"{story.kind} {calculations}")[0] % len(_BUCKETS)]


def draw_stories(options: Options, name: str) -> Iterator[Story]:
    """A stream of different stories of one set. Raises ConfigError once there seem to be no more."""
    rng, seen, idle = random.Random(f"words-{name}"), set[str](), 0
    while idle < MAX_IDLE:
        story = draw_story(
            rng, kinds=options.kinds, steps=options.steps, numbers=options.numbers, distractors=options.distractors
        )
        idle += 1
        if story.question not in seen and set_of(story) == name:
            seen.add(story.question)
            idle = 0
            yield story
    low, high = options.steps
    raise ConfigError(
        f"there are no more than {len(seen)} different word problems in the set {name}",
        where=f"{SOURCE}?kinds={','.join(options.kinds)}&steps={low}-{high}&numbers={options.numbers}",
        hint="give larger numbers, more kinds or more steps, or ask for fewer: data.max_train, prepare.examples",
    )


def make_problems(source: str, name: str, limit: int | None, *, rho: float, reworded: float) -> list[Problem]:
    """The first problems of a set. Raises ConfigError as :func:`parse_source` does."""
    stories = draw_stories(parse_source(source), name)
    return [make_problem(story, rho=rho, reworded=reworded) for story in islice(stories, limit or SIZES[name])]


def make_problem(story: Story, *, rho: float, reworded: float) -> Problem:
    """A story with its answer, its solution and a reference."""
    rng = random.Random(f"reference-{story.question}")
    other, worded = rng.random() < rho, rng.random() < reworded
    route = story.other if other else story.route
    return Problem(
        problem_id=problem_id(story.question),
        question=story.question,
        answer=str(story.answer),
        reference=in_words(rng, route) if worded else solution(route),
        metadata={
            "kind": story.kind,
            "calculations": [step.text for step in story.route],
            "solution": solution(story.route),
            "reference_route": "other" if other else "same",
        },
    )


def solution(route: Route) -> str:
    """A route as the solver writes it."""
    steps = [f"<step_{number}> {step.text}\n" for number, step in enumerate(route, 1)]
    return f"{''.join(steps)}<answer> {route[-1].result}"


_SENTENCES = {
    "+": ("Adding {b} to {a} gives {c}.", "{a} and {b} more make {c}.", "With {b} on top, {a} becomes {c}."),
    "-": ("Taking {b} from {a} leaves {c}.", "{a} without {b} is {c}.", "Once {b} is gone, {a} becomes {c}."),
    "*": ("{a} times {b} makes {c}.", "{b} taken {a} times is {c}.", "{a} groups of {b} come to {c}."),
    "/": ("{a} shared by {b} gives {c} each.", "{a} in {b} equal parts makes {c}."),
}


def in_words(rng: random.Random, route: Route) -> str:
    """A route in sentences."""
    said = [rng.choice(_SENTENCES[s.operator]).format(a=s.left, b=s.right, c=s.result) for s in route]
    return f"{' '.join(said)} So the answer is {route[-1].result}."
