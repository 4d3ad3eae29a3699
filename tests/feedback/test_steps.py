from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepalign.errors import ConfigError
from stepalign.feedback.steps import detect_style, split_steps, step_body

STYLES = ["auto", "tags", "step_words", "numbered", "headings", "paragraphs", "lines", "sentences", "code"]
MARKS = ["<step_1>", "<step_2> ", "</step_1>", "<answer>", "Step 1: ", "Step 2.", "1. ", "2) ", "## a\n", "####"]
MARKS += ["```python\n", "~~~\n", "def f(x):\n", "    return (x", "  if x {\n", "}\n", '"""', "/*", "x = [\n", "# a\n"]
MARKS += ["<tool_call>", "</tool_call>", "<tool_response>{}</tool_response>", "| a | b |\n", "\\[\n", "$$\n", "'", "\\"]
MARKS += ["#### 7", "A: 3", "\n", "\n\n", "\r\n", "```\n", "\\boxed{3}", "The answer is ", "é🙂 ", "\u2028"]
FRAGMENTS = st.sampled_from([*MARKS, "</think>", ". ", "x "])
TEXTS = st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=30).map("".join))


def labels(text: str, style: str = "auto") -> list[str]:
    return [step.label for step in split_steps(text, style)]  # type: ignore[arg-type]


def bodies(text: str, style: str = "auto") -> list[str]:
    return [step_body(text, step) for step in split_steps(text, style)]  # type: ignore[arg-type]


@given(TEXTS, st.sampled_from(STYLES))
@example("\n", "auto")
@example("```\n", "paragraphs")
def test_spans_join_to_the_text(text: str, style: str) -> None:
    steps = split_steps(text, style)  # type: ignore[arg-type]
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert all(step.start < step.end for step in steps)
    assert [step.start for step in steps[1:]] == [step.end for step in steps[:-1]]
    assert all(step_body(text, step) in text for step in steps)
    assert labels(text, style).count("") <= 1


@given(TEXTS)
def test_auto_is_the_detected_style(text: str) -> None:
    assert split_steps(text) == split_steps(text, detect_style(text))


@pytest.mark.parametrize(
    ("text", "style", "expected_labels", "expected_bodies"),
    [
        ("<step_1> 3 + 4 = 7 <step_2> 7 - 1 = 6 <answer> 6", "tags", "1 2 answer", ["3 + 4 = 7", "7 - 1 = 6", "6"]),
        ("<step_1>a</step_1>\n<step_2>b</step_2>\n<answer>6</answer>\n", "tags", "1 2 answer", ["a", "b", "6"]),
        ("Step 1: add. Step 2: as in Step 1: b\nThe final answer is 5", "step_words", "1 2 answer", None),
        ("### Step 1: add\nfoo\n\n### Step 2 - sub\nbar\n", "step_words", "1 2", ["add\nfoo", "sub\nbar"]),
        ("1. add\n2. sub\n   1. inner\n3. c\n\nAnswer: 5", "numbered", "1 2 3 answer", None),
        ("# A\nfoo\n# B\nbar\n", "headings", "1 2", ["A\nfoo", "B\nbar"]),
        ("First.\n\nThen\nthat.\n\n\\[\n\\boxed{5}\n\\]\n", "paragraphs", "1 2 answer", None),
        ("3 + 4 = <<3+4=7>>7 eggs\nSo 2 are left\nA: 2", "lines", "1 2 answer", None),
        ("3 + 4 = 7 eggs\nSo 2 are left\n#### 2", "lines", "1 2 answer", ["3 + 4 = 7 eggs", "So 2 are left", "2"]),
        ("Mr. A has 3.5 apples. He eats 1. Done!\nA: 5", "sentences", "1 2 3 answer", None),
        ("```python\n# a\n\nx = 1\n```\n\nIt prints 1.", "paragraphs", "1 2", None),
        ("Step 19 - 6 = 13 ; Step 3 + 4 = 7", "sentences", "1", None),
        # a list in a step stands deeper; numbered comments in code and in formulas are no steps
        ("1. a\n   1. in\n   2. in\n2. b\n   1. in\n3. c", "numbered", "1 2 3", None),
        ("1. Write\n    ```python\n# 1. no\n\n1. no\n    ```\n2. Test\n3. End", "numbered", "1 2 3", None),
        ("Use ```x``` here.\n\nThen 1.\n\nSo 2.", "paragraphs", "1 2 3", None),
        ("Let\n\\[\nx = 1\n\\]\nbe.\n$$\n1. 5\n$$\nSo 5.", "lines", "1 2 3 4 5", None),
        ("So\n\\begin{align}\na &= 1 \\\\\nb &= 2\n\\end{align}\nand.", "lines", "1 2 3", None),
        ("So\n\\[\nx = 1\n\nand\nthat.", "paragraphs", "1 2", None),
        ("<step>a</step>\n<step>b</step>\n<answer>6</answer>", "tags", "1 2 answer", ["a", "b", "6"]),
        ("步骤1：计算。\n步骤2：减去5。\n答案：10", "step_words", "1 2 answer", ["计算。", "减去5。", "10"]),
        ("1、3+4=7\n2、7*2=14\n所以答案是14", "numbered", "1 2 answer", ["3+4=7", "7*2=14", "14"]),
        ("总数是15。然后减去5！得到10。", "sentences", "1 2 3", None),
        ("At 8 a.m. he came. At 9 a.m. He left at 5 p.m. then.", "sentences", "1 2 3", None),
        ("Here it is.\n<step_1> a <answer> 1", "tags", " 1 answer", ["Here it is.", "a", "1"]),
        ("<think>\n<step_1> no</think>\n<step_1> yes <answer> 5", "tags", " 1 answer", None),
        ("Add.\nGot 5\n<answer>5</answer>", "lines", "1 2 answer", ["Add.", "Got 5", "5"]),
        ("   \n", "sentences", "", None),
    ],
)
def test_styles(text: str, style: str, expected_labels: str, expected_bodies: list[str] | None) -> None:
    assert detect_style(text) == style
    assert labels(text) == expected_labels.split(" ")
    if expected_bodies is not None:
        assert bodies(text) == expected_bodies


