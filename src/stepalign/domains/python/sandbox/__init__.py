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
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
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
    wall_seconds: float = 10.0
    """Of both together; several times the CPU time, since the machine may be busy."""
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


def run_tests(code: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Run tests - statements with ``assert``, ``test_`` functions - against a solution's code.

    Names that the tests use, that are neither Python's own nor theirs, are the solution's. Its functions are called
    with plain values (numbers, text, lists, tuples, dictionaries, sets, ranges) and with objects that came from it;
    lists, dictionaries and sets that it changes in place are changed. No test can give it a function. Only the standard
    library can be imported, on both sides.

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
                ("solution.py", to_solution, from_solution, {"code": code}),
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
    """What it printed: the beginning, up to 16,000 characters."""
    fault: str = ""
    """The end of the traceback, or few words; "" for a normal end."""
    line: int | None = None
    """Number of the failing line, where there is one."""


def run_program(code: str, text: str = "", *, echo: bool = False, limits: Limits | None = None) -> Ran:
    """Run a whole program with a text for its standard input, confined as solutions are.

    Args:
        echo: print the value of a last line that is an expression, as a notebook does.

    Raises:
        OSError: no sandbox here.
    """
    limits = limits or Limits()
    child = _start("program.py", {"library": str(_HERE), **asdict(limits), "code": code, "input": text, "echo": echo})
    try:
        assert child.stdout is not None
        found = _read(child.stdout.fileno(), time.monotonic() + limits.wall_seconds, limits.max_bytes)
        if found is None:
            return Ran(fault="timed out")
        if not found.endswith(b"\n"):
            _end(child)
            return Ran(fault="timed out" if child.returncode == -signal.SIGXCPU else "the program ended early")
        answer = parse_json(found)
        if not isinstance(answer, dict) or not answer.keys() >= {"output", "fault", "line"}:
            if isinstance(answer, dict) and "unavailable" in answer:
                raise OSError(answer["unavailable"])
            return Ran(fault="the program wrote over its own end")
        line = answer["line"] if isinstance(answer["line"], int) else None
        return Ran(output=str(answer["output"]), fault=str(answer["fault"]), line=line)
    except ValueError:
        return Ran(fault="the program wrote over its own end")
    finally:
        _end(child)


def _read(source: int, deadline: float, most: int) -> bytes | None:
    """The bytes of a pipe up to the end of a line; None where it takes too long."""
    found = b""
    while not found.endswith(b"\n") and len(found) <= most:
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        if not (piece := os.read(source, 65536)):
            break
        found += piece
    return found


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
            stdout=subprocess.DEVNULL if script == "solution.py" else subprocess.PIPE,
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
