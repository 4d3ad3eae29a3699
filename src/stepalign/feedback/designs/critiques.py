"""Designs that show what a critic wrote about the attempt, or what follows from it."""

from __future__ import annotations

from stepalign.feedback.designs.design import Group, NothingToShow, joined, usable_critique
from stepalign.feedback.steps import PREAMBLE, split_steps


def as_written(group: Group, index: int) -> str:
    """The critique as it is: a trace, a paraphrase, a hint or a comment, whichever the design has asked for."""
    return usable_critique(group, index).text


def marked_correction(group: Group, index: int) -> str:
    """The wrong step quoted, marked wrong, then corrected in place."""
    critique = usable_critique(group, index)
    text, attempt = critique.text, group.attempts[index].text
    wrong = next((s for s in split_steps(attempt) if s.label == critique.first_error), None)
    place = next((s for s in split_steps(text) if s.label == critique.first_error), None)
    if not critique.first_error or wrong is None or place is None:
        return text
    quoted = attempt[wrong.start : wrong.end].strip()
    return joined(text[: place.start], joined(quoted, "wrong"), text[place.start :])


def no_repeat(group: Group, index: int) -> str:
    """A verdict on each step up to the first wrong one, without a word of the steps themselves.

    What follows the first wrong step is neither right nor wrong by itself and is not judged.
    """
    critique, attempt = usable_critique(group, index), group.attempts[index]
    labels = [step.label for step in split_steps(attempt.text) if step.label != PREAMBLE]
    if not labels:
        raise NothingToShow("the attempt has no steps")
    if critique.first_error in labels:
        right, wrong = labels[: labels.index(critique.first_error)], [critique.first_error]
    elif attempt.verdict == "incorrect" and critique.case != "C":
        raise NothingToShow("the first wrong step is not known")
    else:
        right, wrong = labels, []
    return " ".join([*(f"{_tag(label)} right" for label in right), *(f"{_tag(label)} wrong" for label in wrong)])


def shuffled(group: Group, index: int) -> str:
    """A control: the critique of another problem's rollout."""
    if not group.elsewhere:
        raise NothingToShow("no other critique in the batch")
    # A fixed rule instead of a draw: the same rollout always meets the same stranger.
    place = sum(group.attempts[index].rollout_id.encode()) % len(group.elsewhere)
    return group.elsewhere[place].text


def _tag(label: str) -> str:
    return f"<step_{label}>" if label.isdigit() else f"<{label}>"