def test_a_short_list_inside_an_argument_is_not_the_style() -> None:
    argument = "We know:\n1. x is even\n2. y is odd\n\n" + "\n\n".join(
        f"Thought {n} goes on for a while." for n in range(9)
    )
    assert detect_style(argument) == "paragraphs"


def test_style_can_be_chosen() -> None:
    text = "1. One. Two.\n2. Three."
    assert labels(text) == ["1", "2"]
    assert len(split_steps(text, "sentences")) == 3
    with pytest.raises(ConfigError, match="known styles"):
        split_steps(text, "haiku")  # type: ignore[arg-type]


def test_empty_text_has_no_steps() -> None:
    assert split_steps("") == []


MEGABYTE = 1_000_000
HOSTILE = {
    "open comments": "```c\n" + "/* " * (MEGABYTE // 3),
    "open strings": "```python\n" + "'a\"" * (MEGABYTE // 3),
    "escapes": "def f(x):\n" + '\\"' * (MEGABYTE // 2),
    "open brackets of code": "```js\n" + "f(x, {\n" * (MEGABYTE // 7),
    "tool calls": "<tool_call>\n" * (MEGABYTE // 12),
    "bars": "| a " * (MEGABYTE // 4),
    "rows": "| a |\n" * (MEGABYTE // 6),
    "blank lines": "\n" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "open brackets": "<" * MEGABYTE,
    "unfinished tags": "<step_1" * (MEGABYTE // 7),
    "tags": "<step_1>" * (MEGABYTE // 8),
    "closing tags": "</step_1" * (MEGABYTE // 8),
    "hashes": "#" * MEGABYTE,
    "stars": "*" * MEGABYTE,
    "digits": "1" * MEGABYTE,
    "numbers": "1. \n" * (MEGABYTE // 4),
    "full stops": ". " * (MEGABYTE // 2),
    "fences": "```\n" * (MEGABYTE // 4),
    "step words": "Step 1" * (MEGABYTE // 6),
    "thinking ends": "</think>" * (MEGABYTE // 8),
    "boxes": "\\boxed{\n" * (MEGABYTE // 8),
    "display maths": "\n\\[" * (MEGABYTE // 3),
    "wide characters": "\u2028é🙂" * (MEGABYTE // 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_megabyte(name: str) -> None:
    text = HOSTILE[name]
    steps = split_steps(text)
    assert steps[0].start == 0
    assert steps[-1].end == len(text)
    assert all(left.end == right.start for left, right in pairwise(steps))


@given(st.text())
def test_every_step_carries_its_text(text: str) -> None:
    assert [step.text for step in split_steps(text)] == [text[s.start : s.end] for s in split_steps(text)]
