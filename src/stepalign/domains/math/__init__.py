"""Answers to mathematical problems, behind one door: ``grade(text, expected)``. Imports nothing else of the package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from stepalign.domains.math.grade import Grade
from stepalign.domains.math.thinking import opened_thought

if TYPE_CHECKING:
    from stepalign.domains.math.grading import Grader

__all__ = ["Grade", "grade"]


def grade(text: str, expected: str | float, *, prompt: str = "") -> Grade:
    """The grade of a completion against the expected answer, by the built-in rules (see :class:`Grader`).

    Args:
        text: the completion, thinking included.
        expected: the expected answer, bare or as a worked solution that marks its answer; a number means its text.
        prompt: the prompt behind which the text was sampled, or its end: where it opens a thought (``<think>``), the
            text begins inside of it, and a thought that is cut has no answer.

    Raises:
        TypeError: one of the two is neither text nor, for the expected answer, a number.
    """
    for name, value, kinds in (("text", text, str), ("expected", expected, str | int | float)):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}: {value!r}")
    return _shared_grader().grade(opened_thought(prompt) + text, str(expected))


@cache
def _shared_grader() -> Grader:
    from stepalign.domains.math.grading import Grader

    return Grader()
