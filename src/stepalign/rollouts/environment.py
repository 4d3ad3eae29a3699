"""Environments: what a completion answers, and what answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stepalign.models.prompts import PromptBuilder
from stepalign.records import Completion, Problem


class Environment(Protocol):
    """Prompts and replies as token ids, which are never encoded again."""

    def start(self, problem: Problem) -> Sequence[int]:
        """The prompt."""
        ...

    async def reply(self, problem: Problem, completion: Completion) -> Sequence[int] | None:
        """Ids that follow the completion so far, such as a tool's output and the next turn's opening; None: it ends."""
        ...


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """The question, and nothing after the completion."""

    prompts: PromptBuilder

    def start(self, problem: Problem) -> Sequence[int]:
        return self.prompts.student(problem)

    async def reply(self, problem: Problem, completion: Completion) -> None:
        return None
