"""Curves over the checkpoints of a run: localisation of each design, and the run's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from stepalign.report import charts
from stepalign.token_signal.localisation import LABELS

TITLES = {
    "accuracy": "Accuracy, trained problems against held-out ones",
    "overconfidence": "Confidence of the majority answer minus its accuracy",
    "distinct_bigrams": "Distinct pairs of words within a group",
    "mentions_feedback": "Rollouts that mention feedback or a reference",
}


def curve_charts(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """(title, chart) of every curve of ``over_training`` in signal.json."""
    found = []
    for curve in curves:
        name = curve["number"]
        title = TITLES.get(name) or LABELS.get(name) or name.replace("_", " ").capitalize()
        lines = [charts.Series(colour=at, **line) for at, line in enumerate(curve["lines"])]
        drawn = charts.line_chart(
            lines,
            title=f"{title}, over optimizer steps",
            x_label="optimizer steps",
            y_label="",
            width=380,
            height=230,
            end_labels=len(lines) < 4,
        )
        found.append((title, Markup(drawn)))
    return found
