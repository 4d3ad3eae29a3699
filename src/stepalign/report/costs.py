"""Costs of every arm, its time by phase, findings in its critiques, and the keys of its configuration that differ."""

from __future__ import annotations

import json

from stepalign.report.results_schema import Arm, Number, Results, mean_of
from stepalign.report.text import count, money, percent, seconds

COSTS = {
    "Optimizer steps": ("steps", count),
    "Rollouts": ("rollouts", count),
    "Completion tokens": ("completion_tokens", count),
    "Critic calls": ("critic.calls", count),
    "Cached": ("critic.cached", count),
    "Critic tokens in": ("critic.prompt_tokens", count),
    "Critic tokens out": ("critic.completion_tokens", count),
    "Critic cost": ("critic.cost", money),
    "Training time": ("seconds", seconds),
}
"""Heading -> total of a run, and how it is written."""


def cost_rows(results: Results) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """Per trained arm: (heading, text) of every cost, as the mean over its runs."""

    def mean(arm: Arm, total: str) -> Number:
        return mean_of(run.totals.get(total) for run in arm.runs)

    return [
        (arm, [(heading, show(mean(arm, total))) for heading, (total, show) in COSTS.items()])
        for arm in results.trained
    ]


def phase_rows(results: Results) -> list[tuple[str, list[tuple[str, Number]]]]:
    """Where the time of an arm's runs went, mean over seeds; time outside the phases is called "other"."""
    out = []
    for arm in results.trained:
        names = dict.fromkeys(name for run in arm.runs for name in run.seconds_by_phase)
        parts = [(name, mean_of(run.seconds_by_phase.get(name) for run in arm.runs)) for name in names]
        total = mean_of(run.totals.get("seconds") for run in arm.runs)
        rest = 0.0 if total is None else total - sum(value or 0.0 for _, value in parts)
        if rest > 0.05:
            parts.append(("other", rest))
        if parts:
            out.append((arm.label, parts))
    return out


def strip_rows(results: Results) -> list[tuple[str, list[dict[str, float]]]]:
    """By run: its name, and the shares of the phases in equal parts of its working time."""
    runs = [(arm, run) for arm in results.trained for run in arm.runs if run.strip]
    many = {arm.name for arm, _ in runs if len(arm.runs) > 1}
    return [(f"{arm.label}, seed {run.seed}" if arm.name in many else arm.label, run.strip) for arm, run in runs]


def config_rows(results: Results) -> list[tuple[Arm, list[tuple[str, str]]]]:
    """For each arm the keys, with their values as a recipe writes them, that differ from the shared configuration."""
    return [(arm, [(key, _setting(value)) for key, value in arm.config_diff.items()]) for arm in results.trained]


def _setting(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | list | dict) else str(value)


def finding_rows(results: Results) -> tuple[list[str], list[tuple[Arm, list[str]]], list[Arm]]:
    """Names of the findings in critiques; per arm how many critiques have each; arms without a look for findings."""
    asked = [arm for arm in results.trained if any(run.totals.get("critic.calls") for run in arm.runs)]
    found = {arm.name: [run.findings for run in arm.runs if run.findings is not None] for arm in asked}
    names = list(dict.fromkeys(name for tables in found.values() for table in tables for name in table))
    rows = []
    for arm in asked:
        if tables := found[arm.name]:
            calls = sum(run.totals.get("critic.calls") or 0.0 for run in arm.runs)
            amounts = [sum(table.get(name) or 0.0 for table in tables) for name in names]
            rows.append((arm, [count(calls), *(f"{count(n)} ({percent(n / calls)})" if n else "0" for n in amounts)]))
    return [name.replace("_", " ") for name in names], rows, [arm for arm in asked if not found[arm.name]]
