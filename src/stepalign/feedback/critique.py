"""Read a critic's reply: find the step-tagged trace and decide whether the self-teacher may see it.

A reply is used whole or not at all. One that is not a complete step-tagged trace is malformed, with one of the fixed
reasons below, which a run counts; it masks its sample and is never taken for a verdict on the rollout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from stepalign.domains.math.thinking import without_thinking
from stepalign.feedback.json_reply import CONTROL, find_object, restored
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
GARBLED = "control characters in the text"

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
EDIT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "edits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"step": {"type": "integer"}, "replacement": {"type": "string"}},
                "required": ["step", "replacement"],
                "additionalProperties": False,
            },
        },
        "answer": {"type": "string"},
    },
    "required": ["edits", "answer"],
    "additionalProperties": False,
}
"""The JSON schema of a script, for servers with guided decoding."""
SCHEMAS = {"trace": CRITIQUE_SCHEMA, "paraphrase": CRITIQUE_SCHEMA, "edits": EDIT_SCHEMA}
"""By the form of critique."""
STRUCTURED_NOTE = 'Inside JSON every backslash is doubled: "\\\\frac{1}{2}", never "\\frac{1}{2}".'
"""The end of the prompt for a structured reply."""

_CASE = re.compile(
    r"<case>[ \t\n]{0,4}([A-F])[ \t\n]{0,4}</case>|^[#*_ ]{0,6}case[*_: ]{1,6}([A-F])(?![A-Za-z0-9])", re.I | re.M
)
_CUT_END = re.compile(
    r"incomplete|truncated|(?:model_|max_)?length|max_(?:new_|output_|completion_)?tokens|token_limit\w*"
    r"|(?:model_)?context_(?:window|length)\w*"
)
_STOPPED_END = re.compile(
    r"abort(?:ed)?|block\w*|cancell?ed|content_filter(?:ed)?|error\w*|failed|(?:malformed_|unexpected_)?(?:function|tool)_\w+"
    r"|guardrail\w*|\w*safety|\w*prohibited\w*|insufficient\w*|interrupted|language|other|pause_turn|recitation|refusal"
    r"|repetition|spii|time_?out"
)
"""Finish reasons, in small letters, of a reply that is not whole. Servers have many words for a normal end."""
_PLACEHOLDERS = frozenset({"", "...", "…", "[...]", "[…]", "(...)"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedCritique:
    """A reply, read."""

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
    """The trace in a critic's reply, or the reason why there is none.

    Thinking is dropped, also without its opening or closing tag. Of several traces the last complete one counts: a
    critic that quotes the attempt first corrects it afterwards. Comments before, between (where steps have closing
    tags) and behind the steps are dropped.

    Args:
        reply: the message content as the server gave it.
        finish_reason: the server's reason to stop; None where it gives none.
        require_answer: whether a trace without ``<answer>`` is malformed.
    """
    visible, reason = _visible(reply, finish_reason)
    if reason:
        return _malformed(reason)
    traces = _traces(split_steps(visible, "tags"))
    if not traces:
        return _malformed(NO_TRACE, _case(visible))
    complete = [trace for trace in traces if trace[-1].label == ANSWER and len(trace) > 1]
    trace = (complete or traces)[-1]
    case = _case(visible[: traces[0][0].start])
    if reason := _fault(trace, require_answer):
        return _malformed(reason, case)
    return ParsedCritique(status="ok", text=_trace_text(trace), case=case)


def parse_structured_critique(reply: str | None, finish_reason: str | None = "stop") -> ParsedCritique:
    """The same for a reply that follows :data:`CRITIQUE_SCHEMA`: its steps are written out as a step-tagged trace."""
    visible, reason = _visible(reply, finish_reason)
    if reason:
        return _malformed(reason)
    data = find_object(visible, {"steps", "answer"})
    if data is None:
        return _malformed(NOT_JSON)
    steps, answer, case = data["steps"], data["answer"], data.get("case", "")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(steps, list) or not all(isinstance(text, str) for text in [*steps, answer, case]):
        return _malformed(NOT_JSON)
    texts = [_bare(restored(text)) for text in [*steps, answer]]
    lines = [f"<step_{number}> {text}" for number, text in enumerate(texts[:-1], 1)] + [f"<answer> {texts[-1]}"]
    return replace(parse_critique("\n".join(lines)), case=case if case in CASES else "")


def parse_script(reply: str | None, finish_reason: str | None = "stop") -> ParsedCritique:
    """A reply that holds an edit script, as it came; ``edits.apply_script`` reads it beside its attempt."""
    visible, reason = _visible(reply, finish_reason)
    if not reason and find_object(visible, {"edits"}) is None:
        reason = NOT_JSON
    return _malformed(reason) if reason else ParsedCritique(status="ok", text=visible.strip())


def parse_comment(reply: str | None, finish_reason: str | None = "stop") -> ParsedCritique:
    """A hint or a comment in the critic's own words: anything but thinking is usable."""
    visible, reason = _visible(reply, finish_reason)
    return _malformed(reason) if reason else ParsedCritique(status="ok", text=visible.strip())


