"""Grading: is the final answer of a completion right? Correct, incorrect or undecided, whatever a model writes.

Three stages, cheapest first. The answer is found by our own scanners (:mod:`stepalign.tasks.answers`); equal texts,
plain numbers and polynomials (:mod:`stepalign.tasks.exact`) are decided in this process; what is left, one expression
against one expression, goes to math-verify in a child process with a limit on CPU time, wall time and memory.
math-verify's own limit is a signal that works in one thread only and costs 5 s for a tower of powers; a child can be
killed.

"undecided" means that we could not tell (time, memory, an unreadable reference). It is not a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stepalign.records import Verdict
from stepalign.tasks.answers import (
    MAX_DEPTH,
    MAX_LENGTH,
    Answer,
    Sequence,
    canonical_answer,
    depth,
    extract_answer,
    find_answer,
    has_control_characters,
    is_balanced,
    is_prose,
    normal_form,
    split_sequence,
    split_top,
)
from stepalign.tasks.bounded import ChildPool, GraderConfig
from stepalign.tasks.exact import equal_expressions

__all__ = ["Grade", "Grader", "GraderConfig", "canonical_answer", "extract_answer"]


_MAX_REMEMBERED = 100_000
"""Comparisons whose verdict a grader keeps: some 50 MB at most."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with the answer it is about."""

    verdict: Verdict
    answer: str | None
    """The extracted answer as written (cut above 512 characters), or None where there is none."""
    reason: str
    """Few words, one of a fixed set for the built-in grader: made to be counted."""


class Grader:
    """Grades completions. Deterministic; safe to call from several threads; a context manager.

    Rules: no answer, an empty one, or several different final answers are incorrect (but a set may be given in several
    boxes). Text outside the marked answer never counts. Per cent signs and units may be left out, not contradicted.
    A chain ``1 + 1 = 2`` is right only if all its parts are. Decimals against irrational numbers count as equal when
    they agree to 6 decimal places; plain numbers are compared exactly.
    """

    def __init__(self, config: GraderConfig | None = None) -> None:
        self.config = config or GraderConfig()
        self._pool = ChildPool(self.config)
        self._decided: dict[tuple[str, str], tuple[Verdict, str]] = {}
        if self.config.function:
            self._pool.check()

    def grade(self, text: str, expected: str) -> Grade:
        """The verdict on a completion.

        Args:
            text: the completion, thinking included.
            expected: the expected answer, bare or as a worked solution that marks its answer.
        """
        if self.config.function:
            verdict, reason = self._pool.ask({"answer": text, "expected": expected})
            return Grade(verdict, extract_answer(text), reason)
        return self._grade(text, expected, self._leaf)

    def compare(self, answer: str | None, expected: str) -> Grade:
        """The verdict on an answer that was extracted already."""
        return _compare(answer, expected, self._leaf)

    def grade_many(self, texts: Iterable[str], expected: Iterable[str]) -> list[Grade]:
        """Grades in the order of the texts; comparisons in child processes run side by side.

        Raises:
            ValueError: for unequal numbers of texts and expected answers.
        """
        pairs = list(zip(texts, expected, strict=True))
        if self.config.function:
            return self._side_by_side(pairs)
        grades: list[Grade | None] = []
        for text, answer in pairs:
            try:
                grades.append(self._grade(text, answer, self._leaf_here))
            except _NeedsChildError:
                grades.append(None)
        open_pairs = [pair for pair, grade in zip(pairs, grades, strict=True) if grade is None]
        late = iter(self._side_by_side(open_pairs))
        return [next(late) if grade is None else grade for grade in grades]

    def _side_by_side(self, pairs: list[tuple[str, str]]) -> list[Grade]:
        """Grades of pairs that wait for a child each."""
        if len(pairs) < 2:
            return [self.grade(*pair) for pair in pairs]
        with ThreadPoolExecutor(max_workers=self.config.num_workers) as threads:
            return list(threads.map(lambda pair: self.grade(*pair), pairs))

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

    def _grade(self, text: str, expected: str, leaf: _Leaf) -> Grade:
        found = find_answer(text)
        if len(found.rivals) > 1:
            gold = _expected_answer(expected)
            sequence = split_sequence(normal_form(gold).text)
            if sequence is None or sequence.ordered or len(sequence.items) != len(found.rivals):
                return Grade("incorrect", found.answer, "several different answers")
            return _compare(", ".join(found.rivals), gold, leaf)
        return _compare(found.answer, expected, leaf)

    def _leaf(self, gold: str, answer: str) -> tuple[Verdict, str]:
        """One expression against one; the completions of a group often give the same answer, so it is remembered."""
        known = self._known(gold, answer)
        if known is None:
            known = self._pool.ask({"answer": answer, "expected": gold})
            if known[0] != "undecided" and len(self._decided) < _MAX_REMEMBERED:
                self._decided[gold, answer] = known
        return known

    def _leaf_here(self, gold: str, answer: str) -> tuple[Verdict, str]:
        """As ``_leaf``, where that needs no child."""
        known = self._known(gold, answer)
        if known is None:
            raise _NeedsChildError
        return known

    def _known(self, gold: str, answer: str) -> tuple[Verdict, str] | None:
        equal = equal_expressions(gold, answer)
        if equal is not None:
            return ("correct", "equal expression") if equal else ("incorrect", "different expression")
        return self._decided.get((gold, answer))


