"""The cost of a critic, and where it stops.

With a file the ledger outlives the process: one JSON line per HTTP attempt, appended as the attempt ends, so that a
killed run knows what it has paid and a budget holds for the whole run.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepalign.records import Critique
from stepalign.storage.jsonl import JsonLines, read_json_lines

_REASON_DETAIL = re.compile(r"\s*[:;(]")
_REPORTED = (
    *("calls", "ok", "malformed", "failed", "cached", "attempts", "prompt_tokens", "completion_tokens"),
    *("cached_prompt_tokens", "cached_completion_tokens", "cost"),
)


@dataclass(kw_only=True, slots=True)
class Ledger:
    """Counts of one run's critic.

    Attempts, tokens and faults are those paid for in this run, earlier processes included where there is a file.
    Counters of critiques cover this process only. Tokens of cached replies, paid for elsewhere, are counted apart.
    """

    calls: int = 0
    """Critiques asked for; ok + malformed + failed once all are answered."""
    ok: int = 0
    malformed: int = 0
    failed: int = 0
    cached: int = 0
    """Calls answered without an attempt of their own."""
    attempts: int = 0
    """HTTP requests."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Failed attempts by kind."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Malformed and failed calls by reason."""
    asked_again: Counter[str] = field(default_factory=Counter)
    """Replies that could not be used and were asked for, and paid, a second time, by reason."""
    prices: Mapping[str, Any] = field(default_factory=dict)
    """``{"prompt": p, "completion": c}`` per million tokens, or such a table for each model; empty: unknown."""
    model: str = ""
    """Of attempts that name none."""
    token_budget: int | None = None
    cost_budget: float | None = None
    """In the currency of the prices."""
    path: Path | None = None
    """The file; made with the first attempt."""
    _file: JsonLines | None = None
    _tokens: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By model: prompt and completion tokens."""

    def __post_init__(self) -> None:
        if self.path is not None:
            self._file = JsonLines(self.path)
            for row in read_json_lines(self.path):
                self._count(row["fault"], row.get("model", ""), row["prompt_tokens"], row["completion_tokens"])

    @property
    def cost(self) -> float | None:
        """Paid tokens times the prices of their models, in their currency; None without prices."""
        tokens = self._tokens or {self.model: (0, 0)}
        parts = [cost(prices_of(self.prices, model), *paid) for model, paid in tokens.items()]
        return None if None in parts else sum(filter(None, parts), start=0.0)

    @property
    def trouble(self) -> int:
        """Attempts that failed, and replies asked for again."""
        return sum(self.faults.values()) + sum(self.asked_again.values())

    @property
    def spent(self) -> str:
        """The budget that is used up, in words; "" while none is."""
        tokens, paid = self.prompt_tokens + self.completion_tokens, self.cost
        if self.token_budget is not None and tokens >= self.token_budget:
            return f"the budget is spent: {tokens} of {self.token_budget} tokens"
        if self.cost_budget is not None and paid is not None and paid >= self.cost_budget:
            return f"the budget is spent: a cost of {paid:.4g} of {self.cost_budget:g}"
        return ""

    def book(
        self,
        server: str,
        seconds: float,
        *,
        fault: str = "",
        status: int | None = None,
        model: str = "",
        paid: tuple[int, int] = (0, 0),
    ) -> None:
        """Enter one HTTP attempt, with its prompt and completion tokens. Raises OSError where it cannot be written."""
        model = model or self.model
        self._count(fault, model, *paid)
        if self._file is not None:
            row = {"time": round(time.time(), 3), "server": server, "seconds": round(seconds, 3), "fault": fault}
            row |= {"status": status, "model": model, "prompt_tokens": paid[0], "completion_tokens": paid[1]}
            self._file.append([row])

    def enter(self, critique: Critique) -> None:
        """Count one critique."""
        self.calls += 1
        self.ok += critique.status == "ok"
        self.malformed += critique.status == "malformed"
        self.failed += critique.status == "failed"
        if critique.reason:
            self.reasons[_REASON_DETAIL.split(critique.reason, maxsplit=1)[0]] += 1
        if critique.cached:
            self.cached += 1
            self.cached_prompt_tokens += critique.prompt_tokens
            self.cached_completion_tokens += critique.completion_tokens

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {name: getattr(self, name) for name in _REPORTED}
        counters = {"faults": self.faults, "reasons": self.reasons, "asked_again": self.asked_again}
        return numbers | {name: dict(counter) for name, counter in counters.items()}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _count(self, fault: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        model = model or self.model
        before = self._tokens.get(model, (0, 0))
        self._tokens[model] = before[0] + prompt_tokens, before[1] + completion_tokens
        self.attempts += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if fault:
            self.faults[fault] += 1


def prices_of(prices: Mapping[str, Any], model: str) -> Mapping[str, float]:
    """The prices of a model, in a table for all models or one for each; empty: unknown."""
    if not any(isinstance(one, Mapping) for one in prices.values()):
        return prices
    return found if isinstance(found := prices.get(model, {}), Mapping) else {}


def cost(prices: Mapping[str, float], prompt_tokens: int, completion_tokens: int) -> float | None:
    """Tokens times prices per million; None without prices."""
    if not prices:
        return None
    return (prompt_tokens * prices["prompt"] + completion_tokens * prices["completion"]) / 1e6
