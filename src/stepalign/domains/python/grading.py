"""Python problems: the expected answer is a program of tests, and a completion is right when its code passes them.

The tests take the place of the answer, so that everything else - critics that see the answer, splits,
records - is the same. They run in ``stepalign.domains.python.sandbox``.
"""

from __future__ import annotations

import re
from functools import lru_cache

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

_FENCE = re.compile(r"^[ \t]{0,3}```[ \t]{0,3}([A-Za-z0-9_+-]{0,20})[^\n`]{0,100}\n(.*?)^[ \t]{0,3}```", re.M | re.S)


def extract_code(completion: str) -> str | None:
    """The code of a completion: its last complete Python block that defines something, else its last Python block.

    None without one. Blocks inside a thinking part do not count, nor those behind another question that follows one.
    """
    answer = after_thinking(completion)
    first = _FENCE.search(answer)
    question = first and QUESTION.search(answer, first.end())
    blocks = _FENCE.findall(answer[: question.start()] if question else answer)
    blocks = [text for name, text in blocks if name.lower() in ("", "python", "python3", "py")]
    defining = [text for text in blocks if re.search(r"^(?:async )?(?:def|class)\s", text, re.M)]
    return (defining or blocks or [None])[-1]


@lru_cache(maxsize=256)
def grade_code(completion: str, tests: str) -> Grade:
    """The grade of a completion; its detail is how the tests went, the failed one with its values included."""
    code = extract_code(completion)
    if code is None or not code.strip():
        missing = "The attempt has no complete code block."
        return Grade(0.0, reason="no code block", detail=f"No code block.\n{missing}")
    outcome = sandbox.run_tests(code, tests, LIMITS)
    summary = f"{outcome.reason[0].upper()}{outcome.reason[1:]}."
    return Grade.of(outcome.verdict, outcome.reason, detail=f"{summary}\n{outcome.detail}".strip())


def _open_grader(data: DataSection) -> Grader:
    if reason := sandbox.why_unavailable():
        raise ConfigError(
            f"this machine has no sandbox for Python problems: {reason}",
            where="data.columns = python",
            hint="run on Linux 5.13 or newer, or name a grader of your own with data.grader",
        )
    # The limit of the process around the sandbox is never reached before the sandbox's own.
    return open_grader(GRADER, seconds=1.5 * LIMITS.wall_seconds)


PYTHON = Domain(name="python", columns="python", grade=_open_grader, has_answers=False, has_details=True)
