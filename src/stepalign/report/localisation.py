"""Localisation numbers of a signal.json as a table: one row per number, one column per context."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from stepalign.report.results import Cell
from stepalign.report.results_schema import (
    Json,
    find_by,
    rows_of,
)
from stepalign.report.text import (
    MISSING,
    count,
    decimal,
    number,
    number_of,
    percent,
    signed,
)

LOCALISATION_LABELS = {
    "share_of_abs_signal_in_wrong_step": "Share of |A| in the first wrong step",
    "share_of_kl_in_wrong_step": "Share of KL in the first wrong step",
    "mean_log_ratio_right_tokens": "Mean A on right tokens",
    "mean_log_ratio_wrong_step": "Mean A on the first wrong step",
    "mean_log_ratio_wrong_result": "Mean A on the wrong result",
    "mean_abs_log_ratio_right_tokens": "Mean |A| on right tokens",
    "share_of_right_tokens_suppressed": "Right tokens suppressed",
    "auroc_wrong_result": "AUROC, wrong result",
    "auroc_wrong_result_among_results": "AUROC, wrong result among results",
    "auroc_wrong_step": "AUROC, whole wrong step",
    "average_precision_wrong_step": "Average precision, whole wrong step",
    "auroc_first_wrong_step": "AUROC, which step is wrong first",
    "average_precision_first_wrong_step": "Average precision, which step is wrong first",
    "share_of_first_wrong_steps_found": "First wrong steps found",
    "sign_agreement": "Sign agreement",
    "gini_abs_log_ratio": "Concentration (Gini)",
    "share_of_abs_signal_on_style": "Share of |A| on manner",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalisationRow:
    label: str
    description: str
    cells: tuple[Cell, ...]
    """One per context."""
    baseline: str


def localisation_rows(signal: Json) -> tuple[list[str], list[LocalisationRow]]:
    """Localisation numbers as a table: one row per number, one column per context."""
    labels = {
        str(context.get("name")): str(context.get("label") or context.get("name"))
        for context in rows_of(signal, "contexts")
    }
    entries = rows_of(signal, "localisation")
    columns = [labels.get(str(entry.get("context")), str(entry.get("context"))) for entry in entries]
    names = list(dict.fromkeys(str(item.get("name")) for entry in entries for item in rows_of(entry, "numbers")))
    rows = []
    for name in names:
        items = [find_by(rows_of(entry, "numbers"), "name", name) for entry in entries]
        known = [item for item in items if item is not None]
        baselines = dict.fromkeys(
            _quantity(item.get("baseline"), name) for item in known if number(item.get("baseline")) is not None
        )
        rows.append(
            LocalisationRow(
                label=LOCALISATION_LABELS.get(name) or _sentence(name),
                description=next((str(item["description"]) for item in known if item.get("description")), ""),
                cells=tuple(_localisation_cell(item, entry, name) for item, entry in zip(items, entries, strict=True)),
                baseline=" / ".join(baselines) or MISSING,
            )
        )
    return columns, rows


def _localisation_cell(item: Json | None, entry: Json, name: str) -> Cell:
    if item is None or number(item.get("value")) is None:
        return Cell(text=MISSING, detail="undefined", missing=True)
    low, high = item.get("low"), item.get("high")
    interval = ""
    if number(low) is not None and number(high) is not None:
        interval = f"{_quantity(low, name)} to {_quantity(high, name)}"
    detail = f"{number_of(entry.get('num_rollouts'), 'rollout')}, {count(entry.get('num_wrong'))} of them wrong"
    if number(item.get("baseline")) is not None:
        detail += f"; baseline {_quantity(item.get('baseline'), name)}"
    return Cell(text=_quantity(item["value"], name), interval=interval, detail=detail)


def _quantity(value: Any, name: str) -> str:
    if re.search(r"share|fraction|agreement|probability", name):
        return percent(value)
    return signed(value, 3) if re.search(r"mean|sum|log_ratio", name) and "abs" not in name else decimal(value, 3)


def _sentence(name: str) -> str:
    words = name.replace("_", " ").strip()
    return re.sub(r"\bauroc\b", "AUROC", re.sub(r"\bkl\b", "KL", words[:1].upper() + words[1:], flags=re.I), flags=re.I)
