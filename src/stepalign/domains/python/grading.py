"""Python problems: the expected answer is tests, and a completion is right when its code passes them.

The tests take the place of the answer, so that everything else - critics that see the answer, splits, records - is the
same. They are statements with ``assert``, or a JSON object with tests of several kinds (``problems.programs``). They
run in ``stepalign.domains.python.sandbox``.
"""

from __future__ import annotations

import builtins
import json
import re
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from stepalign.config import DataSection
from stepalign.domains.domain import Domain, open_grader
from stepalign.domains.math.extraction import QUESTION
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.grading import Grader
from stepalign.domains.math.thinking import after_thinking
from stepalign.domains.python import sandbox
from stepalign.errors import ConfigError

LIMITS = sandbox.Limits()
GRADER = "stepalign.domains.python.grading:grade_code"
ALL_CASES_SECONDS = 40.0
"""Of all cases of one program together."""
MAIN = ("", "solution.py", "main.py", "program.py")

_FENCE = re.compile(r"^[ \t]{0,3}```[ \t]{0,3}([A-Za-z0-9_+-]{0,20})([^\n`]{0,100})\n(.*?)^[ \t]{0,3}```", re.M | re.S)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.I | re.A)
"""Not 007, which contests print as a code or a row of digits: such a word is text on both sides."""
_PATH = r"((?:[\w-]{1,60}/){0,4}[\w-]{1,60}\.[A-Za-z]{1,8})"
_NAMED = re.compile(rf"[ \t]*(?:(?:title|file|filename|path|name)[=:][\"']?)?{_PATH}[\"']?[ \t]*")
_NAMED_INSIDE = re.compile(rf"[ \t]*#[ \t]*(?:file(?:name)?:?[ \t]*)?{_PATH}[ \t]*")
_NAMED_ABOVE = re.compile(
    rf"[ \t]*(?:#{{1,6}}[ \t]+)?(?:file:?[ \t]*)?[*_]{{0,2}}`?{_PATH}`?[*_]{{0,2}}:?[*_]{{0,2}}[ \t]*", re.I
)


def extract_files(completion: str) -> dict[str, str]:
    """The files of a completion, by path: "" is its code, in a block without a name.

    A block is named behind its language (```` ```python tools.py````), in a comment in its first line (``# tools.py``)
    or in the line above it (``**tools.py**``); the name of Python ends in ``.py``. The last one of a name counts; of
    Python blocks without a name the last one that defines something, else the last one. Blocks inside a thinking part
    do not count, nor those behind another question that follows one.
    """
    answer = after_thinking(completion)
    first = _FENCE.search(answer)
    question = first and QUESTION.search(answer, first.end())
    answer = answer[: question.start()] if question else answer
    files: dict[str, str] = {}
    unnamed: list[str] = []
    for block in _FENCE.finditer(answer):
        language, behind, text = block.groups()
        head = text[: text.find("\n")]
        above = answer[: block.start()].rstrip("\n \t")[-160:].rpartition("\n")[2]
        named = _NAMED.fullmatch(behind) or _NAMED_INSIDE.fullmatch(head) or _NAMED_ABOVE.fullmatch(above)
        python = language.lower() in ("python", "python3", "py")
        if named and (named[1].endswith(".py") or not python):
            files[named[1]] = text
        elif python or not language:
            unnamed.append(text)
    defining = [text for text in unnamed if re.search(r"^(?:async )?(?:def|class)\s", text, re.M)]
    if unnamed:
        files[""] = (defining or unnamed)[-1]
    return files


def extract_code(completion: str) -> str | None:
    """The code of a completion: the block without a name, the one that is called ``solution.py`` or the like, or the
    only one with Python whatever its name; None without."""
    files = extract_files(completion)
    return files.get(_main_of(files))


def _main_of(files: Mapping[str, str]) -> str:
    """The name of the program among the files of a completion; "" where none is it."""
    modules = [name for name in files if name.endswith(".py")]
    return next((name for name in MAIN if name in files), modules[0] if len(modules) == 1 else "")


class _UndecidedError(Exception):
    """Crosses the cache, which keeps no verdict that another try may change."""

    def __init__(self, grade: Grade) -> None:
        super().__init__()
        self.grade = grade


def grade_code(completion: str, tests: str) -> Grade:
    """The grade of a completion; its detail is how the tests went, the failed one with its values included."""
    try:
        return _decided(completion, tests)
    except _UndecidedError as found:
        return found.grade


@lru_cache(maxsize=256)
def _decided(completion: str, tests: str) -> Grade:
    spec = read_tests(tests)
    files = extract_files(completion)
    main = _main_of(files)
    code = files.pop(main, None) if main in MAIN else files[main]  # others can still be imported
    needs_main = any(name in spec for name in ("cases", "hidden_cases")) or not files
    if needs_main and (code is None or not code.strip()):
        missing = "The attempt has no complete code block."
        return Grade(0.0, reason="no code block", detail=f"No code block.\n{missing}")
    limits = replace(
        LIMITS,
        cpu_seconds=max(1, round(spec.get("seconds", LIMITS.cpu_seconds))),
        memory_bytes=int(spec.get("mebibytes", LIMITS.memory_bytes >> 20)) << 20,
    )
    files |= spec.get("files", {})  # the problem's own win
    for hidden in (False, True):
        outcome = _outcome(code or "", spec, files, limits, hidden)
        if outcome.verdict != "correct":
            break
    detail = outcome.detail
    if "MemoryError" in detail:
        detail += f"\nThe memory limit is {limits.memory_bytes >> 20} MiB."
    if outcome.reason == "timed out":
        detail += f"\nThe time limit is {limits.cpu_seconds} s of CPU time."
    summary = f"{outcome.reason[0].upper()}{outcome.reason[1:]}."
    grade = Grade.of(outcome.verdict, outcome.reason, detail=f"{summary}\n{detail.strip()}".strip())
    if outcome.verdict == "undecided":
        raise _UndecidedError(grade)
    return grade


