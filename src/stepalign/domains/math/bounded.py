"""Comparisons in child processes with a limit on CPU time, wall time and memory.

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
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, get_args

from stepalign.errors import ConfigError
from stepalign.problems.rows import is_environment
from stepalign.records import Verdict


@dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """How to grade. Plain data: picklable, and equal configurations grade equally."""

    function: str | None = None
    """Import path ``module:function`` of a grader of your own, or None for the built-in one. It is called as
    ``function(completion, expected_answer)`` with both texts as they are, in a child process under the limits below,
    and returns a bool, a verdict ("correct", "incorrect", "undecided"), None (undecided), or (one of these, reason).
    ``verifiers:TASKSET[?KEY=VALUE]`` names an environment, whose rewards are the grader."""
    seconds: float = 1.0
    """CPU time of one comparison; its wall time is limited to 1.25 times this."""
    memory_bytes: int = 2 << 30
    """Address space of a child process."""
    num_workers: int = 2
    """Child processes. None is started before the first answer that needs one."""


# ---------------------------------------------------------------------------------------------------------------------
# The side of the parent

_START_SECONDS = 60.0
_WALL_FACTOR = 1.25
_CHILD = "import sys; sys.path[:] = {path!r}; from stepalign.domains.math.bounded import serve; serve({config!r})"


class ChildPool:
    """Child processes that are started together when the first is needed, and replaced when they die."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        # Children end by themselves when their input closes; this only makes it prompt.
        weakref.finalize(self, _stop, self._workers)

    def ask(self, job: dict[str, str]) -> tuple[Verdict, str]:
        with self._lock:
            if not self._workers:
                self._workers += [_Worker(self._config) for _ in range(self._config.num_workers)]
                for worker in self._workers:
                    self._idle.put(worker)
        worker = self._idle.get()
        try:
            return worker.ask(job)
        finally:
            self._idle.put(worker)

    @property
    def num_children(self) -> int:
        return len(self._workers)

    def check(self) -> None:
        """Start now, so that a wrong import path is an error at once."""
        probe = _Worker(self._config)
        try:
            probe.wait_until_ready()
        finally:
            probe.stop()

    def close(self) -> None:
        with self._lock:
            _stop(self._workers)
            self._workers.clear()
            self._idle = queue.SimpleQueue()


