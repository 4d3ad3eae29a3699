"""Environments: the prompt that a completion answers, and the message that answers a completion.

An environment is text to its author and token ids to the sampler: ``Conversation`` stands between the two. The ids of
earlier turns are never encoded again (TITO), and the ids of a message are never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stepalign.domains.math.grade import Grade
from stepalign.errors import BrokenOffError as BrokenOffError
from stepalign.models.prompts import PromptBuilder
from stepalign.outside import encodable
from stepalign.records import Completion, Problem, Role, Turn

MOST_CHARACTERS = 64
"""Of a message, for each token that it may have; the text behind them counts as one dropped token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A message to the solver, with the tokens that go behind the completion so far."""

    ids: tuple[int, ...]
    """The message and the opening of the next turn, as the chat template writes them."""
    text: str = ""
    role: Role = "tool"
    dropped_tokens: int = 0


class Environment(Protocol):
    """Prompts and replies as token ids."""

    def start(self, problem: Problem) -> Sequence[int]:
        """The prompt."""
        ...

    async def reply(self, problem: Problem, turns: Sequence[Turn], completion: Completion) -> Reply | None:
        """The reply to the last of the turns; None: the rollout ends. Raises BrokenOffError."""
        ...

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade | None:
        """The grade of a finished rollout; None: the grader of the recipe decides."""
        ...


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """The question, and nothing after the completion."""

    prompts: PromptBuilder

    def start(self, problem: Problem) -> Sequence[int]:
        return self.prompts.student(problem)

    async def reply(self, problem: Problem, turns: Sequence[Turn], completion: Completion) -> None:
        return None

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> None:
        return None


class Replier(Protocol):
    """The author of the messages: a tool, a user, or a class of the recipe's own (docs/environments.md). It may have a
    method ``grade`` as an :class:`Environment` has."""

    @property
    def role(self) -> Role: ...

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        """The message after these turns; None or an empty one: the rollout ends. Raises BrokenOffError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns of the solver with a replier's messages in between."""

    prompts: PromptBuilder
    replier: Replier
    max_turns: int
    """Turns of the solver."""
    max_reply_length: int
    """Tokens of a message; what is cut is counted."""

    def start(self, problem: Problem) -> Sequence[int]:
        return self.prompts.student(problem)

    async def reply(self, problem: Problem, turns: Sequence[Turn], completion: Completion) -> Reply | None:
        if sum(turn.role == "solver" for turn in turns) >= self.max_turns:
            return None
        text = encodable(await self.replier.reply(problem, turns) or "")
        if not text.strip():
            return None
        most = MOST_CHARACTERS * self.max_reply_length  # the tokens of megabytes would take minutes to count
        shown, dropped = self.prompts.cut(text[:most], self.max_reply_length)
        ids = self.prompts.reply(shown, completion.ids[-1])
        return Reply(ids=ids, text=shown, role=self.replier.role, dropped_tokens=dropped + (len(text) > most))

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade | None:
        own = getattr(self.replier, "grade", None)
        return None if own is None else await own(problem, turns)
