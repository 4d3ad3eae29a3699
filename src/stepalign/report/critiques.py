"""The findings in a critic's critiques: a page like a linter's, and its lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from stepalign.report.template import render_page
from stepalign.report.text import count, percent, visible
from stepalign.storage.files import write_atomically

_OUTCOMES = {"use": "used", "mask": "masked", "fall_back": "replaced by the reference"}
_CASES = {
    "A": "reproduced",
    "B": "a reason inserted",
    "C": "finished or condensed",
    "D": "corrected",
    "F": "a full solution instead",
}
_STATUS = {"copied": "copied", "edited": "edited", "missing": "left out", "added": "added"}
_POLICIES = {"use": "use", "mask": "mask", "fall_back": "fall back", "retry": "ask again"}


def write_critique_page(summary: Mapping[str, Any], path: Path) -> Path:
    """Write the page of one findings.json (docs/formats.md): one offline file."""
    write_atomically(path, critique_html(summary))
    return path


def critique_html(summary: Mapping[str, Any]) -> str:
    """The page as one HTML text."""
    values = {
        "summary": summary,
        "facts": facts(summary),
        "findings": [finding for finding in summary["findings"] if finding["count"]],
        "absent": [finding for finding in summary["findings"] if not finding["count"]],
        "cases": [(_CASES.get(case, case), amount) for case, amount in summary["cases"].items()],
        "policies": _POLICIES,
        "outcomes": _OUTCOMES,
        "statuses": _STATUS,
    }
    return render_page("critiques.html.j2", values, stylesheet="critiques.css")


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, number) of the numbers that come first."""
    rows = {
        "attempts": count(summary["attempts"]),
        "not asked for yet": count(summary["attempts"] - summary["critiques"]),
        "usable critiques": count(summary["usable"]),
        "without any finding": count(summary["without_finding"]),
        **{words: count(summary["outcomes"].get(name, 0)) for name, words in _OUTCOMES.items()},
    }
    optional = ("not asked for yet", *_OUTCOMES.values())
    rows = {name: text for name, text in rows.items() if text != "0" or name not in optional}
    rows["right steps copied verbatim"] = percent(summary["mean_verbatim_share"])
    if paid := summary["paid"]:
        rows["calls to the critic"] = count(paid["attempts"])
        rows["paid in this folder"] = _tokens(paid, "+")
        if paid["cost"] is not None:
            rows["cost"] = f"{paid['cost']:,.4f}"
    return list(rows.items())


def critique_lines(summary: Mapping[str, Any]) -> list[Text]:
    """The findings for a terminal, the gravest first."""
    total = count(summary["critiques"])
    usable = f"{count(summary['usable'])} of {total} critiques by {visible(summary['critic'])} are usable"
    lines = [Text(f"{usable}, {count(summary['without_finding'])} without any finding")]
    for finding in summary["findings"]:
        if finding["count"]:
            line = Text("  ")
            line.append(f"{count(finding['count'])} of {total} critiques {finding['summary']}", style="bold")
            line.append(": " + (_reasons(finding) or finding["teaches"][0].lower() + finding["teaches"][1:]))
            grave = finding["policy"] in ("mask", "retry")
            line.append(f" [{_POLICIES[finding['policy']]}]", style="red" if grave else "yellow")
            lines.append(line)
    if masked := sum(summary["masked"].values()):
        reasons = ", ".join(f"{amount} {name}" for name, amount in summary["masked"].items())
        lines.append(Text(f"masked: {count(masked)} ({reasons})"))
    for reason, amount in summary["skipped"].items():
        rows = "1 row of the file was" if amount == 1 else f"{count(amount)} rows of the file were"
        lines.append(Text(f"{rows} skipped: {visible(reason)}", style="yellow"))
    if paid := summary["paid"]:
        price = "" if paid["cost"] is None else f", cost {paid['cost']:,.4f}"
        lines.append(Text(f"paid: {count(paid['attempts'])} calls, {_tokens(paid, 'and')}{price}", style="dim"))
    return lines


def _tokens(paid: Mapping[str, Any], joint: str) -> str:
    return f"{count(paid['prompt_tokens'])} prompt {joint} {count(paid['completion_tokens'])} completion tokens"


def _reasons(finding: Mapping[str, Any]) -> str:
    """Why critiques never came, as far as the examples say."""
    if finding["name"] != "failed":
        return ""
    return visible("; ".join(dict.fromkeys(example["detail"] for example in finding["examples"] if example["detail"])))
