"""The faults of critiques, their effect on the self-teacher, and the policy for each.

The self-teacher copies what it reads, so a critique with a fault teaches the fault. Every finding is one small function
over a critique beside its attempt, a row of one table with the words of reports. A policy per finding decides:

- ``use``: show the critique all the same; the finding is counted.
- ``mask``: show nothing; the rollout trains without a distillation term, and the reason is counted.
- ``fall_back``: show the problem's reference solution instead; masked where there is none.
- ``retry``: ask the critic again, with the finding named. Tries are bounded; after the last one the finding's default
  holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from stepalign.config.sections import Policy
from stepalign.feedback import critique as reasons
from stepalign.feedback.alignment import Alignment, StepMatch
from stepalign.feedback.quotes import quoted_in_words, step_name
from stepalign.feedback.steps import ANSWER
from stepalign.records import Critique, Verdict

Outcome = Literal["use", "mask", "fall_back"]
"""A policy without a further try; also the default of a finding."""
Look = Callable[["Reading"], "str | None"]
"""None: not found. Else the place or the fault in few words; "" where the name of the finding is enough."""

_MAX_DETAIL = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A critique beside its attempt: the input of every finding."""

    critique: Critique
    verdict: Verdict
    """Of the attempt."""
    attempt: str
    alignment: Alignment | None
    """None where the critique has no usable text, or other words than the solver's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row of the table."""

    look: Look
    summary: str
    """Follows "38 of 512 critiques"."""
    teaches: str
    """The effect on the self-teacher."""
    request: str
    """The words to the critic that is asked again."""
    default: Outcome
    usable: bool = True
    """False for replies without a usable text, which cannot be shown whatever the policy."""


# ---------------------------------------------------------------------------------------------------------------------
# Critiques that can be shown


def _in_text(look: Callable[[Alignment, Verdict], str | None]) -> Look:
    """A finding in the text of a usable critique, from its alignment and the attempt's verdict."""

    def over_reading(reading: Reading) -> str | None:
        if reading.critique.status != "ok" or reading.alignment is None:
            return None
        return look(reading.alignment, reading.verdict)

    return over_reading


def _quotes_wrong_step(reading: Reading) -> str | None:
    found, critique = reading.alignment, reading.critique
    if found is not None and critique.status == "ok":
        return _step(found, found.first_error) if found.wrong_text_repeated else None
    is_read = critique.form in ("hint", "comment") and reading.verdict == "incorrect"
    return quoted_in_words(critique.text, reading.attempt) if is_read else None


def _wrong_answer(found: Alignment, verdict: Verdict) -> str | None:
    return _short(found.critique_answer or "") if found.answer_right is False else None


def _misses_error(found: Alignment, verdict: Verdict) -> str | None:
    return "" if verdict == "incorrect" and found.case == "A" else None


def _invents_error(found: Alignment, verdict: Verdict) -> str | None:
    invented = verdict == "correct" and found.first_error is not None and not found.full_solution
    return _step(found, found.first_error) if invented else None


def _full_solution(found: Alignment, verdict: Verdict) -> str | None:
    return "" if found.full_solution else None


def _not_verbatim(found: Alignment, verdict: Verdict) -> str | None:
    """Right steps in other words. An attempt that may be condensed (case C) owes no copy."""
    return None if found.case == "C" else _changed_step(found, "edited")


def _missing_steps(found: Alignment, verdict: Verdict) -> str | None:
    """Right steps left out of a finished attempt; one without an answer may be condensed."""
    return None if found.solver_answer is None else _changed_step(found, "missing")


def _changed_step(found: Alignment, status: str) -> str | None:
    """The first step before the first error (any step without one) that the critique has not kept; the answer is none
    of them."""
    end = len(found.solver_steps) if found.first_error is None else found.first_error

    def is_changed(match: StepMatch) -> bool:
        before = match.solver is not None and match.solver < end and found.solver_steps[match.solver].label != ANSWER
        return before and match.status == status and not match.kept

    changed = None if found.full_solution else next(filter(is_changed, found.matches), None)
    return None if changed is None else _step(found, changed.solver)


def _step(found: Alignment, index: int | None) -> str:
    return "" if index is None else step_name(found.solver_steps[index])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "…"


# ---------------------------------------------------------------------------------------------------------------------
# Replies that cannot be shown

_TRUNCATED = (reasons.CUT,)
_NO_STEPS = (reasons.NO_TRACE,)
_EMPTY = (reasons.EMPTY, reasons.ONLY_THINKING)


def _malformed(*known: str) -> Look:
    """A malformed reply with one of the known reasons; without any, with a reason that no other finding knows."""

    def look(reading: Reading) -> str | None:
        reason = reading.critique.reason
        named = reason in known if known else reason not in (*_TRUNCATED, *_NO_STEPS, *_EMPTY)
        return _short(reason) if reading.critique.status == "malformed" and named else None

    return look


def _failed(reading: Reading) -> str | None:
    return _short(reading.critique.reason) if reading.critique.status == "failed" else None


