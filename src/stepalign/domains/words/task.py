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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import parse_qsl

from stepalign.domains.words.stories import KINDS, Route, Story, draw_story
from stepalign.errors import ConfigError
from stepalign.problems.sets import problem_id
from stepalign.records import Problem
from stepalign.storage.fingerprint import digest

SOURCE = "embedded:words"
SIZES = {"train": 600, "validation": 200, "test": 400, "warmup": 4000}
"""Problems of a set, unless the recipe limits it."""
_BUCKETS = ("test", "validation", "train", "train", "warmup", "warmup", "warmup", "warmup")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which problems: ``embedded:words?kinds=changes+money&steps=2-4&numbers=20&distractors=0.2``."""

    kinds: tuple[str, ...] = tuple(KINDS)
    steps: tuple[int, int] = (2, 4)
    numbers: int = 20
    distractors: float = 0.2


def parse_source(source: str) -> Options:
    """The options in a source. Raises ConfigError for one that is unknown or has no such value."""
    name, _, query = source.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    kinds = tuple(given.pop("kinds", " ".join(KINDS)).replace(",", " ").split())
    unknown = next((kind for kind in kinds if kind not in KINDS), None)
    try:
        low, _, high = given.pop("steps", "2-4").partition("-")
        options = Options(
            kinds=kinds,
            steps=(int(low), int(high or low)),
            numbers=int(given.pop("numbers", 20)),
            distractors=float(given.pop("distractors", 0.2)),
        )
    except ValueError:
        options = None
    if (
        name != SOURCE or unknown or given or not kinds or options is None
        or not 2 <= options.steps[0] <= options.steps[1] <= 4
        or not 6 <= options.numbers <= 200 or not 0 <= options.distractors <= 1
    ):  # fmt: skip
        fault = f"no kind of word problem is called {unknown}" if unknown else "the word problems cannot be drawn"
        raise ConfigError(
            fault,
            where=source,
            hint=f"{SOURCE}?kinds=changes+money&steps=2-4&numbers=20&distractors=0.2; steps 2 to 4, numbers 6 to 200, "
            f"kinds: {', '.join(KINDS)}",
        )
    return options


def set_of(story: Story) -> str:
    """The one set a story can ever belong to, by its calculations alone: the same ones with other names are no new
    problem, so that sets are disjoint by construction."""
    calculations = " ".join(sorted(step.text for step in story.route))
    return _BUCKETS[digest(f"{story.kind} {calculations}")[0] % len(_BUCKETS)]


def draw_stories(options: Options, name: str) -> Iterator[Story]:
    """An endless stream of different stories of one set."""
    rng, seen = random.Random(f"words-{name}"), set()
    while True:
        story = draw_story(
            rng, kinds=options.kinds, steps=options.steps, numbers=options.numbers, distractors=options.distractors
        )
        if story.question not in seen and set_of(story) == name:
            seen.add(story.question)
            yield story


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
