"""Pairs in the manner of real answers, judged by hand: honest ones are accepted, hostile ones are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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


_GOLDS = r"""
42 | -50 | 58,500 | 10,\!080 | .0000672 | 1.25 | \$18.90 | 5.4 \text{ cents} | 864 \mbox{ inches}^2 | \frac{14}{3}
\frac43 | -\frac{\pi}{6} | 137 \frac{1}{2} | \dfrac{33}{100} | \frac{3\sqrt{3}}{4} | 3\sqrt{13} | 11\sqrt2 | 18+2\pi
1+2\sqrt{3} | 6 - 5i | -2 + 7i | 2k+2 | x^5 - x^4 + x^3 - 1 | p - q | 90^\circ | \frac{270}7\text{ degrees} | 52_8
4210_{5} | \text{Evelyn} | \text{(C)} | \cot x | x=5 | 1,-2 | 3, 5, 7 | 1 \pm \sqrt{19} | \{1\pm\sqrt{5},-2\}
\left( 3, \frac{\pi}{2} \right) | (6,31,-1) | (3,4] | (0,9) \cup (9,36) | (-\infty, 0] | x \in [-2,7] | y = 2x + 3
5x - 7y + 11z + 4 = 0 | \begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}
"""
GOLDS = [gold.strip() for gold in _GOLDS.strip().replace("\n", "|").split("|")]
REWRITINGS: list[Callable[[str], str]] = [
    lambda gold: gold.replace(" ", "\u2009"),
    lambda gold: gold.replace(" ", "\u00a0"),
    lambda gold: re.sub(r"(?<![A-Za-z]) +(?![A-Za-z])", "", gold),
    lambda gold: re.sub(r"(?<=.)([-+=])", r"\\,\1\\;", gold),
    lambda gold: re.sub(r"\\d?frac", r"\\dfrac", gold),
    lambda gold: re.sub(r"\\d?frac", r"\\tfrac", gold),
    lambda gold: re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", gold.replace(r"137 \frac{1}{2}", "137.5")),
    lambda gold: gold.replace("-", "−").replace(r"\pi", "π").replace(r"\infty", "∞").replace(r"\pm", "±"),
    lambda gold: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold.replace(r"\cup", "∪").replace(r"^\circ", "°")),
    lambda gold: re.sub(r"\\sqrt\{(\d+)\}", r" sqrt(\1)", gold.replace(r"\pi", "pi").replace(r"\infty", "infinity")),
    lambda gold: gold.replace(r"\text{", r"\textbf{"),
    lambda gold: gold.replace("pmatrix", "bmatrix"),
    lambda gold: gold.replace(r"\left", "").replace(r"\right", "").replace(r",\!", ","),
    *(lambda gold, form=form: form.replace("GOLD", gold) for form in ("$GOLD$", r"\(GOLD\)", r"\[GOLD\]", "**GOLD**")),
    *(
        lambda gold, form=form: form.replace("GOLD", gold)
        for form in ("{GOLD}", "GOLD.", "\nGOLD\n", r"\boldsymbol{GOLD}")
    ),
]


def test_answers_in_the_manner_of_math_equal_their_own_rewritings() -> None:
    pairs = [(gold, rewrite(gold)) for rewrite in REWRITINGS for gold in GOLDS]
    with Grader(GraderConfig(seconds=20)) as patient:
        grades = patient.grade_many([f"\\boxed{{{text}}}" for _, text in pairs], [gold for gold, _ in pairs])
    rejected = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.verdict != "correct"]
    assert rejected == []


def test_two_answers_in_the_manner_of_math_are_never_equal() -> None:
    pairs = [(gold, GOLDS[(at + shift) % len(GOLDS)]) for at, gold in enumerate(GOLDS) for shift in (1, 5, 11, 20)]
    with Grader(GraderConfig(seconds=20)) as patient:
        grades = patient.grade_many([f"\\boxed{{{text}}}" for _, text in pairs], [gold for gold, _ in pairs])
    accepted = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.verdict == "correct"]
    assert accepted == []
