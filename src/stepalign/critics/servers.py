"""Several servers of one model: each attempt goes to the least loaded one that is fit, and its outcome is booked.

A server rests as long as it asks for. One that fails while others answer rests for a moment; one that does not answer
several times in a row is down: it is tried with one call at a time, ever more rarely, and all other calls wait. Waiting
for a server costs a call no attempt, so an outage shorter than the timeout of a call loses nothing.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepalign.critics.budget import Ledger
from stepalign.critics.chat import ChatFault, ChatReply, ChatServer
from stepalign.errors import EndpointError
from stepalign.outside import shown

_POLL_SECONDS = 0.5
_SLOW_SECONDS = 10.0
"""A failed request that took so long is reported at once, others together."""
_REPORT_SECONDS = 30.0
_CHECK_ATTEMPTS, _CHECK_SECONDS = 3, 120.0
_HINTS = (
    (re.compile(r"response_format|json_schema|guided|grammar", re.I), "--set critic.structured=false"),
    (re.compile(r"temperature", re.I), "--set critic.temperature=NUMBER, one that the model takes"),
    (re.compile(r"max_tokens|context length|too many tokens", re.I), "--set critic.max_tokens=NUMBER, a smaller one"),
    (
        re.compile(r"HTTP 40[13]"),
        "--set critic.api_key_env=NAME, a variable of the environment that holds a key for it",
    ),
    (re.compile(r"system", re.I), "--set prompts.critic=FILE, a template without the block system"),
)
"""Words of a refusal -> the change that mends it."""
_NAME_OR_URL = "check the name of the model, and the URL: it ends in /v1 for most servers"
_SNAPSHOT = re.compile(r"[-:@](?:latest|v\d+|\d{3,}[\d-]*)|@[\w.]+")


def is_same_model(asked: str, named: str) -> bool:
    """Whether a reply names the model that was asked: without folders, up to a snapshot's date, tag or revision."""
    plain = (re.split(r"[/\\]", name.lower())[-1].removesuffix(".gguf") for name in (asked, named))
    one, other = sorted(plain, key=len)
    return one == other or (other.startswith(one) and _SNAPSHOT.fullmatch(other[len(one) :]) is not None)


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

    def wait(self, fault: ChatFault, *, attempts: int, obeyed: float, time_left: float) -> float | str:
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

    def failed(self, fault: ChatFault, now: float, *, alone: bool) -> None:
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