class _NeedsChildError(Exception):
    """This comparison goes to math-verify."""


def _compare(answer: str | None, expected: str, leaf: _Leaf) -> Grade:
    verdict, reason = _verdict(answer, expected, leaf)
    return Grade(verdict, answer or None, reason)


def _verdict(answer: str | None, expected: str, leaf: _Leaf) -> tuple[Verdict, str]:
    gold = _expected_answer(expected)
    if not gold:
        return "undecided", "no expected answer"
    if answer is None:
        return "incorrect", "no answer"
    answer = answer.strip()
    if not answer:
        return "incorrect", "empty answer"
    if len(gold) > MAX_LENGTH:
        return "undecided", "expected answer too long"
    if len(answer) > MAX_LENGTH:
        return "incorrect", "answer too long"
    if depth(answer) > MAX_DEPTH:
        return "incorrect", "nested too deeply"
    if has_control_characters(answer):
        return "incorrect", "control characters"
    return _equal(normal_form(gold), normal_form(answer), leaf)


def _expected_answer(expected: str) -> str:
    """The answer of a worked reference solution, or the text itself when it marks none."""
    return extract_answer(expected) or expected.strip()


# ---------------------------------------------------------------------------------------------------------------------
# Comparison of normal forms: everything but the equality of two single expressions

_Leaf = Callable[[str, str], tuple[Verdict, str]]


_NAMED = re.compile(
    r"((?:\\[A-Za-z]{2,12} ?|[A-Za-z])(?:_\{?\w{1,8}\}?)?'?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|(?:\\angle ?)?[A-Z]{2,3}|\([A-Za-z](?:,[A-Za-z])+\))"
    r"(?:=|\\in(?![A-Za-z]) ?)(.+)",
    re.DOTALL,
)
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_MAX_UNORDERED = 12
"""Elements of a set that are matched in every order, once the plainly equal ones are paired."""


def _equal(gold: Answer, answer: Answer, leaf: _Leaf) -> tuple[Verdict, str]:
    if not answer.text:
        return "incorrect", "empty answer"
    units = zip(
        gold.unit.split("/"), answer.unit.split("/"), strict=False
    )  # "dollars" may stand for "dollars per hour"
    if any(one != other for one, other in units if one and other):
        return "incorrect", "different units"
    if gold.number is not None and answer.number is not None:
        return _equal_numbers(gold, answer)
    if gold.text == answer.text:
        return "correct", "equal text"
    if not is_balanced(answer.text):
        return "incorrect", "unreadable answer"
    if is_prose(gold.text) or is_prose(answer.text):
        return "incorrect", "different text"
    gold_items, items = split_sequence(gold.text), split_sequence(answer.text)
    if gold_items and items:
        return _equal_sequences(gold_items, items, answer.text.startswith("\\{"), leaf)
    if any(len(split_top(text, "=")) > 1 or _MEMBER.search(text) for text in (gold.text, answer.text)):
        related = _equal_relations(gold.text, answer.text, leaf)
        if related:
            return related
    if (gold_items and answer.number is not None) or (items and gold.number is not None):
        return "incorrect", "different number of elements"
    return leaf(gold.text, answer.text)


