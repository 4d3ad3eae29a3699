"""A context design: a small function, and as data its needs and the introduction of its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepalign.records import Attempt, Critique, CritiqueForm, Problem

Need = Literal["critic", "reference", "siblings", "other problems", "tests"]
"""A rollout without a need of its design is masked, and counted."""

FEEDBACK = "You have attempted this problem before. Here is feedback on that attempt."


class NothingToShow(Exception):  # noqa: N818 - no error
    """Raised by a design that has no text for a rollout; the run counts the reason, unless it is ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The attempts at one problem, with what is known about them."""

    problem: Problem
    attempts: Sequence[Attempt]
    critiques: Sequence[Critique | None]
    """One per attempt, in the form that the design asks for; None where there is none."""
    elsewhere: Sequence[Critique] = ()
    """Usable critiques of attempts at other problems, for the control that shows the wrong one."""
    other_problems: Sequence[Problem] = ()
    """Problems that may serve as worked examples; this group's own among them does no harm."""

    @property
    def rollouts(self) -> Sequence[Attempt]:
        """``attempts`` under the name that users' own designs may know."""
        return self.attempts


def make_group(
    attempts: Sequence[Attempt],
    critiques: Mapping[str, Critique],
    *,
    usable: Iterable[Critique] = (),
    other_problems: Sequence[Problem] = (),
) -> Group:
    """The attempts at one problem as a group.

    Args:
        critiques: by rollout_id.
        usable: critiques of any attempts that may be shown elsewhere; the group's own are left out.
    """
    own = {attempt.rollout_id for attempt in attempts}
    return Group(
        problem=attempts[0].problem,
        attempts=attempts,
        critiques=[critiques.get(attempt.rollout_id) for attempt in attempts],
        elsewhere=[critique for critique in usable if critique.rollout_id not in own],
        other_problems=other_problems,
    )


@dataclass(frozen=True, slots=True)
class Design:
    """An entry of the table, or one of a user's own."""

    show: Callable[[Group, int], str | None]
    """(group, index of the attempt) -> the text that the self-teacher is shown; raises NothingToShow with a reason."""
    label: str
    """A few words, for tables and pages."""
    introduction: str = FEEDBACK
    """The sentence in front of the text in the packaged self-teacher prompt."""
    needs: tuple[Need, ...] = ()
    form: CritiqueForm = "trace"
    """The form of critique that the design needs."""
    show_turn: Callable[[Group, int, int], str] | None = None
    """(group, index, place of a turn of the solver) -> the text that teaches this turn alone, in the place of ``show``;
    an attempt of a single turn has the place 0."""
    penalty: float = 0.0
    """Without a context: the advantage of unlikely tokens of wrong attempts."""

    @property
    def has_context(self) -> bool:
        return self.show is not nothing or self.show_turn is not None

    @property
    def needs_critic(self) -> bool:
        return "critic" in self.needs


def nothing(group: Group, index: int) -> None:
    """No context: the policy gradient needs none."""
    raise NothingToShow("")


def usable_critique(group: Group, index: int) -> Critique:
    """The critique of an attempt. Raises NothingToShow without a usable one."""
    critique = group.critiques[index]
    if critique is None:
        raise NothingToShow("no critique")
    if critique.status != "ok":
        raise NothingToShow(f"critique {critique.status}: {critique.reason}")
    return critique


def verdict_word(attempt: Attempt) -> str:
    """ "right" or "wrong". Raises NothingToShow for an undecided verdict."""
    words = {"correct": "right", "incorrect": "wrong"}
    if attempt.verdict not in words:
        raise NothingToShow("the verdict is undecided")
    return words[attempt.verdict]


def joined(*parts: str) -> str:
    """Parts one behind the other: on lines of their own where one of them has lines, else as words of one line."""
    separator = "\n" if any("\n" in part.strip() for part in parts) else " "
    return separator.join(part.strip() for part in parts if part.strip())


def sibling(group: Group, index: int, verdict: str) -> Attempt:
    """The first other rollout of the group with a verdict. Raises NothingToShow where there is none."""
    for other, attempt in enumerate(group.attempts):
        if other != index and attempt.verdict == verdict:
            return attempt
    raise NothingToShow(f"no {verdict} sibling")
