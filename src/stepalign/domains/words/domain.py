"""Word problems as a domain."""

from __future__ import annotations

from collections.abc import Iterator

from stepalign.config import DataSection
from stepalign.domains.domain import Domain
from stepalign.domains.words.task import SOURCE, draw_stories, make_problem, make_problems, parse_source
from stepalign.problems.loading import ProblemSet
from stepalign.records import Problem


def _load(source: str, data: DataSection, name: str, limit: int | None) -> ProblemSet:
    problems = make_problems(source, name, limit, rho=data.rho, reworded=data.reworded)
    return ProblemSet(problems=tuple(problems))


def _examples(data: DataSection) -> Iterator[tuple[Problem, str]]:
    for story in draw_stories(parse_source(data.train), "warmup"):
        problem = make_problem(story, rho=0.0, reworded=0.0)
        yield problem, problem.metadata["solution"]


WORDS = Domain(name="words", source=SOURCE, load=_load, examples=_examples, calculates=True)