def _equal_numbers(gold: Answer, answer: Answer) -> tuple[Verdict, str]:
    """Exact, where a per cent sign may be missing on one side: 50 % is 50 and is 0.5, but 50 is not 0.5."""
    assert gold.number is not None
    assert answer.number is not None
    equal = gold.number == answer.number
    if gold.unit == "%" != answer.unit:
        equal = equal or gold.number / 100 == answer.number
    elif answer.unit == "%" != gold.unit:
        equal = equal or gold.number == answer.number / 100
    return ("correct", "equal number") if equal else ("incorrect", "different number")


def _equal_relations(gold: str, answer: str, leaf: _Leaf) -> tuple[Verdict, str] | None:
    """``x = 5`` against ``5`` and the like; None for two relations, which are compared as wholes.

    math-verify takes the right side of any equation for its value, so that ``3 = 2`` would be 2. Here every part of a
    chain must equal the expected answer.
    """
    gold_name, gold_value = _named(gold)
    name, value = _named(answer)
    if gold_name and gold_name == name:
        same = _equal(normal_form(gold_value), normal_form(value), leaf)
        return same if same[0] != "incorrect" else None
    parts = split_top(value, "=")
    if not name and len(parts) == 1:
        if gold_name:
            return _equal(normal_form(split_top(gold_value, "=")[-1]), normal_form(answer), leaf)
        return None if _MEMBER.search(gold + answer) else ("incorrect", "different shape")
    if gold_name or len(split_top(gold, "=")) > 1:
        return None
    result: tuple[Verdict, str] = ("incorrect", "unreadable answer")
    for part in parts:
        result = _equal(normal_form(gold), normal_form(part), leaf)
        if result[0] != "correct":
            break
    return result


def _named(text: str) -> tuple[str, str]:
    """``x = 5`` and ``f(x) \\in A`` as name and value; the name is "" where there is none."""
    match = _NAMED.fullmatch(text)
    return (match[1].strip(), match[2]) if match else ("", text)


def _equal_sequences(gold: Sequence, answer: Sequence, is_set: bool, leaf: _Leaf) -> tuple[Verdict, str]:
    """Element by element. A bare list may stand for a tuple, in order; any brackets may stand for a bare list.

    The first undecided element ends the comparison, so that many slow elements cost no more time than one.
    """
    if gold.ordered and answer.ordered and (gold.opening, gold.closing) != (answer.opening, answer.closing):
        return "incorrect", "different brackets"
    if (gold.ordered and is_set) or ((answer.opening, answer.closing) in (("(", "]"), ("[", ")")) and not gold.ordered):
        return "incorrect", "different brackets"
    gold_items, items = list(gold.items), list(answer.items)
    if gold.ordered:
        if len(gold_items) != len(items):
            return "incorrect", "different number of elements"
        for expected, item in zip(gold_items, items, strict=True):
            verdict, reason = _equal(normal_form(expected), normal_form(item), leaf)
            if verdict != "correct":
                return verdict, reason
        return "correct", "equal elements"
    return _equal_sets(gold_items, items, leaf)


def _equal_sets(gold: list[str], answer: list[str], leaf: _Leaf) -> tuple[Verdict, str]:
    expected = {canonical_answer(item): item for item in gold}
    given = {canonical_answer(item): item for item in answer}
    missing = [item for key, item in expected.items() if key not in given]
    extra = [item for key, item in given.items() if key not in expected]
    if len(missing) != len(extra):
        return "incorrect", "different number of elements"
    if len(missing) > _MAX_UNORDERED:
        return "incorrect", "different elements"
    for item in missing:
        for index, candidate in enumerate(extra):
            verdict, reason = _equal(normal_form(item), normal_form(candidate), leaf)
            if verdict == "undecided":
                return verdict, reason
            if verdict == "correct":
                del extra[index]
                break
        else:
            return "incorrect", "different elements"
    return "correct", "equal elements"
