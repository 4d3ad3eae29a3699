"""Designs that show how the attempt ended, and no critic's words: verdict, the attempt itself, what its code did."""

from __future__ import annotations

from stepalign.feedback.designs.design import Group, NothingToShow, verdict_word


def nothing(group: Group, index: int) -> None:
    """No context: the policy gradient needs none."""
    raise NothingToShow("")


def verdict(group: Group, index: int) -> str:
    """One word."""
    return verdict_word(group.rollouts[index])


def full_repeat(group: Group, index: int) -> str:
    """The whole attempt, its errors included, and only then the verdict."""
    return f"{group.rollouts[index].text} {verdict_word(group.rollouts[index])}".strip()
