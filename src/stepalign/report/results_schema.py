"""results.json (docs/formats.md) as records, and the words for its names.

An unfinished comparison has empty parts and values that are None: nothing is measured there yet, which is never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from stepalign.report.text import MISSING, finite, listing

Json = Mapping[str, Any]
Number = float | None
Points = Sequence[Mapping[str, Number]]

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
METRIC_FAMILIES = {
    "pass": ("Pass", "chance that at least one of k completions is right, unbiased from n"),
    "maj": ("Maj", "the most frequent answer of k completions is right"),
    "avg": ("Avg", "share of completions that are right"),
    "mean_length": ("Length", "tokens per completion"),
    "truncated_share": ("Truncated", "share of completions cut off at the length limit"),
}
"""Metrics of the results table: heading and explanation."""


class Record(dict[str, Any]):
    """A row of results.json (docs/formats.md): its keys are attributes, None where the file has none."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    name: str
    label: str
    colour: int
    """Index into the palette, the same wherever the arm appears; -1 is the untrained solver."""
    about: str = ""
    trained: bool | None = None
    """False where no step of its runs had a gradient: its numbers are those of the untrained solver."""
    runs: tuple[Record, ...] = ()
    """With ``totals``: every number of a run by its name, those of its critic as ``critic.calls``, ...."""
    config_diff: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    kind: str = "comparison"
    version: str = ""
    revision: str = ""
    recipe: str = MISSING
    model: str = ""
    seeds: Sequence[int] = ()
    num_samples: int | None = None
    temperature: Number = None
    confidence: float = 0.95
    checkpoint_rule: str = "last"
    """The rule in force: its table comes first."""
    problems: Mapping[str, int] = field(default_factory=dict)
    budget: Json = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    """In the order of the file; the untrained solver first, where it was measured."""
    metrics: tuple[Record, ...] = ()
    """A ``seed`` of None is all seeds pooled; so for curves."""
    paired: tuple[Record, ...] = ()
    curves: tuple[Record, ...] = ()
    training: tuple[Record, ...] = ()
    timings: Mapping[str, Number] = field(default_factory=dict)
    peak_memory_bytes: Number = None
    failures: Mapping[str, str] = field(default_factory=dict)
    damage: Sequence[Json] = ()
    """Files that cannot be read, as ``arm``, ``seed`` and ``reason``."""

    @property
    def trained(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.name != "base"]

    @property
    def level(self) -> str:
        """The confidence level of the intervals, as in ``95%``."""
        return f"{100 * self.confidence:g}%"

    @property
    def are_runs(self) -> bool:
        """Whether these are training runs that were not planned as a comparison."""
        return self.kind == "runs"

    def arm(self, name: str) -> Arm:
        return next((arm for arm in self.arms if arm.name == name), Arm(name=name, label=name, colour=-1))


def read_results(data: Json) -> Results:
    """The records of a results.json. Unknown keys are ignored; null and NaN count as absent."""
    data = finite(dict(data))
    known = {entry.name for entry in fields(Results)}
    lists = {
        name: tuple(Record({"set": set_name, "checkpoint_rule": "last", **row}) for row in data.get(name) or ())
        for name, set_name in (("metrics", "test"), ("paired", "test"), ("curves", "validation"), ("training", ""))
    }
    values: dict[str, Any] = {name: value for name, value in data.items() if name in known and value is not None}
    values |= {**lists, "arms": tuple(_arms(data.get("arms") or (), lists["metrics"]))}
    return Results(**values)


def _arms(listed: Sequence[Json], metrics: Sequence[Record]) -> list[Arm]:
    arms = [
        Arm(
            name=row["name"],
            label=(row.get("label") or row["name"]) + " (did not train)" * (row.get("trained") is False),
            trained=row.get("trained"),
            colour=-1 if row["name"] == "base" else index,
            about=CONDITIONS.get(row.get("condition", ""), ""),
            runs=tuple(map(_run, row.get("runs") or ())),
            config_diff=row.get("config_diff") or {},
        )
        for index, row in enumerate(listed)
    ]
    for name in dict.fromkeys(row.arm for row in metrics):
        if name in {arm.name for arm in arms}:
            continue
        if name == "base":
            arms.insert(0, Arm(name=name, label="Untrained solver", colour=-1, about="before any training"))
        else:
            arms.append(Arm(name=name, label=name, colour=len(arms)))
    return arms


def _run(row: Json) -> Record:
    critic = row.get("critic") or {}
    totals = {**row, **{f"critic.{name}": value for name, value in critic.items()}}
    totals = {name: value for name, value in totals.items() if isinstance(value, int | float)}
    parts = {name: row.get(name) or {} for name in ("seconds_by_phase", "masked", "warnings")}
    return Record({"path": MISSING, "strip": [], **row, **parts, "totals": totals, "findings": critic.get("findings")})


def metric_family(name: str) -> str:
    return name.split("@", 1)[0]


def metric_label(name: str) -> str:
    """``avg@12`` as ``Avg@12``; other names as words."""
    family, _, k = name.partition("@")
    words = METRIC_FAMILIES[family][0] if family in METRIC_FAMILIES else family.replace("_", " ").capitalize()
    return f"{words}@{k}" if k else words


def is_share(name: str) -> bool:
    return metric_family(name) not in ("mean_length", "hedge_words")


def seeds_text(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {listing([str(seed) for seed in seeds])}" if seeds else "no seed"


def mean_of(values: Iterable[Number]) -> Number:
    """The mean of the values that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
