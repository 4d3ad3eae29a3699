"""Graders in child processes with a limit on CPU time, wall time and memory.

Symbolic algebra on text that a model wrote may take for ever or all the memory there is, and cannot be interrupted from
within: a child that exceeds its limits is ended and replaced. Children are started when the first is needed, reused,
and end with their parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from stepalign.domains.math.grade import Grade, GraderError, Verdict, undecided


@dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """How to grade. Plain data: picklable, and equal configurations grade equally."""

    function: str | None = None
    """Import path ``module:function`` of a grader of your own, or None for the built-in one. It is called as
    ``function(completion, expected_answer)`` with both texts as they are, in a child process under the limits below,
    and returns a Grade, a bool, a score in [0, 1], a verdict ("correct", "incorrect", "undecided"), None (undecided),
    or (one of these but a Grade, reason)."""
    argument: str = ""
    """Where given, the function is called with it once in each child and returns the grader."""
    seconds: float = 1.0
    """CPU time of one comparison; its wall time is limited to 1.25 times this."""
    memory_bytes: int = 2 << 30
    """Address space of a child process."""
    num_workers: int = 2
    """Child processes. None is started before the first answer that needs one."""


_BUILT_IN = "stepalign.domains.math.symbolic:compare"

# ---------------------------------------------------------------------------------------------------------------------
# The side of the parent

_START_SECONDS = 600.0
_WALL_FACTOR = 1.25
_CHILD = "import sys; sys.path[:] = {path!r}; from stepalign.domains.math.bounded import serve; serve({config!r})"


class ChildPool:
    """Child processes that are started together when the first is needed, and replaced when they die."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: list[_Child] = []
        # Children end by themselves when their input closes; this only makes it prompt.
        weakref.finalize(self, _stop, self._children)

    def ask(self, text: str, expected: str) -> Grade:
        with self._lock:
            if not self._children:
                self._children += [_Child(self._config) for _ in range(self._config.num_workers)]
                for child in self._children:
                    self._idle.put(child)
        child = self._idle.get()
        try:
            return child.ask(text, expected)
        finally:
            self._idle.put(child)

    @property
    def num_children(self) -> int:
        return len(self._children)

    def check(self) -> None:
        """Start a child now. Raises GraderError for a wrong import path."""
        with contextlib.closing(_Child(self._config)) as probe:
            probe.wait_until_ready()

    def close(self) -> None:
        with self._lock:
            _stop(self._children)
            self._children.clear()
            self._idle = queue.SimpleQueue()


class _Child:
    """One child process and the socket to it: a JSON line out, a JSON line back."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._start()

    def ask(self, text: str, expected: str) -> Grade:
        self.wait_until_ready()
        try:
            self._socket.sendall(json.dumps([text, expected]).encode() + b"\n")
            reply = self._read(_WALL_FACTOR * self._config.seconds)
        except OSError:  # it ended, or takes no input
            reply = None
        if reply is None:
            reason = self._end()
            self._start()  # now, not at the next answer: it imports while the caller goes on
            return undecided(reason)
        if reply["exits"]:
            self.close()
            self._start()
        return Grade(**{**reply["grade"], "judged": tuple(reply["grade"]["judged"])})

    def wait_until_ready(self) -> None:
        if self._ready:
            return
        reply = self._read(_START_SECONDS)
        if reply is None or reply["error"]:
            self.close()
            hint = reply["error"] if reply else "The process ended at its start; does memory_bytes suffice?"
            raise GraderError(self._config.argument or self._config.function or "math-verify", hint)
        self._ready = True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._socket.close()

    def _start(self) -> None:
        # A new interpreter, not a fork: the parent may hold a GPU, threads and gigabytes. The fixed hash seed keeps
        # the order in which sympy tries its rules, and so the verdict, the same in every process. Modules are found
        # as in this process, and last in the current folder.
        code = _CHILD.format(path=[*sys.path, os.getcwd()], config=asdict(self._config))
        self._socket, its_end = socket.socketpair()
        self._replies = self._socket.makefile("rb")
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=its_end.fileno(),
                stdout=its_end.fileno(),
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            )
        self._ready = False

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the child; None where it ends before, or takes too long."""
        self._socket.settimeout(seconds)
        try:
            return json.loads(self._replies.readline() or "null")
        except (OSError, ValueError):
            return None

    def _end(self) -> str:
        """Stop a child that did not answer; returns why it did not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.05)
        status = self._process.returncode
        self.close()
        return "timed out" if status in (None, -signal.SIGPROF) else "grader crashed"


def _stop(children: list[_Child]) -> None:
    for child in children:
        child.close()


# ---------------------------------------------------------------------------------------------------------------------
# The side of the child


def serve(config: dict[str, Any]) -> None:
    """Answer comparisons until the input ends. Runs in a child process only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a grader prints can be taken for a reply

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    name = config["function"] or _BUILT_IN
    try:
        grader = _load(name, config["argument"])
        with contextlib.suppress(
            ValueError, OSError
        ):  # macOS cannot limit the address space; time is limited there too
            resource.setrlimit(resource.RLIMIT_AS, (config["memory_bytes"],) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    reply(error="")
    for line in sys.stdin:
        # The default action of SIGPROF ends the process at once, even inside one long multiplication, and even when
        # the parent is gone.
        signal.setitimer(signal.ITIMER_PROF, config["seconds"])
        exits = False
        try:
            grade = as_grade(grader(*json.loads(line)), name)
        except (MemoryError, RecursionError) as error:
            grade = undecided("out of memory" if isinstance(error, MemoryError) else "too deeply nested")
            exits = True
        except Exception as error:
            grade = undecided(f"the grader raised {type(error).__name__}: {error}"[:200])
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(grade=asdict(grade), exits=exits)


def _load(path: str, argument: str) -> Callable[[str, str], Any]:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f'a grader is named "module:function", got "{path}"')
    function: Any = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{path} is not callable")
    made: Any = function(argument) if argument else function
    return made


def as_grade(result: Any, name: str) -> Grade:
    """The result of a user's grader as a grade."""
    if isinstance(result, Grade):
        answer = None if result.answer is None else str(result.answer)
        judged = tuple(map(float, result.judged))
        return Grade(float(result.score), answer, str(result.detail), str(result.reason), judged)
    result, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, name)
    if result is None or result in get_args(Verdict):
        return Grade.of(result or "undecided", str(reason))
    if isinstance(result, str) or not hasattr(result, "__float__"):
        raise TypeError(f"returned {result!r}; expected a Grade, a bool, a score, a verdict or None")
    return Grade(float(result), reason=str(reason))
