"""The grade of a completion: a score, and the verdict that is a threshold of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["correct", "incorrect", "undecided"]

CORRECT_FROM = 1.0 - 1e-9
"""A completion is correct from this score on: weights such as 0.7 + 0.2 + 0.1 do not sum to 1 in floating point."""
_SCORES: dict[str, float] = {"correct": 1.0, "incorrect": 0.0, "undecided": math.nan}


@dataclass(frozen=True, slots=True)
class Grade:
    """How good a completion is, as a grader returns it."""

    score: float
    """In [0, 1]: the reward of the completion. NaN where the grader could not tell, which is not a wrong answer."""
    answer: str | None = None
    """The extracted answer as written (cut above 512 characters), or None where there is none."""
    detail: str = ""
    """Output worth showing, such as a failed test with its values. Text of a model: data, never markup."""
    reason: str = ""
    """Few words, one of a fixed set for the built-in graders: made to be counted."""
    judged: tuple[float, ...] = ()
    """The score of each judge, where there are several."""

    def __post_init__(self) -> None:
        if not (math.isnan(self.score) or 0.0 <= self.score <= 1.0):
            raise ValueError(f"a score is in [0, 1] or NaN, got {self.score}")

    @property
    def verdict(self) -> Verdict:
        if math.isnan(self.score):
            return "undecided"
        return "correct" if self.score >= CORRECT_FROM else "incorrect"

    @classmethod
    def of(cls, verdict: Verdict, reason: str = "", *, answer: str | None = None, detail: str = "") -> Grade:
        """The grade of a completion of which only the verdict is known."""
        return cls(_SCORES[verdict], answer, detail, reason)


class GraderError(Exception):
    """A grader that cannot be started. ``where`` names it, ``hint`` says why."""

    def __init__(self, where: str, hint: str) -> None:
        super().__init__(f"The grader {where} cannot be started: {hint}")
        self.where = where
        self.hint = hint


def correct(reason: str) -> Grade:
    return Grade(1.0, reason=reason)


def incorrect(reason: str) -> Grade:
    return Grade(0.0, reason=reason)


def undecided(reason: str) -> Grade:
    return Grade(math.nan, reason=reason)
