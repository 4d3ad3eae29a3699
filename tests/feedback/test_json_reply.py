"""LaTeX and prose in structured critiques, and the many words of servers for an end. Expected values by hand."""

from __future__ import annotations

import json

import pytest

from stepalign.feedback import critique as c
from stepalign.feedback.critique import parse_comment, parse_critique, parse_structured_critique
from stepalign.feedback.json_reply import find_object, restored

# A step as a model has written it inside the quotes of its JSON, and the step that it meant.
STEPS = [
    (r"$\frac{1}{2} \times \beta$", r"$\frac{1}{2} \times \beta$"),
    (r"$\\frac{1}{2} \\times \\beta$", r"$\frac{1}{2} \times \beta$"),
    (r"\alpha + \sqrt{2}", r"\alpha + \sqrt{2}"),
    (r"\(x\) and \[y\]", r"\(x\) and \[y\]"),
    (r"\{1, 2\}\, \;\! 50\% \$3 a\_b", r"\{1, 2\}\, \;\! 50\% \$3 a\_b"),
    (r"\rho \right) \rightarrow \rangle", r"\rho \right) \rightarrow \rangle"),
    (r"\theta \tau \tan x \text{cm} \to 0", r"\theta \tau \tan x \text{cm} \to 0"),
    (r"\nabla f \neq 0, x \notin A, \not= 1", r"\nabla f \neq 0, x \notin A, \not= 1"),
    (r"\bar{x} \binom{3}{2} \bf \begin{cases}", r"\bar{x} \binom{3}{2} \bf \begin{cases}"),
    (r"\forall x \floor \phi \vec{v}", r"\forall x \floor \phi \vec{v}"),
    (r"\nu = \alpha", r"\nu = \alpha"),  # another command says that this model doubles none
    (r"\\alpha = 1\nu = 4", "\\alpha = 1\nu = 4"),  # and here that it does
    (r"u = 3\nu = 4", "u = 3\nu = 4"),  # and here nothing does
    (r"first\nThen second\n\nnext", "first\nThen second\n\nnext"),
    (r"one\ttwo\r\nthree", "one\ttwo\r\nthree"),
    (r"a\tHello, a\nNow", "a\tHello, a\nNow"),
    (r"say \"x\" and 1\/2", 'say "x" and 1/2'),
    (r"\u00e9 \u003c \underline{x} \uparrow", r"é < \underline{x} \uparrow"),
    (r"\u000crac{1}{2} \u0008eta \u0009imes", r"\frac{1}{2} \beta \times"),
    (r"x \\\\ y", r"x \\ y"),
    ("a line\nbreak as it is", "a line\nbreak as it is"),
]


@pytest.mark.parametrize(("written", "meant"), STEPS)
def test_the_latex_of_a_step_is_what_was_meant(written: str, meant: str) -> None:
    parsed = parse_structured_critique('{"case": "D", "steps": ["' + written + '"], "answer": "2"}')
    assert (parsed.status, parsed.text) == ("ok", f"<step_1> {meant}\n<answer> 2")


@pytest.mark.parametrize(
    "text", ["plain", 'q "x" \\ / \n \t é 😀', "\\frac{1}{2}\nu", "{}", "a\\\\b", "\\n", "\\u0041"]
)
def test_json_that_is_written_as_it_should_be_is_read_as_any_reader_does(text: str) -> None:
    for ascii_only in (True, False):
        reply = json.dumps({"steps": [text, text], "answer": text}, ensure_ascii=ascii_only)
        assert find_object(reply, {"steps"}) == json.loads(reply)


def test_the_answer_may_be_a_number() -> None:
    for written, answer in (("2", "2"), ("-0.5", "-0.5")):
        reply = '{"steps": ["a"], "answer": ' + written + "}"
        assert parse_structured_critique(reply).text.endswith(f"<answer> {answer}")
    assert parse_structured_critique('{"steps": ["a"], "answer": true}').reason == c.NOT_JSON


