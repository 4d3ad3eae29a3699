"""Equality of two expressions by math-verify and sympy: the built-in grader of a child process (``bounded.py``).

Importing it takes seconds and hundreds of megabytes, so the parent never does.
"""

from __future__ import annotations

import logging
from functools import lru_cache, partial
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, I, Poly, expand

from stepalign.domains.math.grade import Grade, correct, incorrect, undecided

logging.disable(logging.CRITICAL)

_read = partial(
    parse,
    extraction_config=[LatexExtractionConfig()],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,  # pyright: ignore[reportArgumentType] - None is what its own warning asks for
    raise_on_error=True,
)


def compare(answer: str, expected: str) -> Grade:
    gold = _read_gold(expected)
    if not gold:
        return undecided("unreadable expected answer")
    given = _with_imaginary_unit(_read(f"${answer}$"))
    if not given:
        return incorrect("unreadable answer")
    try:
        equal = _difference_is_zero(gold[0], given[0])
        if equal is None:
            equal = verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return incorrect("incomparable expressions")
    return correct("equal expression") if equal else incorrect("different expression")


@lru_cache(maxsize=256)
def _read_gold(expected: str) -> Any:  # the completions of a group share it, and a parse is half of the cost
    return _with_imaginary_unit(_read(f"${expected}$"))


def _with_imaginary_unit(parsed: Any) -> Any:
    """The letter i as the imaginary unit, as in ``exact.py``; math-verify takes it for a variable."""

    def read(item: Any) -> Any:
        units = [symbol for symbol in item.free_symbols if str(symbol) == "i"] if isinstance(item, Expr) else []
        return item.subs(dict.fromkeys(units, I)) if units else item

    return [read(item) for item in parsed]


def _difference_is_zero(gold: Any, given: Any) -> bool | None:
    """Whether two exact expressions are equal, where expanding their difference shows it; else None.

    It does for most right answers and most wrong ones, and costs a tenth of a simplification.
    """
    if not (isinstance(gold, Expr) and isinstance(given, Expr)):
        return None
    difference = expand(gold - given)
    if difference == 0:
        return True
    if difference.has(Float):
        return None
    if difference.free_symbols and difference.is_polynomial():
        domain = Poly(difference).domain
        return False if domain.is_ZZ or domain.is_QQ else None
    return False if difference.is_zero is False else None


compare("x+1", "2x")  # the first parse builds tables; not at the expense of the first answer
