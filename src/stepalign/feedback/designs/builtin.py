"""The built-in context designs: functions of (group, index) that give the text for one attempt's self-teacher."""

from __future__ import annotations

import re
from collections import Counter

from stepalign.domains.math.answers import canonical_answer
from stepalign.feedback.designs.design import Group, NothingToShow, joined, sibling, usable_critique, verdict_word
from stepalign.feedback.edits import kept_verbatim
from stepalign.feedback.steps import PREAMBLE, split_steps

# ---------------------------------------------------------------------------------------------------------------------
# The outcome of the attempt


def verdict(group: Group, index: int) -> str:
    """One word."""
    return verdict_word(group.attempts[index])


def null(group: Group, index: int) -> str:
    """A control: as many words as the attempt has, without content."""
    return content_free(group.attempts[index].text)


def content_free(text: str) -> str:
    """The form of a text without its content: tags stay, a semicolon takes the place of every other word.

    Words that repeat without any form are copied by the embedded solver, which then disturbs more than it controls.
    """
    return re.sub(r"\S+", lambda word: word[0] if re.fullmatch("<[^<>]+>", word[0]) else ";", text) or ";"


def full_repeat(group: Group, index: int) -> str:
    """The whole attempt, its errors included, and only then the verdict."""
    return joined(group.attempts[index].text, verdict_word(group.attempts[index]))


def edited(group: Group, index: int) -> str:
    """The attempt as an editor leaves it, what he keeps to the character."""
    return kept_verbatim(group.attempts[index].text, usable_critique(group, index).text)


def execution_trace(group: Group, index: int) -> str:
    """The detail of the grade: the failed test and the value of its call, or the place of an exception."""
    grade = group.attempts[index].grade
    if not grade.detail:
        raise NothingToShow("the problem has no Python tests")
    if grade.verdict == "undecided":
        raise NothingToShow(f"the code could not be run: {grade.reason}")
    return grade.detail


# ---------------------------------------------------------------------------------------------------------------------
# Solutions


def answer(group: Group, index: int) -> str:
    """The expected final answer without a solution."""
    if not group.problem.answer.strip():
        raise NothingToShow("the problem has no answer")
    return f"<answer> {group.problem.shown_answer}"


def reference(group: Group, index: int) -> str:
    """The reference solution, as in RefSol."""
    if not group.problem.reference:
        raise NothingToShow("the problem has no reference solution")
    return group.problem.reference


def peer_demonstration(group: Group, index: int) -> str:
    """The first correct sibling of the same group, as in SDPO (Hübotter et al., 2026)."""
    return sibling(group, index, "correct").text


def shortest_sibling(group: Group, index: int) -> str:
    """The shortest correct sibling, for the longest wrong attempt of the group alone: SSOPD (arXiv 2605.17497)."""
    of = {
        verdict: [a for a in group.attempts if a.verdict == verdict and a.text] for verdict in ("correct", "incorrect")
    }
    if not of["correct"]:
        raise NothingToShow("no correct sibling")
    if not of["incorrect"] or max(of["incorrect"], key=lambda one: len(one.text)) is not group.attempts[index]:
        raise NothingToShow("not the longest wrong attempt of its group")
    return min(of["correct"], key=lambda one: len(one.text)).text


def majority(group: Group, index: int) -> str:
    """The shortest other attempt with the answer that most of the group agree on, as in U-OPSD (arXiv 2608.06296): no
    solution, no grade. Of answers with equally many votes the first one counts; one vote is no majority."""
    answers = [canonical_answer(one.answer) if one.answer else None for one in group.attempts]
    votes = Counter(answer for answer in answers if answer is not None)
    chosen, count = max(votes.items(), key=lambda vote: vote[1], default=(None, 0))
    if count < 2:
        raise NothingToShow("no two attempts of the group agree on an answer")
    pairs = enumerate(zip(group.attempts, answers, strict=True))
    return min((one.text for at, (one, answer) in pairs if answer == chosen and at != index), key=len)


