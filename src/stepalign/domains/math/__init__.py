"""Answers to mathematical problems, behind one door: ``grade(text, expected)``. Imports nothing else of the package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from stepalign.domains.math.grade import Grade

if TYPE_CHECKING:
    from stepalign.domains.math.grading import Grader

__all__ = ["Grade", "grade"]


def grade(text: str, expected: str) -> Grade:
    """The grade of a completion against the expected answer, by the built-in rules (see :class:`Grader`).

    Args:
        text: the completion, thinking included.
        expected: the expected answer, bare or as a worked solution that marks its answer.
    """
    return _shared_grader().grade(text, expected)


@cache
def _shared_grader() -> Grader:
    from stepalign.domains.math.grading import Grader

    return Grader()
