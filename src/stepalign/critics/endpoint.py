"""A critic behind OpenAI-compatible chat endpoints: vLLM, transformers serve, llama.cpp, SGLang or a hosted model.

The critic runs its own event loop in a thread, so that a rollout's critique starts when the rollout is finished, while
the sampler goes on. Every request ends as one Critique: usable, malformed or failed, with the reason; a server's faults
never reach the caller as an exception.

A reply's way: cache -> (claim) -> slot -> breaker -> least-loaded endpoint -> attempts -> parsed critique -> cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from stepalign.critics import BUDGET_SPENT, CritiqueRequest
from stepalign.critics.background import BackgroundLoop
from stepalign.critics.cache import ReplyCache, content_key, owner_name
from stepalign.critics.chat import Reply, Server, read_key, redact_url, redacted, secrets_of
from stepalign.critics.ledger import Ledger
from stepalign.critics.retry import CallState, CircuitBreaker, Fault, RetryPolicy
from stepalign.critics.servers import Servers
from stepalign.critics.slots import Slots
from stepalign.errors import ConfigError
from stepalign.feedback.critique import (
    CRITIQUE_SCHEMA,
    CUT,
    ParsedCritique,
    parse_comment,
    parse_critique,
    parse_structured_critique,
)
from stepalign.feedback.prompts import load_template
from stepalign.records import Attempt, Critique, CritiqueForm, CritiqueStatus

logger = logging.getLogger("stepalign.critic")

Sees = Literal["nothing", "answer", "solution"]
CRITIC_VARIABLES = ("question", "attempt", "answer", "solution", "sees", "structured", "truncated")
"""What a critic's prompt may ask for; which of them are defined depends on what it may see."""

