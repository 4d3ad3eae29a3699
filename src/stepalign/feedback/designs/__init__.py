"""Context designs: what the self-teacher is shown. Each is one small function; all stand in one table.

A design turns a group - one problem, the graded attempts at it, their critiques - into one Context per attempt.
Everything after it is data, so the trainer never knows which design ran. docs/designs.md shows each on one attempt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stepalign.errors import ConfigError
from stepalign.feedback.designs import critiques, outcomes, solutions
from stepalign.feedback.designs.custom import is_own, load_own
from stepalign.feedback.designs.design import Design, Group, Need, NothingToShow, make_group
from stepalign.records import Context, CritiqueForm, Rollout

__all__ = [
    "CONDITIONS",
    "DESIGNS",
    "Condition",
    "Design",
    "Group",
    "Need",
    "NothingToShow",
    "check_condition",
    "critique_forms",
    "find_condition",
    "find_design",
    "group_rollouts",
    "make_contexts",
    "make_group",
]

_ATTEMPTED = "You have attempted this problem before."

DESIGNS: dict[str, Design] = {
    "none": Design(outcomes.nothing, "no context", ""),
    "verdict": Design(outcomes.verdict, "verdict only", f"{_ATTEMPTED} Here is whether that attempt was right."),
    "answer": Design(solutions.answer, "final answer only", "Here is the final answer of this problem."),
    "reference": Design(
        solutions.reference, "RefSol", "Here is a reference solution of this problem.", needs=("reference",)
    ),
    "step_aligned": Design(
        critiques.as_written,
        "StepAlignFB",
        f"{_ATTEMPTED} Here is feedback on that attempt: a trace of the solution in your own steps.",
        needs=("critic",),
    ),
    "paraphrase": Design(
        critiques.as_written,
        "critique in other words",
        f"{_ATTEMPTED} Here is feedback on that attempt: a trace of the solution.",
        needs=("critic",),
        form="paraphrase",
    ),
    "full_repeat": Design(
        outcomes.full_repeat,
        "full copy, then verdict",
        f"{_ATTEMPTED} Here is that attempt, with the verdict behind it.",
    ),
    "marked_correction": Design(
        critiques.marked_correction,
        "wrong step quoted and corrected",
        f"{_ATTEMPTED} Here is feedback on that attempt: your steps, a wrong one marked and then corrected.",
        needs=("critic",),
    ),
    "no_repeat": Design(
        critiques.no_repeat,
        "verdict per step, no text",
        f"{_ATTEMPTED} Here is a verdict on each of its steps up to the first wrong one.",
        needs=("critic",),
    ),
    "hint": Design(
        critiques.as_written,
        "first error named, not corrected",
        f"{_ATTEMPTED} Here is a hint about that attempt.",
        needs=("critic",),
        form="hint",
    ),
    "free_critique": Design(
        critiques.as_written,
        "critic's own words",
        f"{_ATTEMPTED} Here is what a reader says about that attempt.",
        needs=("critic",),
        form="comment",
    ),
    "execution_trace": Design(
        outcomes.execution_trace,
        "what the code did",
        f"{_ATTEMPTED} Here is what came out when the code of that attempt was run against the tests.",
        needs=("tests",),
    ),
    "shuffled": Design(
        critiques.shuffled,
        "another rollout's critique",
        f"{_ATTEMPTED} Here is feedback on that attempt: a trace of the solution in your own steps.",
        needs=("critic", "other problems"),
    ),
    "peer_demonstration": Design(
        solutions.peer_demonstration,
        "correct sibling",
        "Here is a right solution of this problem.",
        needs=("siblings",),
    ),
    "contrast": Design(
        solutions.contrast,
        "wrong and correct sibling",
        "Here are two attempts at this problem, each with its verdict behind it.",
        needs=("siblings",),
    ),
    "worked_example": Design(
        solutions.worked_example,
        "another problem, solved",
        "Here is another problem, followed by its solution.",
        needs=("other problems",),
    ),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """What one arm trains on: a design and the weights of the two terms of the loss."""

    design: str
    distillation_weight: float
    policy_weight: float


# The paper's three by name; every design is a condition of its own as well.
CONDITIONS: dict[str, Condition] = {
    "grpo": Condition("none", 0.0, 1.0),
    "refsol": Condition("reference", 1.0, 0.0),
    "stepalign": Condition("step_aligned", 1.0, 0.0),
    **{name: Condition(name, 1.0, 0.0) for name in DESIGNS},
}


def find_condition(name: str) -> Condition:
    """An entry of ``CONDITIONS``, or distillation on a design of the user's own.

    Raises:
        ConfigError: unknown, with a suggestion; or a design of the user's own that breaks its contract.
    """
    if is_own(name):
        load_own(name)
        return Condition(name, 1.0, 0.0)
    return _find(CONDITIONS, name, "condition")


def find_design(name: str) -> Design:
    """An entry of ``DESIGNS``, or one of the user's own by path. Raises ConfigError as ``find_condition`` does."""
    return load_own(name) if is_own(name) else _find(DESIGNS, name, "context design")


_Entry = TypeVar("_Entry")


def _find(table: dict[str, _Entry], name: str, kind: str) -> _Entry:
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    hint = f"{suggestion}known: {', '.join(table)}, or a design of your own: module:function, file.py:function, X.jinja"
    raise ConfigError(f"unknown {kind} {name}", where="condition", hint=hint)


def check_condition(name: str, num_generations: int, problems_per_step: int = 2) -> Condition:
    """A condition that can work with so many completions per problem and problems per step.

    Raises:
        ConfigError: unknown, or every single rollout would be masked.
    """
    condition = find_condition(name)
    if num_generations < 2 and "siblings" in find_design(condition.design).needs:
        raise ConfigError(
            f"the context design {condition.design} shows siblings, and there are none with one completion per problem",
            where="sampling.num_generations = 1",
            hint="--set sampling.num_generations=8",
        )
    if problems_per_step < 2 and "other problems" in find_design(condition.design).needs:
        raise ConfigError(
            f"the context design {condition.design} shows something of another problem of the step, and there is none",
            where="training.problems_per_step = 1",
            hint="--set training.problems_per_step=8",
        )
    return condition


def critique_forms(names: Iterable[str]) -> list[CritiqueForm]:
    """What a critic has to write for these designs: each form once, in their order."""
    return list(dict.fromkeys(design.form for design in map(find_design, names) if design.needs_critic))


def group_rollouts(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Indices of the rollouts that were drawn together: of the same problem at the same step, in their order."""
    groups: dict[tuple[int, str], list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault((rollout.step, rollout.problem_id), []).append(index)
    return list(groups.values())


def make_contexts(name: str, group: Group) -> list[Context]:
    """One context per attempt of a group."""
    design = find_design(name)
    return [_make_context(name, design, group, index) for index in range(len(group.attempts))]


def _make_context(name: str, design: Design, group: Group, index: int) -> Context:
    rollout_id = group.attempts[index].rollout_id
    try:
        text = (design.show(group, index) or "").strip()
        if not text:
            raise NothingToShow("the design shows nothing")
    except NothingToShow as reason:
        return Context(rollout_id=rollout_id, design=name, text=None, masked=str(reason))
    return Context(rollout_id=rollout_id, design=name, text=text, introduction=design.introduction)
