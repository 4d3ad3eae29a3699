"""What can be wrong with a critique, what that teaches, and what is done about it.

The self-teacher copies what it reads, so a critique with a fault teaches the fault. Every finding is one small function
over a critique beside its attempt; all stand in one table with the words a report uses. A policy per finding decides:

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

from stepalign.feedback import critique as reasons
from stepalign.feedback.alignment import Alignment, StepMatch
from stepalign.feedback.steps import ANSWER
from stepalign.records import Critique, Verdict

Policy = Literal["use", "mask", "fall_back", "retry"]
Outcome = Literal["use", "mask", "fall_back"]
"""What is done in the end; also the default of a finding."""

_MAX_DETAIL = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A critique beside the attempt it is about: all that a finding may look at."""

    critique: Critique
    verdict: Verdict
    """Of the attempt."""
    alignment: Alignment | None
    """None where the critique has no usable text."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry of the table."""

    look: Callable[[Reading], str | None]
    """None: not found. Else where or what, in few words; "" where the name says it all."""
    summary: str
    """Follows "38 of 512 critiques"."""
    teaches: str
    """What becomes of it in the self-teacher."""
    request: str
    """What the critic is told when it is asked again."""
    default: Outcome
    usable: bool = True
    """False for replies without a usable text, which cannot be shown whatever the policy."""


# ---------------------------------------------------------------------------------------------------------------------
# Critiques that can be shown


def _quotes_wrong_step(reading: Reading) -> str | None:
    found = _aligned(reading)
    return _step(found, found.first_error) if found is not None and found.wrong_text_repeated else None


def _wrong_answer(reading: Reading) -> str | None:
    found = _aligned(reading)
    return _short(found.critique_answer or "") if found is not None and found.answer_right is False else None


def _misses_error(reading: Reading) -> str | None:
    found = _aligned(reading)
    return "" if found is not None and reading.verdict == "incorrect" and found.case == "A" else None


def _invents_error(reading: Reading) -> str | None:
    found = _aligned(reading)
    if found is None or reading.verdict != "correct" or found.first_error is None or found.full_solution:
        return None
    return _step(found, found.first_error)


def _full_solution(reading: Reading) -> str | None:
    found = _aligned(reading)
    return "" if found is not None and found.full_solution else None


def _not_verbatim(reading: Reading) -> str | None:
    """Right steps in other words. An attempt that may be condensed (case C) owes no copy."""
    found = _aligned(reading)
    if found is None or found.full_solution or found.case == "C":
        return None
    edited = [m for m in _kept_steps(found) if m.status == "edited" and not m.kept]
    return _step(found, edited[0].solver) if edited else None


def _missing_steps(reading: Reading) -> str | None:
    """Right steps left out of a finished attempt; one without an answer may be condensed."""
    found = _aligned(reading)
    if found is None or found.full_solution or found.solver_answer is None:
        return None
    missing = [m for m in _kept_steps(found) if m.status == "missing" and not m.kept]
    return _step(found, missing[0].solver) if missing else None


def _aligned(reading: Reading) -> Alignment | None:
    return reading.alignment if reading.critique.status == "ok" else None


def _kept_steps(found: Alignment) -> list[StepMatch]:
    """The solver's steps before the first error, all without one; the answer is none of them."""
    end = len(found.solver_steps) if found.first_error is None else found.first_error
    return [
        match
        for match in found.matches
        if match.solver is not None and match.solver < end and found.solver_steps[match.solver].label != ANSWER
    ]


def _step(found: Alignment, index: int | None) -> str:
    label = "" if index is None else found.solver_steps[index].label
    return "answer" if label == ANSWER else f"step {label}" if label else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "…"


# ---------------------------------------------------------------------------------------------------------------------
# Replies that cannot be shown


def _malformed(*known: str) -> Callable[[Reading], str | None]:
    return lambda reading: (
        reading.critique.reason if reading.critique.status == "malformed" and reading.critique.reason in known else None
    )


def _failed(reading: Reading) -> str | None:
    return _short(reading.critique.reason) if reading.critique.status == "failed" else None


def _otherwise_malformed(reading: Reading) -> str | None:
    named = _NO_TEXT | _CUT | _NO_STEPS
    unnamed = reading.critique.status == "malformed" and reading.critique.reason not in named
    return _short(reading.critique.reason) if unnamed else None