FINDINGS: dict[str, Finding] = {
    "quotes_wrong_step": Finding(
        _quotes_wrong_step,
        "quote the wrong step",
        "The self-teacher will copy it: the error is reinforced instead of suppressed.",
        "It states the wrong step, or its wrong result, again. The wrong step must not occur anywhere: write only the "
        "right one in its place.",
        "mask",
    ),
    "wrong_answer": Finding(
        _in_text(_wrong_answer),
        "end in a wrong answer",
        "The self-teacher is led to a wrong answer, and every step on the way there is reinforced.",
        "Its final answer is wrong. Solve the problem again and correct the steps that lead there.",
        "mask",
    ),
    "misses_error": Finding(
        _in_text(_misses_error),
        "say all is right of a wrong attempt",
        "The whole wrong attempt is in the context; the self-teacher copies it, error included.",
        "The attempt is wrong, and the reply reproduces all of it. Find the first wrong step and write the right one "
        "in its place.",
        "mask",
    ),
    "invents_error": Finding(
        _in_text(_invents_error),
        "correct a step of a right attempt",
        "A step that led to the right answer is suppressed. The attempt may have been lucky; look at the examples.",
        "The attempt reaches the right answer. Reproduce its right steps word for word; change a step only where it is "
        "wrong.",
        "use",
    ),
    "full_solution": Finding(
        _in_text(_full_solution),
        "are a full solution of the critic's own",
        "Nothing of the attempt is kept: the context works like a reference solution in a stranger's style.",
        "It keeps no step of the attempt. Keep the student's approach, and copy every right step word for word.",
        "use",
    ),
    "not_verbatim": Finding(
        _in_text(_not_verbatim),
        "reword right steps",
        "The self-teacher loses its anchor: right tokens of the attempt are suppressed for their wording.",
        "It rewords steps that are right. Copy every right step character for character.",
        "use",
    ),
    "missing_steps": Finding(
        _in_text(_missing_steps),
        "leave right steps out",
        "The self-teacher expects the next step too early: right steps are suppressed, completions grow shorter.",
        "It leaves out steps that are right. Copy every step before the first wrong one.",
        "use",
    ),
    "truncated": Finding(
        _malformed(*_TRUNCATED),
        "are cut at the token limit",
        "No usable text: the rollout is masked. Raise critic.max_tokens, or bound the critic's thinking.",
        "It was cut off before the end. Be brief: think less, and write the trace only.",
        "mask",
        usable=False,
    ),
    "no_steps": Finding(
        _malformed(*_NO_STEPS),
        "have no step-tagged trace",
        "No usable text: the rollout is masked. The critic comments instead of rewriting; see the prompt.",
        "It holds no trace. Write the corrected solution itself, each step behind its tag, in the form asked for.",
        "mask",
        usable=False,
    ),
    "empty": Finding(
        _malformed(*_EMPTY),
        "are empty, or nothing but thinking",
        "No usable text: the rollout is masked.",
        "It was empty. Write the trace in the form asked for.",
        "mask",
        usable=False,
    ),
    "malformed": Finding(
        _malformed(),
        "do not have the form asked for",
        "No usable text: the rollout is masked.",
        "It does not have the form asked for. Number the steps from 1, leave none empty, and end with the answer tag.",
        "mask",
        usable=False,
    ),
    "failed": Finding(
        _failed,
        "never came",
        "No usable text: the rollout is masked. The examples have the reasons.",
        "",
        "mask",
        usable=False,
    ),
}
"""The gravest first, as in a report."""


def find(reading: Reading) -> dict[str, str]:
    """Name -> detail of every finding, in the order of the table."""
    return {name: detail for name, row in FINDINGS.items() if (detail := row.look(reading)) is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Policies


def policies(chosen: Mapping[str, Policy | None], *, served: bool) -> dict[str, Policy]:
    """The policy in force for every finding.

    Args:
        chosen: the recipe's ``critic.policies``; None for the default.
        served: whether a model writes the critiques. Those of a program have the faults that the recipe asks for, so
            their default is ``use``.
    """
    return {
        name: chosen.get(name) or (finding.default if served or not finding.usable else "use")
        for name, finding in FINDINGS.items()
    }


def decide(
    found: Collection[str], in_force: Mapping[str, Policy], *, tries_left: int, has_reference: bool
) -> tuple[Policy, str]:
    """The policy for a critique with these findings, and the finding that decides it ("" for none).

    A further try comes first; then the strictest policy wins: mask before fall_back before use. ``fall_back`` becomes
    ``mask`` where there is no reference solution.
    """
    asked = {name: in_force[name] for name in FINDINGS if name in found}
    if tries_left <= 0:
        asked = {name: FINDINGS[name].default if policy == "retry" else policy for name, policy in asked.items()}
    for outcome in ("retry", "mask", "fall_back"):
        for name, policy in asked.items():
            if policy == outcome:
                return "mask" if outcome == "fall_back" and not has_reference else outcome, name
    return "use", ""
