"""What every arm cost, where its time went, and in which keys its configuration differs."""

from __future__ import annotations

import json

from stepalign.report.results_schema import (
    Arm,
    Json,
    arms_of,
    mean_of,
    trained,
)
from stepalign.report.text import (
    MISSING,
    count,
    number,
    percent,
    seconds,
)


def cost_rows(results: Json) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """Per trained arm: (heading, text) of every cost, as the mean over its runs."""
    out = []
    for arm in trained(arms_of(results)):
        critics = [run.get("critic") or {} for run in arm.runs]
        cost = mean_of([number(critic.get("cost")) for critic in critics])
        cells = [
            ("Optimizer steps", count(mean_of([number(run.get("steps")) for run in arm.runs]))),
            ("Rollouts", count(mean_of([number(run.get("rollouts")) for run in arm.runs]))),
            ("Completion tokens", count(mean_of([number(run.get("completion_tokens")) for run in arm.runs]))),
            ("Critic calls", count(mean_of([number(critic.get("calls")) for critic in critics]))),
            ("Cached", count(mean_of([number(critic.get("cached")) for critic in critics]))),
            ("Critic tokens in", count(mean_of([number(critic.get("prompt_tokens")) for critic in critics]))),
            ("Critic tokens out", count(mean_of([number(critic.get("completion_tokens")) for critic in critics]))),
            ("Critic cost", MISSING if cost is None else f"{cost:,.2f}"),
            ("Training time", seconds(mean_of([number(run.get("seconds")) for run in arm.runs]))),
        ]
        out.append((arm, cells))
    return out


def phase_rows(results: Json) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Where the time of an arm's runs went, mean over seeds; what no phase claims is called "other"."""
    out = []
    for arm in trained(arms_of(results)):
        tables = [run.get("seconds_by_phase") or {} for run in arm.runs]
        names = list(dict.fromkeys(name for table in tables for name in table))
        parts = [(str(name), mean_of([number(table.get(name)) for table in tables])) for name in names]
        total = mean_of([number(run.get("seconds")) for run in arm.runs])
        rest = None if total is None else total - sum(value or 0.0 for _, value in parts)
        if rest is not None and rest > 0.05:
            parts.append(("other", rest))
        if parts:
            out.append((arm.label, parts))
    return out


def config_rows(results: Json) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """For each arm the keys, with their values, in which it differs from the shared configuration."""
    arms = trained(arms_of(results))
    return [(arm, [(str(key), _setting(value)) for key, value in arm.config_diff.items()]) for arm in arms]


def _setting(value: object) -> str:
    """A value as a recipe writes it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | list | dict) else str(value)


def finding_rows(results: Json) -> tuple[list[str], list[tuple[Arm, list[str]]], list[Arm]]:
    """Names of what was found wrong with critiques; per arm how many critiques have it; arms that took them unread."""
    asked = [arm for arm in trained(arms_of(results)) if any(_calls(run) for run in arm.runs)]
    found = {arm.name: [(run.get("critic") or {}).get("findings") for run in arm.runs] for arm in asked}
    found = {name: [table for table in tables if table is not None] for name, tables in found.items()}
    arms = [arm for arm in asked if found[arm.name]]
    names = list(dict.fromkeys(name for tables in found.values() for table in tables for name in table))
    rows = []
    for arm in arms:
        calls = sum(_calls(run) for run in arm.runs)
        amounts = [sum(number(table.get(name)) or 0.0 for table in found[arm.name]) for name in names]
        rows.append((arm, [count(calls), *(f"{count(n)} ({percent(n / calls)})" if n else "0" for n in amounts)]))
    return [name.replace("_", " ") for name in names], rows, [arm for arm in asked if not found[arm.name]]


def _calls(run: Json) -> float:
    return number((run.get("critic") or {}).get("calls")) or 0.0
