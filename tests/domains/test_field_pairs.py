"""Pairs in the manner of real answers, judged by hand: honest ones are accepted, hostile ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.domains.math.grading import Grader, GraderConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["field_honest", "field_hostile"])
def test_pairs_judged_by_hand(name: str) -> None:
    lines = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) > 350
    texts = [pair.get("completion") or f"so \\boxed{{{pair['answer']}}}." for pair in pairs]
    with Grader(GraderConfig(seconds=20)) as patient:  # a busy machine makes nothing undecided
        grades = patient.grade_many(texts, [pair["expected"] for pair in pairs])
    wrong = [
        (pair, grade.verdict, grade.reason)
        for pair, grade in zip(pairs, grades, strict=True)
        if grade.verdict != pair["verdict"]
    ]
    assert wrong == []


def test_a_completion_that_runs_on_is_counted() -> None:
    with Grader() as grader:
        ran_on = grader.grade("The answer is 8.\n\nQuestion: What is 5 + 5?\nThe answer is 10.", "8")
        assert (ran_on.verdict, ran_on.answer) == ("correct", "8")
        assert ran_on.reason == "equal number, then another question"
