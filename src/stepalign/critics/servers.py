"""Several servers of one model: each attempt goes to the least loaded one that is fit, and its outcome is booked.

An attempt that ends feeds four things: the ledger, the circuit breaker (is anybody up at all?), the number of slots
(are we too many?), and the rest that one failing server is given while the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stepalign.critics.chat import Reply, Server, read_key, secrets_of
from stepalign.critics.ledger import Ledger
from stepalign.critics.retry import CallState, CircuitBreaker, Fault, RetryPolicy
from stepalign.critics.slots import Slots
from stepalign.errors import EndpointError

logger = logging.getLogger("stepalign.critic")

_BREAKER_POLL_SECONDS = 0.5
_LIST_SECONDS = 20.0


def list_models(urls: Sequence[str], api_key_env: str | None = None) -> list[str]:
    """The models that the first server that answers offers; [] where it has no list.

    Raises:
        EndpointError: none answers, or the key is refused.
    """
    key = read_key(api_key_env)

    async def ask() -> list[str]:
        fault: EndpointError | None = None
        for url in urls:
            server = Server(url, key, secrets=secrets_of(key, urls), attempt_timeout=_LIST_SECONDS, connect_timeout=5.0)
            try:
                answer = await server.models()
            finally:
                await server.close()
            if not isinstance(answer, EndpointError):
                return answer
            fault = fault or answer
        if fault is not None:
            raise fault
        return []

    return asyncio.run(ask())


class Servers:
    """The servers with what controls their load."""

    def __init__(
        self, servers: Sequence[Server], *, slots: Slots, breaker: CircuitBreaker, policy: RetryPolicy, ledger: Ledger
    ) -> None:
        self.slots = slots
        self._servers = servers
        self._breaker, self._policy, self._ledger = breaker, policy, ledger

    async def attempt(self, fields: Mapping[str, Any], state: CallState) -> Reply | Fault:
        """One HTTP request to the least loaded server, its effect on the load control booked."""
        clock = asyncio.get_running_loop().time
        server = await self._free_server(state.deadline)
        if isinstance(server, Fault):
            return server
        state.attempts += 1
        server.in_flight += 1
        sent = clock()
        try:
            result = await server.chat(fields, state.deadline - sent)
        except BaseException:
            self._breaker.cancelled()
            self._ledger.book(server=server.label, seconds=clock() - sent, fault="cancelled")
            raise
        finally:
            server.in_flight -= 1
        now = clock()
        if isinstance(result, Reply):
            self._ledger.book(
                server=server.label,
                seconds=now - sent,
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
            )
            server.failures = 0
            self._breaker.succeeded(now)
            self.slots.raise_limit()
        else:
            self._ledger.book(server=server.label, seconds=now - sent, fault=result.kind, status=result.status)
            self._breaker.failed(result, now)
            result = self._rest(server, result, now)
        logger.debug("%s: %s, %.2f s", server.label, getattr(result, "message", "reply"), now - sent)
        return result

    async def check(self, model: str) -> None:
        """See that one server answers and knows the model; the others are named in the log.

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

    async def _free_server(self, deadline: float) -> Server | Fault:
        """The least loaded server that is not resting, once the breaker lets the call through."""
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            ready = [server for server in self._servers if server.rests_until <= now]
            if ready:
                wait = self._breaker.wait(now)
                if wait <= 0:
                    return min(ready, key=lambda server: (server.in_flight, server.failures))
            else:
                wait = min(server.rests_until for server in self._servers) - now
            if now >= deadline or (not ready and now + wait >= deadline):
                return Fault(kind="client", message="no server took the call in its time")
            # Short naps: a pause may end earlier than it looked.
            await asyncio.sleep(max(0.001, min(wait, _BREAKER_POLL_SECONDS)))

    def _rest(self, server: Server, fault: Fault, now: float) -> Fault:
        """Give a server that failed a rest; the fault as the call should see it."""
        server.failures += 1
        if fault.kind == "rate_limit":
            self.slots.lower_limit(now)
        if fault.retry_after is not None:
            server.rests_until = max(server.rests_until, now + fault.retry_after)
            if any(other.rests_until <= now for other in self._servers):
                return replace(fault, retry_after=None)  # another server may take it at once
        elif len(self._servers) > 1 and (fault.is_outage or fault.kind == "rate_limit"):
            server.rests_until = max(server.rests_until, now + self._policy.backoff(server.failures))
        return fault
