from __future__ import annotations

from email.utils import formatdate

import pytest

from stepalign.critics.retry import (
    CallState,
    CircuitBreaker,
    Fault,
    RetryPolicy,
    fault_of_status,
    parse_retry_after,
)

DOWN = Fault(kind="connect", message="cannot connect")
UPPER = RetryPolicy(jitter=lambda low, high: high)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        (formatdate(1_000_030, usegmt=True), 30.0),
        (formatdate(999_000, usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("9" * 100, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, now=1_000_000.0) == seconds


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_retried_statuses(status: int) -> None:
    assert fault_of_status(status, "").retryable


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_statuses_that_stay(status: int) -> None:
    assert not fault_of_status(status, "").retryable


def test_backoff_doubles_up_to_the_cap() -> None:
    assert [UPPER.backoff(n) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert UPPER.backoff(10_000) == 30
    waits = [RetryPolicy().backoff(3) for _ in range(200)]
    assert 0 <= min(waits) < 0.5 < 1.5 < max(waits) <= 2


def test_a_call_waits_as_long_as_the_server_asks_within_its_budget() -> None:
    state = CallState(policy=RetryPolicy(jitter=lambda low, high: low, retry_after_budget=10), deadline=1000.0)
    state.attempts = 1
    assert state.wait_after(fault_of_status(429, "slow down", 6.0), now=0.0) == 6.0
    assert state.wait_after(fault_of_status(429, "slow down", 6.0), now=6.0) is None
    assert "over the budget" in state.give_up


def test_a_call_gives_up_on_its_last_attempt_its_deadline_or_a_fault_that_stays() -> None:
    state = CallState(policy=RetryPolicy(max_attempts=2), deadline=100.0, attempts=2)
    assert state.wait_after(DOWN, now=0.0) is None
    assert "the last" in state.give_up
    state = CallState(policy=UPPER, deadline=100.0, attempts=5)
    assert state.wait_after(DOWN, now=80.0) == 8
    assert state.wait_after(DOWN, now=92.0) is None
    assert "no time" in state.give_up
    state = CallState(policy=UPPER, deadline=100.0, attempts=1)
    assert state.wait_after(fault_of_status(400, "HTTP 400: no"), now=0.0) is None
    assert state.give_up == "HTTP 400: no"


def breaker(lines: list[str]) -> CircuitBreaker:
    return CircuitBreaker(threshold=3, window_seconds=30, pause_seconds=2, max_pause_seconds=5, announce=lines.append)


def test_breaker_opens_tries_one_call_at_a_time_and_closes_with_one_line_each() -> None:
    lines: list[str] = []
    circuit = breaker(lines)
    for now in (0.0, 1.0, 2.0):
        assert circuit.wait(now) == 0
        circuit.failed(DOWN, now)
    assert circuit.is_open
    assert circuit.wait(3.0) == 1.0
    assert circuit.wait(4.0) == 0  # the trial
    assert circuit.wait(4.0) > 0  # nobody else meanwhile
    circuit.failed(DOWN, 4.5)
    assert circuit.wait(8.4) > 0  # the pause has doubled
    assert circuit.wait(8.5) == 0
    circuit.cancelled()
    assert circuit.wait(8.5) == 0
    circuit.succeeded(9.0)
    assert [circuit.wait(9.0), circuit.wait(9.0)] == [0, 0]
    assert len(lines) == 2
    assert "does not answer" in lines[0]
    assert "again after 7 s" in lines[1]


def test_breaker_counts_only_outages_in_a_row_and_in_time() -> None:
    circuit = breaker([])
    for now in range(0, 100, 20):
        circuit.failed(DOWN, float(now))  # too far apart
    assert not circuit.is_open
    for now in range(100, 110):
        circuit.failed(DOWN if now % 2 else fault_of_status(429, "", 1.0), float(now))  # the server is alive
    assert not circuit.is_open
    for now in range(110, 113):
        circuit.failed(fault_of_status(502, ""), float(now))
    assert circuit.is_open
