"""Edit scripts: steps that they do not name stay to the character, and what cannot be applied is malformed."""

from __future__ import annotations

import json
import random

import pytest

from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grade import Grade
from stepalign.feedback.critique import NO_ANSWER, NOT_JSON, parse_script
from stepalign.feedback.edits import BAD_EDIT, NO_STEP, SEVERAL, TWICE, apply_script, numbered, script_of
from stepalign.records import Attempt

WRONG = "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 17 ; <step_3> 17 + 4 = 1 ; <answer> 1"
STYLES = {
    "tags": WRONG,
    "lines": "<step_1> 17 + 6 = 3\n<step_2> 3 - 5 = 17\n<step_3> 17 + 4 = 1\n<answer> 1",
    "closed": "<step_1>17 + 6 = 3</step_1>\n<step_2>3 - 5 = 17</step_2>\n<step_3>17 + 4 = 1</step_3>\n"
    "<answer>1</answer>",
    "words": "Step 1: 17 + 6 = 3\nStep 2: 3 - 5 = 17\nStep 3: 17 + 4 = 1\nThe answer is 1",
    "numbers": "1. 17 + 6 = 3\n2. 3 - 5 = 17\n3. 17 + 4 = 1\n\n#### 1",
    "preamble": "Let me see.\n\n1. 17 + 6 = 3\n2. 3 - 5 = 17\n3. 17 + 4 = 1\n\n#### 1",
    "paragraphs": "17 + 6 = 3, on the clock.\n\n3 - 5 = 17\n\n17 + 4 = 1\n\n**Answer:** 1",
}


def edits(*pairs: tuple[object, object], **more: object) -> str:
    return json.dumps({"edits": [{"step": step, "replacement": text} for step, text in pairs], **more})


@pytest.mark.parametrize("style", STYLES)
def test_only_what_is_named_changes(style: str) -> None:
    text = STYLES[style]
    found = apply_script(text, edits((2, "3 - 5 = 18"), ("3", "18 + 4 = 2"), answer="2"))
    assert (found.status, found.reason) == ("ok", "")
    old = ("3 - 5 = 17", "17 + 4 = 1", text.rpartition("1")[2])
    assert old[0] in text
    semicolon = " ;" if style == "tags" else ""
    expected = text.replace(old[0] + semicolon, "3 - 5 = 18").replace(old[1] + semicolon, "18 + 4 = 2")
    head, _, tail = expected.rpartition("1")
    assert found.text == f"{head}2{tail}"


@pytest.mark.parametrize("style", STYLES)
def test_an_empty_script_reproduces_the_attempt(style: str) -> None:
    assert apply_script(STYLES[style], edits()).text == STYLES[style]


@pytest.mark.parametrize(
    ("text", "script", "expected"),
    [
        (WRONG, edits((3, "")), "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 17 ; <answer> 1"),
        (WRONG, edits((1, "")), "<step_2> 3 - 5 = 17 ; <step_3> 17 + 4 = 1 ; <answer> 1"),
        ("<step_1> 1 + 2 = 3 ; <answer> 3", edits((2, "3 + 3 = 6 ;"), answer=6),
         "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <answer> 6"),
        ("<step_1> 1 + 2 = 3 ; <step_2>", edits((2, "3 + 3 = 6 ;"), (3, "6 + 1 = 7 ;"), answer="7"),
         "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <step_3> 6 + 1 = 7 ; <answer> 7"),
        ("1. 1 + 2 = 3", edits((2, "3 + 3 = 6"), (3, "6 + 1 = 7"), answer="7"),
         "1. 1 + 2 = 3\n2. 3 + 3 = 6\n3. 6 + 1 = 7\n<answer> 7"),
        ("", edits((1, "1 + 2 = 3 ;"), answer="3"), "<step_1> 1 + 2 = 3 ; <answer> 3"),
        ("I cannot.", edits((1, "1 + 2 = 3."), answer="3"), "1 + 2 = 3.\n<answer> 3"),
        (WRONG, edits((2, "<step_2> 3 - 5 = 18 ;")), WRONG.replace("3 - 5 = 17 ;", "3 - 5 = 18 ;")),
        (WRONG, edits((2, "\frac{1}{2} ;")), WRONG.replace("3 - 5 = 17 ;", "\\frac{1}{2} ;")),
    ],
)  # fmt: skip
def test_steps_are_dropped_added_and_finished(text: str, script: str, expected: str) -> None:
    assert apply_script(text, script).text == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (r"\boxed{9}", r"\boxed{8}"),
        (r"Therefore, the final answer is $\boxed{9}$.", r"Therefore, the final answer is $\boxed{8}$."),
        (r"**Answer: \boxed{\frac{1}{\sqrt{2}}}**", r"**Answer: \boxed{8}**"),
        (r"Answer: 9, that is, $\boxed{9}$ as 4 * 2 = 9.", r"Answer: $\boxed{8}$"),
        ("#### 9", "#### 8"),
    ],
)
@pytest.mark.parametrize("answer", ["8", r"\boxed{8}"])
def test_a_new_answer_is_in_the_box_of_the_old_one(line: str, expected: str, answer: str) -> None:
    text = f"Step 1: 2 + 2 = 4\nStep 2: 4 * 2 = 9\n{line}"
    found = apply_script(text, edits((2, "4 * 2 = 8"), answer=answer))
    assert found.status == "ok"
    if answer == "8":
        assert found.text == f"Step 1: 2 + 2 = 4\nStep 2: 4 * 2 = 8\n{expected}"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("the second step is wrong", NOT_JSON),
        ('{"steps": []}', NOT_JSON),
        ('{"edits": {"2": "x"}}', NOT_JSON),
        (edits(answer=["2"]), NOT_JSON),
        (edits((2, "x"), (2, "y")), TWICE),
        (edits((0, "x")), NO_STEP),
        (edits((-1, "x")), NO_STEP),
        (edits((5, "x")), NO_STEP),
        (edits((4, "x"), (6, "y")), NO_STEP),
        (edits((10**9, "x")), NO_STEP),
        (edits((2.0, "x")), BAD_EDIT),
        (edits((True, "x")), BAD_EDIT),
        (edits(("two", "x")), BAD_EDIT),
        (edits((2, None)), BAD_EDIT),
        (edits((2, 18)), BAD_EDIT),
        ('{"edits": ["2"]}', BAD_EDIT),
        ('{"edits": [{"step": 2}]}', BAD_EDIT),
        (edits((2, "<step_2> a <step_3> b")), SEVERAL),
    ],
)
def test_a_script_that_cannot_be_applied_is_malformed_with_a_reason(script: str, reason: str) -> None:
    found = apply_script(WRONG, script)
    assert (found.status, found.text, found.reason) == ("malformed", "", reason)


