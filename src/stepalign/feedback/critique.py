"""Read a critic's reply: find the step-tagged trace and decide whether the self-teacher may see it.

A reply is used whole or not at all. Whatever keeps it from being a complete step-tagged trace makes it malformed, with
one of the fixed reasons below, so that a run can count them; a malformed critique masks its sample and is never taken
for a verdict on the rollout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepalign.feedback.steps import ANSWER, CLOSING_TAG, PREAMBLE, split_steps, step_body
from stepalign.records import CritiqueStatus, Step

CUT = "cut at the token limit"
FILTERED = "stopped by the server"
EMPTY = "empty reply"
ONLY_THINKING = "nothing but thinking"
NO_TRACE = "no step-tagged trace"
WRONG_START = "the trace does not start at its first step"
EMPTY_STEP = "a step is empty"
NO_ANSWER = "the trace has no answer"
NOT_JSON = "not the JSON that was asked for"

CASES = frozenset("ABCDF")

CRITIQUE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "case": {"type": "string", "enum": sorted(CASES)},
        "steps": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "answer": {"type": "string"},
    },
    "required": ["case", "steps", "answer"],
    "additionalProperties": False,
}
"""The JSON schema of the structured reply, for servers with guided decoding."""

_THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.I)
_CASE = re.compile(
    r"<case>[ \t\n]{0,4}([A-F])[ \t\n]{0,4}</case>|^[#*_ ]{0,6}case[*_: ]{1,6}([A-F])(?![A-Za-z0-9])", re.I | re.M
)
_PLACEHOLDERS = frozenset({"", "...", "…", "[...]", "[…]", "(...)"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedCritique:
    """What a reply holds."""

    status: CritiqueStatus
    """ "ok" or "malformed"."""
    text: str = ""
    """The step-tagged trace, "" unless ok."""
    case: str = ""
    """The case the critic names (A, B, C, D or F), "" where it names none."""
    reason: str = ""
    """Why the reply is malformed: one of this module's constants."""


def parse_critique(
    reply: str | None, finish_reason: str | None = "stop", *, require_answer: bool = True
) -> ParsedCritique:
    """The trace in a critic's reply, or why there is none.

    Thinking is dropped, also where its opening tag stands in the prompt template or its closing tag never comes. Of
    several traces the last complete one counts: a critic that quotes the attempt first corrects it afterwards. Comments
    before, between (where steps have closing tags) and behind the steps are dropped.

    Args:
        reply: the message content as the server gave it.
        finish_reason: why the server stopped; None where it does not say.
        require_answer: whether a trace without ``<answer>`` is malformed.
    """
    if reason := _stopped_early(finish_reason):
        return ParsedCritique(status="malformed", reason=reason)
    if reply is None or not reply.strip():
        return ParsedCritique(status="malformed", reason=EMPTY)
    visible = strip_thinking(reply)
    if not visible.strip():
        return ParsedCritique(status="malformed", reason=ONLY_THINKING)

    traces = _traces(split_steps(visible, "tags"))
    if not traces:
        return ParsedCritique(status="malformed", case=_case(visible), reason=NO_TRACE)
    complete = [trace for trace in traces if trace[-1].label == ANSWER and len(trace) > 1]
    trace = (complete or traces)[-1]
    case = _case(visible[: traces[0][0].start])
    reason = _fault(visible, trace, require_answer)
    if reason:
        return ParsedCritique(status="malformed", case=case, reason=reason)
    return ParsedCritique(status="ok", text=_trace_text(visible, trace), case=case)


