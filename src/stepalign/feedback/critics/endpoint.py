"""A critic behind OpenAI-compatible chat endpoints: vLLM, transformers serve, llama.cpp, SGLang or a hosted model.

The critic runs its own event loop in a thread, so that a rollout's critique starts when the rollout is finished, while
the sampler goes on. Every request ends as one Critique: usable, malformed or failed, with the reason; a server's faults
never reach the caller as an exception.

A reply's way: cache -> (claim) -> slot -> breaker -> least-loaded endpoint -> attempts -> parsed critique -> cache.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import openai

from stepalign.errors import ConfigError, EndpointError
from stepalign.feedback.critics import BUDGET_SPENT, CritiqueRequest
from stepalign.feedback.critics.cache import ReplyCache, content_key
from stepalign.feedback.critics.retry import (
    CallState,
    CircuitBreaker,
    Fault,
    RetryPolicy,
    fault_of_status,
    parse_retry_after,
)
from stepalign.feedback.critique import (
    CRITIQUE_SCHEMA,
    CUT,
    ParsedCritique,
    parse_comment,
    parse_critique,
    parse_structured_critique,
)
from stepalign.feedback.prompts import load_template
from stepalign.records import Critique, CritiqueForm, CritiqueStatus, Problem, Rollout

logger = logging.getLogger("stepalign.critic")

Sees = Literal["nothing", "answer", "solution"]
T = TypeVar("T")

_CLAIM_POLL_SECONDS = 0.1
_MAX_CLAIM_POLL_SECONDS = 1.0
_BREAKER_POLL_SECONDS = 0.5
_MAX_EMPTY_REPLIES = 3
"""Empty messages one call puts up with: some servers send them when they are overloaded, some models always do."""
_REASON_DETAIL = re.compile(r"\s*[:;(]")
_USERINFO = re.compile(r"//[^/@\s]{1,512}@")


@dataclass(kw_only=True, slots=True)
class Ledger:
    """What a critic was asked and what it cost. Tokens are those paid for in this process; cached ones stand apart."""

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

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """Paid tokens times the prices (per million tokens, in their currency); None without prices."""
        if self.prices is None:
            return None
        return (self.prompt_tokens * self.prices["prompt"] + self.completion_tokens * self.prices["completion"]) / 1e6

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ["calls", "ok", "malformed", "failed", "cached", "attempts", "prompt_tokens", "completion_tokens"]
        names += ["cached_prompt_tokens", "cached_completion_tokens", "cost"]
        numbers = {name: getattr(self, name) for name in names}
        return {**numbers, "faults": dict(self.faults), "reasons": dict(self.reasons)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reply:
    """A complete chat reply."""

    content: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """How one call ended: with a reply, or with the reason why there is none."""

    reply: _Reply | None = None
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    """Paid for by this call, over all its attempts."""
    completion_tokens: int = 0
    cached: bool = False


@dataclass(slots=True, eq=False)
class _Endpoint:
    """One server."""

    client: openai.AsyncOpenAI
    label: str
    in_flight: int = 0
    rests_until: float = 0.0
    failures: int = 0


class _Slots:
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


class EndpointCritic:
    """Asks a chat model for step-aligned critiques.

    Args:
        base_urls: one or more OpenAI-compatible base URLs (``http://host:8000/v1``) that serve the same model; each
            call goes to the least loaded.
        model: the name the servers know the model by.
        api_key_env: NAME of the environment variable that holds the key; None for servers without one. The key itself
            is never stored, logged, cached or written.
        prompt_template: packaged template, file or inline Jinja text (see ``stepalign.feedback.prompts``).
        form: what the template asks for; a hint or a comment is any text, the other two are step-tagged traces.
        sees: what the critic is shown beyond question and attempt: "nothing", "answer" or "solution" (with the answer).
        structured: ask for JSON by the server's guided decoding (``response_format`` json_schema) instead of tags.
        temperature, top_p, seed, max_tokens: sampling; max_tokens bounds the critic's thinking and reply together.
        extra_body: further request fields, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        concurrency: most calls under way at once; fewer while the servers answer 429.
        timeout: seconds for a whole call with all its attempts and waits, from the moment it has a slot.
        attempt_timeout: seconds for one HTTP attempt.
        connect_timeout: seconds to reach a server.
        malformed_retries: how often a reply without a usable trace is asked again; one cut at the token limit is asked
            with twice the tokens.
        cache_path: sqlite file with replies, shared by runs and processes; None: nothing is kept.
        cache_only: answer from the cache alone; what is not in it fails.
        token_budget: no attempt starts once this many tokens are paid for (prompt and completion); those under way end.
        prices: ``{"prompt": p, "completion": c}`` per million tokens, for the ledger.
        policy, breaker: patience; the defaults suit hosted and local servers.
        announce: gets one line when the servers stop answering and when they are back.

    Raises:
        ConfigError: an argument is wrong, or the named environment variable is not set.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        model: str,
        *,
        api_key_env: str | None = None,
        prompt_template: str | Path = "scribe",
        form: CritiqueForm = "trace",
        sees: Sees = "nothing",
        structured: bool = False,
        temperature: float = 0.6,
        top_p: float | None = None,
        seed: int | None = None,
        max_tokens: int = 8192,
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 32,
        timeout: float = 900.0,
        attempt_timeout: float = 300.0,
        connect_timeout: float = 5.0,
        malformed_retries: int = 1,
        cache_path: str | Path | None = None,
        cache_only: bool = False,
        token_budget: int | None = None,
        prices: Mapping[str, float] | None = None,
        policy: RetryPolicy | None = None,
        breaker: CircuitBreaker | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        self._base_urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        if not self._base_urls and not cache_only:
            raise ConfigError("the critic has no URL", hint="give base_urls, e.g. http://127.0.0.1:8000/v1")
        if sees not in get_args(Sees):
            raise ConfigError(f"unknown critic_sees {sees!r}", hint=f"known: {', '.join(get_args(Sees))}")
        if cache_only and cache_path is None:
            raise ConfigError("a critic that answers from its cache alone needs one", hint="give cache_path")
        if concurrency < 1 or max_tokens < 1 or timeout <= 0 or attempt_timeout <= 0:
            raise ConfigError("concurrency, max_tokens, timeout and attempt_timeout of the critic must be positive")
        if prices is not None and set(prices) != {"prompt", "completion"}:
            raise ConfigError("prices of the critic need the keys 'prompt' and 'completion' (per million tokens)")

        self.name = model
        self.sees: Sees = sees
        self.template = load_template(prompt_template)
        self.ledger = Ledger(prices=prices)
        self.token_budget = token_budget
        self.cache = ReplyCache(cache_path) if cache_path is not None else None
        self._cache_only = cache_only
        self._form: CritiqueForm = form
        self._structured = structured and form in ("trace", "paraphrase")
        self._sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "max_tokens": max_tokens,
            "extra_body": dict(extra_body or {}),
            "structured": self._structured,
        }
        self._timeout, self._attempt_timeout, self._connect_timeout = timeout, attempt_timeout, connect_timeout
        self._malformed_retries = malformed_retries
        self._policy = policy or RetryPolicy()
        self._breaker = breaker or CircuitBreaker()
        self._breaker.announce = announce or logger.warning
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex}"

        key = "" if cache_only else _read_key(api_key_env)
        self._secrets = [text for text in (key, *map(_password, self._base_urls)) if len(text) >= 6]
        self._endpoints = [] if cache_only else [self._endpoint(url, key) for url in self._base_urls]
        self._slots = _Slots(concurrency)
        self._in_flight: dict[str, asyncio.Task[_Outcome]] = {}
        self._start_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="critic-cache")
        self._closed = False

    def __repr__(self) -> str:
        urls = ", ".join(redact_url(url) for url in self._base_urls)
        return f"EndpointCritic(model={self.name!r}, base_urls=[{urls}], sees={self.sees!r})"

    def __enter__(self) -> EndpointCritic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def budget_spent(self) -> bool:
        """Whether the token budget is used up; every further critique fails until a new critic is made."""
        return self.token_budget is not None and self.ledger.total_tokens >= self.token_budget

    @property
    def concurrency_now(self) -> int:
        """How many calls may be under way at the moment."""
        return int(self._slots.limit)

    def messages(self, problem: Problem, rollout: Rollout) -> list[dict[str, str]]:
        """The chat the critic is sent. Variables it may not see are not defined, so no template can leak them.

        Raises:
            ConfigError: the template asks for something it is not given.
        """
        variables: dict[str, Any] = {
            "question": problem.question,
            "attempt": rollout.text,
            "sees": self.sees,
            "structured": self._structured,
            "truncated": rollout.completion.finish_reason == "length",
        }
        if self.sees != "nothing":
            variables["answer"] = problem.answer
        if self.sees == "solution" and problem.reference is not None:
            variables["solution"] = problem.reference
        return self.template.messages(**variables)

    def submit(self, request: CritiqueRequest) -> Future[Critique]:
        """Start one critique; it runs while the caller goes on.

        Raises:
            ConfigError: the template cannot be rendered.
        """
        messages = self.messages(request.problem, request.rollout) + _second_try(request)
        return self._run(self._critique(request.rollout.rollout_id, messages))

    def critique(self, requests: Sequence[CritiqueRequest]) -> list[Critique]:
        """One critique per request, in the same order."""
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    def check(self) -> None:
        """See that the servers answer and know the model, before a run depends on them.

        One server that answers is enough; the others are named in the log.

        Raises:
            EndpointError: no server answers, the key is refused, or none serves the model.
        """
        if not self._cache_only:
            self._run(self._check()).result()

    def close(self) -> None:
        """Cancel what is under way, close connections and the cache, end the thread. May be called twice."""
        with self._start_lock:
            if self._closed:
                return
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)
        self._disk.shutdown(wait=True)
        if self.cache is not None:
            with suppress(Exception):
                self.cache.release_all(self._owner)
            self.cache.close()

    # --- the thread and its loop ---

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._start_lock:
            if self._closed:
                work.close()
                raise RuntimeError("the critic is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="critic", daemon=True)
                self._thread.start()
                if self.cache is not None:
                    asyncio.run_coroutine_threadsafe(self._keep_claims(self.cache), self._loop)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _shut_down(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.client.close()

    async def _on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        """Cache work off the loop: a busy file must not hold up the other calls."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _keep_claims(self, cache: ReplyCache) -> None:
        while True:
            await asyncio.sleep(cache.lease_seconds / 3)
            if self._in_flight:
                with suppress(Exception):
                    await self._on_disk(cache.renew, self._owner)

    # --- one critique ---

    async def _critique(self, rollout_id: str, messages: list[dict[str, str]]) -> Critique:
        try:
            outcome = await self._outcome(messages)
        except Exception as error:  # a fault of ours must not take the run with it, nor pass for a verdict
            logger.debug("critique of %s failed inside the client", rollout_id, exc_info=True)
            outcome = _Outcome(reason=f"client error: {type(error).__name__}: {self._redact(str(error))[:200]}")
        critique = self._record(rollout_id, outcome)
        self._enter(critique)
        return critique

    async def _outcome(self, messages: list[dict[str, str]]) -> _Outcome:
        """The outcome of a request; equal requests that are under way together share one call."""
        content = {"model": self.name, "messages": messages, "sampling": self._sampling, "template": self.template.hash}
        key = content_key(content)
        if key in self._in_flight:
            shared = await asyncio.shield(self._in_flight[key])
            return replace(shared, attempts=0, seconds=0.0, prompt_tokens=0, completion_tokens=0, cached=True)
        task = asyncio.ensure_future(self._cached_call(key, messages))
        self._in_flight[key] = task
        task.add_done_callback(lambda _: self._in_flight.pop(key))
        return await asyncio.shield(task)

    async def _cached_call(self, key: str, messages: list[dict[str, str]]) -> _Outcome:
        """A reply from the cache, from another process that is paying for it now, or from the servers."""
        cache = self.cache
        if cache is None:
            async with self._slots:
                return await self._call(messages)
        nap = _CLAIM_POLL_SECONDS
        while True:
            if stored := await self._on_disk(cache.get, key):
                return _Outcome(reply=_Reply(**stored), cached=True)
            if self._cache_only:
                return _Outcome(reason="not in the cache")
            # Waiting for another process takes no slot.
            if not await self._on_disk(cache.is_claimed, key):
                async with self._slots:
                    if await self._on_disk(cache.claim, key, self._owner):
                        return await self._claimed_call(cache, key, messages)
                continue
            await asyncio.sleep(nap)
            nap = min(_MAX_CLAIM_POLL_SECONDS, 1.5 * nap)

    async def _claimed_call(self, cache: ReplyCache, key: str, messages: list[dict[str, str]]) -> _Outcome:
        stored = False
        try:
            outcome = await self._call(messages)
            if outcome.reply is not None:
                reply = outcome.reply
                value = {name: getattr(reply, name) for name in _Reply.__slots__}
                await self._on_disk(cache.put, key, value)
                stored = True
            return outcome
        finally:
            if not stored:
                await self._on_disk(cache.release, key, self._owner)

    async def _call(self, messages: list[dict[str, str]]) -> _Outcome:
        """Attempts until there is a usable reply, or no use in going on."""
        clock = asyncio.get_running_loop().time
        started = clock()
        state = CallState(policy=self._policy, deadline=started + self._timeout)
        max_tokens = self._sampling["max_tokens"]
        asked_again = empty = prompt_tokens = completion_tokens = 0
        reply: _Reply | None = None  # the best there is so far
        reason = ""
        while not reason:
            if self.budget_spent:
                reason = f"{BUDGET_SPENT}: {self.ledger.total_tokens} of {self.token_budget} tokens"
                break
            result = await self._attempt(messages, max_tokens, state)
            if isinstance(result, _Reply):
                prompt_tokens += result.prompt_tokens
                completion_tokens += result.completion_tokens
                parsed = self._parse(result)
                if parsed.status == "ok":
                    reply = result
                    break
                if result.content or result.finish_reason == "length" or empty >= _MAX_EMPTY_REPLIES:
                    reply = result
                    cut = parsed.reason == CUT
                    # Asking the same again at temperature 0 would buy the same reply.
                    if asked_again >= self._malformed_retries or not (cut or self._sampling["temperature"] > 0):
                        break
                    asked_again += 1
                    max_tokens *= 2 if cut else 1
                    continue
                empty += 1
                result = Fault(kind="bad_reply", message="the server sends an empty message")
                self.ledger.faults[result.kind] += 1
            wait = state.wait_after(result, clock())
            if wait is None:
                reason = state.give_up
            else:
                await asyncio.sleep(wait)
        return _Outcome(
            reply=reply,
            reason=reason,
            attempts=state.attempts,
            seconds=clock() - started,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    # --- one attempt ---

    async def _attempt(self, messages: list[dict[str, str]], max_tokens: int, state: CallState) -> _Reply | Fault:
        """One HTTP request to the least loaded server, its effect on the load control booked."""
        clock = asyncio.get_running_loop().time
        endpoint = await self._free_endpoint(state.deadline)
        if isinstance(endpoint, Fault):
            return endpoint
        state.attempts += 1
        self.ledger.attempts += 1
        endpoint.in_flight += 1
        sent = clock()
        try:
            result = await self._request(endpoint, messages, max_tokens, state.deadline - sent)
        except BaseException:
            self._breaker.cancelled()
            raise
        finally:
            endpoint.in_flight -= 1
        now = clock()
        if isinstance(result, _Reply):
            self.ledger.prompt_tokens += result.prompt_tokens
            self.ledger.completion_tokens += result.completion_tokens
            endpoint.failures = 0
            self._breaker.succeeded(now)
            self._slots.raise_limit()
        else:
            self.ledger.faults[result.kind] += 1
            self._breaker.failed(result, now)
            result = self._rest(endpoint, result, now)
        logger.debug("%s: %s, %.2f s", endpoint.label, getattr(result, "message", "reply"), now - sent)
        return result

    async def _free_endpoint(self, deadline: float) -> _Endpoint | Fault:
        """The least loaded server that is not resting, once the breaker lets the call through."""
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            ready = [endpoint for endpoint in self._endpoints if endpoint.rests_until <= now]
            if ready:
                wait = self._breaker.wait(now)
                if wait <= 0:
                    return min(ready, key=lambda endpoint: (endpoint.in_flight, endpoint.failures))
            else:
                wait = min(endpoint.rests_until for endpoint in self._endpoints) - now
            if now >= deadline or (not ready and now + wait >= deadline):
                return Fault(kind="client", message="no server took the call in its time")
            # Short naps: a pause may end earlier than it looked.
            await asyncio.sleep(max(0.001, min(wait, _BREAKER_POLL_SECONDS)))

    def _rest(self, endpoint: _Endpoint, fault: Fault, now: float) -> Fault:
        """Give a server that failed a rest; the fault as the call should see it."""
        endpoint.failures += 1
        if fault.kind == "rate_limit":
            self._slots.lower_limit(now)
        if fault.retry_after is not None:
            endpoint.rests_until = max(endpoint.rests_until, now + fault.retry_after)
            if any(other.rests_until <= now for other in self._endpoints):
                return replace(fault, retry_after=None)  # another server may take it at once
        elif len(self._endpoints) > 1 and (fault.is_outage or fault.kind == "rate_limit"):
            endpoint.rests_until = max(endpoint.rests_until, now + self._policy.backoff(endpoint.failures))
        return fault

    async def _request(
        self, endpoint: _Endpoint, messages: list[dict[str, str]], max_tokens: int, time_left: float
    ) -> _Reply | Fault:
        limit = min(self._attempt_timeout, time_left)
        try:
            # The library's timeout starts anew with every chunk; this one does not.
            async with asyncio.timeout(limit):
                response = await endpoint.client.chat.completions.with_raw_response.create(
                    **self._request_fields(messages, max_tokens)
                )
                body = response.text
        except openai.APIStatusError as error:
            after = parse_retry_after(error.response.headers.get("retry-after"), time.time())
            detail = " ".join(self._redact(error.response.text).split())[:200]
            return fault_of_status(error.status_code, f"HTTP {error.status_code}: {detail}", after)
        except (TimeoutError, openai.APITimeoutError):
            return Fault(kind="timeout", message=f"no reply within {limit:.0f} s")
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            kind = "connect" if "Connect" in cause else "cut_body"
            what = "cannot connect" if kind == "connect" else "the reply broke off"
            return Fault(kind=kind, message=f"{what}: {endpoint.label} ({cause})")
        except (openai.OpenAIError, ValueError) as error:  # the request cannot be sent, now or later
            return Fault(kind="client", message=self._redact(f"{type(error).__name__}: {error}")[:200])
        return _read_reply(self._redact(body))

    def _request_fields(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": self.name, "messages": messages, "max_tokens": max_tokens}
        fields |= {
            name: self._sampling[name] for name in ("temperature", "top_p", "seed") if self._sampling[name] is not None
        }
        if self._structured:
            schema = {"name": "critique", "schema": CRITIQUE_SCHEMA, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._sampling["extra_body"]:
            fields["extra_body"] = self._sampling["extra_body"]
        return fields

    # --- records ---

    def _parse(self, reply: _Reply) -> ParsedCritique:
        if self._form in ("hint", "comment"):
            return parse_comment(reply.content, reply.finish_reason)
        parse = parse_structured_critique if self._structured else parse_critique
        return parse(reply.content, reply.finish_reason)

    def _record(self, rollout_id: str, outcome: _Outcome) -> Critique:
        reply = outcome.reply
        status: CritiqueStatus = "failed"
        text = case = ""
        reason = outcome.reason
        if reply is not None:
            parsed = self._parse(reply)
            status, text, case, reason = parsed.status, parsed.text, parsed.case, parsed.reason
        paid = outcome if not outcome.cached else reply
        return Critique(
            rollout_id=rollout_id,
            critic=self.name,
            status=status,
            text=text,
            raw=(reply.content or "") if reply else "",
            reason=reason,
            case=case,
            prompt_tokens=paid.prompt_tokens if paid else 0,
            completion_tokens=paid.completion_tokens if paid else 0,
            seconds=outcome.seconds,
            attempts=outcome.attempts,
            cached=outcome.cached,
            prompt_hash=self.template.hash,
            form=self._form,
        )

    def _enter(self, critique: Critique) -> None:
        ledger = self.ledger
        ledger.calls += 1
        setattr(ledger, critique.status, getattr(ledger, critique.status) + 1)
        if critique.reason:
            ledger.reasons[_REASON_DETAIL.split(critique.reason, maxsplit=1)[0]] += 1
        if critique.cached:
            ledger.cached += 1
            ledger.cached_prompt_tokens += critique.prompt_tokens
            ledger.cached_completion_tokens += critique.completion_tokens

    def _redact(self, text: str) -> str:
        """Text from a server without our secrets, which a server may echo."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    # --- servers ---

    def _endpoint(self, url: str, key: str) -> _Endpoint:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"not a URL: {redact_url(url)!r}", hint="write it as http://host:port/v1")
        client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # else the library would send OPENAI_API_KEY to any server
            max_retries=0,
            timeout=openai.Timeout(self._attempt_timeout, connect=self._connect_timeout),
        )
        client.organization = client.project = None  # nor these, which it also reads from the environment
        return _Endpoint(client, redact_url(url))

    async def _check(self) -> None:
        answers = await asyncio.gather(*(self._check_endpoint(endpoint) for endpoint in self._endpoints))
        faults = [answer for answer in answers if answer is not None]
        if len(faults) == len(answers):
            raise faults[0]
        for fault in faults:
            logger.warning("%s (%s); going on with the other critic servers", fault.what, fault.where)

    async def _check_endpoint(self, endpoint: _Endpoint) -> EndpointError | None:
        served: list[str] = []
        try:
            async with asyncio.timeout(4 * self._connect_timeout):
                listing = await endpoint.client.models.with_raw_response.list()
            served = [str(entry["id"]) for entry in json.loads(listing.text)["data"]]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                hint = "name the environment variable that holds the key in api_key_env"
                return EndpointError("the critic refuses the key", where=endpoint.label, hint=hint)
        except (openai.APIConnectionError, TimeoutError):
            hint = "start the server, or correct the URL; it ends in /v1 for most servers"
            return EndpointError("the critic does not answer", where=endpoint.label, hint=hint)
        except (openai.OpenAIError, ValueError, LookupError, TypeError):
            pass  # a server without a model list; the chat below decides
        return None if self.name in served else await self._check_model(endpoint, served)

    async def _check_model(self, endpoint: _Endpoint, served: list[str]) -> EndpointError | None:
        """A one-token chat: some servers load models that they do not list."""
        result = await self._request(endpoint, [{"role": "user", "content": "1"}], 1, self._attempt_timeout)
        if isinstance(result, _Reply) or (result.kind == "rate_limit"):
            return None
        hint = f"it serves {', '.join(served[:5])}" if served else "check the URL and the name of the model"
        what = f"the critic does not serve {self.name!r}: {result.message}"
        return EndpointError(what, where=endpoint.label, hint=hint)


