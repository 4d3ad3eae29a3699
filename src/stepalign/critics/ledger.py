"""What a critic was asked and what it cost.

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


@dataclass(kw_only=True, slots=True)
class Ledger:
    """Counts of one run's critic.

    Attempts, tokens and faults are those paid for in this run, earlier processes included where there is a file;
    everything that counts critiques counts those of this process. Tokens of cached replies stand apart: they were paid
    for elsewhere.
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
    prices: Mapping[str, float] | None = None
    """``{"prompt": p, "completion": c}`` per million tokens."""
    path: Path | None = None
    """The file; made with the first attempt."""
    _file: JsonLines | None = None

    def __post_init__(self) -> None:
        if self.path is None:
            return
        self._file = JsonLines(self.path)
        for row in read_json_lines(self.path):
            self._count(row["fault"], row["prompt_tokens"], row["completion_tokens"])

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """Paid tokens times the prices, in their currency; None without prices."""
        return cost(self.prices, self.prompt_tokens, self.completion_tokens)

    def book(
        self,
        *,
        server: str,
        seconds: float,
        fault: str = "",
        status: int | None = None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """Enter one HTTP attempt."""
        self._count(fault, prompt_tokens, completion_tokens)
        if self._file is None:
            return
        row = {
            "time": round(time.time(), 3),
            "server": server,
            "seconds": round(seconds, 3),
            "fault": fault,
            "status": status,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        self._file.append([row])

    def enter(self, critique: Critique) -> None:
        """Count one critique."""
        self.calls += 1
        setattr(self, critique.status, getattr(self, critique.status) + 1)
        if critique.reason:
            self.reasons[_REASON_DETAIL.split(critique.reason, maxsplit=1)[0]] += 1
        if critique.cached:
            self.cached += 1
            self.cached_prompt_tokens += critique.prompt_tokens
            self.cached_completion_tokens += critique.completion_tokens

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ["calls", "ok", "malformed", "failed", "cached", "attempts", "prompt_tokens", "completion_tokens"]
        names += ["cached_prompt_tokens", "cached_completion_tokens", "cost"]
        numbers = {name: getattr(self, name) for name in names}
        return {**numbers, "faults": dict(self.faults), "reasons": dict(self.reasons)}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _count(self, fault: str, prompt_tokens: int, completion_tokens: int) -> None:
        self.attempts += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if fault:
            self.faults[fault] += 1


def cost(prices: Mapping[str, float] | None, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Tokens times prices per million; None without prices."""
    if not prices:
        return None
    return (prompt_tokens * prices["prompt"] + completion_tokens * prices["completion"]) / 1e6