class _Worker:
    """One child process and the pipe to it: a JSON line out, a JSON line back."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._start()

    def ask(self, job: dict[str, str]) -> tuple[Verdict, str]:
        self.wait_until_ready()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._read(_WALL_FACTOR * self._config.seconds)
        except (BrokenPipeError, TimeoutError):
            reply = None
        if reply is None:
            reason = self._end()
            self._start()  # now, not at the next answer: it imports while the caller goes on
            return "undecided", reason
        if reply["exits"]:
            self.stop()
            self._start()
        return reply["verdict"], reply["reason"]

    def wait_until_ready(self) -> None:
        if self._ready:
            return
        try:
            reply = self._read(_START_SECONDS)
        except TimeoutError:
            reply = None
        if reply is None or reply["error"]:
            self.stop()
            raise ConfigError(
                "The grader cannot be started.",
                where=self._config.function or "math-verify",
                hint=reply["error"] if reply else "The process ended at its start; does memory_bytes suffice?",
            )
        self._ready = True

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        # A new interpreter, not a fork: the parent may hold a GPU, threads and gigabytes. The fixed hash seed keeps
        # the order in which sympy tries its rules, and so the verdict, the same in every process.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=_module_path(), config=asdict(self._config))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._ready = False

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the child, None at its end; raises TimeoutError."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    return None
                received += chunk
        return json.loads(received)

    def _end(self) -> str:
        """Stop a child that did not answer, and say why it did not."""
        try:
            status = self._process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            status = None
        self.stop()
        return "timed out" if status in (None, -signal.SIGPROF) else "grader crashed"


def _module_path() -> list[str]:
    """Where a child looks for modules: as this process does, and last where the user stands."""
    return [*sys.path, os.getcwd()]


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


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

    try:
        compare = _load_function(config["function"]) if config["function"] else _load_math_verify()
        _limit_memory(config["memory_bytes"])
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    reply(error="")
    for line in sys.stdin:
        job = json.loads(line)
        # The default action of SIGPROF ends the process at once, even inside one long multiplication, and even when
        # the parent is gone.
        signal.setitimer(signal.ITIMER_PROF, config["seconds"])
        try:
            verdict, reason = compare(job["answer"], job["expected"])
            exits = False
        except (MemoryError, RecursionError) as error:
            verdict, reason = "undecided", "out of memory" if isinstance(error, MemoryError) else "too deeply nested"
            exits = True
        except Exception as error:
            verdict, reason, exits = "undecided", f"the grader raised {type(error).__name__}: {error}"[:200], False
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(verdict=verdict, reason=reason, exits=exits)


def _limit_memory(memory_bytes: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # macOS and Windows cannot limit the address space; the time limit holds there too


def _load_math_verify() -> Callable[[str, str], tuple[Verdict, str]]:
    import logging

    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    read = partial(
        parse,
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] - None is what its own warning asks for
        raise_on_error=True,
    )

    @lru_cache(maxsize=256)
    def read_gold(expected: str) -> Any:  # the completions of a group share it, and a parse is half of the cost
        return _with_imaginary_unit(read(f"${expected}$"))

    def compare(answer: str, expected: str) -> tuple[Verdict, str]:
        gold = read_gold(expected)
        if not gold:
            return "undecided", "unreadable expected answer"
        given = _with_imaginary_unit(read(f"${answer}$"))
        if not given:
            return "incorrect", "unreadable answer"
        try:
            equal = _difference_is_zero(gold[0], given[0])
            if equal is None:
                equal = verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            return "incorrect", "incomparable expressions"
        return ("correct", "equal expression") if equal else ("incorrect", "different expression")

    compare("x+1", "2x")  # the first parse builds tables; not at the expense of the first answer
    return compare


def _with_imaginary_unit(parsed: Any) -> Any:
    """The letter i as the imaginary unit, as in ``exact.py``; math-verify takes it for a variable."""
    from sympy import Expr, I

    def read(item: Any) -> Any:
        units = [symbol for symbol in item.free_symbols if str(symbol) == "i"] if isinstance(item, Expr) else []
        return item.subs(dict.fromkeys(units, I)) if units else item

    return [read(item) for item in parsed]


def _difference_is_zero(gold: Any, given: Any) -> bool | None:
    """Whether two exact expressions are equal, where expanding their difference shows it; else None.

    It does for most right answers and most wrong ones, and costs a tenth of a simplification.
    """
    from sympy import Expr, Float, Poly, expand

    if not (isinstance(gold, Expr) and isinstance(given, Expr)):
        return None
    difference = expand(gold - given)
    if difference == 0:
        return True
    if difference.has(Float):
        return None
    if difference.free_symbols and difference.is_polynomial():
        domain = Poly(difference).domain
        return False if domain.is_ZZ or domain.is_QQ else None
    return False if difference.is_zero is False else None


def _load_function(path: str) -> Callable[[str, str], tuple[Verdict, str]]:
    if is_environment(path):
        from stepalign.domains.verifiers import load_grader

        return load_grader(path)
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f'a grader is named "module:function", got "{path}"')
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{path} is not callable")

    def compare(answer: str, expected: str) -> tuple[Verdict, str]:
        return _as_verdict(function(answer, expected), path)

    return compare


def _as_verdict(result: Any, name: str) -> tuple[Verdict, str]:
    """What a user's grader returned as verdict and reason."""
    result, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, name)
    if result is None:
        return "undecided", str(reason)
    if result in (True, False):
        return ("correct" if result else "incorrect"), str(reason)
    if result in get_args(Verdict):
        return result, str(reason)
    raise TypeError(f"returned {result!r}; expected a bool, a verdict or None")
