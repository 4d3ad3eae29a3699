from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.feedback import critique as c
from stepalign.feedback.critique import parse_critique, parse_structured_critique, strip_thinking

TRACE = "<step_1> a\n<step_2> b\n<answer> 5"


@pytest.mark.parametrize(
    "reply",
    [
        TRACE,
        f"<think>first <step_1> draft <answer> 9</think>\n<case>D</case>\n{TRACE}",
        f"the template opened this thought</think>{TRACE}\n",
        f"{TRACE}\n\nThe student was wrong in step 2.",
        f"<step_1> x <answer> 4\n\nThat was the attempt. Now:\n{TRACE}",
        f"```\n{TRACE}\n```",
        f"{TRACE}\n<think>never ends <step_1> z",
    ],
)
def test_usable_replies(reply: str) -> None:
    parsed = parse_critique(reply)
    assert (parsed.status, parsed.text, parsed.reason) == ("ok", TRACE, "")


def test_comments_between_closed_steps_are_dropped() -> None:
    reply = "<step_1>a</step_1> (right)\n<step_2>b</step_2> (mended)\n<answer>5</answer> done"
    assert parse_critique(reply).text == "<step_1>a</step_1>\n<step_2>b</step_2>\n<answer>5</answer>"


@pytest.mark.parametrize(
    ("reply", "finish_reason", "reason"),
    [
        (TRACE, "length", c.CUT),
        (TRACE, "content_filter", c.FILTERED),
        (TRACE, "tool_calls", c.FILTERED),
        (None, "stop", c.EMPTY),
        (" \n", "stop", c.EMPTY),
        ("<think> never ends <step_1> a <answer> 5", "stop", c.ONLY_THINKING),
        ("The attempt is wrong in step 2.", "stop", c.NO_TRACE),
        ("<answer> 5", "stop", c.NO_TRACE),
        ("<step_3> a <answer> 5", "stop", c.WRONG_START),
        ("<step_1> a <step_2> b", "stop", c.NO_ANSWER),
        ("<step_1> ... <step_2> ... <answer> ...", "stop", c.EMPTY_STEP),
        ("<step_1> a <step_2> <answer> 5", "stop", c.EMPTY_STEP),
        ("<step_1> a <answer>\n\n", "stop", c.EMPTY_STEP),
    ],
)
def test_malformed_replies(reply: str | None, finish_reason: str, reason: str) -> None:
    parsed = parse_critique(reply, finish_reason)
    assert (parsed.status, parsed.text, parsed.reason) == ("malformed", "", reason)


def test_answer_may_be_waived() -> None:
    assert parse_critique("<step_1> a <step_2> b", require_answer=False).status == "ok"


@pytest.mark.parametrize(
    ("head", "case"),
    [
        ("<case>B</case>\n", "B"),
        ("**Case C**\n", "C"),
        ("case: f\n", "F"),
        ("<case>E</case>", ""),
        ("In this case A", ""),
    ],
)
def test_named_case(head: str, case: str) -> None:
    assert parse_critique(head + TRACE).case == case


def test_structured_replies() -> None:
    good = {"case": "D", "steps": ["a", "<step_2> b"], "answer": "5"}
    parsed = parse_structured_critique("```json\n" + json.dumps(good) + "\n```")
    assert (parsed.status, parsed.text, parsed.case) == ("ok", TRACE, "D")
    for bad in ("[]", "{", '{"case": "D"}', json.dumps({**good, "steps": "a"}), json.dumps({**good, "steps": [1]})):
        assert parse_structured_critique(bad).reason == c.NOT_JSON
    assert parse_structured_critique(json.dumps({**good, "steps": []})).reason == c.NO_TRACE
    assert parse_structured_critique("[" * 100_000).status == "malformed"
    assert parse_structured_critique(json.dumps(good), "length").reason == c.CUT


def test_strip_thinking() -> None:
    assert strip_thinking("a <think>b <think>c</think> d</think> e") == "a  e"
    assert strip_thinking("b</think>a<THINKING>c") == "a"


PIECES = st.sampled_from(
    ["<think>", "</think>", "<step_1>", "<step_2> b ", "</step_1>", "<answer>", "</answer>", "<case>D</case>", "```"]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=20).map("".join))
def test_any_reply_is_read(reply: str) -> None:
    parsed = parse_critique(reply)
    assert (parsed.status == "ok") == bool(parsed.text) == (not parsed.reason)
    if parsed.status == "ok":  # what is shown to the self-teacher is a critique itself, and stays the same
        assert parse_critique(parsed.text).text == parsed.text
    parse_structured_critique(reply)


@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        "</think>",
        "<case>",
        "<step_1>",
        "</answer>",
        "<answer>",
        "<step_1>a<answer>" + "\n" * 500_000,
        "{",
        "</",
    ],
)
def test_hostile_megabyte(text: str) -> None:
    reply = text * (1_000_000 // len(text))
    assert parse_critique(reply).status == "malformed"
    assert parse_structured_critique(reply).status == "malformed"
