"""Split a trace into steps with exact character spans.

A step is a half-open span of characters; the spans of a text join to exactly that text, so each maps to the tokens that
wrote it (``models.prompts.tokens_to_steps``). The writing style of a text is found by evidence and can be overridden.

Every pattern is anchored and bounded, without nested quantifiers: a megabyte of hostile text costs linear time.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise, takewhile
from typing import Literal, get_args

from stepalign.domains.math.thinking import thinking_end
from stepalign.errors import ConfigError
from stepalign.feedback.blocks import find_blocks, outside_blocks
from stepalign.feedback.code import is_code, statement_starts
from stepalign.records import Step

StepStyle = Literal["auto", "tags", "step_words", "numbered", "headings", "paragraphs", "lines", "sentences", "code"]
Marker = tuple[int, str]
"""Start of a step (character offset) and its label."""

ANSWER = "answer"
PREAMBLE = ""

ANSWER_TAG = r"<(?:final[ _-]?)?answer[ \t]{0,4}>"
STEP_TAG = r"<step[ _-]?(?P<number>\d{0,6})[ \t]{0,4}>"
ANSWER_HASHES = r"\#{4}(?=[ \t]{0,4}[^\s#])"
"""As in GSM8K, at the beginning of a line."""
_TAG = re.compile(rf"{STEP_TAG}|{ANSWER_TAG}", re.I)
CLOSING_TAG = re.compile(r"</(?:step[ _-]?\d{0,6}|(?:final[ _-]?)?answer)[ \t]{0,4}>", re.I)
_CLOSING_AT_END = re.compile(CLOSING_TAG.pattern + r"\s*\Z", re.I)
# A dash counts as a separator only before a word: "Step 1 - find x" is a step, "Step 19 - 6 = 13" is arithmetic.
_SEPARATOR = r"[*_]{0,3}[ \t]{0,2}(?:[:：.)]|[-–—](?=[ \t]{0,3}[^\d\s])|\r?$)"
_STEP_WORD = re.compile(
    r"^[ \t]{0,12}[#*_>-]{0,8}[ \t]{0,4}[*_]{0,3}(?:step|步骤)[ \t]{0,4}#?(\d{1,6})" + _SEPARATOR, re.I | re.M
)
_STEP_WORD_INLINE = re.compile(r"(?<=[.;!?)] )[*_]{0,3}step[ \t]{0,4}(\d{1,6})[*_]{0,3}:", re.I)
_NUMBERED = re.compile(r"^([ \t]{0,3})[*_]{0,3}\(?(\d{1,4})(?:[.)][*_]{0,3}(?=[ \t])|、)", re.M)
_HEADING = re.compile(r"^ {0,3}(?:#{1,6}[ \t]++(?=\S)|\*\*[^*\n]{1,200}\*\*:?[ \t]{0,4}\r?$)", re.M)
_CONTENT_LINE = re.compile(r"^[^\S\n]*+(?=\S)", re.M)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*]{0,3}(?:[^\S\n]++|(?=\n))|[。！？][”’」』）*]{0,3}[^\S\n]*+")
# A full stop behind one of these ends no sentence; behind "a.m" it does where a capital letter follows.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|mr|mrs|ms|dr|st|approx|fig|eq)|\b(?-i:[A-Z])|\n[ \t]{0,3}\d{1,3})\Z", re.I
)
_HALF_DAY = re.compile(r"\b[ap]\.m\Z", re.I)
_FENCE = re.compile(r"(?:`{3,12}|~{3,12})[^`\n]*\n")
_FENCE_AT_END = re.compile(r"\n[ \t]{0,12}(?:`{3,12}|~{3,12})\Z")

_ANSWER_LINE = re.compile(
    r"[ \t>]{0,12}(?:"
    rf"{ANSWER_HASHES}[ \t]{{0,4}}"
    r"|A[ \t]?:"
    r"|[*_]{0,3}(?:所以|因此|故)?[，,]?(?:最终|最后)?答案(?:是|为|[*_]{0,3}[:：]|(?=\r?$))[*_]{0,3}[:：]?"
    r"|[#*_-]{0,8}[ \t]{0,4}[*_]{0,3}"
    r"(?:(?:so|thus|hence|therefore)[, \t]{1,3})?(?:the[ \t]{1,3})?(?:final[ \t]{1,3})?answer"
    r"(?:[ \t]{1,3}is\b[ \t]{0,2}:?|[ \t]{0,3}[*_]{0,3}[ \t]{0,2}(?:[:=]|(?=\r?$)))[*_]{0,3}"
    r"|(?=(?:\$\$?|\\\[|\\\()?[ \t]{0,2}\\boxed\{)"
    rf"|{ANSWER_TAG}"
    r")",
    re.I | re.M,
)
_STEP_MARKS = (
    _TAG,
    _STEP_WORD,
    re.compile(r"[*_]{0,3}step[ \t]{0,4}\d{1,6}[*_]{0,3}:", re.I),
    _NUMBERED,
    re.compile(r"#{1,6}[ \t]++"),
)
_ANSWER_MARKS = (_TAG, _ANSWER_LINE)
_OPENS_DISPLAY = re.compile(r"[ \t]{0,12}(?:\\\[|\$\$)[ \t]{0,12}\r?$", re.M)
_MAX_LINES_AFTER_ANSWER = 3
_MAX_ANSWER_CHARACTERS = 600


def split_steps(text: str, style: StepStyle = "auto") -> list[Step]:
    """The steps of a trace, in order; their texts join to the whole text. An empty text has no steps.

    Labels are the numbers a trace gives its steps, else "1", "2", ...; "answer" for the answer; "" for text before the
    first step, a thinking block included.

    Args:
        text: a completion, a critique or a reference solution.
        style: "tags" ``<step_1> ... <answer>``, closing tags optional; "step_words" ``Step 1: ...``; "headings"
            Markdown headings; "numbered" ``1. ...``; "paragraphs" separated by blank lines; "lines" one step a line,
            as in GSM8K (last line ``#### n`` or ``A: n`` is the answer); "sentences"; "code" a program, fenced or bare,
            one step a statement; "auto" the one that the text gives evidence for.

    In every style but "tags" the statements of a fenced program are steps, and so are tool calls; within a step with a
    label of its own, "3", they are "3.1", "3.2", ....

    Raises:
        ConfigError: unknown style.
    """
    if style not in get_args(StepStyle):
        raise ConfigError(f"unknown step style {style!r}", hint=f"known styles: {', '.join(get_args(StepStyle))}")
    if not text:
        return []
    offset = thinking_end(text)
    body = text[offset:]
    markers = _markers(body, _detect(body) if style == "auto" else style)
    return _spans(text, [(offset + start, label) for start, label in markers])


def detect_style(text: str) -> StepStyle:
    """The style that ``split_steps(text)`` follows."""
    return _detect(text[thinking_end(text) :])


def step_body(text: str, step: Step) -> str:
    """The text of a step without tag, number, heading mark or surrounding white space."""
    raw = text[step.start : step.end].strip()
    if step.label == PREAMBLE:
        return raw
    # Only the end is searched: the pattern would scan every "</" of a long hostile step.
    raw = raw[:-64] + _CLOSING_AT_END.sub("", raw[-64:])
    if fence := _FENCE.match(raw):
        raw = raw[fence.end() :]
    raw = raw[:-64] + _FENCE_AT_END.sub("", raw[-64:])
    for pattern in _ANSWER_MARKS if step.label == ANSWER else _STEP_MARKS:
        if match := pattern.match(raw):
            return raw[match.end() :].strip()
    return raw.strip()


# --- choosing a style ---


def _detect(text: str) -> StepStyle:
    if any(label != ANSWER for _, label in _tag_markers(text)):
        return "tags"
    blocks = find_blocks(text)
    if any(kind == "code" for _, _, kind in blocks):
        edges = [0, *(edge for start, end, _ in blocks for edge in (start, _line_end(text, end))), len(text)]
        if not any(text[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True)):
            return "code"
    elif not blocks and is_code(text):
        return "code"
    answer = _answer_start(text)
    words = _before(_step_word_markers(text), answer)
    if len(words) > 1 or [label for _, label in words] == ["1"]:
        return "step_words"
    for style in ("headings", "numbered"):
        if _is_balanced(_before(_STYLES[style](text), answer), text):
            return style
    for style in ("paragraphs", "lines"):
        if len(_STYLES[style](text[:answer])) > 1:
            return style
    return "sentences"


def _is_balanced(markers: list[Marker], text: str) -> bool:
    """Whether the marks carry the text: a short list inside a long argument leaves most of the text in one step. Blocks
    of code do not count: one of them is often longer than all the words."""
    if len(markers) < 2:
        return False
    starts = [start for start, _ in markers]
    sizes = [end - start for start, end in pairwise([*starts, len(text)])]
    total = len(text)
    for block_start, block_end, _ in find_blocks(text):
        total -= block_end - block_start
        if (step := bisect_right(starts, block_start) - 1) >= 0:
            sizes[step] -= block_end - block_start
    return max(sizes) <= max(0.6, 1.6 / len(markers)) * total


def _before(markers: list[Marker], answer: int | None) -> list[Marker]:
    return markers if answer is None else list(takewhile(lambda marker: marker[0] < answer, markers))


# --- where steps start ---


def _markers(text: str, style: StepStyle) -> list[Marker]:
    """Starts and labels of the steps of a text in one style, the answer included."""
    if style == "tags":
        return _tag_markers(text)
    answer = None if style == "code" else _answer_start(text)
    markers = _with_blocks(text[:answer], _before(_STYLES[style](text), answer), style not in _LABELLED)
    return markers if answer is None else [*markers, (answer, ANSWER)]


def _with_blocks(text: str, markers: list[Marker], counted: bool) -> list[Marker]:
    """Steps of a text with the statements of its code and its tool calls as steps of their own."""
    starts = [start for start, _ in markers]
    cuts: list[int] = []
    for start, end, kind in find_blocks(text):
        inside = [start, *_statements(text, start, end)[1:]] if kind == "code" else [start] if kind == "call" else []
        if inside and (len(inside) > 1 or kind == "call"):
            cuts += inside
            behind = _CONTENT_LINE.search(text, _line_end(text, end))
            cuts += [behind.start()] if behind else []
    if counted:
        return _count(sorted({*starts, *cuts}))
    found = dict(markers)
    label, number = "", 0
    for start in sorted({*starts, *cuts}):
        if start in found:
            label, number = found[start], 0
        elif label:  # code in front of the first step belongs to the preamble
            number += 1
            found[start] = f"{label}.{number}"
    return sorted(found.items())


def _statements(text: str, start: int, end: int) -> list[int]:
    """Starts of the statements between the first and the last line of a block of code."""
    first = text.find("\n", start) + 1 or end
    return [first + place for place in statement_starts(text[first:end])]


def _line_end(text: str, start: int) -> int:
    return text.find("\n", start) + 1 or len(text)


def code_spans(text: str) -> list[tuple[int, int]]:
    """Where a text is code: the whole of a bare program, else its fenced blocks."""
    if detect_style(text) == "code":
        return [(0, len(text))]
    return [(start, end) for start, end, kind in find_blocks(text) if kind == "code"]


def _tag_markers(text: str) -> list[Marker]:
    markers: list[Marker] = []
    number = 0
    for match in _TAG.finditer(text):
        is_step = match["number"] is not None
        if is_step:
            number = int(match["number"] or number + 1)
        markers.append((match.start(), str(number) if is_step else ANSWER))
    return markers


def _step_word_markers(text: str) -> list[Marker]:
    at_line_start = [(m.start(), int(m.group(1)), True) for m in _STEP_WORD.finditer(text)]
    inline = [(m.start(), int(m.group(1)), False) for m in _STEP_WORD_INLINE.finditer(text)]
    markers: dict[int, str] = {}
    previous = 0
    for start, number, leads in sorted(at_line_start + inline):
        # "as in Step 1: ..." in running text refers to a step; only the next number in order starts one there.
        if leads or number == previous + 1:
            markers[start] = str(number)
            previous = number
    return [(start, markers[start]) for start in outside_blocks(text, markers)]


def _numbered_markers(text: str) -> list[Marker]:
    matches = {match.start(): match for match in _NUMBERED.finditer(text)}
    # A number that is indented deeper than the first belongs to a list inside a step.
    deepest = next((len(match.group(1)) + 1 for match in matches.values()), 0)
    markers: list[Marker] = []
    for start in outside_blocks(text, [start for start, m in matches.items() if len(m.group(1)) <= deepest]):
        number = int(matches[start].group(2))
        # So does one that does not continue the list.
        if number == int(markers[-1][1]) + 1 if markers else number <= 1:
            markers.append((start, str(number)))
    return markers


def _heading_markers(text: str) -> list[Marker]:
    return _count(outside_blocks(text, [match.start() for match in _HEADING.finditer(text)]))


def _content_lines(text: str) -> list[int]:
    """Starts of the lines that are not blank and not inside a code block."""
    return outside_blocks(text, [match.start() for match in _CONTENT_LINE.finditer(text)])


def _line_markers(text: str) -> list[Marker]:
    return _count(_content_lines(text))


def _paragraph_markers(text: str) -> list[Marker]:
    outside = set(_content_lines(text))
    paragraphs: list[int] = []
    line_end = -1  # of the content line before
    for match in _CONTENT_LINE.finditer(text):
        if match.start() in outside and match.start() != line_end:
            paragraphs.append(match.start())
        newline = text.find("\n", match.end())
        line_end = len(text) if newline < 0 else newline + 1
    return _count(paragraphs)


def _sentence_markers(text: str) -> list[Marker]:
    starts = set(_content_lines(text))
    for match in _SENTENCE_END.finditer(text):
        at_line_end = match.end() >= len(text) or text[match.end()] == "\n"
        if not at_line_end and not (text[match.start()] == "." and _is_abbreviation(text, match)):
            starts.add(match.end())
    return _count(outside_blocks(text, sorted(starts)))


def _is_abbreviation(text: str, stop: re.Match[str]) -> bool:
    before = "\n"[: stop.start() < 12] + text[max(0, stop.start() - 12) : stop.start()]
    return bool(_ABBREVIATION.search(before) or (_HALF_DAY.search(before) and not text[stop.end()].isupper()))


def _code_markers(text: str) -> list[Marker]:
    fenced = any(kind == "code" for _, _, kind in find_blocks(text))
    return _paragraph_markers(text) if fenced else _count(statement_starts(text))


_LABELLED = ("step_words", "headings", "numbered")
_STYLES: dict[str, Callable[[str], list[Marker]]] = {
    "tags": _tag_markers,
    "step_words": _step_word_markers,
    "headings": _heading_markers,
    "numbered": _numbered_markers,
    "paragraphs": _paragraph_markers,
    "lines": _line_markers,
    "sentences": _sentence_markers,
    "code": _code_markers,
}


def _answer_start(text: str) -> int | None:
    """Where the closing answer starts, or None: an answer line among the last lines, with those right above it."""
    end = len(text.rstrip())
    found: int | None = None
    for lines_after in range(_MAX_LINES_AFTER_ANSWER + 6):
        start = text.rfind("\n", 0, end) + 1
        if end <= 0 or len(text) - start > _MAX_ANSWER_CHARACTERS + (len(text) - len(text.rstrip())):
            break
        if _ANSWER_LINE.match(text, start) or (found is not None and _OPENS_DISPLAY.match(text, start)):
            found = start
        elif found is not None or lines_after >= _MAX_LINES_AFTER_ANSWER:
            break
        end = len(text[:start].rstrip())
    return found if found is None or outside_blocks(text, [found]) else None


def _count(starts: Iterable[int]) -> list[Marker]:
    return [(start, str(number)) for number, start in enumerate(starts, 1)]


def _spans(text: str, markers: list[Marker]) -> list[Step]:
    """Steps that cover the text: each runs to the start of the next; blank text in front goes with the first."""
    if not markers or text[: markers[0][0]].strip():
        markers = [(0, PREAMBLE), *markers]
    labels = [label for _, label in markers]
    edges = [0, *(start for start, _ in markers[1:]), len(text)]
    return [
        Step(label=label, start=start, end=end, text=text[start:end])
        for label, (start, end) in zip(labels, pairwise(edges), strict=True)
    ]
