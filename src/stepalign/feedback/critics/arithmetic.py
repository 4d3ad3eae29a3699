"""The programmatic critic of the embedded task: a faithful scribe that knows every step.

It follows the solver's own order of operands and the solver's own words: right steps verbatim, the first wrong one
replaced by its correction, the rest rewritten from the corrected value. When no derivation begins like the attempt it
falls back to the reference solution, as the paper's critic falls back to a solution of its own.
"""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Literal

from stepalign.feedback.critics import CritiqueRequest
from stepalign.records import Critique
from stepalign.tasks.arithmetic import Diagnosis, diagnose, reworded

Style = Literal["solver", "reference"]


class ArithmeticCritic:
    """Answers at once, without a network.

    Args:
        style: "solver" keeps the solver's words; "reference" tells the same derivation in the other author's words.
    """

    def __init__(self, *, style: Style = "solver") -> None:
        self.name = "programmatic:arithmetic" + ("" if style == "solver" else f":{style}")
        self._style: Style = style

    def submit(self, request: CritiqueRequest) -> Future[Critique]:
        future: Future[Critique] = Future()
        future.set_result(self.critique(request))
        return future

    def critique(self, request: CritiqueRequest) -> Critique:
        """The critique of one rollout."""
        found = diagnose(request.problem.question, request.rollout.text)
        case, text = _case_of(found), request.problem.reference or ""
        if found.correction is not None:
            trace = found.correction
            if self._style != "solver":
                trace = reworded(random.Random(request.rollout.text), trace, "reference")
            text = trace.text
        return Critique(
            rollout_id=request.rollout.rollout_id,
            critic=self.name,
            status="ok" if text else "failed",
            text=text,
            raw=text,
            reason="" if text else "the approach is wrong and there is no reference solution to fall back to",
            case=case,
            first_error=found.first_error,
        )

    def close(self) -> None:
        """Nothing to let go of."""


def _case_of(found: Diagnosis) -> str:
    if found.correction is None:
        return "F"
    if found.first_error:
        return "D"
    return "A" if found.complete else "C"