_NO_TEXT = {reasons.EMPTY, reasons.ONLY_THINKING}
_CUT = {reasons.CUT}
_NO_STEPS = {reasons.NO_TRACE}


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
        _wrong_answer,
        "end in a wrong answer",
        "The self-teacher is led to a wrong answer, and every step on the way there is reinforced.",
        "Its final answer is wrong. Solve the problem again and correct the steps that lead there.",
        "mask",
    ),
    "misses_error": Finding(
        _misses_error,
        "say all is right of a wrong attempt",
        "The whole wrong attempt stands in the context; the self-teacher copies it, error included.",
        "The attempt is wrong, and the reply reproduces all of it. Find the first wrong step and write the right one "
        "in its place.",
        "mask",
    ),
    "invents_error": Finding(
        _invents_error,
        "correct a step of a right attempt",
        "A step that led to the right answer is suppressed. The attempt may have been lucky; look at the examples.",
        "The attempt reaches the right answer. Reproduce its right steps word for word; change a step only where it is "
        "wrong.",
        "use",
    ),
    "full_solution": Finding(
        _full_solution,
        "are a full solution of the critic's own",
        "Nothing of the attempt is kept: the context works like a reference solution in a stranger's style.",
        "It keeps no step of the attempt. Keep the student's approach, and copy every right step word for word.",
        "use",
    ),
    "not_verbatim": Finding(
        _not_verbatim,
        "reword right steps",
        "The self-teacher loses its anchor: right tokens of the attempt are suppressed for their wording.",
        "It rewords steps that are right. Copy every right step character for character.",
        "use",
    ),
    "missing_steps": Finding(
        _missing_steps,
        "leave right steps out",
        "The self-teacher expects the next step too early: right steps are suppressed, completions grow shorter.",
        "It leaves out steps that are right. Copy every step before the first wrong one.",
        "use",
    ),
    "truncated": Finding(
        _malformed(*_CUT),
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
        _malformed(*_NO_TEXT),
        "are empty, or nothing but thinking",
        "No usable text: the rollout is masked.",
        "It was empty. Write the trace in the form asked for.",
        "mask",
        usable=False,
    ),
    "malformed": Finding(
        _otherwise_malformed,
        "do not have the form asked for",
        "No usable text: the rollout is masked.",
        "It does not have the form asked for. Number the steps from 1, leave none empty, and end with the answer tag.",
        "mask",
        usable=False,
    ),
    "failed": Finding(
        _failed,
        "never came",
        "No usable text: the rollout is masked. The reasons stand with the examples.",
        "",
        "mask",
        usable=False,
    ),
}
"""In the order of a report: the gravest first."""


def find(reading: Reading) -> dict[str, str]:
    """Name -> detail of every finding, in the order of the table."""
    looked = {name: finding.look(reading) for name, finding in FINDINGS.items()}
    return {name: detail for name, detail in looked.items() if detail is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Policies


def policies(chosen: Mapping[str, Policy | None], *, served: bool) -> dict[str, Policy]:
    """The policy in force for every finding.

    Args:
        chosen: the recipe's ``critic.policies``; None where it says nothing.
        served: whether a model writes the critiques. Those of a program are as faulty as the recipe asks, so they are
            used unless the recipe says otherwise.
    """
    unasked: dict[str, Policy] = {name: f.default if served or not f.usable else "use" for name, f in FINDINGS.items()}
    return {name: chosen.get(name) or unasked[name] for name in FINDINGS}


def decide(
    found: Collection[str], in_force: Mapping[str, Policy], *, tries_left: int, has_reference: bool
) -> tuple[Policy, str]:
    """What is done with a critique, and the finding that decides it ("" for none).

    A further try comes first; then the strictest policy wins: mask before fall_back before use. ``fall_back`` becomes
    ``mask`` where there is no reference solution.
    """
    asked = {name: in_force[name] for name in FINDINGS if name in found}
    if tries_left > 0:
        for name, policy in asked.items():
            if policy == "retry":
                return "retry", name
    settled = {name: FINDINGS[name].default if policy == "retry" else policy for name, policy in asked.items()}
    for outcome in ("mask", "fall_back"):
        for name, policy in settled.items():
            if policy == outcome:
                return (outcome if outcome == "mask" or has_reference else "mask"), name
    return "use", ""
