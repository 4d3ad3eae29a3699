"""Costs of every arm, its time by phase, findings in its critiques, and the keys of its configuration that differ."""

from __future__ import annotations

import json

from stepalign.report.results_schema import Arm, Number, Results, mean_of
from stepalign.report.text import MISSING, count, percent, seconds


def cost_rows(results: Results) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """Per trained arm: (heading, text) of every cost, as the mean over its runs."""
    return [(arm, _costs(arm)) for arm in results.trained]


def _costs(arm: Arm) -> list[tuple[str, str]]:
    critics = [run.critic for run in arm.runs]
    cost = mean_of(critic.cost for critic in critics)
    return [
        ("Optimizer steps", count(mean_of(run.steps for run in arm.runs))),
        ("Rollouts", count(mean_of(run.rollouts for run in arm.runs))),
        ("Completion tokens", count(mean_of(run.completion_tokens for run in arm.runs))),
        ("Critic calls", count(mean_of(critic.calls for critic in critics))),
        ("Cached", count(mean_of(critic.cached for critic in critics))),
        ("Critic tokens in", count(mean_of(critic.prompt_tokens for critic in critics))),
        ("Critic tokens out", count(mean_of(critic.completion_tokens for critic in critics))),
        ("Critic cost", MISSING if cost is None else f"{cost:,.2f}"),
        ("Training time", seconds(mean_of(run.seconds for run in arm.runs))),
    ]


def phase_rows(results: Results) -> list[tuple[str, list[tuple[str, Number]]]]:
    """Where the time of an arm's runs went, mean over seeds; time outside the phases is called "other"."""
    out = []
    for arm in results.trained:
        names = dict.fromkeys(name for run in arm.runs for name in run.seconds_by_phase)
        parts = [(name, mean_of(run.seconds_by_phase.get(name) for run in arm.runs)) for name in names]
        total = mean_of(run.seconds for run in arm.runs)
        rest = 0.0 if total is None else total - sum(value or 0.0 for _, value in parts)
        if rest > 0.05:
            parts.append(("other", rest))
        if parts:
            out.append((arm.label, parts))
    return out


def config_rows(results: Results) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """For each arm the keys, with their values as a recipe writes them, that differ from the shared configuration."""
    return [(arm, [(key, _setting(value)) for key, value in arm.config_diff.items()]) for arm in results.trained]


def _setting(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | list | dict) else str(value)


def finding_rows(results: Results) -> tuple[list[str], list[tuple[Arm, list[str]]], list[Arm]]:
    """Names of the findings in critiques; per arm how many critiques have each; arms without a look for findings."""
    asked = [arm for arm in results.trained if any(run.critic.calls for run in arm.runs)]
    found = {arm.name: [run.critic.findings for run in arm.runs if run.critic.findings is not None] for arm in asked}
    names = list(dict.fromkeys(name for tables in found.values() for table in tables for name in table))
    rows = []
    for arm in asked:
        if tables := found[arm.name]:
            calls = sum(run.critic.calls or 0.0 for run in arm.runs)
            amounts = [sum(table.get(name) or 0.0 for table in tables) for name in names]
            rows.append((arm, [count(calls), *(f"{count(n)} ({percent(n / calls)})" if n else "0" for n in amounts)]))
    return [name.replace("_", " ") for name in names], rows, [arm for arm in asked if not found[arm.name]]
