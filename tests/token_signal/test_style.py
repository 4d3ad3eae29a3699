"""The rule that tells style from content, on texts marked by hand."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.token_signal.style import style_tokens


def marks(text: str) -> str:
    """One letter per word of the text, split at white space: s style, C content."""
    spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
    return "".join("s" if style else "C" for style in style_tokens(text, spans))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<step_1> 15 - 6 = 9 ; <answer> 9", "sCCCCCssC"),
        ("So, let us check this. Hmm, wait: perhaps not.", "sssssssss"),
        ("I think a triangle has x sides", "sssCsCC"),
        ("- a bullet\n1. First\nStep 2: next", "ssCsssss"),
        ("## The area **is** 12", "ssCsC"),
        ("if i % 3 = 0:", "sCCCCC"),
        ("2 ** 3", "CCC"),
        ("\\left( \\frac{1}{2} \\right) \\quad $ so", "sCssss"),
        ("is_prime x1 don't", "CCC"),
        ("größer als", "CC"),
    ],
)
def test_words_marked_by_hand(text: str, expected: str) -> None:
    assert marks(text) == expected


def test_a_piece_counts_as_its_whole_word() -> None:
    text = "therefore triangle"
    spans = [(0, 5), (5, 9), (9, 13), (13, 18), (18, 18)]
    assert style_tokens(text, spans) == [True, True, False, False, True]


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_every_token_has_one_mark_and_blank_ones_are_style(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    spans = list(itertools.pairwise(edges))
    found = style_tokens(text, spans)
    assert len(found) == len(spans)
    assert all(style for style, (a, b) in zip(found, spans, strict=True) if not text[a:b].strip())


def test_a_long_hostile_text_is_no_trouble() -> None:
    text = "**" * 50_000 + "\\" * 50_000 + "1." * 50_000
    assert len(style_tokens(text, [(i, i + 1) for i in range(len(text))])) == len(text)
