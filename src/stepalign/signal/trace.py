"""A rollout cut into tokens and steps, with what is known about each: right, wrong, after the error, or unknown.

What is known comes from the first of these that says anything: labels that somebody gave, the truth of a program
(embedded task), a critic that located the first error, or the alignment of a critique with the attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepalign.errors import ConfigError
from stepalign.feedback.alignment import align
from stepalign.feedback.steps import split_steps
from stepalign.models.load import Solver
from stepalign.models.prompts import decode_with_spans, tokens_to_steps
from stepalign.records import Attempt, Critique, Step, StepStatus
from stepalign.signal.table import MarkedStep

WrongResult = Callable[[Attempt, Sequence[int]], tuple[int, int] | None]
"""Where the truth is known: (position of the token with the first wrong result, id of the right one)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What somebody says about an attempt. Only what is given counts."""

    wrong_step: str | None = None
    """Label of the first wrong step as ``split_steps`` names it ("3", "answer"); "" for none: every step is right."""
    wrong_text: str | None = None
    """The wrong passage itself; its first occurrence counts."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Tokens and steps of one rollout."""

    text: str
    tokens: list[str]
    """What each token shows; special tokens by their name."""
    spans: list[tuple[int, int]]
    """Half-open span of characters per token; empty for special tokens."""
    steps: list[MarkedStep]
    step: np.ndarray
    """Index of each token's step, -1 before the first."""
    wrong_tokens: list[int] = field(default_factory=list)
    """The tokens that state the first wrong result, where they are known."""
    result_tokens: list[int] = field(default_factory=list)
    """Tokens that state a result, the right ones and the first wrong one; embedded task only."""


def trace(
    solver: Solver,
    attempt: Attempt,
    ids: Sequence[int],
    critique: Critique | None = None,
    *,
    labels: Labels | None = None,
    wrong_result: WrongResult | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
) -> Trace:
    """Cut an attempt and mark its steps.

    Args:
        spans: characters of the attempt's text behind each token, where its text is more than its tokens spell.

    Raises:
        ConfigError: a label names a step or a passage that the attempt does not have.
    """
    text, spans = (attempt.text, list(spans)) if spans else decode_with_spans(solver.tokenizer, ids)
    tokens = [text[a:b] or str(solver.tokenizer.convert_ids_to_tokens(i)) for (a, b), i in zip(spans, ids, strict=True)]
    steps = split_steps(text)
    labels = labels or Labels()
    passage = _passage(text, labels, attempt)
    first_wrong = _first_wrong(steps, labels, passage, attempt, critique)
    step = np.array(tokens_to_steps(text, spans, [step.start for step in steps]))
    visible = np.array([b > a for a, b in spans], dtype=bool)
    inside = [np.flatnonzero((step == index) & visible).tolist() for index in range(len(steps))]
    known = first_wrong is not None
    place = first_wrong if first_wrong != NONE_WRONG else None
    found = wrong_result(attempt, ids) if wrong_result and known else None
    wrong_tokens = [i for i, (a, b) in enumerate(spans) if passage and a < passage[1] and b > max(a, passage[0])]
    if not wrong_tokens and found is not None and place is not None and found[0] in inside[place]:
        wrong_tokens = [found[0]]
    return Trace(
        text=text,
        tokens=tokens,
        spans=spans,
        steps=[
            MarkedStep(
                label=step.label, start=step.start, end=step.end, status=_status(index, place) if known else "unknown"
            )
            for index, step in enumerate(steps)
        ],
        step=step,
        wrong_tokens=wrong_tokens,
        result_tokens=_results(inside, place, wrong_tokens) if wrong_result else [],
    )


NONE_WRONG = -1
"""No step is wrong, as far as is known."""


def _first_wrong(
    steps: list[Step],
    labels: Labels,
    passage: tuple[int, int] | None,
    attempt: Attempt,
    critique: Critique | None,
) -> int | None:
    """Index of the first wrong step, ``NONE_WRONG``, or None where nothing is known."""
    names = [step.label for step in steps]
    if labels.wrong_step is not None:
        if labels.wrong_step and labels.wrong_step not in names:
            raise ConfigError(
                f"the attempt has no step {labels.wrong_step!r}",
                where=f"wrong_step of rollout {attempt.rollout_id}",
                hint=f"its steps are {', '.join(map(repr, names))}",
            )
        return names.index(labels.wrong_step) if labels.wrong_step else NONE_WRONG
    if passage is not None:
        return max(0, bisect_right([step.start for step in steps], passage[0]) - 1)
    # A critic that is faulty on purpose says nothing true about the steps.
    if critique is None or critique.status != "ok" or critique.critic.startswith("faulty:"):
        return None
    first_error = critique.first_error
    if not first_error and _says_nothing(attempt, critique):
        alignment = align(attempt, critique, expected_answer=attempt.problem.answer or None)
        first_error = "" if alignment.full_solution else alignment.first_error_label
        if not first_error:  # a wrong attempt kept word for word, or a solution that follows none of its steps
            return None
    if first_error:
        return names.index(first_error) if first_error in names else None
    return NONE_WRONG


def _says_nothing(attempt: Attempt, critique: Critique) -> bool:
    """Whether "no error located" leaves the steps open: a wrong answer whose error was not found says nothing."""
    programmatic = critique.critic.startswith("programmatic:")
    return attempt.verdict != "correct" and critique.case != "C" and not programmatic


def _status(index: int, place: int | None) -> StepStatus:
    if place is None or index < place:
        return "right"
    return "wrong" if index == place else "after_error"


def _passage(text: str, labels: Labels, attempt: Attempt) -> tuple[int, int] | None:
    """The span of the passage that is said to be wrong."""
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


def _results(inside: list[list[int]], place: int | None, wrong_tokens: list[int]) -> list[int]:
    """In the embedded task every step is seven words and the sixth is its result."""
    right = {t for tokens in (inside if place is None else inside[:place]) for t in tokens}
    return sorted({tokens[5] for tokens in inside if len(tokens) == 7} & (right | set(wrong_tokens)))
