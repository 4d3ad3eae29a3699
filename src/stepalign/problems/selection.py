"""Which problems are worth training on: the paper's band as gates, one after the other. Pure functions.

"Step-aligned feedback self-distillation" (arXiv 2606.11173) keeps problems of OpenMathReasoning that a strong model
solves mostly (``pass_rate_72b_tir`` above 0.85), that its solver solves seldom but not never (Avg@16 below 5/16), that
the solver formats well, and that its critic solves by itself: without a solution of its own, a critique degenerates
into a reference solution. The paper's lower edge and formatting bound are unknown; ours are choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stepalign.config import SelectionSection
from stepalign.records import Grade, Problem, Verdict

Source = Literal["problem", "solver", "critic"]
"""The source of a gate: metadata of the problem, completions of the solver, or an attempt of the critic."""
PASS_RATE = "pass_rate_72b_tir"


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverAttempts:
    """A solver's completions of one problem."""

    problem_id: str
    verdicts: Sequence[Verdict]
    formatted: Sequence[bool]
    """Which ended by themselves, marked an answer and kept to the form that the recipe asks for."""
    texts: Sequence[str] = ()
    lengths: Sequence[int] = ()
    """Tokens."""

    @property
    def average(self) -> float:
        """Avg@n: share of correct completions; undecided ones are not correct. NaN without completions."""
        return self.verdicts.count("correct") / len(self.verdicts) if self.verdicts else math.nan

    @property
    def formatting_rate(self) -> float:
        return sum(self.formatted) / len(self.formatted) if self.formatted else math.nan


NO_ATTEMPTS = SolverAttempts(problem_id="", verdicts=(), formatted=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The measurements of one problem so far."""

    problem: Problem
    attempts: SolverAttempts = NO_ATTEMPTS
    critic_verdict: Verdict | None = None
    """The verdict on the critic's own solution; None where it was not asked or did not answer."""


@dataclass(frozen=True, slots=True)
class Gate:
    """An entry of the table."""

    name: str
    asks: Source
    label: Callable[[SelectionSection], str]
    """The condition in words, or "" where the recipe does not ask for it."""
    measure: Callable[[Evidence], float]
    """NaN where it is unknown: an unknown value does not pass, and is counted by itself."""
    passes: Callable[[SelectionSection, float], bool]


def _pass_rate(evidence: Evidence) -> float:
    value = evidence.problem.metadata.get(PASS_RATE)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # the data set writes "n/a"
        return math.nan


# In the order of their cost: what is known already, then the solver's time, then the critic's money.
GATES = (
    Gate(
        "pass_rate",
        "problem",
        lambda s: f"{PASS_RATE} > {s.pass_rate_above:g}" if s.pass_rate_above is not None else "",
        _pass_rate,
        lambda s, value: value > (s.pass_rate_above or 0.0),
    ),
    Gate(
        "not_hopeless",
        "solver",
        lambda s: f"solver's Avg@{s.num_samples} > {s.average_above:.4g}" if s.average_above >= 0 else "",
        lambda evidence: evidence.attempts.average,
        lambda s, value: value > s.average_above,
    ),
    Gate(
        "not_solved",
        "solver",
        lambda s: f"solver's Avg@{s.num_samples} < {s.average_below:.4g}" if s.average_below <= 1 else "",
        lambda evidence: evidence.attempts.average,
        lambda s, value: value < s.average_below,
    ),
    Gate(
        "formatted",
        "solver",
        lambda s: f"solver's formatting rate > {s.formatted_above:g}" if s.formatted_above >= 0 else "",
        lambda evidence: evidence.attempts.formatting_rate,
        lambda s, value: value > s.formatted_above,
    ),
    Gate(
        "critic_solves",
        "critic",
        lambda s: "critic solves it itself" if s.critic_solves else "",
        lambda evidence: Grade.of(evidence.critic_verdict or "undecided").score,
        lambda s, value: value == 1.0,
    ),
)


@dataclass(kw_only=True, slots=True)
class Passage:
    """How many problems met one gate, and what became of them."""

    name: str
    label: str
    before: int = 0
    fell: int = 0
    """Of these the value is known and outside."""
    unknown: int = 0
    """Of these the value is not known."""
    fallen: list[str] = field(default_factory=list)
    """Ids of both kinds."""

    @property
    def kept(self) -> int:
        return self.before - self.fell - self.unknown


def gates_of(section: SelectionSection, asks: Source) -> list[Gate]:
    """The gates in force that ask a source."""
    return [gate for gate in GATES if gate.asks == asks and gate.label(section)]


def pass_gates(
    evidence: Sequence[Evidence], gates: Sequence[Gate], section: SelectionSection
) -> tuple[list[Evidence], list[Passage]]:
    """The problems that pass all gates, in its order, and the passage through each."""
    kept, passages = list(evidence), []
    for gate in gates:
        passage = Passage(name=gate.name, label=gate.label(section), before=len(kept))
        through = []
        for one in kept:
            value = gate.measure(one)
            if gate.passes(section, value):
                through.append(one)
                continue
            passage.fallen.append(one.problem.problem_id)
            passage.unknown += math.isnan(value)
            passage.fell += not math.isnan(value)
        kept = through
        passages.append(passage)
    return kept, passages


def funnel_rows(num_rows: int, skipped: Mapping[str, int], passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """The funnel as plain rows: reading first, then every gate. ``before - fell - unknown = kept`` in each."""
    unusable = sum(skipped.values())
    reading = {"gate": "reading", "label": "usable, and not a duplicate", "before": num_rows, "fell": unusable}
    rows: list[dict[str, Any]] = [{**reading, "unknown": 0, "kept": num_rows - unusable, "reasons": dict(skipped)}]
    names = ("label", "before", "fell", "unknown", "kept")
    return rows + [{"gate": passage.name, **{name: getattr(passage, name) for name in names}} for passage in passages]
