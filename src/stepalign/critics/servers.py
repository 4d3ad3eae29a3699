"""Several servers of one model: each attempt goes to the least loaded one that is fit, and its outcome is booked.

A server rests as long as it asks for. One that fails while others answer rests for a moment; one that does not answer
several times in a row is down: it is tried with one call at a time, ever more rarely, and all other calls wait. Waiting
for a server costs a call no attempt, so an outage shorter than the timeout of a call loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepalign.critics.budget import Ledger
from stepalign.critics.chat import Fault, Reply, Server

logger = logging.getLogger("stepalign.critic")

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """When to call again. Decisions only: nothing sleeps, the clock is passed in.

    Full jitter: a uniform wait below ``base_seconds * 2^n``, capped, so that calls that failed together come back
    spread out. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    max_attempts: int = 20
    """Of one call."""
    retry_after_budget: float = 300.0
    """Seconds of Retry-After that one call obeys in all; longer sums fail the call."""
    outage_threshold: int = 10
    """Attempts in a row without an answer after which a server is down."""
    pause_seconds: float = 2.0
    """Until the first trial of a server that is down; doubled with each trial, up to ``cap_seconds``."""
    jitter: Callable[[float, float], float] = field(default=random.uniform)
    """(low, high) -> seconds."""

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (from 1)."""
        return self.jitter(0.0, min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, 30)))

    def wait(self, fault: Fault, *, attempts: int, obeyed: float, time_left: float) -> float | str:
        """Seconds before the next attempt of a call, or why there is none.

        Args:
            attempts: of the call so far.
            obeyed: seconds of Retry-After so far, without this fault's.
            time_left: seconds until the call's deadline.
        """
        if not fault.retryable:
            return fault.message
        if attempts >= self.max_attempts:
            return f"{fault.message} (attempt {attempts}, the last)"
        if fault.retry_after is None:
            seconds = self.backoff(attempts)
        elif obeyed + fault.retry_after > self.retry_after_budget:
            return f"{fault.message}; the server asks to wait {fault.retry_after:.0f} s, over the budget"
        else:  # jitter on top only: calls that wait for the same instant spread out, and none comes early
            seconds = fault.retry_after + self.jitter(0.0, min(1.0, self.base_seconds))
        if seconds >= time_left:
            return f"{fault.message} (no time for another attempt after {attempts})"
        return seconds


class Health:
    """Whether one server takes calls. ``announce`` gets one line when it goes down and one when it answers again."""

    def __init__(self, policy: RetryPolicy, announce: Callable[[str], None]) -> None:
        self._policy, self._announce = policy, announce
        self.in_flight = 0
        self.failures = 0
        """In a row."""
        self.rests_until = 0.0
        self._pause = policy.pause_seconds
        self._down_since: float | None = None

    def started(self, now: float) -> None:
        """A call goes to the server; to one that is down as a trial, and the next trial waits for longer."""
        self.in_flight += 1
        if self._down_since is not None:
            self._rest(now + self._pause)
            self._pause = min(self._policy.cap_seconds, 2 * self._pause)

    def answered(self, now: float) -> None:
        """The server answered, be it with a fault."""
        if self._down_since is not None:
            self._announce(f"critic answers again after {now - self._down_since:.0f} s")
            self.rests_until = now
        self.failures, self._down_since, self._pause = 0, None, self._policy.pause_seconds

    def failed(self, fault: Fault, now: float, *, alone: bool) -> None:
        """An attempt failed. Only outage faults count in a row; a server with others beside it rests at once."""
        if not fault.is_outage:
            self.answered(now)
            if fault.kind == "rate_limit":
                self._rest(now + (fault.retry_after or (0.0 if alone else self._policy.backoff(1))))
            return
        self.failures += 1
        if self._down_since is None and self.failures >= self._policy.outage_threshold:
            self._down_since = now
            self._rest(now + self._pause)
            self._announce(f"critic does not answer ({fault.message}): calls pause, trying again every few seconds")
        elif not alone:
            self._rest(now + self._policy.backoff(self.failures))

    def _rest(self, until: float) -> None:
        self.rests_until = max(self.rests_until, until)


class Slots:
    """How many calls are under way, first come first served: additive increase, multiplicative decrease, bounded.

    Source: D. Chiu and R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance", 1989.
    """

    def __init__(self, bound: int, cooldown_seconds: float = 1.0) -> None:
        self.bound, self.limit = bound, float(bound)
        self._in_use = 0
        self._cooldown, self._lowered_at = cooldown_seconds, -cooldown_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn  # its slot is counted when it is admitted
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._in_use -= 1
        self._admit()

    def raise_limit(self) -> None:
        """One more slot per round of successes."""
        self.limit = min(float(self.bound), self.limit + 1.0 / self.limit)
        self._admit()

    def lower_limit(self, now: float) -> None:
        """Half as many; one burst of refusals counts once."""
        if now - self._lowered_at >= self._cooldown:
            self.limit, self._lowered_at = max(1.0, self.limit / 2), now

    def _admit(self) -> None:
        while self._waiting and self._in_use < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._in_use += 1
                turn.set_result(None)


class Servers:
    """The servers with their health."""

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        slots: Slots,
        policy: RetryPolicy,
        announce: Callable[[str], None],
        ledger: Ledger,
    ) -> None:
        self._servers = {server: Health(policy, announce) for server in servers}
        self._slots, self._ledger = slots, ledger

    async def attempt(self, fields: Mapping[str, Any], deadline: float) -> Reply | Fault | None:
        """One HTTP request to the least loaded server; None when none took the call before the deadline.

        Args:
            deadline: on the clock of the event loop, seconds.
        """
        clock = asyncio.get_running_loop().time
        server = await self._free_server(deadline)
        if server is None:
            return None
        health, sent = self._servers[server], clock()
        health.started(sent)
        result: Reply | Fault = Fault(kind="cancelled", message="")
        try:
            result = await server.chat(fields, deadline - sent)
        finally:
            health.in_flight -= 1
            self._book(server, result, clock() - sent)
        logger.debug("%s: %s, %.2f s", server.label, getattr(result, "message", "reply"), clock() - sent)
        if isinstance(result, Reply):
            health.answered(clock())
            self._slots.raise_limit()
            return result
        if result.kind == "rate_limit":
            self._slots.lower_limit(clock())
        health.failed(result, clock(), alone=len(self._servers) == 1)
        if result.retry_after is not None and any(other.rests_until <= clock() for other in self._servers.values()):
            return replace(result, retry_after=None)  # another server may take it at once
        return result

    async def check(self, model: str) -> None:
        """Make sure that one server answers and knows the model; the others are named in the log.

        Raises:
            EndpointError: none does.
        """
        answers = await asyncio.gather(*(server.check(model) for server in self._servers))
        faults = [answer for answer in answers if answer is not None]
        if len(faults) == len(answers):
            raise faults[0]
        for fault in faults:
            logger.warning("%s (%s); going on with the other critic servers", fault.what, fault.where)

    async def close(self) -> None:
        for server in self._servers:
            await server.close()

    async def _free_server(self, deadline: float) -> Server | None:
        """The least loaded server that is not resting, as soon as there is one."""
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            ready = [(h.in_flight, h.failures, server) for server, h in self._servers.items() if h.rests_until <= now]
            if ready:
                return min(ready, key=lambda found: found[:2])[2]
            wait = min(health.rests_until for health in self._servers.values()) - now
            if now + wait >= deadline:
                return None
            await asyncio.sleep(max(0.001, min(wait, _POLL_SECONDS)))  # a rest may end early

    def _book(self, server: Server, result: Reply | Fault, seconds: float) -> None:
        if isinstance(result, Reply):
            spent = (result.prompt_tokens, result.completion_tokens)
            self._ledger.book(server.label, seconds, prompt_tokens=spent[0], completion_tokens=spent[1])
        else:
            self._ledger.book(server.label, seconds, fault=result.kind, status=result.status)
