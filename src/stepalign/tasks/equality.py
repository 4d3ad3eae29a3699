"""Whether two answers in normal form are equal: everything but the equality of two single expressions.

What is left, one expression against one expression, goes to a ``Leaf``: a function that the caller brings.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stepalign.records import Verdict
from stepalign.tasks.answers import Answer, canonical_answer, is_prose, normal_form
from stepalign.tasks.notation import Sequence, is_balanced, split_sequence, split_top

Leaf = Callable[[str, str], tuple[Verdict, str]]


_NAMED = re.compile(
    r"((?:\\[A-Za-z]{2,12} ?|[A-Za-z])(?:_\{?\w{1,8}\}?)?'?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|(?:\\angle ?)?[A-Z]{2,3}|\([A-Za-z](?:,[A-Za-z])+\))"
    r"(?:=|\\in(?![A-Za-z]) ?)(.+)",
    re.DOTALL,
)
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_MAX_UNORDERED = 12
"""Elements of a set that are matched in every order, once the plainly equal ones are paired."""


def equal_answers(gold: Answer, answer: Answer, leaf: Leaf) -> tuple[Verdict, str]:
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


def _equal_relations(gold: str, answer: str, leaf: Leaf) -> tuple[Verdict, str] | None:
    """``x = 5`` against ``5`` and the like; None for two relations, which are compared as wholes.

    math-verify takes the right side of any equation for its value, so that ``3 = 2`` would be 2. Here every part of a
    chain must equal the expected answer.
    """
    gold_name, gold_value = _named(gold)
    name, value = _named(answer)
    if gold_name and gold_name == name:
        same = equal_answers(normal_form(gold_value), normal_form(value), leaf)
        return same if same[0] != "incorrect" else None
    parts = split_top(value, "=")
    if not name and len(parts) == 1:
        if gold_name:
            return equal_answers(normal_form(split_top(gold_value, "=")[-1]), normal_form(answer), leaf)
        return None if _MEMBER.search(gold + answer) else ("incorrect", "different shape")
    if gold_name or len(split_top(gold, "=")) > 1:
        return None
    result: tuple[Verdict, str] = ("incorrect", "unreadable answer")
    for part in parts:
        result = equal_answers(normal_form(gold), normal_form(part), leaf)
        if result[0] != "correct":
            break
    return result


def _named(text: str) -> tuple[str, str]:
    """``x = 5`` and ``f(x) \\in A`` as name and value; the name is "" where there is none."""
    match = _NAMED.fullmatch(text)
    return (match[1].strip(), match[2]) if match else ("", text)


def _equal_sequences(gold: Sequence, answer: Sequence, is_set: bool, leaf: Leaf) -> tuple[Verdict, str]:
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
            verdict, reason = equal_answers(normal_form(expected), normal_form(item), leaf)
            if verdict != "correct":
                return verdict, reason
        return "correct", "equal elements"
    return _equal_sets(gold_items, items, leaf)


def _equal_sets(gold: list[str], answer: list[str], leaf: Leaf) -> tuple[Verdict, str]:
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
            verdict, reason = equal_answers(normal_form(item), normal_form(candidate), leaf)
            if verdict == "undecided":
                return verdict, reason
            if verdict == "correct":
                del extra[index]
                break
        else:
            return "incorrect", "different elements"
    return "correct", "equal elements"
