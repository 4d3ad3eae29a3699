"""The judged groups of a step, and what a checkpoint keeps of a step that is collected and has not trained yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stepalign.records import Critique, Problem, Rollout, critique_from_json, rollout_from_json, to_json
from stepalign.storage.jsonl import to_json_line


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedGroup:
    """The graded rollouts of one problem, each with its critique."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    """The student's prompt."""
    rollouts: list[Rollout]
    critiques: list[Critique | None]
    """One per rollout; None where no critic was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """The judged groups of one step."""

    groups: list[JudgedGroup]
    times: tuple[float, float, float]
    """Begin, last completion, last critique: seconds since the epoch."""


def to_line(collected: Collected) -> str:
    """One line of JSON, without the problems."""
    groups = [
        {
            "prompt_ids": group.prompt_ids,
            "rollouts": [{**to_json(one), "reason": one.attempt.grade.reason} for one in group.rollouts],
            "critiques": [None if one is None else to_json(one) for one in group.critiques],
        }
        for group in collected.groups
    ]
    return to_json_line({"times": collected.times, "groups": groups})


def from_line(line: str, problems: Sequence[Problem]) -> Collected:
    """The batch that ``to_line`` wrote, with the problems of its step."""
    row = json.loads(line)
    groups = []
    for problem, group in zip(problems, row["groups"], strict=True):
        critiques = [None if one is None else critique_from_json(one) for one in group["critiques"]]
        groups.append(
            JudgedGroup(
                problem=problem,
                prompt_ids=tuple(group["prompt_ids"]),
                rollouts=[_rollout(one, problem) for one in group["rollouts"]],
                critiques=critiques,
            )
        )
    begin, sampled, end = row["times"]
    return Collected(groups=groups, times=(begin, sampled, end))


def _rollout(row: dict[str, object], problem: Problem) -> Rollout:
    found = rollout_from_json(row, problem)
    grade = replace(found.attempt.grade, reason=str(row["reason"]))
    return replace(found, attempt=replace(found.attempt, grade=grade))