_CLAIM_POLL_SECONDS = 0.1
_MAX_CLAIM_POLL_SECONDS = 1.0
_MAX_EMPTY_REPLIES = 3
"""Empty messages one call puts up with: some servers send them when they are overloaded, some models always do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """How one call ended: with a reply, or with the reason why there is none."""

    reply: Reply | None = None
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    """Paid for by this call, over all its attempts."""
    completion_tokens: int = 0
    cached: bool = False


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
        cost_budget: the same for the cost, in the currency of the prices.
        prices: ``{"prompt": p, "completion": c}`` per million tokens, for the ledger.
        ledger_path: JSON lines of every HTTP attempt; with it the budgets hold over all processes of a run.
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
        cost_budget: float | None = None,
        prices: Mapping[str, float] | None = None,
        ledger_path: str | Path | None = None,
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
        if cost_budget is not None and prices is None:
            raise ConfigError("a cost budget of the critic needs prices", hint="give critic.prices, or a token_budget")

        self.name = model
        self.sees: Sees = sees
        self.template = load_template(prompt_template)
        self.template.refuse_others_than(CRITIC_VARIABLES, "a critic's prompt")
        self.ledger = Ledger(prices=prices, path=Path(ledger_path) if ledger_path is not None else None)
        self.token_budget, self.cost_budget = token_budget, cost_budget
        self.cache = ReplyCache(cache_path) if cache_path is not None else None
        self._cache_only = cache_only
        self._form: CritiqueForm = form
        self._structured = structured and form in ("trace", "paraphrase")
        # A template that asks for what this critic may not see fails here, and not behind the first rollouts.
        self._messages(question="?", attempt="?", answer="?", solution="?", truncated=False)
        self._sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "max_tokens": max_tokens,
            "extra_body": dict(extra_body or {}),
            "structured": self._structured,
        }
        self._timeout = timeout
        self._malformed_retries = malformed_retries
        self._policy = policy or RetryPolicy()
        breaker = breaker or CircuitBreaker()
        breaker.announce = announce or logger.warning
        self._owner = owner_name()

        key = "" if cache_only else read_key(api_key_env)
        self._secrets = secrets_of(key, self._base_urls)
        limits = {"attempt_timeout": attempt_timeout, "connect_timeout": connect_timeout}
        reached = [] if cache_only else self._base_urls
        self._slots = Slots(concurrency)
        self._servers = Servers(
            [Server(url, key, secrets=self._secrets, **limits) for url in reached],
            slots=self._slots,
            breaker=breaker,
            policy=self._policy,
            ledger=self.ledger,
        )
        self._in_flight: dict[str, asyncio.Task[_Outcome]] = {}
        self._background = BackgroundLoop("critic", on_start=self._keep_claims, on_close=self._servers.close)

    def __repr__(self) -> str:
        urls = ", ".join(redact_url(url) for url in self._base_urls)
        return f"EndpointCritic(model={self.name!r}, base_urls=[{urls}], sees={self.sees!r})"

    def __enter__(self) -> EndpointCritic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def budget_spent(self) -> bool:
        """Whether a budget is used up; every further critique that is not in the cache fails."""
        return bool(self._spent())

    @property
    def concurrency_now(self) -> int:
        """How many calls may be under way at the moment."""
        return int(self._slots.limit)

    def messages(self, attempt: Attempt) -> list[dict[str, str]]:
        """The chat the critic is sent. Variables it may not see are not defined, so no template can leak them.

        Raises:
            ConfigError: the template asks for something it is not given.
        """
        return self._messages(
            question=attempt.problem.question,
            attempt=attempt.text,
            answer=attempt.problem.answer,
            solution=attempt.problem.reference,
            truncated=attempt.truncated,
        )

    def _messages(self, *, answer: str, solution: str | None, **shown: Any) -> list[dict[str, str]]:
        if self.sees != "nothing":
            shown["answer"] = answer
        if self.sees == "solution" and solution is not None:
            shown["solution"] = solution
        return self.template.messages(sees=self.sees, structured=self._structured, **shown)

    def submit(self, request: CritiqueRequest) -> Future[Critique]:
        """Start one critique; it runs while the caller goes on.

        Raises:
            ConfigError: the template cannot be rendered.
        """
        messages = self.messages(request.attempt) + _second_try(request)
        return self._background.run(self._critique(request.attempt.rollout_id, messages))

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
            self._background.run(self._servers.check(self.name)).result()

    def close(self) -> None:
        """Cancel what is under way, close connections and the cache, end the thread. May be called twice."""
        if not self._background.close():
            return
        if self.cache is not None:
            with suppress(Exception):
                self.cache.release_all(self._owner)
            self.cache.close()
        self.ledger.close()

    async def _keep_claims(self) -> None:
        """Renew our claims before their leases run out."""
        while self.cache is not None:
            await asyncio.sleep(self.cache.lease_seconds / 3)
            if self._in_flight:
                with suppress(Exception):
                    await self._background.on_disk(self.cache.renew, self._owner)

    # --- one critique ---

    async def _critique(self, rollout_id: str, messages: list[dict[str, str]]) -> Critique:
        try:
            outcome = await self._outcome(messages)
        except Exception as error:  # a fault of ours must not take the run with it, nor pass for a verdict
            logger.debug("critique of %s failed inside the client", rollout_id, exc_info=True)
            outcome = _Outcome(
                reason=f"client error: {type(error).__name__}: {redacted(str(error), self._secrets)[:200]}"
            )
        critique = self._record(rollout_id, outcome)
        self.ledger.enter(critique)
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
            if stored := await self._background.on_disk(cache.get, key):
                return _Outcome(reply=Reply(**stored), cached=True)
            if self._cache_only:
                return _Outcome(reason="not in the cache")
            # Waiting for another process takes no slot.
            if not await self._background.on_disk(cache.is_claimed, key):
                if outcome := await self._claimed_call(cache, key, messages):
                    return outcome
                continue
            await asyncio.sleep(nap)
            nap = min(_MAX_CLAIM_POLL_SECONDS, 1.5 * nap)

    async def _claimed_call(self, cache: ReplyCache, key: str, messages: list[dict[str, str]]) -> _Outcome | None:
        """The servers' reply, stored; None where another process was faster."""
        mine = stored = False
        try:
            async with self._slots:
                mine = await self._background.on_disk(cache.claim, key, self._owner)
                if not mine:
                    return None
                outcome = await self._call(messages)
            # A slot stands for the servers' load; writing takes none.
            if outcome.reply is not None:
                await self._background.on_disk(cache.put, key, asdict(outcome.reply))
                stored = True
            return outcome
        finally:
            if mine and not stored:
                await self._background.on_disk(cache.release, key, self._owner)

    async def _call(self, messages: list[dict[str, str]]) -> _Outcome:
        """Attempts until there is a usable reply, or no use in going on."""
        clock = asyncio.get_running_loop().time
        started = clock()
        state = CallState(policy=self._policy, deadline=started + self._timeout)
        max_tokens = self._sampling["max_tokens"]
        asked_again = empty = prompt_tokens = completion_tokens = 0
        reply: Reply | None = None  # the best there is so far
        reason = ""
        while not reason:
            if reason := self._spent():
                break
            result = await self._servers.attempt(self._request_fields(messages, max_tokens), state)
            if isinstance(result, Reply):
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

    def _spent(self) -> str:
        """Which budget is used up, "" while none is."""
        tokens, cost = self.ledger.total_tokens, self.ledger.cost
        if self.token_budget is not None and tokens >= self.token_budget:
            return f"{BUDGET_SPENT}: {tokens} of {self.token_budget} tokens"
        if self.cost_budget is not None and cost is not None and cost >= self.cost_budget:
            return f"{BUDGET_SPENT}: a cost of {cost:.4g} of {self.cost_budget:g}"
        return ""

    # --- records ---

    def _parse(self, reply: Reply) -> ParsedCritique:
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


def _second_try(request: CritiqueRequest) -> list[dict[str, str]]:
    """What follows in the chat when a critique is asked for again: the first one, and what is wrong with it."""
    if not request.complaint:
        return []
    first = request.earlier.text if request.earlier else ""
    said = [{"role": "assistant", "content": first}] if first else []
    again = f"Your reply cannot be used. {request.complaint} Reply once more, in the form asked for."
    return [*said, {"role": "user", "content": again}]
