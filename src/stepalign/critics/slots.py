"""How many calls may be under way: as many as asked for, fewer while the servers turn calls away."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """How many calls are under way: additive increase, multiplicative decrease, never above the bound.

    Source: D. Chiu and R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance", 1989.
    """

    def __init__(self, bound: int, cooldown_seconds: float = 1.0) -> None:
        self.bound = bound
        self.limit = float(bound)
        self.in_use = 0
        self._cooldown = cooldown_seconds
        self._lowered_at = -cooldown_seconds
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self.in_use < int(self.limit) and not self._waiters:
            self.in_use += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter  # whoever wakes us has already counted our slot
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self.in_use -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self.in_use < int(self.limit):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_use += 1
                waiter.set_result(None)

    def raise_limit(self) -> None:
        """One more slot per round of successes."""
        self.limit = min(float(self.bound), self.limit + 1.0 / max(1.0, self.limit))
        self._wake()

    def lower_limit(self, now: float) -> None:
        """Half as many; one burst of refusals counts once."""
        if now - self._lowered_at >= self._cooldown:
            self.limit = max(1.0, self.limit / 2)
            self._lowered_at = now
