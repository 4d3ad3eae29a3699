"""The three sets of problems that a recipe names, and who grades them. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable

from stepalign.config import Config
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.arithmetic.task import EMBEDDED, embedded_folder
from stepalign.domains.domain import open_grader
from stepalign.domains.math.grading import Grader
from stepalign.domains.python import problems as python_problems
from stepalign.domains.python import sandbox
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet, find_overlaps, is_selection, load_problems, load_selection
from stepalign.problems.rows import is_environment
from stepalign.records import Problem
from stepalign.storage.fingerprint import sha256, sha256_of_parts

SETS = ("train", "validation", "test")


def load_sets(config: Config) -> dict[str, ProblemSet]:
    """All three sets.

    Raises:
        ConfigError: no training problems, or a problem that stands in two sets: a score on it would measure memory.
    """
    sets = {name: load_set(config, name) for name in SETS}
    if not sets["train"].problems:
        skipped = "".join(f"; {count} rows: {reason}" for reason, count in sets["train"].skipped.items())
        raise ConfigError(f"there are no training problems{skipped}", where=f"data.train = {config.data.train}")
    overlaps = find_overlaps({name: found.problems for name, found in sets.items()})
    if overlaps:
        one = overlaps[0]
        first = next(p for p in sets[one.first].problems if p.problem_id == one.first_id)
        many = "1 problem stands" if len(overlaps) == 1 else f"{len(overlaps)} problems stand"
        raise ConfigError(
            f"{many} in two sets, such as {named(first)} in {one.first} and {one.second}",
            where=f"data.{one.first}, data.{one.second}",
            hint="give disjoint files; data.validation_share sets training problems aside for validation",
        )
    return sets


def load_set(config: Config, name: str) -> ProblemSet:
    """The problems of "train", "validation" or "test"; an empty set when the recipe names none.

    Raises:
        ConfigError: see ``load_problems``.
    """
    data = config.data
    source: str | None = getattr(data, name)
    limit: int | None = getattr(data, f"max_{name}")
    set_aside = data.validation is None and data.validation_share > 0 and name in ("train", "validation")
    if set_aside:
        source = data.train
    if source is None:
        return ProblemSet(problems=(), skipped={})
    if source == EMBEDDED:
        return ProblemSet(problems=tuple(embedded_problems(name, data.rho)[:limit]), skipped={})
    whole_limit = None if set_aside else limit
    if is_selection(source):
        whole = load_selection(source, "train" if set_aside else name, limit=whole_limit)
    else:
        whole = load_problems(source, data.columns, limit=whole_limit)
    if not set_aside:
        return whole
    kept = [p for p in whole.problems if (_hash_share(p) < data.validation_share) == (name == "validation")]
    return ProblemSet(problems=tuple(kept[:limit]), skipped=whole.skipped)


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of all that a run takes from its problems, in their order."""
    return sha256_of_parts(json.dumps([p.question, p.answer, p.reference]) + "\n" for p in problems)


def named(problem: Problem) -> str:
    """A problem as a person finds it in a file: its id, and how its question begins."""
    start = " ".join(problem.question[:200].split())
    return f"{problem.problem_id} {start[:40] + ('...' if len(start) > 40 else '')!r}"


def _hash_share(problem: Problem) -> float:
    """A number in [0, 1) that depends on the problem alone."""
    return int(sha256(problem.problem_id)[:8], 16) / 16**8


def embedded_problems(name: str, rho: float) -> list[Problem]:
    """A shipped set, its references written for a given ``rho``."""
    file = embedded_folder() / "problems" / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [arithmetic.make_problem(arithmetic.parse_question(row["question"]), rho=rho) for row in rows]


def make_grader(config: Config) -> Grader:
    """The grader of the recipe. Raises ConfigError when it cannot be started here."""
    data = config.data
    if data.columns == python_problems.PRESET and not data.grader_function:
        if reason := sandbox.why_unavailable():
            raise ConfigError(
                f"this machine has no sandbox for Python problems: {reason}",
                where="data.columns = python",
                hint="run on Linux 5.13 or newer, or name a grader of your own with data.grader",
            )
        return open_grader(python_problems.GRADER, seconds=python_problems.GRADER_SECONDS)
    if is_environment(data.grader_function or "") and not data.grader:
        for name, source in (("validation", data.validation), ("test", data.test)):
            if source and source.partition("?")[0] != data.train.partition("?")[0]:
                raise ConfigError(
                    f"{data.train} grades its own tasks only, and these problems are not from it: {source}",
                    where=f"data.{name}",
                    hint=f"take them from the same taskset, or none at all: --set data.{name}=null",
                )
    return open_grader(data.grader_function or "", seconds=data.grader_seconds)
