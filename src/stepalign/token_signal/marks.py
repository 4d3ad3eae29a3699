"""The status of every step of an attempt: right, first wrong, after the error, or unknown.

It comes from the first of these that says anything: labels that were given, a critic that located the first error (a
program that knows the truth, or a model), or the alignment of a critique with the attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepalign.domains.domain import Truth
from stepalign.errors import ConfigError
from stepalign.feedback.alignment import align
from stepalign.feedback.statements import numbers
from stepalign.feedback.steps import split_steps
from stepalign.models.prompts import tokens_to_steps
from stepalign.records import Attempt, Critique, Step
from stepalign.token_signal.table import MarkedStep
from stepalign.token_signal.turns import split_turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels that are given with an attempt; they count more than anything else."""

    wrong_step: str | None = None
    """Label of the first wrong step as ``split_steps`` names it ("3", "answer"); "" for none: every step is right."""
    wrong_text: str | None = None
    """The wrong passage itself; its first occurrence counts."""


class Marks(NamedTuple):
    """The steps of an attempt; fields as in ``table.ScoredCompletion``."""

    steps: list[MarkedStep]
    step: np.ndarray
    wrong_tokens: list[int]
    result_tokens: list[int]


def mark_steps(
    attempt: Attempt,
    ids: Sequence[int],
    text: str,
    spans: Sequence[tuple[int, int]],
    *,
    critique: Critique | None = None,
    labels: Labels,
    truth: Truth | None = None,
) -> Marks:
    """Cut an attempt into steps and say what is known of each.

    Args:
        text: the attempt as its tokens spell it.
        spans: half-open span of characters per token.

    Raises:
        ConfigError: a label names a step or a passage that the attempt does not have.
    """
    steps = split_turns(text, spans, attempt.turns) if attempt.turns else split_steps(text)
    owner = np.array(tokens_to_steps(text, spans, [step.start for step in steps]), dtype=np.int64)
    passage = _passage(text, labels, attempt)
    wrong = _first_wrong(steps, labels, passage, attempt, critique)
    visible = np.array([end > start for start, end in spans], dtype=bool)
    inside = [np.flatnonzero((owner == index) & visible).tolist() for index in range(len(steps))]
    wrong_tokens = [i for i, (a, b) in enumerate(spans) if passage and a < passage[1] and b > max(a, passage[0])]
    found = truth.wrong_result(attempt, ids) if truth and wrong is not None and wrong < len(steps) else None
    if not wrong_tokens and found is not None and wrong is not None and found[0] in inside[wrong]:
        wrong_tokens = [found[0]]
    known = {token for tokens in inside[:wrong] for token in tokens} | set(wrong_tokens)
    results = {truth.result_of(tokens) for tokens in inside} if truth else set()
    return Marks(
        steps=[_marked(step, index, wrong) for index, step in enumerate(steps)],
        step=owner,
        wrong_tokens=wrong_tokens,
        result_tokens=sorted(known & results),
    )


def _first_wrong(
    steps: list[Step], labels: Labels, passage: tuple[int, int] | None, attempt: Attempt, critique: Critique | None
) -> int | None:
    """Index of the first wrong step, the number of steps where all are right, None where nothing is known."""
    names = [step.label for step in steps]
    if labels.wrong_step is not None:
        if labels.wrong_step and labels.wrong_step not in names:
            raise ConfigError(
                f"the attempt has no step {labels.wrong_step!r}",
                where=f"wrong_step of rollout {attempt.rollout_id}",
                hint=f"its steps are {', '.join(map(repr, names))}",
            )
        return names.index(labels.wrong_step) if labels.wrong_step else len(steps)
    if passage is not None:
        return max(0, bisect_right([step.start for step in steps], passage[0]) - 1)
    # A critic that is faulty on purpose says nothing true about the steps.
    if critique is None or critique.status != "ok" or critique.truth is False:
        return None
    first_error = critique.first_error
    if critique.truth is not True:
        alignment = align(attempt, critique)
        first_error = first_error or ("" if alignment.full_solution else alignment.first_error_label)
        # A wrong attempt kept word for word, or a solution that follows none of its steps, locates nothing.
        missed = not first_error and attempt.verdict != "correct" and critique.case != "C"
        # A critic that finds an error in a right attempt, or corrects a wrong one into a wrong answer, is wrong itself.
        mistaken = bool(first_error) and attempt.verdict == "correct"
        if missed or mistaken or _is_other_number(alignment.critique_answer, attempt.problem.answer):
            return None
    if first_error:
        return names.index(first_error) if first_error in names else None
    return len(steps)


def _is_other_number(answer: str | None, expected: str) -> bool:
    """Whether two answers are different numbers; an answer that is more than one number is not compared."""
    found, wanted = numbers(answer or ""), numbers(expected)
    return len(found) == len(wanted) == 1 and float(found[0]) != float(wanted[0])


def _marked(step: Step, index: int, wrong: int | None) -> MarkedStep:
    status = "unknown" if wrong is None else "right" if index < wrong else "wrong" if index == wrong else "after_error"
    return MarkedStep(label=step.label, start=step.start, end=step.end, status=status)


def _passage(text: str, labels: Labels, attempt: Attempt) -> tuple[int, int] | None:
    """The span of the passage that is labelled wrong."""
    if not labels.wrong_text:
        return None
    start = text.find(labels.wrong_text)
    if start < 0:
        raise ConfigError(
            f"the completion does not contain {labels.wrong_text!r}",
            where=f"wrong_text of rollout {attempt.rollout_id}",
            hint="quote the wrong passage exactly as the solver's tokens spell it",
        )
    return start, start + len(labels.wrong_text)