def _second_try(request: CritiqueRequest) -> list[dict[str, str]]:
    """What follows in the chat when a critique is asked for again: the first one, and what is wrong with it."""
    if not request.complaint:
        return []
    first = request.earlier.text if request.earlier else ""
    said = [{"role": "assistant", "content": first}] if first else []
    again = f"Your reply cannot be used. {request.complaint} Reply once more, in the form asked for."
    return [*said, {"role": "user", "content": again}]


def redact_url(url: str) -> str:
    """The URL without ``user:password@``."""
    return _USERINFO.sub("//", url)


def _password(url: str) -> str:
    match = _USERINFO.search(url)
    return match.group(0)[2:-1].partition(":")[2] if match else ""


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set",
            where="critic.api_key_env",
            hint=f"export {variable}=..., or drop api_key_env if the server needs no key",
        )
    return key


def _read_reply(body: str) -> _Reply | Fault:
    """A chat reply out of a response body; servers behind proxies send anything under status 200."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return Fault(kind="bad_json", message="the reply is not JSON")
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Fault(kind="empty_choices", message="the reply holds no message")
    content = message.get("content")
    if isinstance(content, list):  # a list of parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    reason = choice.get("finish_reason")
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return _Reply(
        content=content if isinstance(content, str) else None,
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
