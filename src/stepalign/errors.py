"""Errors a user can cause: what happened, where, and the command or change that mends it.

The command line prints these without a traceback (``--debug`` shows it) and exits with the class's code, so that
scripts can tell a wrong recipe from an endpoint that is down.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stepalign.outside import shown


def meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question for the nearest known name, empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {close[0]}?" if close else ""


class UserError(Exception):
    """A mistake the user can mend.

    Args:
        what: one sentence that says what is wrong.
        where: file, line, key or address the sentence is about.
        hint: the command or the change that mends it.
    """

    exit_code = 1
    keeps_work = False
    """Whether the same command with ``--resume`` goes on after it."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = shown(what)  # a message may quote a server, a file or an address with a password
        self.where = where if where is None else shown(where)
        self.hint = hint if hint is None else shown(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class ConfigError(UserError):
    """Wrong recipe, wrong option, wrong or missing input file (exit code 2)."""

    exit_code = 2


class EndpointError(UserError):
    """A server we need does not answer, or answers with something else (exit code 3)."""

    exit_code = 3


class BudgetSpentError(UserError):
    """A critic has used up its budget; everything so far is saved (exit code 5)."""

    exit_code = 5


class LockedError(UserError):
    """The run folder belongs to another process or another run (exit code 4)."""

    exit_code = 4


class BrokenOffError(Exception):
    """Raised by a replier that has failed for now: the rollout ends there, and counts as truncated."""
