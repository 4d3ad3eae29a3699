"""Context designs: what the self-teacher is shown. Each is one small function; all stand in one table.

A design turns a group - one problem, its graded rollouts, their critiques - into one Context per rollout. Everything
after it is data, so the trainer never knows which design ran.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stepalign.errors import ConfigError
from stepalign.feedback.steps import split_steps
from stepalign.records import Context, Critique, Problem, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The rollouts of one problem, with what is known about them."""

    problem: Problem
    rollouts: Sequence[Rollout]
    critiques: Sequence[Critique | None]
    """One per rollout; None where the design asks for none."""
    elsewhere: Sequence[Critique] = ()
    """Usable critiques of other problems' rollouts, for the control that shows the wrong one."""


_Entry = TypeVar("_Entry")

Shown = str | None
"""The text of a context, or None with a reason in ``masked``."""


@dataclass(frozen=True, slots=True)
class Design:
    """An entry of the table."""

    show: Callable[[Group, int], tuple[Shown, str]]
    """(group, index of the rollout) -> (text, ""), or (None, why there is none)."""
    label: str
    needs_critic: bool = False


def _nothing(group: Group, index: int) -> tuple[Shown, str]:
    return None, ""


def _verdict(group: Group, index: int) -> tuple[Shown, str]:
    words = {"correct": "right", "incorrect": "wrong"}
    verdict = group.rollouts[index].verdict
    return (words[verdict], "") if verdict in words else (None, "the verdict is undecided")


def _answer(group: Group, index: int) -> tuple[Shown, str]:
    return f"<answer> {group.problem.answer}", ""


def _reference(group: Group, index: int) -> tuple[Shown, str]:
    reference = group.problem.reference
    return (reference, "") if reference else (None, "the problem has no reference solution")


def _step_aligned(group: Group, index: int) -> tuple[Shown, str]:
    critique = group.critiques[index]
    if critique is None:
        raise ValueError("the design step_aligned needs a critic")
    return (critique.text, "") if critique.status == "ok" else (None, f"critique {critique.status}: {critique.reason}")


def _full_repeat(group: Group, index: int) -> tuple[Shown, str]:
    """The whole attempt, its errors included, and only then the verdict."""
    verdict, masked = _verdict(group, index)
    return (f"{group.rollouts[index].text} {verdict}", "") if verdict else (None, masked)


def _marked_correction(group: Group, index: int) -> tuple[Shown, str]:
    """The wrong step quoted, marked wrong, then corrected in place."""
    text, masked = _step_aligned(group, index)
    critique = group.critiques[index]
    if text is None or critique is None or not critique.first_error:
        return text, masked
    attempt = group.rollouts[index].text
    wrong = next((s for s in split_steps(attempt) if s.label == critique.first_error), None)
    place = next((s for s in split_steps(text) if s.label == critique.first_error), None)
    if wrong is None or place is None:
        return text, masked
    quoted = attempt[wrong.start : wrong.end].strip()
    return f"{text[: place.start].rstrip()} {quoted} wrong {text[place.start :].lstrip()}".strip(), ""


def _shuffled(group: Group, index: int) -> tuple[Shown, str]:
    """A control: the critique of another problem's rollout."""
    if not group.elsewhere:
        return None, "no other critique in the batch"
    # A fixed rule instead of a draw: the same rollout always meets the same stranger.
    rollout = group.rollouts[index]
    place = sum(rollout.rollout_id.encode()) % len(group.elsewhere)
    return group.elsewhere[place].text, ""


def _peer_demonstration(group: Group, index: int) -> tuple[Shown, str]:
    """The first correct sibling of the same group (as in SDPO)."""
    for other, rollout in enumerate(group.rollouts):
        if other != index and rollout.verdict == "correct":
            return rollout.text, ""
    return None, "no correct sibling"


DESIGNS: dict[str, Design] = {
    "none": Design(_nothing, "no context"),
    "verdict": Design(_verdict, "verdict only"),
    "answer": Design(_answer, "final answer only"),
    "reference": Design(_reference, "RefSol"),
    "step_aligned": Design(_step_aligned, "StepAlignFB", needs_critic=True),
    "full_repeat": Design(_full_repeat, "full copy, then verdict"),
    "marked_correction": Design(_marked_correction, "wrong step quoted and corrected", needs_critic=True),
    "shuffled": Design(_shuffled, "another rollout's critique", needs_critic=True),
    "peer_demonstration": Design(_peer_demonstration, "correct sibling"),
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
    """An entry of ``CONDITIONS``. Raises ConfigError with a suggestion."""
    return _find(CONDITIONS, name, "condition")


def find_design(name: str) -> Design:
    """An entry of ``DESIGNS``. Raises ConfigError with a suggestion."""
    return _find(DESIGNS, name, "context design")


def _find(table: dict[str, _Entry], name: str, kind: str) -> _Entry:
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(table)}"
    raise ConfigError(f"unknown {kind} {name}", where="condition", hint=hint)


def make_contexts(design: str, group: Group) -> list[Context]:
    """One context per rollout of a group."""
    show = find_design(design).show
    contexts = []
    for index, rollout in enumerate(group.rollouts):
        text, masked = show(group, index)
        contexts.append(Context(rollout_id=rollout.rollout_id, design=design, text=text, masked=masked))
    return contexts
