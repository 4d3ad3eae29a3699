"""The verdict before training: a page with a box per design above the tokens, and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from stepalign.report import charts
from stepalign.report.drawing import drawn
from stepalign.report.page import signal_values
from stepalign.report.template import render_page
from stepalign.report.text import MISSING, count, decimal, percent, seconds, signed, signed_points, visible
from stepalign.storage.files import write_atomically

Json = Mapping[str, Any]
STYLES = {"go": "green", "doubtful": "yellow", "no": "red"}
SHARES = (
    ("wrong_step", "the first wrong step (of wrong attempts)"),
    ("after_error", "the steps after it (of wrong attempts)"),
    ("right", "right steps"),
    ("style", "punctuation, layout, connectives"),
    ("first", "first 30 % of the completion"),
    ("last", "last 30 %"),
    ("forks", "the fifth of the tokens that the student is least sure of"),
)
NUMBERS = {
    "self_teacher": ("Self-teacher solves, with the context", percent),
    "gain": ("More than the student, points", signed_points),
    "gain_where_wrong": ("The same where the student's attempt was wrong, points", signed_points),
    "wrong_token": ("Mean A on the wrong tokens, nats", signed),
    "wrong_token_over_null": ("The same, less the null context's", signed),
    "wrong_token_shuffled": ("Under another attempt's context", signed),
    "raised": ("Wrong attempts whose error is raised", percent),
    "gain_at_spikes": ("Points that the self-teacher's token adds at the strongest token", signed_points),
    "strength": ("Mean |A|, nats a token", decimal),
    "strength_null": ("Under a null context of equal length", decimal),
    "strength_shuffled": ("Under another attempt's context", decimal),
    "right_token_size": ("Mean |A| on right tokens", decimal),
    "covered": ("Attempts with a context", percent),
    "answer_in_context": ("Contexts that hold the final answer", percent),
    "bare_answer": ("... and little of the way to it", percent),
    "mentions": ("Self-teacher's completions that speak of the feedback", percent),
    "usable": ("Usable critiques", percent),
    "misses_error": ("Critiques of wrong attempts that say all is right", percent),
    "quotes_wrong_step": ("... that quote the wrong step", percent),
    "not_verbatim": ("Critiques that reword right steps", percent),
    "wrong_answer": ("Critiques that end in a wrong answer", percent),
}
"""Numbers of a design: their words, and how they are written."""
SOLVER = {
    "pass_rate": "right at the training temperature",
    "answered": "completions that mark an answer",
    "cut": "completions cut at the length limit",
    "thinking": "completions with a thought",
    "mixed": "groups with two different rewards",
}


def write_preflight_page(found: Json, signal: Json, path: Path) -> Path:
    """Write the page of one preflight.json, with the tokens of its signal.json: one offline file."""
    write_atomically(path, preflight_html(found, signal))
    return path


def preflight_html(found: Json, signal: Json) -> str:
    """The page as one HTML text."""
    rows = found["designs"]
    # The null and shuffled contexts have rows among the numbers; in the table of places they would be two thirds of it.
    signal = {**signal, "localisation": [one for one in signal.get("localisation", ()) if one["context"] in rows]}
    values = {
        "found": found,
        "solver": [
            (words, _cell(found["solver"], name, percent)) for name, words in SOLVER.items() if name in found["solver"]
        ],
        "helps": _chart(
            rows, "gain_where_wrong", "Points that the self-teacher adds where the student was wrong", True
        ),
        "wrong": _chart(
            rows, "wrong_token", "Mean A on the wrong tokens, nats: left of 0 is what feedback is for", False
        ),
        "numbers": [
            (words, [_cell(row["numbers"], name, write) for row in rows.values()])
            for name, (words, write) in NUMBERS.items()
            if any(name in row["numbers"] for row in rows.values())
        ],
        "shares": [
            (words, [_share(row["numbers"], name) for row in rows.values()])
            for name, words in SHARES
            if any(name in row["numbers"] for row in rows.values())
        ],
        "what_if": [
            (row["label"], _what_if(row["counterfactual"])) for row in rows.values() if row.get("counterfactual")
        ],
        "expected": expected_lines(found["expected"]),
        "seconds": seconds(found["seconds"]),
        **signal_values(signal),
    }
    return render_page("preflight.html.j2", values, stylesheet="preflight.css")


def preflight_lines(found: Json) -> list[Text]:
    """The verdicts for a terminal, the recipe's own condition first."""
    lines = []
    for name, row in found["designs"].items():
        text = Text(f"{row['verdict'].upper():<9}", style=f"bold {STYLES[row['verdict']]}")
        text.append(visible(name), style="bold")
        text.append(f"  {_gain_text(row['numbers'])}", style="dim")
        lines.append(text)
        for reason in row["details"]:
            style = "bold red" if reason["loud"] else STYLES["no"] if reason["severity"] == "no" else ""
            text = Text(f"          {'!! ' if reason['loud'] else ''}{visible(reason['text'])}", style=style)
            lines.append(text.append(f" → {visible(reason['mend'])}", style="not bold dim"))
    lines += [Text(f"expected: {text}", style="dim") for text in expected_lines(found["expected"])]
    return lines


