"""Thinking: no thought is ever an answer, whatever marks it, and whether the prompt or the text opens it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.domains.math import grade
from stepalign.domains.math.thinking import after_thinking, find_thoughts, is_mark, opened_thought, without_thinking
from stepalign.domains.python.grading import extract_code
from stepalign.feedback.critique import parse_comment
from stepalign.feedback.steps import split_steps
from stepalign.token_signal.style import style_tokens

# As the models' own chat templates and reports write them.
FORMS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("< think >", "</think >"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<ifm|think>", "</ifm|think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
    ("<|think_start|>", "<|think_end|>"),
    ("<|think|>", "<|/think|>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<analysis>", "</analysis>"),
    ("<reason>", "</reason>"),
    ("<reflection>", "</reflection>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("[unused16]", "[unused17]"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=tool <|constrain|>json<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    ("Here is my thought process:\n", "\nHere is my response:\n"),
]


@pytest.mark.parametrize(("opening", "closing"), FORMS)
def test_a_thought_is_no_answer_in_any_form(opening: str, closing: str) -> None:
    cases = [
        (f"{opening}First guess \\boxed{{5}}, no.{closing}The answer is \\boxed{{4}}.", "correct"),
        (f"{opening}First guess \\boxed{{4}}, no, it must be{closing} I do not know.", "incorrect"),
        (f"{opening}Maybe \\boxed{{4}}? Wait, let me check that again, since", "incorrect"),
        (f"{opening}The answer is 4.{closing}", "incorrect"),
        (f"{opening}a{closing}\\boxed{{4}}\n{opening}or 5?", "correct"),
        (f"{opening}a{closing}\\boxed{{5}}\n{opening}b{closing}\\boxed{{4}}", "correct"),
        (f"{opening}It asks for {opening.strip()}, fine.{closing}\\boxed{{4}}", "correct"),
    ]
    for text, verdict in cases:
        assert grade(text, "4").verdict == verdict, text


@pytest.mark.parametrize(("opening", "closing"), FORMS)
def test_a_prompt_that_opens_a_thought_is_known_by_its_end(opening: str, closing: str) -> None:
    prompt = f"What is 2 + 2? Think inside of <think> tags.\nAssistant: {'' if opening[0] != 'H' else chr(10)}{opening}"
    cut = "Maybe it is \\boxed{4}? Wait, let me check that again, since"
    assert grade(cut, "4").verdict == "correct"
    assert grade(cut, "4", prompt=prompt).reason == "no answer"
    assert grade(f"Is it 5?{closing}\\boxed{{4}}", "4", prompt=prompt).verdict == "correct"
    assert grade(f"{opening}Is it 5?{closing}\\boxed{{4}}", "4", prompt=prompt).verdict == "correct"
    assert grade(cut, "4", prompt=f"{prompt}{closing}").verdict == "correct"
    assert grade(cut, "4", prompt="Think inside of <think> tags: what is 2 + 2?\nAssistant:").verdict == "correct"


@pytest.mark.parametrize(("opening", "closing"), FORMS)
def test_critics_steps_code_and_pages_read_the_same_marks(opening: str, closing: str) -> None:
    thought = f"{opening}<step_1> a draft\n```python\ndef f(): pass\n```\n{closing}"
    assert parse_comment(f"{thought}Look.").text.strip() == "Look."
    assert parse_comment(opening + "only this").reason == "nothing but thinking"
    assert [step.label for step in split_steps(f"{thought}<step_1> b <answer> 5")] == ["", "1", "answer"]
    assert extract_code(thought) is None
    if opening[0] != "H":
        mark = opening.strip()
        assert style_tokens(mark, [(0, len(mark))]) == [True]


def test_a_thought_ends_with_its_own_kind_of_mark_only() -> None:
    assert after_thinking("<think> use [THINK] and [/THINK] here") == ""
    assert after_thinking("<think>a</think><thought>b</thought>c") == "c"
    assert after_thinking("analysisWe need 4.assistantfinalThe answer is 4.") == "The answer is 4."
    assert after_thinking("analysisWe need 4.") == ""
    assert after_thinking("analysis of the case") == "analysis of the case"
    assert opened_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""


def test_parts_of_marks_that_are_tokens() -> None:
    marks = ("<think>", "</think>", "[THINK]", "<|channel|>", "<|message|>", "<|channel>", "<channel|>", "<unused94>")
    assert all(map(is_mark, marks))
    assert not any(map(is_mark, ("<|im_end|>", "<|end|>", "<|start|>", "</s>", "<|return|>", "[INST]", "<unused93>")))


PIECES = st.sampled_from([mark for form in FORMS for mark in form] + ["a", " ", "\n", "assistantfinal", "analysisA"])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_thoughts_are_apart_and_in_order(text: str) -> None:
    spans, cut = find_thoughts(text)
    edges = [0, *(edge for span in spans for edge in span), cut, len(text)]
    assert edges == sorted(edges)
    assert text.endswith(after_thinking(text)) or cut < len(text)
    assert len(without_thinking(text)) == len(text) - sum(end - start for start, end in spans) - (len(text) - cut)


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think>[THINK]", "[/THINK]<think>", "<|channel|>", "<"])
def test_a_megabyte_of_marks_takes_linear_time(piece: str) -> None:
    after_thinking(piece * (1_000_000 // len(piece)))
    opened_thought(piece * (1_000_000 // len(piece)))