def test_a_result_without_an_answer_is_malformed() -> None:
    assert apply_script("<step_1> 1 + 2 = 3 ;", edits()).reason == NO_ANSWER


def test_replies_are_read_among_other_words() -> None:
    reply = f"<think>hm, {{3}}</think>The second step.\n```json\n{edits((2, '3 - 5 = 18 ;'))}\n```"
    parsed = parse_script(reply)
    assert parsed.status == "ok"
    assert apply_script(WRONG, parsed.text).text == WRONG.replace("17 ;", "18 ;", 1)
    assert parse_script(reply, "length").reason == "cut at the token limit"
    assert parse_script("all right").reason == NOT_JSON


def test_steps_are_shown_by_number() -> None:
    for text in STYLES.values():
        lines = numbered(text).replace(" ;", "").replace(", on the clock.", "").splitlines()
        assert lines == ["[1] 17 + 6 = 3", "[2] 3 - 5 = 17", "[3] 17 + 4 = 1", "[answer] 1"]


def test_the_script_from_one_trace_to_another_makes_it() -> None:
    """Random traces of any length against each other: the program that writes scripts and the one that applies them."""
    rng = random.Random(0)

    def trace(steps: int) -> str:
        parts = [
            f"<step_{n}> {rng.randrange(3)} + {rng.randrange(3)} = {rng.randrange(5)} ;" for n in range(1, steps + 1)
        ]
        return " ".join([*parts, f"<answer> {rng.randrange(3)}"])

    for _ in range(300):
        one, other = trace(rng.randint(1, 6)), trace(rng.randint(1, 6))
        assert apply_script(one, script_of(one, other)).text == other


def test_a_critic_in_other_words_rewrites_what_it_names_and_nothing_else() -> None:
    problem = make_problem(parse_question("17 + 6 - 5 + 4"), rho=0.0)
    attempt = Attempt(rollout_id="a", problem=problem, text=WRONG, grade=Grade.of("incorrect"))
    words = Faults(wrong_style=1.0)
    as_trace = ArithmeticCritic(faults=words).write(attempt).text
    assert not as_trace.startswith("<step_1> 17 + 6 = 3 ;")
    script = ArithmeticCritic(form="edits", faults=words).write(attempt)
    assert [edit["step"] for edit in json.loads(script.text)["edits"]] == [2, 3]
    found = apply_script(WRONG, script.text)
    assert found.text.startswith("<step_1> 17 + 6 = 3 ; <step_2>")
    assert found.text.partition("<step_2>")[2] == as_trace.partition("<step_2>")[2]
    faithful = ArithmeticCritic(form="edits").write(attempt).text
    assert apply_script(WRONG, faithful).text == ArithmeticCritic().write(attempt).text
