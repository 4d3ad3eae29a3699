"""Edit scripts: a critic names the steps that change, and a program changes them, so that all others stay verbatim.

A script is JSON, ``{"edits": [{"step": 2, "replacement": "3 - 5 = 18 ;"}], "answer": "18"}``. Steps count from 1 as
``numbered`` shows them; an empty replacement drops a step, the number behind the last one adds one. An answer that
stays may be left out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from difflib import SequenceMatcher
from typing import Any

from stepalign.feedback.critique import NO_ANSWER, NOT_JSON, ParsedCritique
from stepalign.feedback.json_reply import find_object, restored
from stepalign.feedback.steps import ANSWER, PREAMBLE, detect_style, split_steps, step_body
from stepalign.records import Step

_SIGNS = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2212", "''\"\"---")
_BOX = re.compile(r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")
BAD_EDIT = "an edit is not a step number and its replacement"
NO_STEP = "the script edits a step that is not there"
TWICE = "the script edits a step twice"
SEVERAL = "a replacement holds several steps"


def kept_verbatim(text: str, edited: str) -> str:
    """An edited text with each sentence that it keeps as the writer has it, to the character.

    The sentences of both (or their steps, where they are tagged; or their statements) are aligned in their order. Space
    and the forms of quotes and dashes make no other sentence.
    """
    style = detect_style(text) if detect_style(text) in ("tags", "code") else "sentences"
    own, new = ([step.text for step in split_steps(one, style)] for one in (text, edited))
    pieces = list(new)
    matcher = SequenceMatcher(None, [*map(_key, own)], [*map(_key, new)], autojunk=False)
    for block in matcher.get_matching_blocks():
        for place in range(block.size):
            mine, theirs = own[block.a + place], new[block.b + place]
            space = theirs[len(theirs.rstrip()) :] or " " * (block.b + place + 1 < len(new))
            pieces[block.b + place] = mine.strip() + space
    return "".join(pieces).strip()


def _key(sentence: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", sentence).translate(_SIGNS).split())


def numbered(text: str) -> str:
    """An attempt as a critic that writes scripts is shown it: each step behind its number."""
    steps, answer = _steps(text)
    lines = [f"[{place}] {step_body(text, step)}" for place, step in enumerate(steps, 1)]
    return "\n".join(lines + ([f"[answer] {step_body(text, answer)}"] if answer else []))


def apply_script(text: str, reply: str) -> ParsedCritique:
    """The attempt with the edits of a reply, or the reason why they cannot be made."""
    data = find_object(reply, {"edits"})
    if data is None or not isinstance(data["edits"], list):
        return _malformed(NOT_JSON)
    steps, answer = _steps(text)
    changes: dict[int, str] = {}
    for edit in data["edits"]:
        place, new = (edit.get("step"), edit.get("replacement")) if isinstance(edit, dict) else (None, None)
        place = int(place) if isinstance(place, str) and re.fullmatch(r"\d{1,6}", place) else place
        if type(place) is not int or not isinstance(new, str):
            return _malformed(BAD_EDIT)
        if place in changes:
            return _malformed(TWICE)
        tagged = split_steps(new.strip(), "tags")
        if len(tagged) > 1:
            return _malformed(SEVERAL)
        changes[place] = restored(step_body(new.strip(), tagged[0]) if tagged else "")
    added = sorted(place for place in changes if place > len(steps))
    if min(changes, default=1) < 1 or added != list(range(len(steps) + 1, len(steps) + 1 + len(added))):
        return _malformed(NO_STEP)
    final = data.get("answer")
    if isinstance(final, int | float) and not isinstance(final, bool):
        final = str(final)
    if not isinstance(final, str | None):
        return _malformed(NOT_JSON)
    trace = _written(text, steps, answer, changes, restored(final or "").strip())
    found = split_steps(trace)
    if not found or found[-1].label != ANSWER:
        return _malformed(NO_ANSWER)
    return ParsedCritique(status="ok", text=trace)


def script_of(text: str, trace: str, words: str = "") -> str:
    """The script that makes a corrected trace of an attempt.

    Args:
        words: the trace in other words, step by step, that the replacements are taken from.
    """
    (steps, answer), (right, last) = _steps(text), _steps(trace)
    texts = [step_body(words or trace, step) for step in _steps(words or trace)[0]]
    edits = [
        {"step": place, "replacement": texts[place - 1]}
        for place, step in enumerate(right, 1)
        if place > len(steps) or step_body(text, steps[place - 1]) != step_body(trace, step)
    ]
    edits += [{"step": place, "replacement": ""} for place in range(len(right) + 1, len(steps) + 1)]
    script: dict[str, Any] = {"edits": edits}
    if last is not None and (answer is None or step_body(text, answer) != step_body(trace, last)):
        script["answer"] = step_body(trace, last)
    return json.dumps(script, ensure_ascii=False)


def _steps(text: str) -> tuple[list[Step], Step | None]:
    """The steps that have numbers, and the answer at the end."""
    steps = [step for step in split_steps(text) if step.label != PREAMBLE]
    answer = steps.pop() if steps and steps[-1].label == ANSWER else None
    return steps, answer


def _written(text: str, steps: list[Step], answer: Step | None, changes: dict[int, str], final: str) -> str:
    pieces = [text[: steps[0].start if steps else answer.start if answer else len(text)]]
    for place, step in enumerate(steps, 1):
        if changes.get(place) != "":
            pieces.append(_with_body(text, step, changes[place]) if place in changes else text[step.start : step.end])
    tags = re.match(r"\s*<step", text[steps[0].start :] if steps else "<step")
    gap = " " if tags and "\n" not in text.strip() else "\n"
    model = next((step for step in reversed(steps) if step_body(text, step)), None)
    mark = text[model.start : model.end].partition(step_body(text, model))[0] if model else "<step_1> "
    for place in (place for place in sorted(changes) if place > len(steps) and changes[place]):
        pieces += [_gap(pieces, gap), re.sub(r"\d+", str(place), mark, count=1) + changes[place] + gap]
    if answer is not None:
        new = _with_body(text, answer, _in_its_box(step_body(text, answer), final)) if final else ""
        pieces += [_gap(pieces, gap), new or text[answer.start : answer.end]]
    elif final:
        pieces += [_gap(pieces, gap), f"<answer> {final}"]
    return "".join(pieces).strip()


def _gap(pieces: list[str], gap: str) -> str:
    before = "".join(pieces[-1:])
    return "" if not before or before[-1].isspace() else gap


def _with_body(text: str, step: Step, body: str) -> str:
    """A step with another body between its own mark and its own end."""
    chunk, old = text[step.start : step.end], step_body(text, step)
    at = chunk.rfind(old) if old else len(chunk.rstrip())
    return chunk[:at] + ("" if old or chunk[:at].endswith(" ") else " ") + body + chunk[at + len(old) :]


def _in_its_box(old: str, final: str) -> str:
    """An answer in the box of the one before it, between the same signs; words around stay where they hold no number.

    Without its box, which marks it, an answer may not be found any more.
    """
    boxes = [*_BOX.finditer(old)]
    if not boxes or "\\boxed" in final:
        return final
    box = boxes[-1]
    before, behind = old[: box.start()], old[box.end() :]
    if re.search(r"\d", before):
        before = re.search(r"[^\w\s]*$", before)[0]  # type: ignore[index]
    if re.search(r"\d", behind):
        behind = re.match(r"[^\w\s]*", behind)[0]  # type: ignore[index]
    return f"{before}\\boxed{{{final.strip('$ ')}}}{behind}"


def _malformed(reason: str) -> ParsedCritique:
    return ParsedCritique(status="malformed", reason=reason)
