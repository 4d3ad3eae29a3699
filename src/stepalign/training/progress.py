"""The progress of a run: what it has done so far, as every checkpoint keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepalign.rollouts.stream import Batch

PHASES = ("sampling", "feedback", "learning", "evaluation", "saving")


@dataclass(slots=True)
class Progress:
    """The progress of a run; it is part of every checkpoint."""

    step: int = 0
    """Finished optimizer steps."""
    num_rollouts: int = 0
    num_tokens: int = 0
    """Completion tokens sampled for training."""
    seconds: float = 0.0
    """Spent in training phases, evaluation and saving left out."""
    seconds_by_phase: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    critic: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    guards_spoken: list[str] = field(default_factory=list)
    roll_backs: list[dict[str, Any]] = field(default_factory=list)
    """Steps that broke the run and were taken back: ``step`` to ``to``, the guard and its sentence."""
    rate_factor: float = 1.0
    """Of the learning rate, after roll-backs."""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def load(self, fields: Mapping[str, Any]) -> None:
        """Take over what ``as_json`` gave."""
        for name, value in fields.items():
            if name not in self.__slots__:  # of an older version
                continue
            setattr(self, name, Counter(value) if isinstance(getattr(self, name), Counter) else value)

    def count(self, batch: Batch, paid: Mapping[str, int]) -> dict[str, float]:
        """Add a batch, and return the totals that stand beside its numbers.

        Args:
            paid: attempts and tokens that a served critic has cost so far.
        """
        self.num_rollouts += len(batch.rollouts)
        self.num_tokens += int(batch.numbers["num_tokens"])
        self.masked += batch.masked
        for critique in batch.critiques:
            self.critic["calls"] += 1
            self.critic[critique.status] += 1
            self.critic["cached"] += critique.cached
            self.critic["retries"] += critique.retries
            self.findings.update(critique.findings)
        for name, count in paid.items():
            self.critic[name] = count
        return {
            "masked": float(sum(batch.masked.values())),
            "total_rollouts": float(self.num_rollouts),
            "total_tokens": float(self.num_tokens),
            "seconds": self.seconds,
        }
