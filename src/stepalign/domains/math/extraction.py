"""The final answer that a text marks. Pure functions; each scan is linear in the length of a model's text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from stepalign.domains.math.answers import EMPHASIS, MAX_LENGTH, canonical_answer, is_prose, normal_form
from stepalign.domains.math.thinking import after_thinking

MAX_MARKS = 256
"""Only so many marked answers, the last ones, are compared with each other."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The final answer of a text."""

    answer: str | None
    """None where the text marks no answer; "" where it marks an empty one."""
    rivals: tuple[str, ...] = ()
    """All final answers in order, where they differ from each other: a spray of guesses, or the parts of a set."""
    ran_on: bool = False
    """Whether the text goes on to another question, which is not read."""


def extract_answer(text: str) -> str | None:
    """The final answer that a text marks, or None.

    Only what follows a thought counts, up to the first question that follows an answer: a base model may go on to a
    question of its own. The last of these wins: a top-level ``\\boxed{...}`` (by matching braces) or
    an ``<answer>`` tag (up to ``</answer>``, or to the end of the text, as in step-tagged traces). Without one, the
    rest of the line after the last ``####``; without that, after the last "The answer is", "Answer:" or "A:" at the
    start of a line, unless that asks a question. A number in plain prose is not an answer.
    """
    return find_answer(text).answer or None


def find_answer(text: str) -> Extraction:
    """As :func:`extract_answer`, with the final answers that contradict each other.

    Boxes and tags before the last ``<step_N>`` tag are intermediate results and may differ.
    """
    text = after_thinking(text)
    start = 0
    for _ in range(_MAX_QUESTIONS):
        mark = _MARK.search(text, start)
        question = mark and QUESTION.search(text, mark.end())
        if not question:
            break
        found = _find(text[: question.start()])
        if found.answer and not is_prose(normal_form(found.answer).text):
            return replace(found, ran_on=True)
        start = question.end()
    return _find(text)


def _find(text: str) -> Extraction:
    found = _boxed_or_tagged(text) or _hashed(text)
    if found is None:
        announced = (_sentence(text, mark.end()) for mark in reversed(list(_ANNOUNCEMENT.finditer(text))))
        found = Extraction(next((sentence for sentence in announced if sentence is not None), None))
    return found


_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_STEP_TAG = re.compile(r"</?step_\d{1,6}>")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
_UNBRACED_BOX = re.compile(r"\\boxed[ \t]{1,8}([^\s${}\\]{1,64})")
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_ANNOUNCEMENT = re.compile(
    r"\banswer[ \t]{0,8}(?:\*\*)?[ \t]{0,8}(?:is\b:?|:|=)(?:\*\*)?|^[ \t]{0,8}A:", re.IGNORECASE | re.MULTILINE
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|\*\*|$)")
_LEAD = re.compile(r"(?:therefore|thus|then|simply|just|exactly|about|approximately|roughly|equal to),?[ \t]+", re.I)
_REASON = re.compile(
    r"[,;:(–—-]{0,2} [(]?(?:because|since|as|which|given|due to|so)\b(?! to\b)"
    r"|(?:[,;:]| ?[(\[]| [-–—]{1,3}) ?(?:i\.e\b|by(?= (?:\w{3}|\$))"
    r"|(?:see|from|using|that|we|this|it|not|but|though|after|when|where)(?= [\w($\\])(?! [=<>]))",
    re.IGNORECASE,
)
"""What explains an answer in its own sentence."""
_MARK = re.compile(
    rf"\\(?:boxed|fbox)\b|<answer>|(?<!#)####(?!#)|{_ANNOUNCEMENT.pattern}", re.IGNORECASE | re.MULTILINE
)
QUESTION = re.compile(
    r"^[#*>_\s]{0,8}(?:(?:next|new|another)[ \t])?"
    r"(?:(?:question|problem|exercise|puzzle|instruction|q)"
    r"[ \t]{0,2}(?:(?:no\.?|\#)?[ \t]?\d{1,4})?[ \t]{0,2}[*_]{0,2}[:.)]"
    r"|(?:human|user|问题|题目)[*_]{0,2}[:：]|\#{2,4}[ \t](?:question|problem|instruction|exercise)\b)"
    r"|<\|(?:im_start|im_end|user|endoftext|eot_id|end|return|start_header_id|end_of_text)\|>|</s>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>",
    re.IGNORECASE | re.MULTILINE,
)
"""The heading of a question, or a mark that ends the turn."""
_MAX_QUESTIONS = 8
_PLACEHOLDERS = frozenset(
    ("", "?", "\\ldots", "answer", "the answer", "your answer", "final answer", "your final answer", "your answer here")
)


