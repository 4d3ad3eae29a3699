"""Numbers and lists in every notation: equal exactly where Python's fractions say so."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign.domains.math.grading import Grader

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def spellings(value: int, exponent: int) -> list[str]:
    """Of value times a power of ten."""
    digits = f"{value}e{exponent}"
    exact = Fraction(value) * Fraction(10) ** exponent
    found = [digits, digits.upper(), f"{value} \\times 10^{{{exponent}}}", f"{value}\\cdot 10^{{{exponent}}}"]
    found += [f"{value} × 10{str(exponent).translate(RAISED)}", f"${value} * 10^{exponent}$", str(exact)]
    for factor, name in ((1, "frac"), (2, "dfrac")):
        found.append(f"\\{name}{{{factor * exact.numerator}}}{{{factor * exact.denominator}}}")
    if exact.denominator == 1:
        grouped = f"{exact.numerator:,}"
        found += [grouped.replace(",", mark) for mark in (",", "{,}", ",\\!", ",\\! ", "\\,", " ", "\u202f", "'")]
        found += [f"**{grouped}**", f"\\text{{{grouped}}}", f"\\${grouped}", f"x = {grouped}", f"{grouped} dollars"]
    return found


@settings(max_examples=8, deadline=None)
@given(st.integers(-999, 999).filter(bool), st.integers(-6, 8), st.integers(-999, 999).filter(bool), st.integers(-6, 8))
def test_a_number_is_its_value_in_every_notation(value: int, exponent: int, other: int, power: int) -> None:
    same = Fraction(value) * Fraction(10) ** exponent == Fraction(other) * Fraction(10) ** power
    with Grader() as grader:
        golds = spellings(value, exponent)
        for gold in golds[::3]:
            for answer in golds:
                assert grader.grade(f"\\boxed{{{answer}}}", gold).verdict == "correct", (answer, gold)
            for answer in spellings(other, power):
                verdict = grader.grade(f"\\boxed{{{answer}}}", gold).verdict
                assert verdict == ("correct" if same else "incorrect"), (answer, gold)
        assert grader.num_children == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9_999, 9_999), min_size=2, max_size=4, unique=True), st.randoms(), st.integers(0, 3))
def test_a_list_is_its_elements_in_any_order_and_notation(values: list[int], random, changed: int) -> None:
    gold = ", ".join(map(str, values))
    shuffled = random.sample(values, len(values))
    plain = list(map(str, shuffled))
    grouped = [f"{value:,}" for value in shuffled]
    wrong = [*values]
    wrong[changed % len(wrong)] += 10_000
    with Grader() as grader:
        for words in (plain, grouped):
            joined = (", ".join(words), f"{', '.join(words[:-1])} and {words[-1]}", f"\\{{{', '.join(words)}\\}}")
            for answer in (*joined[:2], joined[2] if words is plain else joined[0], "; ".join(words)):
                assert grader.grade(f"\\boxed{{{answer}}}", gold).verdict == "correct", (answer, gold)
        assert grader.grade(f"\\boxed{{{','.join(plain)}}}", gold).verdict == "correct"
        for answer in (", ".join(map(str, wrong)), ", ".join([*plain, "50000"]), ", ".join(plain[1:])):
            assert grader.grade(f"\\boxed{{{answer}}}", gold).verdict == "incorrect", (answer, gold)