class CallSlots:
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
    """The servers with their health.

    Args:
        asked: the model's name in requests.
        answers_as: its name in replies, where that is another one.
        announce: gets a line for trouble: an outage and its end, a refusal, and now and then the failed requests.
    """

    def __init__(
        self,
        servers: Sequence[ChatServer],
        *,
        asked: str,
        answers_as: str,
        slots: CallSlots,
        policy: RetryPolicy,
        announce: Callable[[str], None],
        ledger: Ledger,
    ) -> None:
        self._servers = {server: Health(policy, announce) for server in servers}
        self._asked, self._names = asked, [name for name in (asked, answers_as) if name]
        self._slots, self._policy, self._ledger = slots, policy, ledger
        self._announce = functools.cache(announce)  # each line once
        self._refusals: set[int | None] = set()
        self._reported, self._reported_at, self._last_fault = 0, -1.0, ""

    async def attempt(self, fields: Mapping[str, Any], deadline: float) -> ChatReply | ChatFault | None:
        """One HTTP request to the least loaded server; None when none took the call before the deadline.

        Args:
            deadline: on the clock of the event loop, seconds.
        """
        clock = asyncio.get_running_loop().time
        server = await self._free_server(deadline)
        if server is None:
            return None
        health = self._servers[server]
        health.started(clock())
        try:
            result = await self._ask(server, fields, deadline - clock())
        finally:
            health.in_flight -= 1
        if isinstance(result, ChatReply):
            health.answered(clock())
            self._slots.raise_limit()
            return result
        if result.kind == "rate_limit":
            self._slots.lower_limit(clock())
        if result.kind == "client" and result.status not in self._refusals:
            self._refusals.add(result.status)
            self._announce(f"critic refuses a request: {result.message}; critiques that are refused never come")
        health.failed(result, clock(), alone=len(self._servers) == 1)
        if result.retry_after is not None and any(other.rests_until <= clock() for other in self._servers.values()):
            return replace(result, retry_after=None)  # another server may take it at once
        return result

    async def check(self, fields: Mapping[str, Any], *, known: Collection[str]) -> dict[str, ChatReply]:
        """Replies to a request of the run, by server: one must take it; those that do not are announced.

        The request is not entered in the ledger.

        Args:
            known: labels of servers that have taken the request before; they are asked for their models only.

        Raises:
            EndpointError: no server takes it.
        """
        asked = [self._check(server, None if server.label in known else fields) for server in self._servers]
        answers = dict(zip((server.label for server in self._servers), await asyncio.gather(*asked), strict=True))
        faults = [answer for answer in answers.values() if isinstance(answer, EndpointError)]
        if len(faults) == len(answers):
            raise faults[0]
        for fault in faults:
            self._announce(f"{fault.what} ({fault.where}); going on with the other critic servers")
        return {label: answer for label, answer in answers.items() if isinstance(answer, ChatReply)}

    async def close(self) -> None:
        """Close the connections; requests that failed since the last report are reported."""
        if self._ledger.trouble > self._reported:
            self._report()
        for server in self._servers:
            await server.close()

    async def _check(self, server: ChatServer, fields: Mapping[str, Any] | None) -> EndpointError | ChatReply | None:
        """A refusal, or a stranger's reply, is an error. Another fault is one only where the model is not listed."""
        served = await server.models()
        if isinstance(served, EndpointError) or fields is None:
            return served if isinstance(served, EndpointError) else None
        attempts = 0
        while True:
            result = self._of_asked(await server.chat(fields, _CHECK_SECONDS))
            attempts += 1
            if isinstance(result, ChatReply) or result.kind == "rate_limit":
                return result if isinstance(result, ChatReply) else None
            if result.kind == "timeout" or not result.retryable or attempts == _CHECK_ATTEMPTS:
                break
            await asyncio.sleep(self._policy.backoff(attempts))
        listed = self._asked in served
        if listed and result.kind not in ("client", "other_model"):
            self._announce(f"critic lists {self._asked!r} and gives no reply yet: {result.message}")
            return None
        hint = f"it serves {', '.join(served[:5])}" if served and not listed else _NAME_OR_URL
        what = f"the critic does not serve {self._asked!r}"
        if result.kind == "other_model":
            hint = "correct critic.model; for a server that answers in another name: --set critic.answers_as=NAME"
        elif listed and result.status != 404:
            what = "the critic refuses a request of the run"
            hint = next((hint for words, hint in _HINTS if words.search(result.message)), "see docs/critics.md")
        return EndpointError(f"{what}: {result.message}", where=server.label, hint=hint)

    def _of_asked(self, result: ChatReply | ChatFault) -> ChatReply | ChatFault:
        """A reply by another model than the one asked is a fault."""
        if isinstance(result, ChatFault) or not result.model:
            return result
        if any(is_same_model(name, result.model) for name in self._names):
            return result
        who = shown(result.model)[:100]
        return ChatFault(kind="other_model", message=f"the reply is by {who!r}, asked was {self._asked!r}")

    async def _ask(self, server: ChatServer, fields: Mapping[str, Any], time_left: float) -> ChatReply | ChatFault:
        """One request, entered in the ledger."""
        clock = asyncio.get_running_loop().time
        sent, paid = clock(), (0, 0)
        result: ChatReply | ChatFault = ChatFault(kind="cancelled", message="cancelled")
        try:
            reply = await server.chat(fields, time_left)
            paid = (reply.prompt_tokens, reply.completion_tokens) if isinstance(reply, ChatReply) else paid
            result = self._of_asked(reply)
            return result
        finally:
            self._book(server, result, clock() - sent, paid)

    async def _free_server(self, deadline: float) -> ChatServer | None:
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

    def _book(self, server: ChatServer, result: ChatReply | ChatFault, seconds: float, paid: tuple[int, int]) -> None:
        fault = result if isinstance(result, ChatFault) else None
        try:
            status = fault.status if fault else None
            self._ledger.book(
                server.label, seconds, fault=fault.kind if fault else "", status=status, model=self._asked, paid=paid
            )
        except OSError as error:  # counted in this process all the same
            self._announce(f"critic: the ledger cannot be written ({error.strerror}): {self._ledger.path}")
        now = asyncio.get_running_loop().time()
        self._last_fault = fault.message if fault else self._last_fault
        self._reported_at = now if self._reported_at < 0 else self._reported_at
        patience = _SLOW_SECONDS if fault and seconds >= _SLOW_SECONDS else _REPORT_SECONDS
        if self._ledger.trouble > self._reported and now - self._reported_at >= patience:
            self._reported_at = now
            self._report()

    def _report(self) -> None:
        """One line with the counts of the run so far."""
        ledger, self._reported = self._ledger, self._ledger.trouble
        parts = []
        if failed := sum(ledger.faults.values()):
            kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in ledger.faults.most_common())
            parts = [f"{failed} of {ledger.attempts} requests failed ({kinds})", f"the last: {self._last_fault}"]
        parts += [f"{count} replies {reason} were asked for again" for reason, count in ledger.asked_again.items()]
        self._announce(f"critic: {'; '.join(part for part in parts if part != 'the last: ')}")
