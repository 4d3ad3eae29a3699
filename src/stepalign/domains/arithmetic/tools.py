"""A tool of the embedded task: ``environment = "stepalign.domains.arithmetic.tools:Checker"``."""

from __future__ import annotations

from collections.abc import Sequence

from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.records import Attempt, Problem, Turn


class Checker:
    """Names the first wrong step of a turn, ``<step_3> wrong``, and ends the rollout where everything is right."""

    role = "tool"

    def __init__(self) -> None:
        self._critic = ArithmeticCritic(form="hint")

    def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        found = self._critic.write(Attempt(rollout_id="", problem=problem, text=turns[-1].text)).text
        return None if found == "right" else found
