"""A taskset of verifiers as the author of the messages: its own environment replies, in the limited child process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from stepalign.config import DataSection
from stepalign.domains.domain import open_grader
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.grading import Grader
from stepalign.errors import BrokenOffError
from stepalign.records import Problem, Role, Turn


class TasksetReplier:
    """Plays an episode of the environment from its start with the solver's replies, once for each message and once for
    the grade (``domains.verifiers``)."""

    role: Role = "user"

    def __init__(self, grader: Grader) -> None:
        self._grader = grader

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        from stepalign.domains.verifiers import THE_END

        found = await self._play(problem, turns)
        if found.reason and found.reason != THE_END:
            raise BrokenOffError(found.reason)
        return None if found.reason else found.detail

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade:
        return await self._play(problem, turns, None)

    async def _play(self, problem: Problem, turns: Sequence[Turn], *end: None) -> Grade:
        replies = [turn.text for turn in turns if turn.role == "solver"]
        return await asyncio.to_thread(self._grader.grade, json.dumps([*replies, *end]), problem.answer)

    def close(self) -> None:
        self._grader.close()


def open_conversation(data: DataSection) -> TasksetReplier | None:
    """The replier of a taskset that talks; None where one reply answers its tasks."""
    from stepalign.domains.verifiers import talks

    source = data.grader if data.grader.startswith("verifiers:") else data.train
    return TasksetReplier(open_grader(source, seconds=data.grader_seconds)) if talks(source) else None
