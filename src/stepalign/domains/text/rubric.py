"""Rubrics that a program reads: a JSON list of items, each with one demand and if wanted a weight.

``{"has": PATTERN}`` and ``{"lacks": PATTERN}`` are regular expressions, ``{"says": TEXT}`` is found whatever its case
and spaces, ``{"max_words": N}`` and ``{"min_words": N}`` count words. The score is the share of the weights that is
met.
"""

from __future__ import annotations

import json
import re
from typing import Any

from stepalign.domains.math.grade import Grade, undecided
from stepalign.domains.math.thinking import after_thinking

GRADER = "stepalign.domains.text.rubric:grade"
DEMANDS = ("has", "lacks", "says", "max_words", "min_words")


def read_rubric(text: str) -> list[dict[str, Any]] | str:
    """The items of a rubric, or why it is none that a program can read."""
    try:
        items = json.loads(text)
    except ValueError:
        return "the rubric is prose, which a judge reads"
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return "the rubric is no list of items"
    for item in items:
        demands = [name for name in DEMANDS if name in item]
        if len(demands) != 1 or item.keys() - {*DEMANDS, "weight", "name"}:
            return f"an item has one of {', '.join(DEMANDS)}, and if wanted weight and name"
        value, weight = item[demands[0]], item.get("weight", 1)
        if isinstance(value, bool) or not isinstance(value, int if "words" in demands[0] else str):
            return f"{demands[0]} takes {'a number' if 'words' in demands[0] else 'a text'}"
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            return "a weight is a number above 0"
        if demands[0] in ("has", "lacks"):
            try:
                re.compile(str(value))
            except re.error as error:
                return f"{value!r} is no regular expression: {error}"
    return items


def grade(completion: str, rubric: str) -> Grade:
    """The grade of a text; its detail names the items that are not met. Runs in a limited child process."""
    items = read_rubric(rubric)
    if isinstance(items, str):
        return undecided(items)
    text = after_thinking(completion)
    if not text.strip():
        return Grade(0.0, reason="no text", detail="There is no text.")
    missed = [item for item in items if not _is_met(item, text)]
    total = sum(item.get("weight", 1) for item in items)
    score = 1.0 - sum(item.get("weight", 1) for item in missed) / total if missed else 1.0
    detail = "\n".join(f"Not met: {item.get('name') or _described(item)}" for item in missed)
    return Grade(max(0.0, score), reason=f"{len(items) - len(missed)} of {len(items)} items", detail=detail)


def _is_met(item: dict[str, Any], text: str) -> bool:
    if "has" in item or "lacks" in item:
        return bool(re.search(item["has"] if "has" in item else item["lacks"], text)) == ("has" in item)
    if "says" in item:
        return " ".join(item["says"].casefold().split()) in " ".join(text.casefold().split())
    count = len(text.split())
    return count <= item["max_words"] if "max_words" in item else count >= item["min_words"]


def _described(item: dict[str, Any]) -> str:
    return next(f"{name.replace('_', ' ')} {item[name]}" for name in DEMANDS if name in item)
