"""The embedded task as a domain: its shipped problems, its critic, and the truth about every step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import EMBEDDED, MODULUS, diagnose, make_problem, parse_question
from stepalign.domains.domain import Domain, Truth
from stepalign.problems.loading import ProblemSet
from stepalign.records import Attempt, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_problems(name: str, rho: float) -> list[Problem]:
    """A shipped set, its references written for a given ``rho``."""
    file = Path(__file__).parent / "problems" / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [make_problem(parse_question(row["question"]), rho=rho) for row in rows]


def _is_chain(problem: Problem) -> bool:
    try:
        parse_question(problem.question)
    except ValueError:
        return False
    return True


def find_truth(tokenizer: PreTrainedTokenizerBase) -> Truth:
    """Where an attempt states its first wrong result, and its results: the sixth of the seven words of a step."""
    vocabulary = tokenizer.get_vocab()
    values = {value: vocabulary.get(str(value)) for value in range(MODULUS)}

    def wrong_result(attempt: Attempt, ids: Sequence[int]) -> tuple[int, int] | None:
        found = diagnose(attempt.problem.question, attempt.text)
        if found.correction is None:
            return None
        if found.num_right >= min(len(found.attempt.steps), len(found.correction.steps)):
            return None  # nothing wrong, or a step too many
        wrong, right = found.attempt.steps[found.num_right], found.correction.steps[found.num_right]
        if (wrong.value, wrong.signed_operand) != (right.value, right.signed_operand):
            return None  # the books went wrong, not the fact
        position = 7 * found.num_right + 5  # one id a word: tag, value, operator, operand, equals, result, end
        stated = ids[position] if position < len(ids) else None
        meant = values[right.result]
        return (position, meant) if meant is not None and stated == values[wrong.result] else None

    return Truth(wrong_result, lambda step: step[5] if len(step) == 7 else None)


ARITHMETIC = Domain(
    name="arithmetic",
    source=EMBEDDED,
    load=lambda _, data, name, limit: ProblemSet(problems=tuple(read_problems(name, data.rho)[:limit])),
    critic=lambda section, form, seed: ArithmeticCritic(
        form=form, faults=Faults(**section.quality.model_dump()), seed=seed
    ),
    knows=_is_chain,
    prompts={"scribe": "{{ question }} Feedback : {{ attempt }}"},
    truth=find_truth,
)
