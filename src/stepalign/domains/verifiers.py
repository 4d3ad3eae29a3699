"""Tasksets of the package verifiers as a source of problems and as their grader. Importing it needs the package.

Each task becomes a problem whose expected answer is the task's data as JSON: from it the task is put together again
where a completion is graded, and its own reward functions judge the trace. An environment of the taskset's own that
talks with one agent turn by turn replies to the solver: its ``run`` is played from the start with the replies so far,
up to the point where it asks for the next one. So it must depend on its task and the conversation alone (``random`` is
seeded). What needs more than that - tools, files, containers, models of its own, several agents - is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

from stepalign.domains.math.grade import Grade, undecided
from stepalign.domains.math.thinking import MARK, find_thoughts
from stepalign.errors import ConfigError
from stepalign.outside import encodable
from stepalign.problems.columns import ColumnMap
from stepalign.problems.loading import ProblemSet, problems_of_rows
from stepalign.waiting import wait_for

try:
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
    from verifiers.v1.configs.agent import agent_config_fields  # pyright: ignore[reportMissingImports]
    from verifiers.v1.graph import MessageNode  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils import loaders  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils.generic import concrete_type  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ConfigError(
        f"A verifiers environment needs an extra: {error}.", hint='pip install "stepalign[verifiers]"'
    ) from None

THE_END = "the end"
COLUMNS = ColumnMap(metadata=("metadata",), verbatim=True)


def load_tasks(source: str, limit: int | None = None) -> ProblemSet:
    """The tasks of ``verifiers:TASKSET[?KEY=VALUE&...]`` as problems.

    The question is the task's system prompt, if it has one, and its prompt. The ``answer`` of a row is what
    ``load_grader`` reads; ``metadata`` holds the names the task has.

    Raises:
        ConfigError: no such taskset, a setting it does not know, or one that takes more than one turn.
    """
    return problems_of_rows(_read_tasks(source), source, COLUMNS, limit=limit)


def _read_tasks(source: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number from 1, row) of every task; a text is the reason to skip it."""
    taskset, env = _load_taskset(source)
    if not taskset.bounded:
        raise ConfigError("This taskset never ends.", where=source, hint="name one with a fixed set of tasks")
    try:
        for number, task in enumerate(taskset, start=1):
            opening = wait_for(_play(env, task, ())).message if env is not None else None
            yield number, encodable(_row(task, source, opening))
    except ConfigError:
        raise
    except Exception as error:  # the environment's own code
        raise ConfigError(f"The taskset cannot be read: {type(error).__name__}: {error}", where=source) from None


def load_grader(source: str) -> Callable[[str, str], Grade]:
    """The grader of a taskset, called with a completion and the ``answer`` of its row.

    Of an environment of several turns the completion is a JSON list of the solver's replies. The next message is then
    the detail of a grade without a reason; the reason ``THE_END`` comes with none. ``null`` behind the replies ends the
    conversation and asks for its grade.

    The score is the total reward (the weighted sum of the task's reward functions), cut to [0, 1]. Exceptions of the
    environment are raised: the caller makes them undecided. A reward that is missing or no finite number is undecided.
    """
    taskset, env = _load_taskset(source)
    task_type = type(taskset).task_type()

    def grade(completion: str, expected: str) -> Grade:
        data = task_type.data_type().model_validate_json(expected)
        task = task_type(data, taskset.config.task)
        if env is None:
            trace = _trace(task, [(None, completion)])
            wait_for(task.score(trace))
            return _of_rewards(trace)
        replies = json.loads(completion)
        over = bool(replies) and replies[-1] is None
        played = wait_for(_play(env, task, tuple(replies[:-1] if over else replies), over=over))
        if not over:
            return Grade(math.nan, detail=played.message or "", reason="" if played.message is not None else THE_END)
        return _of_rewards(played.trace) if played.trace is not None else undecided("the environment ran no agent")

    return grade


def talks(source: str) -> bool:
    """Whether a taskset has an environment of several turns."""
    return _load_taskset(source)[1] is not None


def _of_rewards(trace: Any) -> Grade:
    missing = [name for name, reward in trace.rewards.items() if reward is None]
    if missing or not math.isfinite(trace.reward):
        return undecided(f"no reward from {', '.join(missing)}" if missing else "reward is not finite")
    return Grade(min(max(trace.reward, 0.0), 1.0), reason=f"reward {trace.reward:.3g}")


class _AsksError(BaseException):
    """The environment waits for a reply that has not been sampled yet."""


@dataclass
class _Played:
    """How far an episode has come: the message that awaits a reply, or, where it is over, its trace."""

    message: str | None = None
    trace: Any = None


@dataclass
class _Seat:
    """The one agent of an environment: its replies are those of the solver so far."""

    replies: tuple[str, ...]
    over: bool
    played: _Played
    messages: list[tuple[str | None, str]] = field(default_factory=list)
    """(message, None for the prompt's own; reply) of each turn."""
    trainable: bool = True
    config: Any = None

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any, **_: Any) -> AsyncIterator[_Seat]:
        self.task = task
        yield self
        await self.close()

    async def run(self, task: Any, **_: Any) -> Any:
        async with self.interaction(task) as seat:
            await seat.turn()
        return self.trace

    async def turn(self, message: Any = None) -> Any:
        text = message if message is None or isinstance(message, str) else "\n\n".join(map(_content, message))
        number = len(self.messages)
        if number < len(self.replies):
            self.messages.append((text, self.replies[number]))
            return vf.Segment(messages=[_assistant(self.replies[number])])
        if self.over:
            return vf.Segment(messages=[], terminated=True)
        self.played.message = text if text is not None else ""
        raise _AsksError

    @property
    def trace(self) -> Any:
        if self.played.trace is None or len(self.messages) != self.played.trace.num_turns:
            self.played.trace = _trace(self.task, self.messages)
        return self.played.trace

    async def close(self) -> Any:
        await self.task.score(self.trace)
        return self.trace


