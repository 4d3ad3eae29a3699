"""Word problems as a domain: their sets, examples of their format, and the truth about the tokens of an attempt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from stepalign.config import DataSection
from stepalign.critics.calculation import examine
from stepalign.domains.domain import Domain, Truth
from stepalign.domains.words.task import SOURCE, draw_stories, make_problem, make_problems, parse_source
from stepalign.problems.loading import ProblemSet
from stepalign.records import Attempt, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _load(source: str, data: DataSection, name: str, limit: int | None) -> ProblemSet:
    problems = make_problems(source, name, limit, rho=data.rho, reworded=data.reworded)
    return ProblemSet(problems=tuple(problems))


def _examples(data: DataSection) -> Iterator[tuple[Problem, str]]:
    for story in draw_stories(parse_source(data.train), "warmup"):
        problem = make_problem(story, rho=0.0, reworded=0.0)
        yield problem, problem.metadata["solution"]


def find_truth(tokenizer: PreTrainedTokenizerBase) -> Truth:
    """The first token of an attempt that its correction has not, and the first token of the result of a step."""

    def wrong_result(attempt: Attempt, ids: Sequence[int]) -> tuple[int, int] | None:
        problem = attempt.problem
        found = examine(problem.question, attempt.text, problem.metadata["calculations"], problem.answer, thorough=True)
        if not found.text or found.error in ("", "unfinished"):
            return None
        right = tokenizer.encode(found.text, add_special_tokens=False)
        pairs = enumerate(zip(ids, right, strict=False))
        return next(((place, meant) for place, (stated, meant) in pairs if stated != meant), None)

    @cache
    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    def result_of(step: Sequence[int]) -> int | None:
        equals = max((place for place, token in enumerate(step) if "=" in text(token)), default=len(step))
        digits = (place for place in range(equals + 1, len(step)) if text(step[place]).strip().isdigit())
        return next(digits, None)

    return Truth(wrong_result, result_of)


WORDS = Domain(name="words", source=SOURCE, load=_load, examples=_examples, calculates=True, truth=find_truth)
