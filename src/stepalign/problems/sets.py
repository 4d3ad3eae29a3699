"""Sets of problems: split by a hash of their content, kept apart, and named. Pure functions."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepalign.records import Problem
from stepalign.storage.fingerprint import digest, sha256, sha256_of_parts

SETS = ("train", "validation", "test")


def problem_id(question: str) -> str:
    """16 hexadecimal digits that depend on the question's text only, not on spacing, case or dollar signs."""
    return sha256(normalise_question(question))[:16]


def normalise_question(question: str) -> str:
    """A question without spacing, case, dollar signs and final punctuation. Operators stay: 2 + 3 is not 2 - 3."""
    text = unicodedata.normalize("NFC", question).casefold()
    return "".join(text.replace("$", "").split()).rstrip(".?!:;")


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of all that a run takes from its problems, in their order."""
    return sha256_of_parts(json.dumps([p.question, p.answer, p.reference]) + "\n" for p in problems)


def named(problem: Problem) -> str:
    """A problem as a person finds it in a file: its id, and how its question begins."""
    start = " ".join(problem.question[:200].split())
    return f"{problem.problem_id} {start[:40] + ('...' if len(start) > 40 else '')!r}"


def hold_out(problems: Iterable[Problem], share: float) -> dict[str, tuple[Problem, ...]]:
    """Training problems as "train" and "validation"; the choice depends on each problem alone."""
    shares = {"validation": share, "train": 1 - share}
    return _split(problems, shares, lambda problem: int(sha256(problem.problem_id)[:8], 16) / 16**8)


def split_problems(
    problems: Iterable[Problem], shares: Mapping[str, float], *, salt: str = ""
) -> dict[str, tuple[Problem, ...]]:
    """Assign each problem to a split by the hash of its content.

    A problem keeps its split when others are added, removed or reordered, so that a test set stays one. The shares are
    met in expectation.

    Args:
        shares: name of the split -> share; together 1.
        salt: another salt makes another split.

    Raises:
        ValueError: for shares that are negative or do not sum to 1.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1, got {dict(shares)}")

    def position(problem: Problem) -> float:
        return int.from_bytes(digest(f"{salt}\0{normalise_question(problem.question)}")[:8], "big") / 2**64

    return _split(problems, shares, position)


def _split(
    problems: Iterable[Problem], shares: Mapping[str, float], position: Callable[[Problem], float]
) -> dict[str, tuple[Problem, ...]]:
    """Problems by the share of [0, 1) that each one's position is in."""
    bounds = list(itertools.accumulate(shares.values()))[:-1]
    splits: list[list[Problem]] = [[] for _ in shares]
    for problem in problems:
        splits[bisect_right(bounds, position(problem))].append(problem)
    return {name: tuple(members) for name, members in zip(shares, splits, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A problem that two sets share."""

    first: str
    second: str
    """Names of the two sets."""
    kind: Literal["exact", "normalised"]
    first_id: str
    second_id: str


def find_overlaps(sets: Mapping[str, Sequence[Problem]]) -> list[Overlap]:
    """Problems in more than one set: with the same text, or the same but for spacing, case, punctuation and the
    typesetting of formulas (``\\dfrac``, ``\\left(``, ``\\,``, delimiters).

    A test set that shares problems with the training set measures memory. Empty when the sets are disjoint.
    """
    overlaps: list[Overlap] = []
    seen: dict[str, list[tuple[str, Problem]]] = {}
    for name, problems in sets.items():
        for problem in problems:
            earlier = seen.setdefault(_without_typesetting(problem.question), [])
            overlaps += [
                Overlap(
                    first=other_name,
                    second=name,
                    kind="exact" if other.question == problem.question else "normalised",
                    first_id=other.problem_id,
                    second_id=problem.problem_id,
                )
                for other_name, other in earlier
                if other_name != name
            ]
            earlier.append((name, problem))
    return overlaps


_TYPESETTING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|\\[()\[\],;:! ]|[$~]|(?<=\\)[dt](?=frac)")
_BRACED_CHARACTER = re.compile(r"\{(\w)\}")
_PUNCTUATION = re.compile(r"[.,](?!\d)|(?<!\d)[.,]|[;:?'\"`\u2018-\u201f]|!\s*$")
"""1.5 is not 15, and n! is not n."""


def _without_typesetting(question: str) -> str:
    text = unicodedata.normalize("NFKC", question).casefold().replace("\u2212", "-")
    text = _BRACED_CHARACTER.sub(r"\1", _TYPESETTING.sub("", text))
    return "".join(_PUNCTUATION.sub("", text).split())