def expected_lines(expected: Json) -> list[str]:
    """What the whole run would take."""
    lines = [f"{count(expected['sampled_tokens'])} tokens sampled in {count(expected['rollouts'])} rollouts"]
    parts = ", ".join(
        f"{name} {seconds(3600 * expected[f'{name}_hours'])}" for name in ("sampling", "feedback", "learning")
    )
    lines.append(f"about {seconds(3600 * expected['hours'])} here, without evaluations ({parts})")
    if expected["critic_tokens"]:
        price = f", {expected['cost']:,.2f} in its currency" if expected["cost"] else ""
        lines.append(f"{count(expected['critic_tokens'])} tokens of the critic{price}")
    return lines


def _gain_text(numbers: Json) -> str:
    gain = numbers.get("gain_where_wrong")
    if gain is None:
        return ""
    spread = "" if gain["low"] is None else f" [{signed_points(gain['low'])}, {signed_points(gain['high'])}]"
    return f"{signed_points(gain['value'])}{spread} points where the student was wrong"


def _cell(numbers: Json, name: str, write: Any) -> dict[str, Any]:
    number = numbers.get(name)
    if number is None:
        return {"missing": True, "text": MISSING}
    low, high = number["low"], number["high"]
    return {"text": write(number["value"]), "interval": f"{write(low)} to {write(high)}" if low is not None else ""}


def _share(numbers: Json, place: str) -> dict[str, Any]:
    """The share of |A| in a place, beside its share of the tokens and of the first update."""
    cell = _cell(numbers, place, percent)
    beside = [(f"{place}_tokens", "of the tokens"), (f"gradient_{place}", "of the first update")]
    parts = [f"{percent(numbers[name]['value'])} {words}" for name, words in beside if name in numbers]
    return {**cell, "interval": ", ".join(parts)} if not cell.get("missing") else cell


def _what_if(found: Json) -> str:
    undecided = found.get("undecided", 0)
    if not found["spikes"] and undecided:
        return f"{undecided} tokens, and every continuation undecided"
    if not found["spikes"]:
        return "no suppressed token for which the self-teacher would write another one"
    change, correlation = found["change"], found["correlation"]
    text = f"{found['spikes']} tokens: {signed_points(change['value'])} points"
    if change["low"] is not None:
        text += f" [{signed_points(change['low'])}, {signed_points(change['high'])}]"
    if correlation["value"] is not None:
        text += f"; rank correlation with −A {signed(correlation['value'], 2)}"
        if correlation["low"] is not None:
            text += f" [{signed(correlation['low'], 2)}, {signed(correlation['high'], 2)}]"
    return text + (f"; {undecided} more undecided" if undecided else "")


def _chart(rows: Json, name: str, title: str, points: bool) -> Any:
    scale = 100.0 if points else 1.0
    intervals = [
        charts.IntervalRow(
            label=row["label"],
            colour=index,
            value=scale * number["value"],
            low=None if number["low"] is None else scale * number["low"],
            high=None if number["high"] is None else scale * number["high"],
            text=signed(scale * number["value"], 1 if points else 2),
        )
        for index, row in enumerate(rows.values())
        if (number := row["numbers"].get(name)) is not None
    ]
    if not intervals:
        return None
    return drawn(
        charts.interval_chart,
        intervals,
        title=title,
        as_percent=False,
        zero=True,
        wide={"width": 780},
        phone={"labels_above": True},
    )
