"""Run Python that a model wrote against tests, where it can do no harm and cannot talk its way to a pass.

Two processes, both confined alike (``confinement``): one runs the solution and never gets the tests, the other runs
the tests. A test's call goes over a pipe; what comes back is plain data (``values``), compared in the tests' process.
The solution can therefore not reach the assertions, the comparison or the verdict. Both processes are ended together
when the tests are through, when their time is up, or when the caller dies.

It is no security boundary against holes in the kernel. See ``confinement``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from stepalign.domains.math.grade import Verdict
from stepalign.outside import parse_json

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one run. Files, network and further processes it may not have at all."""

    cpu_seconds: int = 2
    """Of each of the two processes."""
    wall_seconds: float = 20.0
    """Of both together; several times the CPU time, since the machine may be busy. A whole program has up to twice as
    much besides, as long as it waits for a processor."""
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    max_bytes: int = 1 << 20
    """Of one call's arguments, or of one returned value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the tests went."""

    verdict: Verdict
    reason: str
    """Few words, made to be counted."""
    detail: str = ""
    """The failed statement and what the call gave, or the end of the traceback. Model-written text."""
    passed: int = 0
    """Statements of the tests that called the solution and went through."""


TOO_BUSY = Outcome(verdict="undecided", reason="the machine is too busy")


def run_tests(
    code: str, tests: str, limits: Limits | None = None, *, files: Mapping[str, str] | None = None
) -> Outcome:
    """Run tests - statements with ``assert``, ``test_`` functions - against a solution's code.

    Names that the tests use, that are neither Python's own nor theirs, are the solution's. Its functions are called
    with plain values (numbers, text, lists, tuples, dictionaries, sets, ranges) and with objects that came from it;
    lists, dictionaries and sets that it changes in place are changed. No test can give it a function. The standard
    library can be imported on both sides, and ``files``: modules of the solution beside its code (which is the module
    ``solution``), by their paths; it can open those that are no modules.

    "correct" takes every test; time, memory and an early end are "incorrect", in the tests' process too once it
    holds a value of the solution's; "undecided" means that the tests are faulty or that there is no sandbox.
    """
    limits = limits or Limits()
    to_solution, from_tests = os.pipe()
    to_tests, from_solution = os.pipe()
    shared = {"library": str(_HERE), **asdict(limits)}
    children: list[subprocess.Popen[bytes]] = []
    try:
        try:
            ends = [
                ("solution.py", to_solution, from_solution, {"code": code, "files": dict(files or {})}),
                ("tests.py", to_tests, from_tests, {"tests": tests}),
            ]
            for script, reads, writes, job in ends:
                children.append(_start(script, {**shared, "reads": reads, "writes": writes, **job}, (reads, writes)))
        finally:
            for end in (to_solution, from_tests, to_tests, from_solution):
                os.close(end)
        output = children[1].communicate(timeout=limits.wall_seconds)[0]
    except subprocess.TimeoutExpired:
        return Outcome(verdict="incorrect", reason="timed out")
    except OSError as error:
        return Outcome(verdict="undecided", reason="sandbox unavailable", detail=str(error))
    finally:
        for child in children:
            _end(child)
    solution, judge = children
    if solution.returncode == -signal.SIGXCPU:
        return Outcome(verdict="incorrect", reason="timed out")
    if not output.strip():
        late = judge.returncode == -signal.SIGXCPU
        if output:  # the tests had the solution's values
            return Outcome(verdict="incorrect", reason="timed out" if late else "the tests ended early")
        return Outcome(verdict="undecided", reason=f"the tests {'ran out of time' if late else 'ended early'}")
    return Outcome(**parse_json(output))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """The end of a program. All of it is text of a model."""

    output: str = ""
    """What it printed: the beginning."""
    fault: str = ""
    """Few words, such as the name of an exception; "" for a normal end."""
    trace: str = ""
    """The end of the traceback, or the loop in which it ran out of time."""
    line: int | None = None
    """Number of the failing line of the program, where there is one."""
    seconds: float = 0.0
    """On the clock, without those that it was ready to run and had no processor."""
    starved: bool = False
    """It got so little of a processor that nothing is known about it: the program may be right."""


def run_program(
    code: str, text: str = "", *, echo: bool = False, limits: Limits | None = None, most: int = 16_000
) -> Ran:
    """Run a whole program with a text for its standard input, confined as solutions are.

    Args:
        echo: print the value of a last line that is an expression, as a notebook does, and errors too.
        most: bytes of the output that are kept.

    Raises:
        OSError: no sandbox here.
    """
    with contextlib.closing(run_cases(code, [text], echo=echo, limits=limits, most=most)) as runs:
        return next(runs)


def run_cases(
    code: str,
    texts: Sequence[str],
    *,
    echo: bool = False,
    limits: Limits | None = None,
    files: Mapping[str, str] | None = None,
    most: int = 16_000,
) -> Generator[Ran]:
    """The runs of a whole program with each text for its standard input; none knows of another. See ``run_program``.

    Args:
        files: modules that the program can import and texts that it can open, by their paths.
        most: bytes of the output that are kept.
    """
    limits = limits or Limits()
    reads, writes = os.pipe()
    more = {"inputs": list(texts), "echo": echo, "files": dict(files or {}), "most": most, "writes": writes}
    shared = {"library": str(_HERE), **asdict(limits), "code": code, **more}
    shared["max_bytes"] = limits.max_bytes + 16 * most  # as JSON within JSON
    try:
        child = _start("program.py", shared, (writes,))
    finally:
        os.close(writes)
    try:
        with open(reads, "rb", buffering=65536) as lines:
            for _ in texts:
                yield _ran(lines.readline())
    finally:
        _end(child)


def _ran(line: bytes) -> Ran:
    found = parse_json(line) if line else {"output": "", "end": "", "late": False, "seconds": 0.0, "starved": False}
    times = {"seconds": found["seconds"], "starved": found["starved"]}
    ran = Ran(output=found["output"], fault="timed out" if found["late"] else "the program ended early", **times)
    if not found["end"].endswith("\n"):
        return ran
    try:
        end = parse_json(found["end"])
    except ValueError:
        end = None
    if isinstance(end, dict) and "unavailable" in end:
        raise OSError(end["unavailable"])
    if not isinstance(end, dict) or not end.keys() >= {"fault", "trace", "line"}:
        return replace(ran, fault="the program wrote over its own end")
    at = end["line"] if isinstance(end["line"], int) else None
    return replace(ran, fault=str(end["fault"]), trace=str(end["trace"]), line=at)


@cache
def why_unavailable() -> str:
    """Why this machine has no sandbox, "" where it has one."""
    outcome = run_tests("def one():\n    return 1", "assert one() == 1")
    return "" if outcome.verdict == "correct" else f"{outcome.reason} {outcome.detail}".strip()


def _start(script: str, job: dict[str, Any], ends: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as file:  # has no name; a pipe might be too small to take it all at once
        file.write(json.dumps(job).encode())
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_HERE / script)],
            stdin=file,
            stdout=subprocess.PIPE if script == "tests.py" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=ends,
            env={},
            cwd="/",
            start_new_session=True,
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
