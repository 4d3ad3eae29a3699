"""Thinking modes and control tokens, with a chat template and added tokens like those of Qwen3."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from stepalign.errors import ConfigError
from stepalign.feedback.prompts import load_template
from stepalign.models.prompts import PromptBuilder, control_tokens, decode
from stepalign.records import Problem

# Written for this test after the behaviour of Qwen3's: thinking of earlier turns is dropped, the last user turn that is
# no tool response is searched for, and without thinking the assistant's turn begins with an empty thinking block.
QWEN_LIKE = """
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set found = namespace(last = messages|length - 1, searching = true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- set is_tool = message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>') %}
    {%- if found.searching and message.role == 'user' and message.content is string and not is_tool %}
        {%- set found.searching = false %}{%- set found.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set said = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""
MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "<|fim_prefix|>",
    "<|repo_name|>",
    "[INST]",
)
WORDS = ("aspirin", "    ")
TAGS = ("<step_1>", "<answer>")


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Added tokens of all kinds: special ones, markup that is not special, words, spaces, our own tags."""
    made = copy.deepcopy(byte_tokenizer)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*MARKUP, *WORDS, *TAGS)])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    made.chat_template = QWEN_LIKE
    return made


@pytest.fixture(scope="module")
def builder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., PromptBuilder]:
    def build(**options) -> PromptBuilder:
        templates = {
            "student": load_template("{{ question }}"),
            "self_teacher": load_template("{{ question }}\n{{ introduction }}\n{{ feedback }}\nThink."),
        }
        return PromptBuilder(tokenizer, **{**templates, **options})

    return build


def problem(question: str) -> Problem:
    return Problem(problem_id="p", question=question, answer="1")


def test_which_tokens_are_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert set(control_tokens(tokenizer)) == {*MARKUP, "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"}


# Every added token, whole, doubled, in pieces that the prompt joins, and among ordinary text.
PIECES = (*MARKUP, *WORDS, *TAGS, "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEXT = st.lists(
    st.sampled_from(PIECES) | st.sampled_from([p[: len(p) // 2] for p in PIECES] + [p[len(p) // 2 :] for p in PIECES])
    | st.text("ab<|>/ \n", max_size=3),
    max_size=8,
).map("".join)  # fmt: skip


@pytest.mark.slow
@given(question=TEXT, context=TEXT, introduction=TEXT, system=TEXT, thinking=st.booleans())
def test_no_text_becomes_a_control_token(builder, tokenizer, question, context, introduction, system, thinking) -> None:
    """Problems, critiques, references, attempts, headings and the system message: all are text, none is lost."""
    options = {
        "student_chat_options": {"enable_thinking": thinking},
        "teacher_chat_options": {"enable_thinking": thinking},
    }
    build = builder(system=system.strip(), **options)
    plain = builder(system="s" if system.strip() else "", **options)
    control = set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))

    def controls(ids) -> list[int]:
        return [i for i in ids if i in control]

    student, teacher = (
        build.student(problem(question)),
        build.self_teacher(problem(question), context, introduction=introduction),
    )
    assert controls(student) == controls(plain.student(problem("q")))
    assert controls(teacher.ids) == controls(plain.self_teacher(problem("q"), "c").ids)
    assert f"<|im_start|>user\n{question.strip()}<|im_end|>" in tokenizer.decode(list(student))
    text = tokenizer.decode(list(teacher.ids))
    assert f"{question}\n{introduction}\n{context}\nThink.".strip() in text


@pytest.mark.slow
@given(context=TEXT, limit=st.integers(30, 120))
def test_nor_does_a_text_that_is_cut(builder, tokenizer, context, limit) -> None:
    control = set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))
    cut = builder(max_teacher_prompt_length=limit).self_teacher(problem("q"), context)
    whole = builder().self_teacher(problem("q"), context)
    assert sum(i in control for i in cut.ids) == 3
    assert len(cut.ids) <= limit
    suffix = tokenizer.encode("<|im_start|>assistant\n")
    assert list(cut.ids[-len(suffix) :]) == list(whole.ids[-len(suffix) :])
    assert (cut.dropped_tokens > 0) == (len(whole.ids) > limit)


def test_the_tags_of_our_own_format_are_the_tokens_that_the_solver_writes(builder, tokenizer) -> None:
    ids = builder().self_teacher(problem("q"), "<step_1> 1 + 1 = 2 <answer> 2 aspirin").ids
    for text in (*TAGS, "aspirin"):
        assert tokenizer.convert_tokens_to_ids(text) in ids


THINKS, SKIPS = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("options", "suffix"),
    [({}, ""), (THINKS, ""), (SKIPS, "<think>\n\n</think>\n\n")],
)
def test_both_sides_share_the_beginning_of_the_completion(builder, tokenizer, options, suffix) -> None:
    build = builder(student_chat_options=options, teacher_chat_options=options)
    expected = tokenizer.encode(f"<|im_start|>assistant\n{suffix}")
    for ids in (build.student(problem("1 + 1?")), build.self_teacher(problem("1 + 1?"), "c").ids):
        assert list(ids[-len(expected) :]) == expected
    # The template's own empty thinking block is made of control tokens, one written in a context is not.
    think = tokenizer.convert_tokens_to_ids("<think>")
    teacher = build.self_teacher(problem("q"), "<think>\n\n</think>\n\nhm").ids
    assert list(teacher).count(think) == bool(suffix)


@pytest.mark.parametrize(("student", "teacher"), [(SKIPS, THINKS), (THINKS, SKIPS), ({}, SKIPS)])
def test_different_thinking_modes_are_refused_unless_waived(builder, student, teacher) -> None:
    options = {"student_chat_options": student, "teacher_chat_options": teacher}
    with pytest.raises(ConfigError, match="different tokens") as caught:
        builder(**options)
    assert "<think>" in caught.value.what
    builder(**options, allow_different_suffix=True)


def test_equal_templates_and_no_context_make_equal_ids(builder) -> None:
    template = load_template("{{ question }}")
    build = builder(student=template, self_teacher=template, student_chat_options=SKIPS, teacher_chat_options=SKIPS)
    assert build.student(problem("1 + 1?")) == build.self_teacher(problem("1 + 1?"), "ignored").ids


def test_the_tokenizer_itself_is_left_alone(builder, tokenizer) -> None:
    builder()
    assert getattr(tokenizer, "chat_control_tokens", None) is None


def test_a_model_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    template = load_template("{{ question }}")
    with pytest.raises(ConfigError, match="no chat template") as caught:
        PromptBuilder(bare, student=template, self_teacher=template)
    assert caught.value.where == "model.path"


@given(places=st.lists(st.integers(0, 300), max_size=20))
def test_ids_are_the_record(tokenizer: PreTrainedTokenizerBase, places: list[int]) -> None:
    """Why completions are never encoded again: most sequences of ids are not what a tokenizer makes of their text."""
    ids = [place for place in places if place < len(tokenizer)]
    again = tokenizer.encode(decode(tokenizer, ids), add_special_tokens=False)
    assert decode(tokenizer, again) == decode(tokenizer, ids) or "\ufffd" in decode(tokenizer, ids)
