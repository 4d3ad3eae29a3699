from __future__ import annotations

from email.utils import formatdate

import pytest

from stepalign.critics.chat import ChatFault, fault_of_status, parse_retry_after
from stepalign.critics.servers import Health, RetryPolicy

DOWN = ChatFault(kind="connect", message="cannot connect")
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
    policy = RetryPolicy(jitter=lambda low, high: low, retry_after_budget=10)
    slow = fault_of_status(429, "slow down", 6.0)
    assert policy.wait(slow, attempts=1, obeyed=0.0, time_left=1000.0) == 6.0
    assert "over the budget" in str(policy.wait(slow, attempts=1, obeyed=6.0, time_left=994.0))


def test_a_call_gives_up_on_its_last_attempt_its_deadline_or_a_fault_that_stays() -> None:
    last = RetryPolicy(max_attempts=2).wait(DOWN, attempts=2, obeyed=0.0, time_left=100.0)
    assert "the last" in str(last)
    assert UPPER.wait(DOWN, attempts=5, obeyed=0.0, time_left=20.0) == 8
    assert "no time" in str(UPPER.wait(DOWN, attempts=5, obeyed=0.0, time_left=8.0))
    stays = fault_of_status(400, "HTTP 400: no")
    assert UPPER.wait(stays, attempts=1, obeyed=0.0, time_left=100.0) == "HTTP 400: no"


def health(lines: list[str]) -> Health:
    return Health(RetryPolicy(outage_threshold=3, pause_seconds=2, cap_seconds=5), lines.append)


def test_a_server_that_is_down_is_tried_with_one_call_at_a_time_and_announced_with_one_line_each() -> None:
    lines: list[str] = []
    server = health(lines)
    for now in (0.0, 1.0, 2.0):
        assert server.rests_until <= now
        server.started(now)
        server.failed(DOWN, now, alone=True)
    assert server.rests_until == 4.0
    server.failed(DOWN, 3.0, alone=True)  # late failures of calls sent before the pause
    assert server.rests_until == 4.0
    server.started(4.0)  # the trial
    assert server.rests_until == 6.0  # no other call meanwhile
    server.failed(DOWN, 4.5, alone=True)
    server.started(6.0)
    assert server.rests_until == 10.0  # the pause has doubled
    server.started(10.0)
    assert server.rests_until == 15.0  # up to the cap
    server.answered(11.0)
    assert server.rests_until == 11.0
    assert len(lines) == 2
    assert "does not answer" in lines[0]
    assert "again after 9 s" in lines[1]
    server.started(12.0)
    assert server.rests_until <= 12.0


def test_only_outages_in_a_row_count() -> None:
    lines: list[str] = []
    server = health(lines)
    for now in range(100, 110):
        server.failed(DOWN if now % 2 else fault_of_status(429, "", 1.0), float(now), alone=True)  # it is alive
    assert not lines
    assert server.rests_until == 109.0  # as long as it asked for
    for now in range(110, 113):
        server.failed(fault_of_status(502, ""), float(now), alone=True)
    assert len(lines) == 1


def test_a_server_with_others_beside_it_rests_after_each_failure() -> None:
    server = Health(UPPER, lambda line: None)
    server.failed(DOWN, 0.0, alone=False)
    server.failed(DOWN, 1.0, alone=False)
    assert server.rests_until == 2.0
    server.failed(fault_of_status(429, ""), 3.0, alone=False)
    assert server.rests_until == 3.5
