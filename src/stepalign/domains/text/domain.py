"""Free text as a domain: problems with a rubric, and a small task whose rubric a program knows."""

from __future__ import annotations

import json
from dataclasses import replace

from stepalign.config import DataSection
from stepalign.domains.arithmetic.domain import ARITHMETIC, read_problems
from stepalign.domains.arithmetic.task import parse_question
from stepalign.domains.domain import Domain, open_grader
from stepalign.domains.math.grading import Grader
from stepalign.domains.text.rubric import GRADER
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet
from stepalign.records import Problem

SOURCE = "embedded:text"
_SIGNS = {1: r"(?:\+|plus)", -1: r"(?:-|minus)"}


def running_totals(problem: Problem) -> Problem:
    """A chain of the embedded task, to be told in its running totals: one item each, the end, and few words."""
    chain = parse_question(problem.question)
    value, items = chain.start, []
    for operand in chain.operands:
        after = (value + operand) % 20
        sign = _SIGNS[1 if operand > 0 else -1]
        name = f"the total after {'+' if operand > 0 else '-'} {abs(operand)} is {after}"
        items.append({"has": rf"(?<!\d){value} {sign} {abs(operand)} (?:=|gives|is) {after}(?!\d)", "name": name})
        value = after
    items.append({"has": rf"<answer> {value}\s*$", "name": f"it ends in {value}", "weight": 2})
    items.append({"max_words": 7 * len(chain.operands) + 2, "name": "no step twice"})
    return replace(problem, answer=json.dumps(items), problem_id=f"t{problem.problem_id}")


def _load(_: str, data: DataSection, name: str, limit: int | None) -> ProblemSet:
    return ProblemSet(problems=tuple(map(running_totals, read_problems(name, data.rho)[:limit])))


def _open_grader(data: DataSection) -> Grader:
    if data.second_judge.base_urls and not data.judge.base_urls:
        raise ConfigError("a second judge needs a first", where="data.second_judge", hint="name it in data.judge")
    if data.judge.base_urls:
        from stepalign.domains.text.judge import JudgedGrader

        judges = [judge for judge in (data.judge, data.second_judge) if judge.base_urls]
        return JudgedGrader(*judges)
    return open_grader(GRADER, seconds=data.grader_seconds)


def _is_chain(problem: Problem) -> bool:
    return problem.problem_id.startswith("t") and problem.answer.startswith('[{"has"')


TEXT = Domain(
    name="text",
    source=SOURCE,
    columns="text",
    load=_load,
    grade=_open_grader,
    has_answers=False,
    has_details=True,
    critic=ARITHMETIC.critic,
    knows=_is_chain,
)