PARSERS: dict[str, Callable[[str | None, str | None], ParsedCritique]] = {
    "trace": parse_critique,
    "paraphrase": parse_critique,
    "hint": parse_comment,
    "comment": parse_comment,
    "edits": parse_script,
    "edit": parse_comment,
}
"""(reply, finish reason) -> what it says, by the form of critique that was asked for."""


def _malformed(reason: str, case: str = "") -> ParsedCritique:
    return ParsedCritique(status="malformed", case=case, reason=reason)


def _visible(reply: str | None, finish_reason: str | None) -> tuple[str, str]:
    """A reply without thinking, and the reason why it cannot be used ("" for none)."""
    end = (finish_reason or "").lower().rpartition(".")[2].removeprefix("finish_reason_")
    if _CUT_END.fullmatch(end) or _STOPPED_END.fullmatch(end):
        return "", CUT if _CUT_END.fullmatch(end) else FILTERED
    if reply is None or not reply.strip():
        return "", EMPTY
    visible = restored(strip_thinking(reply))
    if CONTROL.search(visible):
        return "", GARBLED
    return visible, "" if visible.strip() else ONLY_THINKING


def strip_thinking(reply: str) -> str:
    """The reply without its thinking blocks, one that was cut included."""
    return without_thinking(reply).lstrip("\n")


def _traces(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps grouped into traces: a number that does not grow, or anything behind an answer, starts a new one."""
    traces: list[list[Step]] = []
    for step in steps:
        if step.label == PREAMBLE:
            continue
        last = traces[-1][-1].label if traces else ANSWER
        if last != ANSWER and (step.label == ANSWER or int(step.label) > int(last)):
            traces[-1].append(step)
        else:
            traces.append([step])
    return traces


def _fault(trace: Sequence[Step], require_answer: bool) -> str:
    first, last = trace[0], trace[-1]
    if first.label == ANSWER:
        return NO_TRACE
    if int(first.label) > 1:
        return WRONG_START
    if require_answer and last.label != ANSWER:
        return NO_ANSWER
    bodies = (step_body(chunk, replace(step, start=0, end=len(chunk))) for step in trace for chunk in [_chunk(step)])
    return EMPTY_STEP if any(body in _PLACEHOLDERS for body in bodies) else ""


def _trace_text(trace: Sequence[Step]) -> str:
    chunks = [_chunk(step) for step in trace]
    # A comment cut away behind a closing tag took the line break with it.
    return "".join(f"{chunk}\n" if CLOSING_TAG.search(chunk) else chunk for chunk in chunks).strip()


def _chunk(step: Step) -> str:
    """A step's own text: up to its closing tag; an answer without one ends at the first blank line or code fence."""
    if closing := CLOSING_TAG.search(step.text):
        return step.text[: closing.end()]
    if step.label != ANSWER:
        return step.text
    tag_end = step.text.index(">") + 1
    lines = step.text[tag_end:].lstrip().split("\n", 32)[:32]
    kept = takewhile(lambda line: line.strip() and not line.lstrip().startswith("```"), lines)
    return step.text[:tag_end] + " " + "\n".join(kept).strip()


def _case(text: str) -> str:
    match = _CASE.search(text)
    letter = (match.group(1) or match.group(2)).upper() if match else ""
    return letter if letter in CASES else ""


def _bare(text: str) -> str:
    """A step's text without a tag the critic wrote in front of it."""
    steps = split_steps(text.strip(), "tags")
    return step_body(text.strip(), steps[0]) if len(steps) == 1 else text.strip()
