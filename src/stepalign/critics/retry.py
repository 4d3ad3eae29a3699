"""When to call again: which faults are worth another attempt, how long to wait, and when to pause altogether.

Pure decisions: no sleeping, no sockets, the clock is passed in. The waiting itself is in ``endpoint.py``. The client
library's own retries are off, because two stacked layers multiply (45 calls per 429 have been measured elsewhere).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

FaultKind = Literal[
    "rate_limit", "server", "client", "connect", "timeout", "cut_body", "bad_json", "empty_choices", "bad_reply"
]
RETRIED_STATUS = frozenset({408, 409, 429})


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One failed attempt."""

    kind: FaultKind
    message: str
    """One line, free of secrets."""
    status: int | None = None
    """HTTP status, None where no response came."""
    retry_after: float | None = None
    """Seconds the server asked us to stay away."""

    @property
    def retryable(self) -> bool:
        return self.kind != "client"

    @property
    def is_outage(self) -> bool:
        """Whether the server seems to be down; one that turns us away for now is alive."""
        return self.kind in ("connect", "timeout", "cut_body", "server") and self.retry_after is None


def fault_of_status(status: int, message: str, retry_after: float | None = None) -> Fault:
    """The fault behind an HTTP error status: 408, 409, 429 and 5xx are worth another attempt."""
    if status == 429 or (status == 503 and retry_after is not None):
        kind: FaultKind = "rate_limit"
    elif status >= 500 or status in RETRIED_STATUS:
        kind = "server"
    else:
        kind = "client"
    return Fault(kind=kind, message=message, status=status, retry_after=retry_after)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait from a Retry-After header (seconds or an HTTP date); None where it cannot be read.

    Args:
        value: the header.
        now: seconds since the epoch.

    Source: RFC 9110, section 10.2.3.
    """
    if not value or len(value) > 64:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if seconds == seconds and seconds != float("inf") else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How patient a call is.

    Full jitter: a uniform wait below ``base_seconds * 2^n``, capped, so that callers that failed together come back
    spread out. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    max_attempts: int = 20
    retry_after_budget: float = 300.0
    """Seconds of Retry-After one call obeys in all; a server that asks for more fails the call, it is never hurried."""
    jitter: Callable[[float, float], float] = field(default=random.uniform)
    """(low, high) -> seconds."""

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (from 1)."""
        return self.jitter(0.0, min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, 30)))


@dataclass(kw_only=True, slots=True)
class CallState:
    """The attempts of one call. ``give_up`` says why there will be no other."""

    policy: RetryPolicy
    deadline: float
    """On the caller's monotonic clock, seconds."""
    attempts: int = 0
    waited_for_server: float = 0.0
    give_up: str = ""

    def wait_after(self, fault: Fault, now: float) -> float | None:
        """Seconds to wait before the next attempt, or None when this was the last (see ``give_up``)."""
        if not fault.retryable:
            return self._stop(fault.message)
        if self.attempts >= self.policy.max_attempts:
            return self._stop(f"{fault.message} (attempt {self.attempts}, the last)")
        if fault.retry_after is None:
            wait = self.policy.backoff(self.attempts)
        else:
            self.waited_for_server += fault.retry_after
            if self.waited_for_server > self.policy.retry_after_budget:
                return self._stop(
                    f"{fault.message}; the server asks to wait {fault.retry_after:.0f} s, over the budget"
                )
            # Jitter on top only: everyone told "2 seconds" must not come back in the same instant, nor early.
            wait = fault.retry_after + self.policy.jitter(0.0, min(1.0, self.policy.base_seconds))
        if now + wait >= self.deadline:
            return self._stop(f"{fault.message} (no time for another attempt after {self.attempts})")
        return wait

    def _stop(self, reason: str) -> None:
        self.give_up = reason


class CircuitBreaker:
    """Pauses every call when the server seems to be down, and lets one through at a time to see whether it is back.

    Opens after ``threshold`` outage faults in a row within ``window_seconds``; each failed trial doubles the pause.

    Args:
        announce: called with one line when the pause begins and when it ends.
    """

    def __init__(
        self,
        *,
        threshold: int = 10,
        window_seconds: float = 30.0,
        pause_seconds: float = 2.0,
        max_pause_seconds: float = 30.0,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.threshold = threshold
        self.window_seconds = window_seconds
        self.pause_seconds = pause_seconds
        self.max_pause_seconds = max_pause_seconds
        self.announce = announce
        self._failures: list[float] = []
        self._opened_at: float | None = None
        self._pause = pause_seconds
        self._next_trial = 0.0
        self._trial_running = False

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    def wait(self, now: float) -> float:
        """Seconds until this call may go; 0 lets it go now. While open, only one trial goes at a time."""
        if self._opened_at is None:
            return 0.0
        if self._trial_running:
            return self._pause
        if now < self._next_trial:
            return self._next_trial - now
        self._trial_running = True
        return 0.0

    def cancelled(self) -> None:
        """The call that was let through ended without an answer about the server."""
        self._trial_running = False

    def succeeded(self, now: float) -> None:
        """The server answered."""
        self._failures.clear()
        if self._opened_at is not None:
            self.announce(f"critic answers again after {now - self._opened_at:.0f} s")
        self._opened_at = None
        self._trial_running = False
        self._pause = self.pause_seconds

    def failed(self, fault: Fault, now: float) -> None:
        """An attempt failed. Only outage faults count; any other answer shows that the server is up."""
        if not fault.is_outage:
            self.succeeded(now)
            return
        if self._opened_at is not None:
            # Late failures of calls sent before the pause say nothing new.
            if self._trial_running:
                self._trial_running = False
                self._pause = min(self.max_pause_seconds, 2 * self._pause)
                self._next_trial = now + self._pause
            return
        self._failures = [at for at in self._failures if now - at <= self.window_seconds] + [now]
        if len(self._failures) >= self.threshold:
            self._opened_at = now
            self._next_trial = now + self._pause
            self.announce(f"critic does not answer ({fault.message}): calls pause, trying again every few seconds")
