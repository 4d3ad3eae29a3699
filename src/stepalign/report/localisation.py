"""Localisation numbers of a signal.json as a table: one row per number, one column per context."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from stepalign.report.results import Cell
from stepalign.report.results_schema import Json
from stepalign.report.text import MISSING, count, decimal, number, number_of, percent, signed
from stepalign.token_signal.localisation import LABELS


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalisationRow:
    label: str
    description: str
    cells: tuple[Cell, ...]
    """One per context."""
    baseline: str


def localisation_rows(signal: Json) -> tuple[list[str], list[LocalisationRow]]:
    """Localisation numbers as a table: one row per number, one column per context."""
    labels = {context["name"]: str(context.get("label") or context["name"]) for context in signal.get("contexts") or ()}
    entries = signal.get("localisation") or ()
    columns = [labels.get(entry["context"], str(entry["context"])) for entry in entries]
    names = list(dict.fromkeys(item["name"] for entry in entries for item in entry["numbers"]))
    rows = []
    for name in names:
        items = [next((item for item in entry["numbers"] if item["name"] == name), None) for entry in entries]
        known = [item for item in items if item is not None]
        baselines = [item["baseline"] for item in known if number(item.get("baseline")) is not None]
        if baselines and all(item.get("baseline") == item["value"] in (0, 1) for item in known):
            continue  # no signal could make it another number, such as the share of the only step
        rows.append(
            LocalisationRow(
                label=LABELS.get(name) or _sentence(name),
                description=next((str(item["description"]) for item in known if item.get("description")), ""),
                cells=tuple(_cell(item, entry, name) for item, entry in zip(items, entries, strict=True)),
                baseline=" / ".join(dict.fromkeys(_quantity(value, name) for value in baselines)) or MISSING,
            )
        )
    return columns, rows


def _cell(item: Json | None, entry: Json, name: str) -> Cell:
    if item is None or number(item.get("value")) is None:
        return Cell(text=MISSING, detail="undefined", missing=True)
    low, high = item.get("low"), item.get("high")
    undefined = number(low) is None or number(high) is None
    detail = f"{number_of(entry.get('num_rollouts'), 'rollout')}, {count(entry.get('num_wrong'))} of them wrong"
    if number(item.get("baseline")) is not None:
        detail += f"; baseline {_quantity(item['baseline'], name)}"
    return Cell(
        text=_quantity(item["value"], name),
        interval="" if undefined else f"{_quantity(low, name)} to {_quantity(high, name)}",
        detail=detail,
    )


def _quantity(value: Any, name: str) -> str:
    if re.search(r"share|fraction|agreement|probability", name):
        return percent(value)
    return signed(value, 3) if re.search(r"mean|sum|log_ratio", name) and "abs" not in name else decimal(value, 3)


def _sentence(name: str) -> str:
    words = name.replace("_", " ").strip()
    return re.sub(r"\bauroc\b", "AUROC", re.sub(r"\bkl\b", "KL", words[:1].upper() + words[1:], flags=re.I), flags=re.I)
