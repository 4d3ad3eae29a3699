"""results.json as a reader takes it: who was compared, what was measured, and the words for both. Pure.

Everything tolerates an unfinished comparison: what is not there yet is left out or None, never a zero. Names such as
``avg@12`` are read as they stand in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepalign.report.text import (
    listing,
    number,
)

Json = Mapping[str, Any]

CONDITIONS = {
    "grpo": "A right-or-wrong reward for each rollout, compared within its group; no text feedback",
    "refsol": "The self-teacher is shown the reference solution of the problem",
    "stepalign": "The self-teacher is shown a critique that follows the solver’s own steps and corrects the first wrong"
    " one",
}

CHECKPOINT_RULES = {
    "last": "the last checkpoint of every run",
    "best_on_validation": "the checkpoint that was best on the validation set",
    "best_per_metric_on_test": "for each metric, the checkpoint that was best on the test set itself",
}

METRIC_FAMILIES = (
    ("pass", "Pass"),
    ("maj", "Maj"),
    ("avg", "Avg"),
    ("mean_length", "Length"),
    ("truncated_share", "Truncated"),
)

METRIC_HELP = {
    "pass": "chance that at least one of k completions is right, unbiased from n",
    "maj": "the most frequent answer of k completions is right",
    "avg": "share of completions that are right",
    "mean_length": "tokens per completion",
    "truncated_share": "share of completions cut off at the length limit",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    name: str
    label: str
    condition: str
    colour: int
    """Index into the palette, the same wherever the arm appears; -1 is the untrained solver."""
    about: str
    runs: tuple[Json, ...] = ()
    config_diff: Json = field(default_factory=dict)


def arms_of(results: Json) -> list[Arm]:
    """Arms in the order of the file, plus any that only the metrics know (the untrained solver comes first)."""
    listed = [arm for arm in list_of(results, "arms") if isinstance(arm, Mapping)]
    arms = [
        Arm(
            name=str(arm.get("name", f"arm {index + 1}")),
            label=str(arm.get("label") or arm.get("name") or f"arm {index + 1}"),
            condition=str(arm.get("condition", "")),
            colour=-1 if arm.get("name") == "base" else index,
            about=CONDITIONS.get(str(arm.get("condition", "")), ""),
            runs=tuple(run for run in list_of(arm, "runs") if isinstance(run, Mapping)),
            config_diff=arm.get("config_diff") or {},
        )
        for index, arm in enumerate(listed)
    ]
    known = {arm.name for arm in arms}
    for name in dict.fromkeys(str(metric.get("arm")) for metric in rows_of(results, "metrics")):
        if name == "base" and name not in known:
            base = Arm(name="base", label="Untrained solver", condition="", colour=-1, about="before any training")
            arms.insert(0, base)
        elif name not in known:
            arms.append(Arm(name=name, label=name, condition="", colour=len(arms), about=""))
    return arms


def stranger(name: str) -> Arm:
    return Arm(name=name, label=name, condition="", colour=-1, about="")


def trained(arms: Iterable[Arm]) -> list[Arm]:
    return [arm for arm in arms if arm.name != "base"]


def level_text(results: Json) -> str:
    """The confidence level of the intervals, as in ``95%``."""
    return f"{100 * (number(results.get('confidence')) or 0.95):g}%"


def metric_family(name: str) -> str:
    return name.split("@", 1)[0]


def metric_label(name: str) -> str:
    """``avg@12`` as ``Avg@12``; other names as words."""
    family, _, k = name.partition("@")
    words = dict(METRIC_FAMILIES).get(family, family.replace("_", " ").capitalize())
    return f"{words}@{k}" if k else words


def is_share(name: str) -> bool:
    return metric_family(name) not in ("mean_length", "hedge_words")


def seeds_text(seeds: Sequence[Any]) -> str:
    if not seeds:
        return "no seed"
    return f"seed{'s' * (len(seeds) > 1)} {listing([str(seed) for seed in seeds])}"


def mean_of(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def find_metric(rows: Sequence[Json], metric: str) -> Json | None:
    return find_by(rows, "metric", metric)


def find_by(rows: Sequence[Json], key: str, value: str) -> Json | None:
    return next((row for row in rows if row.get(key) == value), None)


def list_of(mapping: Json, key: str) -> list[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else []


def rows_of(mapping: Json, key: str) -> list[Json]:
    return [row for row in list_of(mapping, key) if isinstance(row, Mapping)]
