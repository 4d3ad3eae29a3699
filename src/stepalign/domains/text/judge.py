"""Served models as judges of a rubric: a score in [0, 1] with its reasons. Cached as critiques are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from stepalign.config import CriticSection, ServerSection
from stepalign.critics.endpoint import EndpointCritic
from stepalign.domains.math.bounded import GraderConfig
from stepalign.domains.math.grade import Grade, undecided
from stepalign.domains.math.grading import Grader
from stepalign.domains.math.thinking import after_thinking
from stepalign.domains.text.rubric import GRADER, read_rubric
from stepalign.feedback.json_reply import find_object
from stepalign.records import Attempt, Critique, Problem
from stepalign.storage.fingerprint import sha256

MOST = 10
"""A judge's best score."""


class JudgedGrader(Grader):
    """Rubrics in prose go to the judges, lists of items to the program. Equal texts have equal grades.

    The score of a text is the mean of its judges' scores. It is undecided where one of them gives none.
    """

    def __init__(self, *sections: ServerSection, prompt: str = "judge") -> None:
        super().__init__(GraderConfig(function=GRADER))
        self._judges = [
            EndpointCritic(
                section.as_critic(CriticSection(), sees="answer"),
                prompt=prompt,
                form="comment",
                cache_path=Path(section.cache) if section.cache else None,
            )
            for section in sections
        ]

    def check(self) -> None:
        """Raises EndpointError where a judge does not answer."""
        for judge in self._judges:
            judge.check()

    def grade(self, text: str, expected: str) -> Grade:
        return self.grade_many([text], [expected])[0]

    def grade_many(self, texts: Iterable[str], expected: Iterable[str]) -> list[Grade]:
        """In the order of the texts; the judges read them side by side."""
        pairs = list(zip(texts, expected, strict=True))
        asked = [
            [judge.submit(_attempt(*pair)) for judge in self._judges] if _is_prose(pair[1]) else [] for pair in pairs
        ]
        return [
            joined([read_judgement(one.result()) for one in futures])
            if futures
            else super(JudgedGrader, self).grade(*pair)
            for pair, futures in zip(pairs, asked, strict=True)
        ]

    def close(self) -> None:
        super().close()
        for judge in self._judges:
            judge.close()


def joined(grades: list[Grade]) -> Grade:
    """The grade of a text that one judge or several have read."""
    failed = next((grade for grade in grades if math.isnan(grade.score)), None)
    if failed is not None or len(grades) == 1:
        return failed or grades[0]
    return Grade(
        sum(grade.score for grade in grades) / len(grades),
        reason="; ".join(grade.reason for grade in grades),
        detail="\n".join(grade.detail for grade in grades if grade.detail),
        judged=tuple(grade.score for grade in grades),
    )


def read_judgement(found: Critique) -> Grade:
    """The grade in a judge's reply, undecided where there is none."""
    if found.status != "ok":
        return undecided(f"the judge: {found.reason}")
    data = find_object(found.text, {"score"}) or {}
    score = data.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
        return undecided("the judge gives no score")
    if not 0 <= score <= MOST:  # of an integer too: one of 400 digits is no float
        return undecided(f"the judge's score is not between 0 and {MOST}")
    return Grade(score / MOST, reason=f"judged {score:g} of {MOST}", detail=str(data.get("reasons", "")))


def _is_prose(rubric: str) -> bool:
    return rubric.strip()[:1] != "[" or isinstance(read_rubric(rubric), str)


def _attempt(text: str, rubric: str) -> Attempt:
    """The text without its thinking, and the rubric in the place of the answer."""
    problem = Problem(problem_id="", question="", answer=rubric)
    return Attempt(rollout_id=sha256(text)[:12], problem=problem, text=after_thinking(text))
