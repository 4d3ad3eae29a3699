"""The page of an evaluation's completions: every problem with its attempts and their verdicts, without a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stepalign.evaluation.evaluate import EvaluatedProblem
from stepalign.report.template import render_page
from stepalign.report.text import percent
from stepalign.storage.files import write_atomically

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
        "cut": sum(reason == "length" for problem in problems for reason in problem.finish_reasons),
    }
    write_atomically(path, render_page("completions.html.j2", values, stylesheet="critiques.css"))
    return path


def _attempts(problem: EvaluatedProblem) -> list[tuple[str, str, str]]:
    """(verdict, answer and length in one line, text) of every completion."""
    columns = zip(
        problem.verdicts, problem.answers, problem.lengths, problem.finish_reasons, problem.texts, strict=True
    )
    return [
        (
            verdict,
            f"answer {'none' if answer is None else answer} · {length} tokens" + ", cut" * (reason == "length"),
            text,
        )
        for verdict, answer, length, reason, text in columns
    ]
