"""A critic that reads a rollout turn by turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from stepalign.critics import Critic
from stepalign.records import UNGRADED, Attempt, Critique


@dataclass(slots=True)
class TurnByTurn:
    """Asks another critic about each turn of the solver, with the conversation before it behind the question."""

    critic: Critic
    reads_questions: bool
    """Whether the critic reads questions as text; a program parses them, and gets them as they are."""
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.critic.name

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`. A turn without a usable critique has an empty text; without any the
        critique is that of the first turn."""
        found = await asyncio.gather(*(self.critic.critique(turn) for turn in self._turns(attempt)))
        texts = tuple(one.text if one.status == "ok" else "" for one in found)
        first = next((one for one in found if one.status == "ok"), found[0])
        return replace(
            first,
            rollout_id=attempt.rollout_id,
            text="\n\n".join(filter(None, texts)),
            turns=texts,
            form="turns",
            first_error="",
            unpaid=any(one.unpaid for one in found),
            prompt_tokens=sum(one.prompt_tokens for one in found),
            completion_tokens=sum(one.completion_tokens for one in found),
            seconds=max(one.seconds for one in found),
            attempts=sum(one.attempts for one in found),
            cached=all(one.cached for one in found),
        )

    def _turns(self, attempt: Attempt) -> list[Attempt]:
        """Each turn of the solver as an attempt of its own; only the last one has the grade."""
        places = [place for place, turn in enumerate(attempt.turns) if turn.role == "solver"]
        found: list[Attempt] = []
        for place in places:
            before, problem = replace(attempt, turns=attempt.turns[:place]), attempt.problem
            if place and self.reads_questions:
                talk = f"{problem.question}\n\nThe conversation so far:\n\n{before.transcript}"
                problem = replace(problem, question=talk)
            grade = attempt.grade if place == places[-1] else UNGRADED
            text, name = attempt.turns[place].text, f"{attempt.rollout_id}-t{place}"
            found.append(replace(attempt, rollout_id=name, problem=problem, text=text, grade=grade, turns=()))
        return found or [attempt]

    def close(self) -> None:
        self.critic.close()
