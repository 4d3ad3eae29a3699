"""Wrong steps that a critique in words of its own - a hint, a comment - states again."""

from __future__ import annotations

import re

from stepalign.feedback.statements import Equation, calculations, find_whole, holds, plain_signs
from stepalign.feedback.steps import ANSWER, split_steps, step_body
from stepalign.records import Step

_MOST = 64
"""Steps, and sentences, that are compared."""
_MIN_QUOTE = 8
"""Characters from which on a repeated step is more than chance."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_RIGHT = re.compile(r"\b(?:right(?:ly)?|correct(?:ly)?|fine|true)\b", re.I)
_WRONG = re.compile(r"\b(?:wrong|in(?:correct|accurate)|mistak|error|false|not|should|instead|but)|n't\b", re.I)
_STEP_NUMBER = re.compile(r"\bsteps?[ _#]{0,2}\d+", re.I)
_LONGEST = 200
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*+")
_SIGN = re.compile(r"\d+(?:[.,]\d+)*+|[^\W\d]+|\S")


def quoted_in_words(critique: str, attempt: str) -> str | None:
    """The step of a wrong attempt that a critique states again; None where there is none.

    A step is stated by its whole text, by a calculation's two sides in one sentence ("13 for 3 * 4"), and the answer by
    its text in a sentence about the answer. A calculation that plain arithmetic finds right is no error, and a sentence
    that calls the step right quotes none.
    """
    unnumbered = _STEP_NUMBER.sub("step", critique)
    parts = [unnumbered, *_SENTENCE.split(unnumbered)[:_MOST]]
    sentences = [part for part in parts if _WRONG.search(part) or not _RIGHT.search(part)]
    for step in split_steps(attempt)[:_MOST]:
        body = step_body(attempt, step).strip(" \n.:;!?")
        stated = calculations(body)
        wrong = [one for one in stated if not holds(one)]
        if body and (wrong or not stated) and any(_states(text, body, wrong, step) for text in sentences):
            return step_name(step)
    return None


def step_name(step: Step) -> str:
    return "answer" if step.label == ANSWER else f"step {step.label}" if step.label else ""


def _states(sentence: str, body: str, wrong: list[Equation], step: Step) -> bool:
    if step.label == ANSWER:
        near = rf"answer[^\d.;\n]{{0,20}}{_whole(body)}|{_whole(body)} (?:is|was)\b[^\d.;<\n]{{0,15}}answer"
        return re.search(near, sentence, re.I) is not None
    return (len(body) >= _MIN_QUOTE and find_whole(sentence, body) >= 0) or any(
        _calculates(plain_signs(sentence), one) for one in wrong[:_MOST]
    )


def _calculates(sentence: str, calculation: Equation) -> bool:
    """Whether a sentence has both sides, with no other number between them, or denies the right one."""
    left, right = calculation
    signs = r"\s{0,2}".join(map(re.escape, _SIGN.findall(plain_signs(left))))
    number = _whole((_NUMBER.findall(right) or ["="])[0])
    found = re.search(rf"(?<![\w.]){signs}(?!\w|\.\d)", sentence)
    if found is None:
        return False
    before, behind = sentence[: found.start()], sentence[found.end() :]
    near = re.match(rf"\D{{0,30}}?{number}", behind)
    near = near or re.search(rf"{number}\D{{0,20}}\b(?:for|from|of|as)\b\D{{0,9}}\Z", before)
    return bool(near or re.search(rf"\b(?:not|instead of|rather than) \D{{0,3}}{number}", sentence, re.I))


def _whole(text: str) -> str:
    """A pattern for a number or word that is no part of another."""
    return rf"(?<![\w.,]){re.escape(text[:_LONGEST])}(?!\w|[.,]\d)"
