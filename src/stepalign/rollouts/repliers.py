"""Who replies to the solver: a confined Python process, a scripted or served user, or a class of the recipe's own."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepalign.config import CriticSection, EnvironmentSection
from stepalign.critics import USER_CACHE, USER_LEDGER
from stepalign.critics.endpoint import EndpointCritic
from stepalign.domains.math.bounded import as_grade
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.grading import Grader
from stepalign.domains.math.thinking import after_thinking
from stepalign.domains.python import sandbox
from stepalign.domains.python.grading import clip
from stepalign.errors import ConfigError
from stepalign.feedback.prompts import Template, load_template
from stepalign.own_code import import_own, raised_by_own_code
from stepalign.records import Attempt, Problem, Role, Turn
from stepalign.rollouts.environment import BrokenOffError, Replier

THE_END = "[END]"
"""A served user writes it where there is nothing more to say."""
USER_VARIABLES = ("question", "answer", "reference", "attempt", "verdict", "turn")
"""The variables of a scripted user's messages."""
MOST_OUTPUT = 16_000
"""Bytes of a call's output."""
_CALL = re.compile(r"^[ \t]{0,3}```[ \t]{0,3}(?:python3?|py)[ \t]*\r?\n(.*?)^[ \t]{0,3}```", re.M | re.S | re.I)


def find_call(text: str) -> str | None:
    """The code of a turn's last complete ```python block; None where there is none. Thinking does not count."""
    blocks = _CALL.findall(after_thinking(text))
    return blocks[-1] if blocks and blocks[-1].strip() else None


class _LateError(Exception):
    """Crosses the cache: the next call may have a processor in time."""


def answer_call(code: str) -> str:
    """The output of a call, and the end of its traceback where it fails; a long output then loses its middle, so that
    the message has room for the reason. Raises OSError where the process cannot be started or gets no processor."""
    try:
        return _ended_call(code)
    except _LateError as late:
        return str(late)


@lru_cache(maxsize=4096)  # a group often writes the same call
def _ended_call(code: str) -> str:
    ran = sandbox.run_program(code, echo=True, most=MOST_OUTPUT + 1)
    if ran.starved:
        raise OSError(sandbox.TOO_BUSY.reason)
    is_late = ran.fault == "timed out"
    output, end = ran.output, f"timed out in {ran.trace}" if is_late and ran.trace else ran.trace or ran.fault
    if end:
        output = clip(output)
    elif len(output.encode()) > MOST_OUTPUT:
        output = output.encode()[:MOST_OUTPUT].decode(errors="ignore")
        end = f"(the output goes on after {MOST_OUTPUT} bytes)"
    message = "\n".join(part.rstrip() for part in (output, end) if part.strip()) or "(no output)"
    if is_late:
        raise _LateError(message)
    return message


class PythonTool:
    """Runs the code of a turn's last ```python block; a turn without one ends the rollout. Calls share no state."""

    role: Role = "tool"

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        code = find_call(turns[-1].text)
        try:
            return None if code is None else await asyncio.to_thread(answer_call, code)
        except OSError as error:  # a machine without memory or processes for the moment
            raise BrokenOffError(f"the sandbox: {error}") from error


@dataclass(frozen=True, slots=True)
class ScriptedUser:
    """Writes the n-th of its messages after the solver's n-th turn; an empty one, or none left, ends the rollout."""

    messages: Sequence[Template]
    grader: Grader
    role: Role = "user"

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        turn = sum(one.role == "solver" for one in turns)
        if turn > len(self.messages):
            return None
        message, attempt = self.messages[turn - 1], turns[-1].text
        shown = {"question": problem.question, "answer": problem.shown_answer, "reference": problem.reference or ""}
        if "verdict" in message.variables:
            grade = await asyncio.to_thread(self.grader.grade, attempt, problem.answer)
            shown["verdict"] = grade.verdict
        return message.render(**shown, attempt=attempt, turn=turn)


@dataclass(frozen=True, slots=True)
class ServedUser:
    """A chat model that reads the conversation and writes the user's next message."""

    model: EndpointCritic
    role: Role = "user"

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        so_far = Attempt(
            rollout_id=f"{problem.problem_id}-turn-{len(turns)}", problem=problem, text="", turns=(*turns,)
        )
        found = await self.model.critique(so_far)
        if found.status != "ok":
            raise BrokenOffError(found.reason)
        return None if THE_END in found.text else found.text

    def check(self) -> None:
        """Raises EndpointError where no server answers."""
        self.model.check()

    def close(self) -> None:
        self.model.close()


