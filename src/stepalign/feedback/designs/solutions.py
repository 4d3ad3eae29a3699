"""Designs that show somebody else's work: the answer, a reference, siblings, another problem."""

from __future__ import annotations

from stepalign.feedback.designs.design import Group, NothingToShow, joined, sibling


def answer(group: Group, index: int) -> str:
    """The expected final answer and nothing of the way."""
    if not group.problem.answer.strip():
        raise NothingToShow("the problem has no answer")
    return f"<answer> {group.problem.answer}"


def reference(group: Group, index: int) -> str:
    """The reference solution, as in RefSol."""
    if not group.problem.reference:
        raise NothingToShow("the problem has no reference solution")
    return group.problem.reference


def peer_demonstration(group: Group, index: int) -> str:
    """The first correct sibling of the same group, as in SDPO (Hübotter et al., 2026)."""
    return sibling(group, index, "correct").text


def contrast(group: Group, index: int) -> str:
    """A wrong and a correct sibling, each with its verdict; the correct one last, where it is most likely copied."""
    correct = sibling(group, index, "correct")
    wrong = sibling(group, index, "incorrect")
    return f"{joined(wrong.text, 'wrong')}\n\n{joined(correct.text, 'right')}"


def worked_example(group: Group, index: int) -> str:
    """Another problem and its reference solution: the manner of a solution without anything of this one."""
    own = group.problem.problem_id
    examples = [p for p in group.other_problems if p.reference and p.problem_id != own]
    if not examples:
        raise NothingToShow("no other problem with a reference solution in the batch")
    chosen = examples[sum(own.encode()) % len(examples)]  # a fixed rule instead of a draw
    return f"{chosen.question}\n\n{chosen.reference}"
