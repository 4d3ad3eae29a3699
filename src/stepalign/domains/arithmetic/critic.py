"""The programmatic critic of the embedded task: a faithful scribe that knows every step, or one as faulty as one asks.

It follows the solver's own order of operands and the solver's own words: right steps verbatim, the first wrong one
replaced by its correction, the rest rewritten from the corrected value. Where no derivation begins like the attempt it
falls back to the reference solution. The ``case`` and ``first_error`` of a faulty critic are its opinion.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from stepalign.domains.arithmetic.task import MODULUS, Diagnosis, Trace, diagnose, reworded
from stepalign.feedback.edits import script_of
from stepalign.records import Attempt, Critique, CritiqueForm
from stepalign.storage.fingerprint import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """How often a critique has each fault: probabilities, drawn independently for each rollout."""

    misses: float = 0.0
    """A wrong step is overlooked: the attempt is reproduced as if it were right."""
    invents: float = 0.0
    """A right step is replaced by a wrong one, and the rest follows from it. Not where an error is overlooked."""
    quotes_wrong: float = 0.0
    """The wrong step is repeated before its correction, with its tag."""
    wrong_style: float = 0.0
    """Written in the reference author's words."""


class ArithmeticCritic:
    """Answers at once, without a network.

    Args:
        form: what to write. "trace" is the corrected trace in the solver's words, "paraphrase" the same in the
            reference author's, "hint" names the first wrong step, "comment" names and corrects it in the critic's own
            words and says nothing else.
        faults: how bad a critic to be. They are drawn from the seed and the rollout, so that a resumed run and a
            second form of the same critique meet the same ones.
    """

    def __init__(self, *, form: CritiqueForm = "trace", faults: Faults | None = None, seed: int = 0) -> None:
        self._form: CritiqueForm = form
        self._faults = faults or Faults()
        self._seed = seed
        self.name = "programmatic:arithmetic" if self._faults == Faults() else "faulty:arithmetic"

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`; a second critique is the first one again."""
        return self.write(attempt)

    def write(self, attempt: Attempt) -> Critique:
        """The critique of one attempt."""
        view = _with_faults(
            _faithful(diagnose(attempt.problem.question, attempt.text)),
            self._faults,
            random.Random(digest(repr((self._seed, attempt.rollout_id, attempt.text)))),
        )
        text = _WRITERS[self._form](view, attempt.problem.reference or "", attempt.text)
        return Critique(
            rollout_id=attempt.rollout_id,
            critic=self.name,
            status="ok" if text else "failed",
            text=text,
            raw=text,
            reason="" if text else "the approach is wrong and there is no reference solution to fall back to",
            case=view.case,
            first_error=view.first_error,
            truth=self._faults == Faults(),
            form=self._form,
        )

    def close(self) -> None:
        """Nothing to let go of."""


# ---------------------------------------------------------------------------------------------------------------------
# The view that a critic has of an attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """A critic's opinion of an attempt, right or not."""

    attempt: Trace
    case: str
    first_error: str
    correction: Trace | None
    """None where the whole approach is wrong."""
    quoted: str = ""
    """Text of the wrong step, where it is repeated in front of its correction."""
    reference_words: bool = False


def _faithful(found: Diagnosis) -> _View:
    if found.correction is None:
        case = "F"
    elif found.first_error:
        case = "D"
    else:
        case = "A" if found.complete else "C"
    return _View(attempt=found.attempt, case=case, first_error=found.first_error, correction=found.correction)


def _with_faults(view: _View, faults: Faults, drawn: random.Random) -> _View:
    # Every fault is drawn whether it can apply or not: one more of a kind leaves the others where they are.
    misses, invents, quotes, rewords = (
        drawn.random() < share for share in (faults.misses, faults.invents, faults.quotes_wrong, faults.wrong_style)
    )
    place, shift = drawn.random(), drawn.randrange(1, MODULUS)
    if view.case == "D" and misses:
        view = replace(view, case="A", first_error="", correction=view.attempt)
    elif invents and (num_right := _num_right(view)):
        view = _invented(view, int(place * num_right), shift)
    if view.first_error.isdigit() and quotes and view.case == "D":
        view = replace(view, quoted=view.attempt.steps[int(view.first_error) - 1].text)
    return replace(view, reference_words=rewords)


def _num_right(view: _View) -> int:
    """Steps of the attempt that the critic would keep."""
    if view.correction is None:
        return 0
    pairs = zip(view.attempt.steps, view.correction.steps, strict=False)
    return sum(mine == theirs for mine, theirs in pairs)


def _invented(view: _View, place: int, shift: int) -> _View:
    """A right step "corrected" to a wrong result, and everything behind it carried on from there."""
    assert view.correction is not None
    kept, changed = view.correction.steps[:place], view.correction.steps[place:]
    steps, value = list(kept), changed[0].value
    for index, step in enumerate(changed):
        result = (value + step.signed_operand + (shift if index == 0 else 0)) % MODULUS
        steps.append(replace(step, value=value, result=result))
        value = result
    return replace(view, case="D", first_error=str(place + 1), correction=Trace(tuple(steps), value))


# ---------------------------------------------------------------------------------------------------------------------
# The text that it writes


def _trace(view: _View, reference: str, attempt: str) -> str:
    if view.correction is None:
        return reference
    trace = view.correction
    if view.reference_words:
        trace = reworded(random.Random(attempt), trace, "reference")
    if not view.quoted:
        return trace.text
    place = int(view.first_error) - 1
    before, after = Trace(trace.steps[:place], None), Trace(trace.steps[place:], trace.answer)
    return " ".join(part for part in (before.text, view.quoted, after.text) if part)


def _hint(view: _View, reference: str, attempt: str) -> str:
    if view.case == "A":
        return "right"
    return f"{_tag(view.first_error or 'answer')} wrong"  # an attempt that stops early lacks its answer


def _comment(view: _View, reference: str, attempt: str) -> str:
    if view.case in "AF" or view.correction is None:
        return "right" if view.case == "A" else f"wrong : {reference}" if reference else ""
    trace = reworded(random.Random(attempt), view.correction, "reference")
    wrong = int(view.first_error) - 1 if view.first_error.isdigit() else len(trace.steps)
    quoted = f"{view.quoted} " if view.quoted else ""
    if wrong >= len(trace.steps):  # a step too many, or only the answer
        return f"{quoted}{_hint(view, reference, attempt)} : <answer> {trace.answer}"
    step = trace.steps[wrong]
    tag = _tag(step.number)
    return f"{quoted}{tag} wrong : {step.text.removeprefix(tag).strip()} <answer> {trace.answer}"


def _edits(view: _View, reference: str, attempt: str) -> str:
    if view.correction is None:
        return script_of(attempt, reference) if reference else ""
    return script_of(
        attempt, _trace(replace(view, reference_words=False), reference, attempt), _trace(view, reference, attempt)
    )


_WRITERS = {
    "trace": _trace,
    "paraphrase": lambda view, *texts: _trace(replace(view, reference_words=True), *texts),
    "hint": _hint,
    "comment": _comment,
    "edits": _edits,
    "edit": _trace,
}


def _tag(label: str | int) -> str:
    return f"<step_{label}>" if str(label).isdigit() else f"<{label}>"
