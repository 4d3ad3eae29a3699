"""Critics: frozen writers of feedback. A critic is a service; its failure is a status, never an exception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from stepalign.critics.cache import holds_replies
from stepalign.records import Attempt, Critique, CritiqueForm

CRITIC_PROMPTS: dict[CritiqueForm, str] = {
    "trace": "scribe",
    "paraphrase": "paraphrase",
    "hint": "hint",
    "comment": "free_critique",
    "edits": "edit_script",
    "edit": "edit",
    "own": "scribe",
    "second_turn": "scribe",
}
"""The packaged prompt that asks for each form."""

CACHE = "critiques.sqlite"
"""Replies of an endpoint critic, where the recipe names no other file."""
LEDGER = "critic-ledger.jsonl"
"""Every HTTP attempt of one run."""
USER_CACHE, USER_LEDGER = "user.sqlite", "user-ledger.jsonl"
"""The same of a served user (``environment.served``)."""
RUN_FILES: Mapping[str, Callable[[Path], bool]] = {
    **{CACHE: holds_replies, LEDGER: Path.exists},
    **{USER_CACHE: holds_replies, USER_LEDGER: Path.exists},
}
"""Files that a served model leaves in a run folder -> whether it was paid for: then they stay when the run fails."""


def critic_prompt(prompt: str, form: CritiqueForm) -> str:
    """The critic's prompt template: the recipe's own, or the packaged one that asks for another form than a trace."""
    return prompt if prompt != CRITIC_PROMPTS["trace"] else CRITIC_PROMPTS[form]


class Critic(Protocol):
    """Writes critiques. Frozen: the same attempt gets the same critique, whatever was asked before."""

    name: str

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """A critique of one attempt; many may be asked for at once. Never raises for a bad reply.

        Args:
            earlier: the critic's first critique of it, where it is asked once more.
            complaint: what was wrong with that one, said to the critic.
        """
        ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...