def parse_structured_critique(reply: str | None, finish_reason: str | None = "stop") -> ParsedCritique:
    """The same for a reply that follows :data:`CRITIQUE_SCHEMA`: its steps are written out as a step-tagged trace."""
    if reason := _stopped_early(finish_reason):
        return ParsedCritique(status="malformed", reason=reason)
    if reply is None or not reply.strip():
        return ParsedCritique(status="malformed", reason=EMPTY)
    try:
        data = json.loads(_without_fence(strip_thinking(reply)))
        steps, answer, case = data["steps"], data["answer"], data.get("case", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ParsedCritique(status="malformed", reason=NOT_JSON)
    if not isinstance(steps, list) or not all(isinstance(text, str) for text in [*steps, answer, case]):
        return ParsedCritique(status="malformed", reason=NOT_JSON)
    lines = [f"<step_{number}> {_bare(text)}" for number, text in enumerate(steps, 1)] + [f"<answer> {_bare(answer)}"]
    parsed = parse_critique("\n".join(lines))
    named = case if case in CASES else ""
    return ParsedCritique(status=parsed.status, text=parsed.text, case=named, reason=parsed.reason)


def parse_comment(reply: str | None, finish_reason: str | None = "stop") -> ParsedCritique:
    """A reply in words of the critic's own: a hint or a comment. Anything but thinking is usable."""
    if reason := _stopped_early(finish_reason):
        return ParsedCritique(status="malformed", reason=reason)
    if reply is None or not reply.strip():
        return ParsedCritique(status="malformed", reason=EMPTY)
    visible = strip_thinking(reply).strip()
    if not visible:
        return ParsedCritique(status="malformed", reason=ONLY_THINKING)
    return ParsedCritique(status="ok", text=visible)


def strip_thinking(reply: str) -> str:
    """The reply without thinking blocks.

    A closing tag without an opening one ends a block that the prompt template opened; an opening tag without a closing
    one starts a block that was cut.
    """
    kept: list[str] = []
    depth = 0
    position = 0
    for match in _THINK_TAG.finditer(reply):
        closes = bool(match.group(1))
        if depth == 0 and closes:
            kept.clear()
        elif depth == 0:
            kept.append(reply[position : match.start()])
        depth = max(0, depth + (-1 if closes else 1))
        position = match.end()
    if depth == 0:
        kept.append(reply[position:])
    return "".join(kept).lstrip("\n")


def _stopped_early(finish_reason: str | None) -> str:
    if finish_reason in (None, "", "stop", "eos", "end_turn"):
        return ""
    return CUT if finish_reason in ("length", "max_tokens") else FILTERED


def _traces(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps grouped into traces: a number that does not grow, or anything behind an answer, starts a new one."""
    traces: list[list[Step]] = []
    for step in steps:
        if step.label == PREAMBLE:
            continue
        last = traces[-1][-1].label if traces else ANSWER
        follows = last != ANSWER and (step.label == ANSWER or int(step.label) > int(last))
        if follows:
            traces[-1].append(step)
        else:
            traces.append([step])
    return traces


def _fault(text: str, trace: Sequence[Step], require_answer: bool) -> str:
    first, last = trace[0], trace[-1]
    if first.label == ANSWER:
        return NO_TRACE
    if int(first.label) > 1:
        return WRONG_START
    if require_answer and last.label != ANSWER:
        return NO_ANSWER
    if any(_body(text, step) in _PLACEHOLDERS for step in trace):
        return EMPTY_STEP
    return ""


def _body(text: str, step: Step) -> str:
    chunk = _chunk(text, step)
    return step_body(chunk, Step(label=step.label, start=0, end=len(chunk)))


def _trace_text(text: str, trace: Sequence[Step]) -> str:
    chunks = [_chunk(text, step) for step in trace]
    # A comment cut away behind a closing tag took the line break with it.
    closed = [f"{chunk}\n" if CLOSING_TAG.search(chunk) else chunk for chunk in chunks]
    return "".join(closed).strip()


def _chunk(text: str, step: Step) -> str:
    """A step's own text: up to its closing tag; an answer without one ends at the first blank line or code fence."""
    chunk = text[step.start : step.end]
    if closing := CLOSING_TAG.search(chunk):
        return chunk[: closing.end()]
    if step.label != ANSWER:
        return chunk
    tag_end = chunk.index(">") + 1
    answer = chunk[tag_end:].lstrip()
    lines: list[str] = []
    for line in answer.split("\n", 32)[:32]:
        if not line.strip() or line.lstrip().startswith("```"):
            break
        lines.append(line)
    return chunk[:tag_end] + " " + "\n".join(lines).strip()


def _case(text: str) -> str:
    if not (match := _CASE.search(text)):
        return ""
    letter = (match.group(1) or match.group(2)).upper()
    return letter if letter in CASES else ""


def _without_fence(text: str) -> str:
    """The JSON object in a reply, which some models wrap in a code block."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def _bare(text: str) -> str:
    """A step's text without a tag the critic wrote in front of it."""
    steps = split_steps(text.strip(), "tags")
    return step_body(text.strip(), steps[0]) if len(steps) == 1 else text.strip()
