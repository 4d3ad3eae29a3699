"""Tasksets of the package verifiers as a source of problems and as their grader. Importing it needs the package.

Each task becomes a problem whose expected answer is the task's data as JSON: from it the task is put together again
where a completion is graded, and its own reward functions judge a trace of one turn. A taskset that needs more than one
reply of one model - tools, files, containers, simulated users, several agents - is refused.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
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
    from verifiers.v1.graph import MessageNode  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils import loaders  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ConfigError(
        f"A verifiers environment needs an extra: {error}.", hint='pip install "stepalign[verifiers]"'
    ) from None

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
    taskset = _load_taskset(source)
    if not taskset.bounded:
        raise ConfigError("This taskset never ends.", where=source, hint="name one with a fixed set of tasks")
    try:
        for number, task in enumerate(taskset, start=1):
            yield number, encodable(_row(task, source))
    except ConfigError:
        raise
    except Exception as error:  # the environment's own code
        raise ConfigError(f"The taskset cannot be read: {type(error).__name__}: {error}", where=source) from None


def load_grader(source: str) -> Callable[[str, str], Grade]:
    """The grader of a taskset, called with a completion and the ``answer`` of its row.

    The score is the total reward (the weighted sum of the task's reward functions), cut to [0, 1]. Exceptions of the
    environment are raised: the caller makes them undecided. A reward that is missing or no finite number is undecided.
    """
    taskset = _load_taskset(source)
    task_type = type(taskset).task_type()

    def grade(completion: str, expected: str) -> Grade:
        data = task_type.data_type().model_validate_json(expected)
        task = task_type(data, taskset.config.task)
        trace = _trace(task, completion)
        wait_for(task.score(trace))
        missing = [name for name, reward in trace.rewards.items() if reward is None]
        if missing or not math.isfinite(trace.reward):
            return undecided(f"no reward from {', '.join(missing)}" if missing else "reward is not finite")
        return Grade(min(max(trace.reward, 0.0), 1.0), reason=f"reward {trace.reward:.3g}")

    return grade


def _load_taskset(source: str) -> Any:
    """The taskset a source names, with its settings; refused when one reply cannot answer its tasks."""
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
    except Exception as error:  # whatever the environment's own code raises at its import
        error = error.__cause__ or error  # verifiers says "not found" of a module whose own imports fail, too
        raise ConfigError(
            f"The verifiers environment cannot be loaded: {type(error).__name__}: {str(error)[:500]}",
            where=source,
            hint="write verifiers:NAME (an installed taskset) or verifiers:./FOLDER/MODULE.py; settings as ?split=eval",
        ) from None
    task_type = type(taskset).task_type()
    reasons = [
        (whole is not vf.SingleAgentEnv, "it runs an environment of its own"),
        (bool(taskset.toolsets(settings) or task_type.toolsets(settings.task)), "it offers tools"),
        (task_type.NEEDS_CONTAINER, "it needs a container"),
        *(
            (getattr(task_type, hook) is not getattr(vf.Task, hook), f"it has a {hook} step")
            for hook in ("setup", "finalize", "stage_verifier")
        ),
    ]
    if refused := [reason for applies, reason in reasons if applies]:
        raise ConfigError(
            f"Only environments of one reply and one model can be used; {', and '.join(refused)}.", where=source
        )
    return taskset


def _row(task: Any, source: str) -> dict[str, Any] | str:
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
    if not prompt or not prompt.strip():
        return "no prompt"
    known = {"task_id": data.id, "task_name": data.name, "task_index": data.idx}
    return {
        "question": f"{data.system_prompt}\n\n{prompt}" if data.system_prompt else prompt,
        "answer": json.dumps(data.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False),
        "metadata": {name: value for name, value in known.items() if value is not None},
    }


def _trace(task: Any, completion: str) -> Any:
    """One turn as verifiers records it: a thinking part is the reply's reasoning, as inference servers hand it out."""
    spans, cut = find_thoughts(completion)
    end = spans[-1][1] if spans else 0
    thinking = re.sub(MARK, "", completion[:end] + completion[cut:], flags=re.I | re.M).strip()
    reply = completion[end:cut]
    answer = vf.AssistantMessage(content=reply.strip() if thinking else reply, reasoning_content=thinking or None)
    data = task.data
    given = data.prompt if isinstance(data.prompt, list) else [vf.UserMessage(content=data.prompt or "")]
    if data.system_prompt:
        given = [vf.SystemMessage(content=data.system_prompt), *given]
    nodes = [
        MessageNode(message=message, parent=index - 1 if index else None, sampled=message is answer)
        for index, message in enumerate([*given, answer])
    ]
    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
        is_completed=True,
        ok=True,
    )
