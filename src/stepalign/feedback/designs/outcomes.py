"""Designs that show how the attempt ended, and no critic's words: verdict, the attempt itself, what its code did."""

from __future__ import annotations

from stepalign.domains.python.problems import is_test_program, outcome_of
from stepalign.feedback.designs.design import Group, NothingToShow, joined, verdict_word


def nothing(group: Group, index: int) -> None:
    """No context: the policy gradient needs none."""
    raise NothingToShow("")


def verdict(group: Group, index: int) -> str:
    """One word."""
    return verdict_word(group.attempts[index])


def full_repeat(group: Group, index: int) -> str:
    """The whole attempt, its errors included, and only then the verdict."""
    return joined(group.attempts[index].text, verdict_word(group.attempts[index]))


def execution_trace(group: Group, index: int) -> str:
    """What running the attempt's code did: the test that failed and what the call gave, or where it raised.

    The code runs in the sandbox; what it says of itself (names, messages) is text like any other.
    """
    if not is_test_program(group.problem.answer):
        raise NothingToShow("the problem has no Python tests")
    outcome = outcome_of(group.attempts[index].text, group.problem.answer)
    if outcome.verdict == "undecided":
        raise NothingToShow(f"the code could not be run: {outcome.reason}")
    summary = outcome.reason[0].upper() + outcome.reason[1:]
    return f"{summary}.\n{outcome.detail}".strip()
