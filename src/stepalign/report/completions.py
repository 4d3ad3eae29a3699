"""The page of an evaluation's completions: every problem with its attempts and their verdicts, without a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.evaluation.evaluate import EvaluatedProblem, judging_of
from stepalign.report.template import render_page
from stepalign.report.text import percent
from stepalign.storage.files import write_atomically

SCORES = {
    "mean_score": ("mean score", 100, " %"),
    "win_rate": ("win rate", 100, " %"),
    "judges_kappa": ("agreement of the judges, Cohen's kappa", 1, ""),
    "judges_correlation": ("correlation of the judges", 1, ""),
    "score_length_correlation": ("correlation of score and length", 1, ""),
    "score_length_given_second": ("the same, given the second judge's score", 1, ""),
}
"""Metric -> its name for a reader, the factor of its value, its unit."""
MOST_CHARACTERS = 3_000_000
"""Of the attempts on a page; the file has all of them."""


def write_completions_page(problems: Sequence[EvaluatedProblem], name: str, path: Path) -> Path:
    """Write the page of the problems of one file of samples (docs/formats.md)."""
    shown, room = 0, MOST_CHARACTERS
    while shown < len(problems) and (room := room - sum(map(len, problems[shown].texts))) > 0:
        shown += 1
    verdicts = Counter(verdict for problem in problems for verdict in problem.verdicts)
    values = {
        "name": name,
        "problems": [(problem, _attempts(problem)) for problem in problems[: max(shown, 1)]],
        "total": len(problems),
        "solved": sorted(Counter(problem.verdicts.count("correct") for problem in problems).items()),
        "verdicts": [
            (verdict, number, percent(number / verdicts.total())) for verdict, number in verdicts.most_common()
        ],
        "judging": score_facts(judging_of(problems, level=0.95, resamples=1_000)),
        "cut": sum(reason == "length" for problem in problems for reason in problem.finish_reasons),
    }
    write_atomically(path, render_page("completions.html.j2", values, stylesheet="critiques.css"))
    return path


def score_facts(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What rows of metrics say of scores: a name, and the value with its interval."""
    found = {row["metric"]: row for row in rows}
    facts = []
    for name, (words, factor, unit) in SCORES.items():
        if name in found and found[name]["value"] == found[name]["value"]:
            form = ".1f" if factor > 1 else ".2f"
            values = [found[name][key] for key in ("value", "low", "high")]
            shown = ["-" if one is None or one != one else format(factor * one, form) for one in values]
            facts.append((words, f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"))
    return facts


def _attempts(problem: EvaluatedProblem) -> list[tuple[str, str, str]]:
    """(verdict, answer and length in one line, text) of every completion."""
    columns = zip(problem.answers, problem.lengths, problem.finish_reasons, strict=True)
    facts = [
        f"answer {'none' if answer is None else answer} · {length} tokens" + ", cut" * (reason == "length")
        for answer, length, reason in columns
    ]
    return list(zip(problem.verdicts, facts, problem.texts, strict=True))