def _boxed_or_tagged(text: str) -> Extraction | None:
    tags = _tag_spans(text)
    found = [(start, _in_tag(text[start:end])) for start, end in tags]
    boxes = [box for box in _boxes(text) if not any(start <= box[0] < end for start, end in tags)]
    found += [(start, Extraction(content)) for start, content in boxes]
    if not found:
        return None
    found.sort(key=lambda item: item[0])
    found = [item for item in found if not _is_placeholder(item[1].answer or "")] or found
    step_ends = [match.end() for match in _STEP_TAG.finditer(text)]
    if step_ends:
        first = next((start for start, _ in tags if start >= step_ends[-1]), step_ends[-1])
        found = [item for item in found if item[0] >= first] or found[-1:]
    answers = [answer for _, extraction in found for answer in extraction.rivals or (extraction.answer or "",)]
    return Extraction(found[-1][1].answer, _if_different(answers))


def _is_placeholder(answer: str) -> bool:
    """Whether a box or tag only quotes the form that was asked for: "put it in \\boxed{}"."""
    return len(answer) < 40 and normal_form(answer).text in _PLACEHOLDERS


def _in_tag(content: str) -> Extraction:
    """A tag holds a box, a sentence that announces the answer, or the bare answer."""
    boxes = [box for _, box in _boxes(content)]
    if boxes:
        return Extraction(boxes[-1], _if_different(boxes))
    announced = _ANNOUNCEMENT.search(content)
    return Extraction(_sentence(content, announced.end()) or "" if announced else _cut(content))


def _tag_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of the content of every answer tag, closed or not; none for one that is opened in a sentence
    ("in <answer> tags") before another is closed."""
    spans: list[tuple[int, int]] = []
    opened = -1
    last_closing = text.lower().rfind("</answer>")
    for tag in _TAG.finditer(text):
        if opened >= 0 and (tag.group(1) or tag.start() > last_closing):
            spans.append((opened, tag.start()))
        opened = -1 if tag.group(1) else tag.end()
    if opened >= 0:
        spans.append((opened, len(text)))
    return spans[-MAX_MARKS:]


def _boxes(text: str) -> list[tuple[int, str]]:
    """Start and content of every top-level box, in one pass over the braces."""
    starts = [at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0]
    if not starts:
        return []
    opened: list[tuple[int, int] | None] = []
    closed: list[tuple[int, int, int]] = []
    for brace in _BRACE.finditer(text, min(starts)):
        symbol = brace.group()
        if symbol == "{":
            opened.append(None)
        elif symbol == "}":
            box = opened.pop() if opened else None
            if box:
                closed.append((*box, brace.start()))
        elif len(symbol) > 2:
            opened.append((brace.start(), brace.end()))
    top: list[tuple[int, int, int]] = []
    for box in sorted(closed):
        if not top or box[0] > top[-1][2]:
            top.append(box)
    if top:
        return [(start, _unboxed(_cut(text[content:end]))) for start, content, end in top[-MAX_MARKS:]]
    unbraced = list(_UNBRACED_BOX.finditer(text))[-MAX_MARKS:]
    return [(box.start(), box.group(1).rstrip(".,;")) for box in unbraced]


def _unboxed(content: str) -> str:
    """The inside of a box in a box."""
    boxes = _boxes(content) if content.startswith("\\boxed{") and content.endswith("}") else []
    return boxes[0][1] if len(boxes) == 1 else content


def _hashed(text: str) -> Extraction | None:
    """The rest of the line after the last ``####``. Others may be Markdown headings, so only numbers contradict."""
    lines = [_cut(mark.group(1)) for mark in list(_HASHES.finditer(text))[-MAX_MARKS:]]
    if not lines:
        return None
    return Extraction(lines[-1], _if_different([line for line in lines if normal_form(line).number is not None]))


def _sentence(text: str, start: int) -> str | None:
    """The text that follows an announcement, up to the end of its sentence; the next line where its own is empty.

    None for a question.
    """
    while start < len(text) and text[start] in " \t\n:":
        start += 1
    lead = _LEAD.match(text, start)
    start = lead.end() if lead else start
    end = _SENTENCE_END.search(text, start)
    if end is not None and end.group() == "?":
        return None
    sentence = EMPHASIS.sub(r"\2", _cut(text[start : end.start() if end else len(text)])).strip("* ")
    reason = _REASON.search(sentence)
    return sentence[: reason.start()].rstrip() if reason and reason.start() else sentence


def _cut(answer: str) -> str:
    return answer.strip()[: MAX_LENGTH + 1]


def _if_different(answers: list[str]) -> tuple[str, ...]:
    """The answers when they differ, else nothing."""
    distinct = list(dict.fromkeys(answers))
    first = canonical_answer(distinct[0]) if distinct else ""
    return tuple(answers) if any(canonical_answer(answer) != first for answer in distinct[1:]) else ()