GOOD = '{"case": "D", "steps": ["one {x} two"], "answer": "5"}'
AROUND = [
    "{}",
    "Sure {{ok}}: {}",
    "{} hope {{that}} helps }}",
    "```json\n{}\n```\nThe set is {{1, 2}}.",
    "$\\{{1,2\\}}$ gives {}",
    'the form is {{"case": "letter"}}, so {}',
    '{{"steps": "unfinished, {}',
    "<think>{{}} {{</think>{}",
    "{{{}",
    '{{"example": {{"steps": ["no"]}}}} {}',
    '{{"case": "A", "steps": ["a first try"], "answer": "1"}} no: {}',
]


@pytest.mark.parametrize("around", AROUND)
def test_the_object_is_found_among_braces_of_prose(around: str) -> None:
    parsed = parse_structured_critique(around.format(GOOD))
    assert (parsed.text, parsed.case) == ("<step_1> one {x} two\n<answer> 5", "D")


@pytest.mark.parametrize(
    "reply", ["{", "{ok}", '{"steps": ["a"]}', '[{"steps": 1}]', '{"answer": "5"} {"steps": ["a"]}']
)
def test_no_object_is_no_critique(reply: str) -> None:
    assert parse_structured_critique(reply).reason == c.NOT_JSON


def test_control_characters_are_restored_or_make_the_critique_malformed() -> None:
    assert restored("\x0crac \x08eta \x07lpha \x0barphi \times \rho") == r"\frac \beta \alpha \varphi \times \rho"
    assert restored("a\tb c\r\nd") == "a\tb c\r\nd"
    assert parse_critique("<step_1> \x0crac{1}{2}\n<answer> 3").text == "<step_1> \\frac{1}{2}\n<answer> 3"
    for text in ("a \x1b[31m b", "a \x00 b", "a \x0c 1", "a \x7f"):
        assert parse_critique(f"<step_1> {text}\n<answer> 3").reason == c.GARBLED
        assert parse_structured_critique(json.dumps({"steps": [text], "answer": "3"})).reason == c.GARBLED
        assert parse_comment(text).reason == c.GARBLED


@pytest.mark.parametrize("unit", ["{", '{"', '{"a":', "\\", "\\n", '{"a":1}', '{"a":[', '{"steps":["\\f'])
def test_hostile_replies_end(unit: str) -> None:
    assert parse_structured_critique(unit * 20_000).status == "malformed"


WHOLE = ["stop", "eos", "eos_token", "stop_sequence", "end_turn", "STOP", "COMPLETE", "completed", "FinishReason.STOP"]
WHOLE += ["FINISH_REASON_STOP", "</s>", "stop_str", "", "matched_stop"]
CUT = [
    "length",
    "max_tokens",
    "MAX_TOKENS",
    "FinishReason.MAX_TOKENS",
    "model_length",
    "max_output_tokens",
    "max_length",
]
CUT += ["incomplete", "truncated", "FINISH_REASON_MAX_TOKENS", "model_context_window_exceeded"]
STOPPED = [
    "content_filter",
    "SAFETY",
    "RECITATION",
    "refusal",
    "tool_calls",
    "tool_use",
    "function_call",
    "abort",
    "SPII",
]
STOPPED += [
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "error",
    "MALFORMED_FUNCTION_CALL",
    "insufficient_system_resource",
    "OTHER",
]


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [([*WHOLE, None], ""), (CUT, c.CUT), (STOPPED, c.FILTERED)],
    ids=["whole", "cut", "stopped"],
)
def test_the_words_of_servers_for_an_end(reasons: list[str | None], expected: str) -> None:
    found = {reason: parse_comment("It is 5.", reason).reason for reason in reasons}
    assert found == dict.fromkeys(reasons, expected)


def test_half_a_pair_of_surrogates_in_an_escape_is_text_that_can_be_written() -> None:
    parsed = parse_structured_critique(r'{"case": "D", "steps": ["so \ud83d, and \ud83d\ude00"], "answer": "2"}')
    assert parsed.text == "<step_1> so \ufffd, and 😀\n<answer> 2"
