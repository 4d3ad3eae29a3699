"""Python problems: the expected answer is a program of tests, and a completion is right when its code passes them.

The tests stand where other problems have their answer, so that everything else - critics that see the answer, splits,
records - is the same. They run in ``stepalign.domains.python.sandbox``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stepalign.domains.math.grade import Grade
from stepalign.domains.python.sandbox import Limits, Outcome, run_tests

PRESET = "python"
"""The name of the column preset; recipes with it are graded here."""
GRADER = "stepalign.domains.python.problems:grade_code"
LIMITS = Limits()
GRADER_SECONDS = 1.5 * LIMITS.wall_seconds
"""What the process around the sandbox allows; never reached before the sandbox's own limit."""

_FENCE = re.compile(r"^[ \t]{0,3}```[ \t]{0,3}([A-Za-z0-9_+-]{0,20})[^\n`]{0,100}\n(.*?)^[ \t]{0,3}```", re.M | re.S)
_THINK_END = "</think>"


def extract_code(completion: str) -> str | None:
    """The code of a completion: its last complete Python block that defines something, else its last Python block.

    None without one. Blocks inside a thinking part do not count.
    """
    answer = completion.rpartition(_THINK_END)[2]
    blocks = [text for name, text in _FENCE.findall(answer) if name.lower() in ("", "python", "python3", "py")]
    defining = [text for text in blocks if re.search(r"^(?:async )?(?:def|class)\s", text, re.M)]
    return (defining or blocks or [None])[-1]


def grade_code(completion: str, tests: str) -> Grade:
    """The grade of a completion: a grader as ``data.grader`` names one."""
    outcome = outcome_of(completion, tests)
    return Grade.of(outcome.verdict, outcome.reason, detail=outcome.detail)


@lru_cache(maxsize=256)
def outcome_of(completion: str, tests: str) -> Outcome:
    """How the tests go with a completion's code."""
    code = extract_code(completion)
    if code is None or not code.strip():
        return Outcome(verdict="incorrect", reason="no code block", detail="The attempt has no complete code block.")
    return run_tests(code, tests, LIMITS)


def is_test_program(text: str) -> bool:
    """Whether a text is Python that asserts something."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def read_row(row: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """A row of the preset in our own columns, or the reason to skip it.

    Layouts: ours (``question``, ``tests``, and if wanted ``entry_point`` and ``reference``), HumanEval (``prompt``,
    ``test`` with a function ``check``, ``entry_point``, ``canonical_solution``) and MBPP (``text`` or ``prompt``,
    ``test_list``, ``code``).
    """
    question = row.get("question") or row.get("text") or row.get("prompt")
    tests = row.get("tests") or row.get("test_list") or row.get("test") or row.get("answer")
    if isinstance(tests, list):
        tests = "\n".join(map(str, [*(row.get("test_imports") or ()), row.get("test_setup_code") or "", *tests]))
    if not isinstance(tests, str) or not tests.strip():
        return "no tests"
    entry_point = row.get("entry_point")
    if entry_point and re.search(r"^def check\(", tests, re.M) and not re.search(r"^check\(", tests, re.M):
        tests = f"{tests.rstrip()}\n\ncheck({entry_point})"
    if not is_test_program(tests):
        return "the tests are no Python with an assert"
    reference = row.get("reference") or row.get("code") or ""
    if not reference and row.get("canonical_solution"):
        reference = f"{row.get('prompt', '')}{row['canonical_solution']}"
    return {"question": question, "tests": tests.strip(), "reference": _fenced(str(reference))}


def _fenced(reference: str) -> str:
    """A reference as a completion would show it."""
    if not reference.strip() or "```" in reference:
        return reference
    return f"```python\n{reference.strip()}\n```"
