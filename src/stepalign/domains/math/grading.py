"""Grading: is the final answer of a completion right? Correct, incorrect or undecided for any text.

Three stages, cheapest first. The answer is found by our own scanners (``extraction.py``); equal texts, plain numbers
and polynomials (``exact.py``) are decided in this process; what is left, one expression against one expression, goes to
math-verify in a child process that can be killed (``bounded.py``): its own time limit works in one thread only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stepalign.domains.math.answers import CONTROL, MAX_DEPTH, MAX_LENGTH, canonical_answer, normal_form
from stepalign.domains.math.bounded import ChildPool, GraderConfig
from stepalign.domains.math.equality import Leaf, equal_answers
from stepalign.domains.math.exact import equal_expressions
from stepalign.domains.math.extraction import Extraction, extract_answer, find_answer
from stepalign.domains.math.grade import Grade, correct, incorrect, undecided
from stepalign.domains.math.notation import depth, split_sequence

__all__ = ["Grader", "GraderConfig", "canonical_answer", "extract_answer"]

_SPACED_DIGITS = re.compile(r"\d\s+\d")
_MAX_REMEMBERED = 100_000
"""Comparisons whose grade a grader keeps: some 50 MB at most."""


class Grader:
    """Grades completions. Deterministic; safe to call from several threads; a context manager.

    Rules: no answer, an empty one, or several different final answers are incorrect (but a set may be given in several
    boxes). Text outside the marked answer never counts. Per cent signs and units may be left out, not contradicted.
    A chain ``1 + 1 = 2`` is right only if all its parts are. Decimals against irrational numbers count as equal when
    they agree to 6 decimal places; plain numbers are compared exactly.

    Raises:
        GraderError: a grader of your own that cannot be started.
    """

    def __init__(self, config: GraderConfig | None = None) -> None:
        self.config = config or GraderConfig()
        self._pool = ChildPool(self.config)
        self._decided: dict[tuple[str, str], Grade] = {}
        if self.config.function:
            self._pool.check()

    def grade(self, text: str, expected: str) -> Grade:
        """The grade of a completion.

        Args:
            text: the completion, thinking included.
            expected: the expected answer, bare or as a worked solution that marks its answer.
        """
        if not self.config.function:
            return self._grade(text, expected, self._leaf)
        grade = self._pool.ask(text, expected)
        return grade if grade.answer is not None else replace(grade, answer=extract_answer(text))

    def compare(self, answer: str | None, expected: str) -> Grade:
        """The grade of an answer that was extracted already."""
        return _compare(answer, expected, self._leaf)

    def grade_many(self, texts: Iterable[str], expected: Iterable[str]) -> list[Grade]:
        """Grades in the order of the texts; comparisons in child processes run side by side.

        Raises:
            ValueError: for unequal numbers of texts and expected answers.
        """
        pairs = list(zip(texts, expected, strict=True))
        grades = [self._grade_here(*pair) for pair in pairs]
        threads = ThreadPoolExecutor(max_workers=self.config.num_workers)
        try:
            open_pairs = (pair for pair, grade in zip(pairs, grades, strict=True) if grade is None)
            late = threads.map(lambda pair: self.grade(*pair), open_pairs)
            return [grade or next(late) for grade in grades]
        finally:  # one that is interrupted does not wait for the rest
            threads.shutdown(wait=False, cancel_futures=True)

    def _grade_here(self, text: str, expected: str) -> Grade | None:
        """The grade of a completion where that needs no child process."""
        if self.config.function:
            return None
        try:
            return self._grade(text, expected, self._leaf_here)
        except _NeedsChildError:
            return None

    def close(self) -> None:
        """Stop the child processes. The grader may be used again: it starts new ones."""
        self._pool.close()

    @property
    def num_children(self) -> int:
        """Child processes there are now."""
        return self._pool.num_children

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Grader], tuple[GraderConfig]]:
        return Grader, (self.config,)

    def _grade(self, text: str, expected: str, leaf: Leaf) -> Grade:
        found = find_answer(text)
        grade = self._grade_found(found, expected, leaf)
        return replace(grade, reason=f"{grade.reason}, then another question") if found.ran_on else grade

    def _grade_found(self, found: Extraction, expected: str, leaf: Leaf) -> Grade:
        if len(found.rivals) > 1:
            gold = _expected_answer(expected)
            sequence = split_sequence(normal_form(gold).text)
            if sequence is None or sequence.ordered or len(sequence.items) != len(found.rivals):
                return replace(incorrect("several different answers"), answer=found.answer)
            return _compare(", ".join(found.rivals), gold, leaf)
        return _compare(found.answer, expected, leaf)

    def _leaf(self, gold: str, answer: str) -> Grade:
        """One expression against one; the completions of a group often give the same answer, so it is remembered."""
        try:
            return self._leaf_here(gold, answer)
        except _NeedsChildError:
            grade = self._pool.ask(answer, gold)
        if grade.verdict != "undecided" and len(self._decided) < _MAX_REMEMBERED:
            self._decided[gold, answer] = grade
        return grade

    def _leaf_here(self, gold: str, answer: str) -> Grade:
        """As ``_leaf``, where that needs no child."""
        equal = equal_expressions(gold, answer)
        if equal is not None:
            return correct("equal expression") if equal else incorrect("different expression")
        if (gold, answer) not in self._decided:
            raise _NeedsChildError
        return self._decided[gold, answer]


class _NeedsChildError(Exception):
    """This comparison goes to math-verify."""


def _compare(answer: str | None, expected: str, leaf: Leaf) -> Grade:
    return replace(_compare_answers(answer, expected, leaf), answer=answer or None)


def _compare_answers(answer: str | None, expected: str, leaf: Leaf) -> Grade:
    gold = _expected_answer(expected)
    if not gold:
        return undecided("no expected answer")
    if answer is None:
        return incorrect("no answer")
    answer = answer.strip()
    if len(gold) > MAX_LENGTH and answer:
        return undecided("expected answer too long")
    faults = (
        (not answer, "empty answer"),
        (len(answer) > MAX_LENGTH, "answer too long"),
        (depth(answer) > MAX_DEPTH, "nested too deeply"),
        (CONTROL.search(answer), "control characters"),
    )
    if reason := next((reason for applies, reason in faults if applies), ""):
        return incorrect(reason)
    wanted, given = normal_form(gold), normal_form(answer)
    if (wanted.number is None or given.number is None) and _is_same_text(gold, answer):
        return correct("equal text")
    return equal_answers(wanted, given, leaf)


def _is_same_text(one: str, other: str) -> bool:
    """Equal but for spaces between anything but digits: what follows may read "2 m" and "2m" in two ways."""
    return "".join(one.split()) == "".join(other.split()) and not _SPACED_DIGITS.search(f"{one}|{other}")


def _expected_answer(expected: str) -> str:
    """The answer of a worked reference solution, or the text itself when it marks none."""
    return extract_answer(expected) or expected.strip()