def read_tests(tests: str) -> dict[str, Any]:
    """The tests of a problem by their kinds."""
    if tests.lstrip().startswith("{"):
        try:
            return json.loads(tests)
        except ValueError:
            pass
    return {"tests": tests}


def _outcome(
    code: str, spec: Mapping[str, Any], files: Mapping[str, str], limits: sandbox.Limits, hidden: bool
) -> sandbox.Outcome:
    """How the shown or the hidden tests went; of the latter the detail has no value of theirs."""
    prefix = "hidden_" if hidden else ""
    outcome = sandbox.Outcome(verdict="correct", reason="all tests pass")
    if program := spec.get(f"{prefix}tests"):
        outcome = sandbox.run_tests(code, program, limits, files=files)
        if hidden and outcome.verdict == "incorrect":
            outcome = replace(outcome, reason=_hidden(outcome.reason), detail="")
    if outcome.verdict == "correct" and (cases := spec.get(f"{prefix}cases")):
        outcome = run_stdin_cases(code, cases, files, limits, hidden)
    return outcome


def _hidden(reason: str) -> str:
    return reason.replace("a test", "a hidden test") if "a test" in reason else f"{reason} in a hidden test"


def run_stdin_cases(
    code: str, cases: list[list[str]], files: Mapping[str, str], limits: sandbox.Limits, hidden: bool = False
) -> sandbox.Outcome:
    """Run a program on inputs one after the other, up to the first one whose output is another one than expected.

    A program that takes its time is wrong, asleep or at work; one that waits for a processor is undecided.
    """
    most = 2 * max(len(expected.encode()) for _, expected in cases) + 16_000
    begun, took = time.monotonic(), 0.0
    try:
        with closing(
            sandbox.run_cases(code, [given for given, _ in cases], limits=limits, files=files, most=most)
        ) as runs:
            for passed, ((given, expected), ran) in enumerate(zip(cases, runs, strict=True)):
                took += ran.seconds
                if ran.starved:
                    return sandbox.TOO_BUSY
                if ran.fault or not same_output(ran.output, expected):
                    return _failed(ran, given, expected, passed, hidden)
                if time.monotonic() - begun > ALL_CASES_SECONDS:
                    break
            else:
                return sandbox.Outcome(verdict="correct", reason="all tests pass", passed=len(cases))
    except OSError as error:
        return sandbox.Outcome(verdict="undecided", reason="sandbox unavailable", detail=str(error))
    if took > ALL_CASES_SECONDS / 2:
        return sandbox.Outcome(verdict="incorrect", reason="timed out", detail="All cases together take too long.")
    return sandbox.TOO_BUSY


def _failed(ran: sandbox.Ran, given: str, expected: str, passed: int, hidden: bool) -> sandbox.Outcome:
    reason = {"": "wrong output", "timed out": "timed out"}.get(ran.fault, "the program fails")
    if hidden:
        kind = _kind(ran.fault)
        shown = f"{kind} in line {ran.line}" if ran.line else kind
        return sandbox.Outcome(verdict="incorrect", reason=_hidden(reason), detail=shown, passed=passed)
    parts = [f"Input:\n{clip(given)}"]
    if not ran.fault:
        parts += [f"Expected output:\n{clip(expected)}", f"The program printed:\n{clip(ran.output)}"]
    elif ran.fault != "timed out" or ran.trace:
        parts += [ran.trace or ran.fault]
    return sandbox.Outcome(verdict="incorrect", reason=reason, detail="\n".join(parts), passed=passed)


def _kind(fault: str) -> str:
    """A fault without words of the program's own, which may be a hidden test's: its message, the name of a class."""
    known = getattr(builtins, fault, None)
    if fault in ("", "timed out", "the program ended early") or (
        isinstance(known, type) and issubclass(known, BaseException)
    ):
        return fault
    return "an exit code" if fault.startswith("exit code") else "an exception"


def same_output(found: str, expected: str) -> bool:
    """Whether two outputs are the same line by line, without the space around a line and at both ends.

    Numbers are compared by value, and within 1e-6 where a decimal point is expected, as judges of contests do.
    """
    lines, meant = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    return len(lines) == len(meant) and all(
        len(line) == len(other) and all(map(_same_word, line, other)) for line, other in zip(lines, meant, strict=True)
    )


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    if not (_NUMBER.fullmatch(found) and _NUMBER.fullmatch(expected)):
        return False
    try:
        one, other = Decimal(found), Decimal(expected)
        near = Decimal("1e-6") * max(Decimal(1), abs(other)) if re.search(r"[.e]", expected, re.I) else Decimal(0)
        return abs(one - other) <= near
    except ArithmeticError:  # beyond the largest exponent
        return False


def clip(text: str) -> str:
    """A text without its middle where it is long."""
    text = text.strip("\n")
    return text if len(text) <= 600 else f"{text[:400]}\n...\n{text[-150:]}"


def _open_grader(data: DataSection) -> Grader:
    if reason := sandbox.why_unavailable():
        raise ConfigError(
            f"this machine has no sandbox for Python problems: {reason}",
            where="data.columns = python",
            hint="run on Linux 5.13 or newer, or name a grader of your own with data.grader",
        )
    # The limit of the process around the sandbox is never reached before the sandbox's own.
    return open_grader(GRADER, seconds=1.5 * (ALL_CASES_SECONDS + 4 * LIMITS.wall_seconds))


PYTHON = Domain(name="python", columns="python", grade=_open_grader, has_answers=False, has_details=True)
