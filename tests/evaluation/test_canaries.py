"""The canaries on texts whose state is plain to see."""

from __future__ import annotations

import math
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.evaluation.canaries import (
    REPETITIVE,
    distinct_answers,
    distinct_ngrams,
    hedge_words,
    is_repetitive,
    mentions_feedback,
    overconfidence,
    tail_compression,
)
from stepalign.evaluation.metrics import GradedCompletion, compute_metrics

PROSE = (
    "We split the sum into two parts. The first counts the pairs whose product is even, the second those whose "
    "product is odd; since an odd product needs two odd factors, there are nine of them, and the rest is even. "
    "Adding both gives thirty-six, which is the number of all pairs of two dice, as it must be."
)


@pytest.mark.parametrize(
    "text", ["15 " * 60, "<step_1> 3 + 4 = 7 ; " * 40, PROSE * 20 + "so the answer is 7. " * 400, "a" * 300]
)
def test_a_text_that_repeats_itself_at_its_end_is_seen(text: str) -> None:
    assert is_repetitive(text)


@pytest.mark.parametrize(
    "text",
    ["", "7", PROSE, PROSE + "x" * 30, "".join(random.Random(0).choices("abcdefgh ", k=3000)), "12 " * 5,
     "".join(f"<step_{i}> {i} + {i * 7 % 19} = {i * 8 % 19} ; " for i in range(8))],
)  # fmt: skip
def test_honest_text_is_not_repetitive(text: str) -> None:
    assert not is_repetitive(text)


def test_only_the_tail_counts_and_nothing_is_undefined() -> None:
    assert is_repetitive("again and " * 500)
    assert not is_repetitive("again and " * 500 + "".join(random.Random(1).choices("abcdefghijkl ", k=5000)))
    assert math.isnan(tail_compression(""))


@given(st.text(min_size=1))
def test_the_ratio_is_that_of_a_deflate_stream_that_can_be_read_again(text: str) -> None:
    data = text.encode("utf-8", "replace")[-4096:]
    packed = zlib.compress(data)[2:-4]  # the same stream between zlib's header and checksum
    assert zlib.decompress(packed, -zlib.MAX_WBITS) == data
    assert tail_compression(text) == pytest.approx(len(data) / len(packed))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wait, that is wrong. Hmm, maybe 7? Let me check.", 4),
        ("waiting mighty actuality", 0),
        ("PERHAPS it is not sure; double-check", 3),
        (PROSE, 0),
    ],
)
def test_hedge_words_are_whole_words(text: str, count: int) -> None:
    assert hedge_words(text) == count


def test_distinct_answers_by_hand() -> None:
    assert distinct_answers(["7", "7", "8", None]) == 0.5
    assert distinct_answers([None, None]) == 0.0
    assert math.isnan(distinct_answers(["7"]))


def test_the_canaries_are_among_the_metrics() -> None:
    def completion(text: str, answer: str | None) -> GradedCompletion:
        return GradedCompletion(answer=answer, verdict="incorrect", length=3, finish_reason="stop", text=text)

    loop, doubt = "15 " * 100, "hmm, wait"
    problems = [[completion(loop, "1"), completion(doubt, "2")], [completion("", None), completion(loop, "1")]]
    found = compute_metrics(problems, [1])
    assert found["repetitive_share"].value == 0.5
    assert found["hedge_words"].value == 0.5
    assert (found["hedge_words"].numerator, found["hedge_words"].denominator) == (2, 4)
    assert list(found["distinct_answers"].per_problem) == [1.0, 0.5]
    assert REPETITIVE == 10.0


@pytest.mark.parametrize(
    ("texts", "size", "expected"),
    [
        (["a b c", "a b c"], 2, 2 / 4),
        (["a b", "c d"], 2, 1.0),
        (["a b a b a"], 2, math.nan),  # one completion has no group
        (["a", "b"], 2, math.nan),
        (["a a", "a a"], 1, 1 / 4),
    ],
)
def test_distinct_ngrams_are_those_of_the_group_together(texts: list[str], size: int, expected: float) -> None:
    assert distinct_ngrams(texts, size) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("According to the feedback, step 2 is wrong.", True),
        ("My previous attempt had an error, so I start again.", True),
        ("The reference solution uses induction.", True),
        ("The correct answer is given as 12.", True),
        ("As the hint says, use symmetry.", True),
        ("The answer is 12.", False),
        ("Feedback loops in circuits are stable.", False),
        ("We attempt to factor; the first factor is x - 1.", False),
        ("Let the point of reference be the origin.", False),
        ("<step_1> 3 + 4 = 7 ; <answer> 7", False),
    ],
)
def test_a_completion_that_speaks_of_its_feedback_is_found(text: str, mentions: bool) -> None:
    assert mentions_feedback(text) is mentions


def test_overconfidence_is_confidence_minus_accuracy_of_the_majority() -> None:
    sure_and_wrong = (["5", "5", "5", "6"], ["incorrect"] * 3 + ["correct"])
    half_and_right = (["5", "5", None, "6"], ["correct", "correct", "incorrect", "incorrect"])
    assert overconfidence([sure_and_wrong]) == 0.75
    assert overconfidence([half_and_right]) == -0.5
    assert overconfidence([sure_and_wrong, half_and_right]) == 0.125
    assert math.isnan(overconfidence([([None, None], ["incorrect"] * 2), (["1"], ["undecided"])]))