async def _play(env: Any, task: Any, replies: tuple[str, ...], *, over: bool = False) -> _Played:
    """An episode from its start with these replies; ``over``: no more will come."""
    played = _Played()
    random.seed(task.hash)
    (name,) = agent_config_fields(env.config)
    seat = _Seat(replies, over, played)
    agents = SimpleNamespace(**{name: seat})
    try:
        await env.setup(agents)
        await env.run(task, agents)
    except _AsksError:
        return played
    if played.trace is not None:
        info = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        played.trace.agent.name = name
        await env.finalize(task, vf.Episode(env=vf.EnvInfo(id=env.config.env_id), task=info, traces=[played.trace]))
    return played


def _content(message: Any) -> str:
    return str(message["content"] if isinstance(message, dict) else message.content)


def _load_taskset(source: str) -> tuple[Any, Any]:
    """The taskset that a source names, with its settings, and its own environment where it has one. Refused where a
    conversation with one model cannot answer its tasks."""
    name, _, query = source.removeprefix("verifiers:").partition("?")
    folder = os.getcwd()
    if name.endswith(".py"):
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ConfigError("There is no such file.", where=source)
        folder, name = str(path.parent), path.stem
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        settings = loaders.taskset_config_type(name).model_validate({**dict(parse_qsl(query)), "id": name})
        taskset = loaders.load_taskset(settings)
        whole = loaders.environment_class(name)
        env = None if whole is vf.SingleAgentEnv else whole(concrete_type(whole, vf.EnvConfig)(taskset=settings))
    except Exception as error:  # whatever the environment's own code raises at its import
        error = error.__cause__ or error  # verifiers says "not found" of a module whose own imports fail, too
        raise ConfigError(
            f"The verifiers environment cannot be loaded: {type(error).__name__}: {str(error)[:500]}",
            where=source,
            hint="write verifiers:NAME (an installed taskset) or verifiers:./FOLDER/MODULE.py; settings as ?split=eval",
        ) from None
    task_type = type(taskset).task_type()
    reasons = [
        (env is not None and len(agent_config_fields(env.config)) != 1, "it has several agents"),
        (env is not None and bool(task_type(vf.TaskData()).hooks("stop")), "it has conditions to stop of its own"),
        (bool(taskset.toolsets(settings) or task_type.toolsets(settings.task)), "it offers tools"),
        (task_type.NEEDS_CONTAINER, "it needs a container"),
        *(
            (getattr(task_type, hook) is not getattr(vf.Task, hook), f"it has a {hook} step")
            for hook in ("setup", "finalize", "stage_verifier")
        ),
    ]
    if refused := [reason for applies, reason in reasons if applies]:
        raise ConfigError(f"Only conversations with one model can be used; {', and '.join(refused)}.", where=source)
    return taskset, env


def _row(task: Any, source: str, opening: str | None = None) -> dict[str, Any] | str:
    """A task as a row in our own columns, or the reason to skip it. Raises ConfigError when it cannot be graded."""
    scores = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    if not scores:
        raise ConfigError("The tasks have no reward function.", where=source)
    for score in scores:
        runtime = inspect.signature(score).parameters.get("runtime")
        if runtime is not None and runtime.default is inspect.Parameter.empty:  # verifiers would leave it out silently
            raise ConfigError(f"The reward {score.__name__} needs a runtime with files and commands.", where=source)
    data = task.data
    prompt = data.prompt
    if isinstance(prompt, list):
        if any(message.role not in ("system", "user") for message in prompt):
            return "a conversation that has begun"
        if any(not isinstance(message.content, str) for message in prompt):
            return "a prompt with parts that are no text"
        prompt = data.prompt_text
    prompt = opening or prompt
    if not prompt or not prompt.strip():
        return "no prompt"
    known = {"task_id": data.id, "task_name": data.name, "task_index": data.idx}
    return {
        "question": f"{data.system_prompt}\n\n{prompt}" if data.system_prompt else prompt,
        "answer": json.dumps(data.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False),
        "metadata": {name: value for name, value in known.items() if value is not None},
    }


def _assistant(completion: str) -> Any:
    """A reply as verifiers records it: a thinking part is its reasoning, as inference servers hand it out."""
    spans, cut = find_thoughts(completion)
    end = spans[-1][1] if spans else 0
    thinking = re.sub(MARK, "", completion[:end] + completion[cut:], flags=re.I | re.M).strip()
    reply = completion[end:cut]
    return vf.AssistantMessage(content=reply.strip() if thinking else reply, reasoning_content=thinking or None)


def _trace(task: Any, turns: list[tuple[str | None, str]]) -> Any:
    """A conversation as verifiers records it: (message, None for the task's prompt; reply) of each turn."""
    data = task.data
    messages = list(data.prompt) if isinstance(data.prompt, list) else []
    if isinstance(data.prompt, str):
        messages = [vf.UserMessage(content=data.prompt)]
    if data.system_prompt:
        messages = [vf.SystemMessage(content=data.system_prompt), *messages]
    for message, reply in turns:
        messages += [vf.UserMessage(content=message)] if message is not None else []
        messages.append(_assistant(reply))
    nodes = [
        MessageNode(
            message=message, parent=index - 1 if index else None, sampled=isinstance(message, vf.AssistantMessage)
        )
        for index, message in enumerate(messages)
    ]
    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
        is_completed=True,
        ok=True,
    )