def contrast(group: Group, index: int) -> str:
    """A wrong and a correct sibling, each with its verdict; the correct one last, where it is most likely copied."""
    right = sibling(group, index, "correct")
    wrong = sibling(group, index, "incorrect")
    return f"{joined(wrong.text, 'wrong')}\n\n{joined(right.text, 'right')}"


def worked_example(group: Group, index: int) -> str:
    """Another problem and its reference solution: the form of a solution without anything of this one."""
    own = group.problem.problem_id
    examples = [p for p in group.other_problems if p.reference and p.problem_id != own]
    if not examples:
        raise NothingToShow("no other problem with a reference solution in the batch")
    chosen = examples[sum(own.encode()) % len(examples)]  # a fixed rule instead of a draw
    return f"{chosen.question}\n\n{chosen.reference}"


# ---------------------------------------------------------------------------------------------------------------------
# Turns

_FAULT = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Iteration)\b|timed out$|exit code |the program )", re.M)
"""A line of a tool's message that says that its call has failed."""


def sibling_episode(group: Group, index: int) -> str:
    """The whole of a correct sibling, each turn behind the name of its author."""
    return sibling(group, index, "correct").transcript


def _next_turn(group: Group, index: int, place: int, role: str) -> str:
    turns = group.attempts[index].turns
    if place + 1 >= len(turns) or turns[place + 1].role != role:
        raise NothingToShow(f"no {role} replied to the turn")
    return turns[place + 1].text


def hindsight(group: Group, index: int, place: int) -> str:
    """The user's next message: what was said about the turn."""
    return _next_turn(group, index, place, "user")


def tool_error(group: Group, index: int, place: int) -> str:
    """The tool's message, where the call of the turn has failed."""
    message = _next_turn(group, index, place, "tool")
    if not _FAULT.search(message):
        raise NothingToShow("the call of the turn did not fail")
    return message


def turn_critique(group: Group, index: int, place: int) -> str:
    """The critique of the turn."""
    critique = usable_critique(group, index)
    solver = [turn.role == "solver" for turn in group.attempts[index].turns[:place]]
    texts = critique.turns or (critique.text,)
    text = texts[sum(solver)] if len(texts) > sum(solver) else ""
    if not text:
        raise NothingToShow("no usable critique of the turn")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Critiques


def as_written(group: Group, index: int) -> str:
    """The critique as it is: a trace, a paraphrase, a hint or a comment, as the design asks for."""
    return usable_critique(group, index).text


def marked_correction(group: Group, index: int) -> str:
    """The wrong step quoted, marked wrong, then corrected in place."""
    critique = usable_critique(group, index)
    text, attempt = critique.text, group.attempts[index].text
    wrong = next((s for s in split_steps(attempt) if s.label == critique.first_error), None)
    place = next((s for s in split_steps(text) if s.label == critique.first_error), None)
    if not critique.first_error or wrong is None or place is None:
        return text
    return joined(text[: place.start], joined(wrong.text.strip(), "wrong"), text[place.start :])


def no_repeat(group: Group, index: int) -> str:
    """A verdict on each step up to the first wrong one, without a word of the steps themselves.

    Steps after the first wrong one are neither right nor wrong by themselves and get no verdict.
    """
    critique, attempt = usable_critique(group, index), group.attempts[index]
    labels = [step.label for step in split_steps(attempt.text) if step.label != PREAMBLE]
    if not labels:
        raise NothingToShow("the attempt has no steps")
    words = ["right"] * len(labels)
    if critique.first_error in labels:
        words = ["right"] * labels.index(critique.first_error) + ["wrong"]
    elif attempt.verdict == "incorrect" and critique.case != "C":
        raise NothingToShow("the first wrong step is not known")
    tags = [f"step_{label}" if label.isdigit() else label for label in labels]
    return " ".join(f"<{tag}> {word}" for tag, word in zip(tags, words, strict=False))


def shuffled(group: Group, index: int) -> str:
    """A control: the critique of another problem's attempt."""
    if not group.elsewhere:
        raise NothingToShow("no other critique in the batch")
    # A fixed rule instead of a draw: the same attempt always gets the same critique.
    place = sum(group.attempts[index].rollout_id.encode()) % len(group.elsewhere)
    return group.elsewhere[place].text
