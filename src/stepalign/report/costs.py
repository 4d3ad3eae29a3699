"""What every arm cost, where its time went, and in which keys its configuration differs."""

from __future__ import annotations

from stepalign.report.reading import (
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
            ("Wall time", seconds(mean_of([number(run.get("seconds")) for run in arm.runs]))),
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


def config_table(results: Json) -> tuple[list[str], list[tuple[Arm, list[str]]]]:
    """Keys in which any two arms differ, and each arm's value of them (missing: the shared configuration's)."""
    arms = trained(arms_of(results))
    keys = list(dict.fromkeys(key for arm in arms for key in arm.config_diff))
    rows = [
        (arm, [str(arm.config_diff[key]) if key in arm.config_diff else "as shared" for key in keys]) for arm in arms
    ]
    return keys, rows