class OwnReplier:
    """A class of the user's: ``reply(problem, turns)``, and if it likes ``grade(problem, turns)`` and ``close()``."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        made = import_own(name, "environment", "class")
        try:
            self.own: Any = made(**options)
        except TypeError as error:
            raise ConfigError(
                f"the environment cannot be made: {error}",
                where="environment.options",
                hint="they are the arguments of the class",
            ) from error
        except Exception as error:
            raise raised_by_own_code("the environment", error, "its class is made before the run begins") from error
        if not callable(getattr(self.own, "reply", None)):
            raise ConfigError(
                f"{name.rpartition(':')[2]} has no method reply",
                where=f"environment {name}",
                hint="def reply(self, problem, turns) -> str | None",
            )
        self.role: Role = getattr(self.own, "role", "user")
        if self.role not in ("tool", "user"):
            raise ConfigError(f'role is "tool" or "user", got {self.role!r}', where=f"environment {name}")

    async def reply(self, problem: Problem, turns: Sequence[Turn]) -> str | None:
        text = await self._call(self.own.reply, problem, turns)
        if text is not None and not isinstance(text, str):
            raise ConfigError(
                f"reply returns {type(text).__name__}, not text or None", where=f"environment {self.name}"
            )
        return text

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> Grade | None:
        own = getattr(self.own, "grade", None)
        if own is None:
            return None
        result = await self._call(own, problem, turns)
        try:
            return as_grade(result, self.name)
        except (TypeError, ValueError, OverflowError) as error:
            hint = "return a score in [0, 1], a bool, or None where it cannot be said"
            raise ConfigError(f"grade gives no grade: {error}", where=f"environment {self.name}", hint=hint) from error

    async def _call(self, method: Callable[..., Any], problem: Problem, turns: Sequence[Turn]) -> Any:
        """A plain method runs in a thread, so that episodes go on side by side."""
        try:
            if inspect.iscoroutinefunction(method):
                return await method(problem, tuple(turns))
            found = await asyncio.to_thread(method, problem, tuple(turns))
            return await found if isinstance(found, Awaitable) else found
        except BrokenOffError:
            raise
        except Exception as error:
            hint = "return None where the rollout ends; raise BrokenOffError where a service fails for now"
            raise raised_by_own_code("the environment", error, hint) from error

    def close(self) -> None:
        try:
            getattr(self.own, "close", lambda: None)()
        except Exception as error:
            raise raised_by_own_code("the environment", error, "close is called at the end") from error


def make_replier(
    section: EnvironmentSection, critic: CriticSection, grader: Grader, folder: Path | None = None
) -> Replier | None:
    """The replier of a recipe; None for a single turn.

    Args:
        critic: has the limits, the budgets and the prices of a served user's requests.
        folder: where the replies of a served user are kept.

    Raises:
        ConfigError: no such kind, no sandbox, no message, or a class that breaks its contract.
    """
    if ":" in section.kind:
        return OwnReplier(section.kind, section.options)
    return KINDS[section.kind](section, critic, grader, folder)


def _python_tool(*_: Any) -> PythonTool:
    if reason := sandbox.why_unavailable():
        raise ConfigError(
            f"this machine has no sandbox for Python: {reason}",
            where="environment.kind = python_tool",
            hint="run on Linux 5.13 or newer",
        )
    return PythonTool()


def _user(
    section: EnvironmentSection, critic: CriticSection, grader: Grader, folder: Path | None
) -> ScriptedUser | ServedUser:
    if section.served.base_urls:
        served = section.served.as_critic(critic, sees="nothing")
        cache, ledger = (folder / USER_CACHE, folder / USER_LEDGER) if folder else (None, None)
        cache = Path(section.served.cache) if section.served.cache else cache
        return ServedUser(
            EndpointCritic(served, prompt=section.prompt, form="comment", cache_path=cache, ledger_path=ledger)
        )
    messages = [load_template(text if "{{" in text or "{%" in text else f"{text}\n") for text in section.messages]
    for message in messages:
        message.refuse_others_than(USER_VARIABLES, "a user's message")
    if not messages:
        raise ConfigError(
            "the user has nothing to say",
            where="environment.messages, environment.served.base_urls",
            hint="""--set 'environment.messages=["{% if verdict != \\"correct\\" %}That is wrong.{% endif %}"]'""",
        )
    return ScriptedUser(messages, grader)


KINDS: dict[str, Callable[..., Replier | None]] = {
    "single": lambda *_: None,
    "python_tool": _python_tool,
    "user": _user,
}
