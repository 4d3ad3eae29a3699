"""A critic behind OpenAI-compatible servers: cached, claimed, budgeted, asked again where that helps.

A call goes through the cache (a reply that came is never paid for twice), a claim (of several processes that want one
reply, one pays), a slot (bounded concurrency), and attempts at the least loaded server. A claim is written before its
call and goes when the reply is stored: one that a killed process has left is a call that may have been paid for.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stepalign.config import CriticSection
from stepalign.critics.budget import Ledger, prices_of
from stepalign.critics.cache import ReplyCache, content_key, owner_name
from stepalign.critics.chat import ChatFault, ChatReply, ChatServer, read_key, stored_reply
from stepalign.critics.servers import CallSlots, RetryPolicy, Servers
from stepalign.errors import ConfigError, EndpointError
from stepalign.feedback.critique import (
    CUT,
    EMPTY,
    PARSERS,
    SCHEMAS,
    STRUCTURED_NOTE,
    ParsedCritique,
    parse_structured_critique,
)
from stepalign.feedback.prompts import load_template
from stepalign.outside import redact_url, shown
from stepalign.records import Attempt, Critique, CritiqueForm
from stepalign.waiting import BackgroundLoop

logger = logging.getLogger("stepalign.critic")
CRITIC_VARIABLES = ("question", "attempt", "answer", "solution", "sees", "structured", "truncated")
"""The variables of a critic's prompt; which of them are defined depends on what it may see."""

_CLAIM_POLL_SECONDS, _MAX_CLAIM_POLL_SECONDS = 0.1, 1.0
_MAX_EMPTY_REPLIES = 3
"""Empty messages that one call accepts: some servers send them when they are overloaded, some models always do."""
_MALFORMED_RETRIES = 1
"""How often a reply without a usable trace is asked again; one cut at the token limit with twice the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """The end of one call: a reply, or the reason why there is none."""

    reply: ChatReply | None = None
    reason: str = ""
    unpaid: bool = False
    attempts: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    """Paid for by this call, over all its attempts."""
    completion_tokens: int = 0
    cached: bool = False


class EndpointCritic(AbstractContextManager["EndpointCritic"]):
    """Asks a chat model for critiques; ``with`` closes it.

    Args:
        section: the servers, the model, its sampling, limits and budgets (docs/keys.md). The key itself is never
            stored, logged, cached or written.
        prompt: packaged template, file or inline Jinja text (see ``stepalign.feedback.prompts``).
        form: what the template asks for; a hint or a comment is any text, the other two are step-tagged traces.
        cache_path: sqlite file with replies, shared by runs and processes; None: nothing is kept.
        ledger_path: JSON lines of every HTTP attempt; with it the budgets hold over all processes of a run. Or another
            critic's ledger, in which this one books as well.
        announce: gets a line for trouble with the servers or the cache.

    Raises:
        ConfigError: settings that contradict each other, or the named environment variable is not set.
    """

    def __init__(
        self,
        section: CriticSection,
        *,
        prompt: str | Path = "scribe",
        form: CritiqueForm = "trace",
        cache_path: Path | None = None,
        ledger_path: Path | Ledger | None = None,
        policy: RetryPolicy | None = None,
        announce: Callable[[str], None] = logger.warning,
    ) -> None:
        _check(section, cache_path)
        self.name = section.model
        self._section = section
        self._form: CritiqueForm = form
        self._structured = section.structured and form in SCHEMAS
        self.template = load_template(prompt)
        self.template.refuse_others_than(CRITIC_VARIABLES, "a critic's prompt")
        self._messages(question="?", attempt="?", answer="?", solution="?", truncated=False)  # fails here, not later
        budgets = {"token_budget": section.token_budget, "cost_budget": section.cost_budget}
        shared = ledger_path if isinstance(ledger_path, Ledger) else None
        own = {"prices": section.prices, "model": section.model, "path": ledger_path}
        self.ledger = shared or Ledger(**own, **budgets)  # type: ignore[arg-type]
        # A claim outlives the longest call of its holder.
        self.cache = ReplyCache(cache_path, lease_seconds=section.timeout + 60.0) if cache_path is not None else None
        self._owner = owner_name()
        # Part of a reply's key in the cache, with all that it depends on.
        drawn = {"temperature": section.temperature, "max_tokens": section.max_tokens, "top_p": None, "seed": None}
        self._sampling = {**drawn, "extra_body": section.extra_body, "structured": self._structured}
        key = "" if section.cache_only else read_key(section.api_key_env)
        reached = () if section.cache_only else section.base_urls
        self._policy = policy or RetryPolicy()
        self._say_once = functools.cache(announce)
        self._slots = CallSlots(section.concurrency)
        self._servers = Servers(
            [ChatServer(url, key, attempt_timeout=section.attempt_timeout, announce=announce) for url in reached],
            asked=section.model,
            answers_as=section.answers_as,
            slots=self._slots,
            policy=self._policy,
            announce=announce,
            ledger=self.ledger,
        )
        self._taken_over = 0
        self._in_flight: dict[str, asyncio.Task[_Outcome]] = {}
        self._background = BackgroundLoop("critic")

    def __repr__(self) -> str:
        urls = ", ".join(redact_url(url) for url in self._section.base_urls)
        return f"EndpointCritic(model={self.name!r}, base_urls=[{urls}], sees={self._section.sees!r})"

    @property
    def concurrency_now(self) -> int:
        """How many calls may be under way at the moment."""
        return int(self._slots.limit)

    def messages(self, attempt: Attempt) -> list[dict[str, str]]:
        """The chat the critic is sent. Variables it may not see are not defined: a template that asks for one fails."""
        return self._messages(
            question=attempt.problem.question,
            attempt=attempt.transcript,
            answer=attempt.problem.shown_answer,
            solution=attempt.problem.reference,
            truncated=attempt.truncated,
        )

    def _messages(self, *, answer: str, solution: str | None, **shown: Any) -> list[dict[str, str]]:
        sees = self._section.sees
        if sees != "nothing":
            shown["answer"] = answer
        if sees == "solution" and solution is not None:
            shown["solution"] = solution
        messages = self.template.messages(sees=sees, structured=self._structured, **shown)
        if self._structured:
            messages[-1]["content"] += f"\n\n{STRUCTURED_NOTE}"
        return messages

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`. Raises ConfigError where the template cannot be rendered."""
        return await asyncio.wrap_future(self.submit(attempt, earlier=earlier, complaint=complaint))

    def submit(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Future[Critique]:
        """Start a critique in the critic's own thread, where connections outlive the caller's event loop."""
        if earlier and (self._structured or self._form == "edits"):  # its text was made of what the critic said
            earlier = replace(earlier, text=earlier.raw)
        messages = self.messages(attempt) + _second_try(earlier, complaint)
        return self._background.run(self._critique(attempt.rollout_id, messages))

    def check(self) -> None:
        """Send each server a request as the run sends them, about a small problem, once for each cache.

        Servers that refuse it are announced. The request is neither in the ledger nor under the budget.

        Raises:
            EndpointError: no server answers, the key or the request is refused, another model answers, or a budget in
                tokens is set and the server counts none.
        """
        if self._section.cache_only or self.ledger.spent:
            return
        shown = {"question": "2 + 3", "attempt": "<step_1> 2 + 3 = 6\n<answer> 6", "truncated": False}
        messages = self._messages(answer="5", solution="2 + 3 = 5", **shown)
        fields = self._request_fields(messages, self._section.max_tokens)
        keys = {redact_url(url): content_key({**fields, "server": redact_url(url)}) for url in self._section.base_urls}
        known: set[str] = set()
        with suppress(sqlite3.Error):
            known.update(label for label, key in keys.items() if self.cache is not None and self.cache.get(key))
        for label, reply in self._background.run(self._servers.check(fields, known=known)).result().items():
            has_budget = (self._section.token_budget or self._section.cost_budget) is not None
            if has_budget and not reply.prompt_tokens + reply.completion_tokens:
                hint = "drop critic.token_budget and critic.cost_budget"
                raise EndpointError("the server does not count tokens: no budget can hold", where=label, hint=hint)
            if reason := self._parse(reply).reason:
                self._say_once(f"critic: the first reply cannot be used: {reason}; it begins {reply.content!r:.100}")
            with suppress(sqlite3.Error):
                if self.cache is not None:
                    self.cache.put(keys[label], asdict(reply))

    def close(self) -> None:
        """Cancel calls under way, and let go of connections, cache and thread. May be called twice."""
        if not self._background.close(self._servers.close):
            return
        if self.cache is not None:
            if self.cache.damaged:
                damaged = f"{self.cache.damaged} damaged replies of {self.cache.path}"
                self._say_once(f"critic: {damaged} were asked for again")
            with suppress(Exception):
                self.cache.release_all(self._owner)
            self.cache.close()
        self.ledger.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _critique(self, rollout_id: str, messages: list[dict[str, str]]) -> Critique:
        try:
            outcome = await self._outcome(messages)
        except Exception as error:  # a fault of this client is a failed critique: it neither ends the run nor judges
            logger.debug("critique of %s failed inside the client", rollout_id, exc_info=True)
            reason = shown(f"client error: {type(error).__name__}: {error}")[:200]
            outcome = _Outcome(reason=reason)
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
        if self.cache is not None:
            try:
                return await self._shared_call(self.cache, key, messages)
            except sqlite3.Error as error:  # nothing is paid for yet
                self._say_once(f"critic: the cache cannot be used ({error}): {self.cache.path}")
                if self._section.cache_only:
                    return _Outcome(reason="the cache cannot be read")
        async with self._slots:
            return await self._call(messages)

    async def _shared_call(self, cache: ReplyCache, key: str, messages: list[dict[str, str]]) -> _Outcome:
        nap = _CLAIM_POLL_SECONDS
        while True:
            if reply := await asyncio.to_thread(cache.get, key, stored_reply):
                return _Outcome(reply=reply, cached=True)
            if self._section.cache_only:
                return _Outcome(reason="not in the cache")
            # Waiting for another process takes no slot.
            if not await asyncio.to_thread(cache.is_claimed, key):
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
                mine = await asyncio.to_thread(cache.claim, key, self._owner)
                if not mine:
                    return None
                for _ in range(cache.taken_over - self._taken_over):
                    self.ledger.book("a killed process", 0.0, fault="in_flight")
                self._taken_over = cache.taken_over
                outcome = await self._call(messages)
            # A slot is a call at the servers; writing takes none.
            if outcome.reply is not None:
                try:
                    await asyncio.to_thread(cache.put, key, asdict(outcome.reply))
                    stored = True
                except sqlite3.Error as error:  # paid for, and used
                    self._say_once(f"critic: replies cannot be kept ({error}), and may be paid for again: {cache.path}")
            return outcome
        finally:
            if mine and not stored:
                with suppress(sqlite3.Error):
                    await asyncio.to_thread(cache.release, key, self._owner)

    async def _call(self, messages: list[dict[str, str]]) -> _Outcome:
        """Attempts until there is a usable reply, or no use in going on."""
        clock = asyncio.get_running_loop().time
        started = clock()
        deadline = started + self._section.timeout
        max_tokens = self._section.max_tokens
        attempts = asked_again = empty = prompt_tokens = completion_tokens = 0
        obeyed = 0.0
        reply: ChatReply | None = None  # the best so far
        while not (reason := self.ledger.spent):
            result = await self._servers.attempt(self._request_fields(messages, max_tokens), deadline)
            if result is None:
                reason = "no server took the call in its time"
                break
            attempts += 1
            if isinstance(result, ChatReply):
                prompt_tokens += result.prompt_tokens
                completion_tokens += result.completion_tokens
                parsed = self._parse(result)
                if parsed.reason != EMPTY or empty >= _MAX_EMPTY_REPLIES:
                    reply, cut = result, parsed.reason == CUT
                    # The same request at temperature 0 would buy the same reply.
                    can_change = cut or self._section.temperature > 0
                    if parsed.status == "ok" or asked_again >= _MALFORMED_RETRIES or not can_change:
                        break
                    asked_again += 1
                    self.ledger.asked_again["cut at max_tokens" if cut else "without a usable text"] += 1
                    max_tokens *= 2 if cut else 1
                    continue
                empty += 1
                result = ChatFault(kind="bad_reply", message="the server sends an empty message")
                self.ledger.faults[result.kind] += 1
            wait = self._policy.wait(result, attempts=attempts, obeyed=obeyed, time_left=deadline - clock())
            if isinstance(wait, str):
                reason = wait
                break
            obeyed += result.retry_after or 0.0
            await asyncio.sleep(wait)
        return _Outcome(
            reply=reply,
            reason=reason,
            unpaid=reply is None and reason == self.ledger.spent != "",
            attempts=attempts,
            seconds=clock() - started,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def _request_fields(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """The body of a request. ``extra_body`` wins; its limit of tokens grows for a second try as ours does."""
        extra = self._section.extra_body
        fields: dict[str, Any] = {"model": self.name, "messages": messages, "temperature": self._section.temperature}
        if self._structured:
            schema = {"name": "critique", "schema": SCHEMAS[self._form], "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        limit = next((name for name in ("max_completion_tokens", "max_tokens") if name in extra), "max_tokens")
        first = extra.get(limit, self._section.max_tokens)
        return fields | extra | {limit: first * max_tokens // self._section.max_tokens}

    def _parse(self, reply: ChatReply) -> ParsedCritique:
        parse = parse_structured_critique if self._structured and self._form != "edits" else PARSERS[self._form]
        return parse(reply.content, reply.finish_reason)

    def _record(self, rollout_id: str, outcome: _Outcome) -> Critique:
        reply = outcome.reply
        parsed = self._parse(reply) if reply else ParsedCritique(status="failed", reason=outcome.reason)
        paid = reply if reply and outcome.cached else outcome
        return Critique(
            rollout_id=rollout_id,
            critic=self.name,
            status=parsed.status,
            text=parsed.text,
            raw=(reply.content or "") if reply else "",
            reason=parsed.reason,
            unpaid=outcome.unpaid,
            case=parsed.case,
            prompt_tokens=paid.prompt_tokens,
            completion_tokens=paid.completion_tokens,
            seconds=outcome.seconds,
            attempts=outcome.attempts,
            cached=outcome.cached,
            prompt_hash=self.template.hash,
            form=self._form,
        )


def _second_try(earlier: Critique | None, complaint: str) -> list[dict[str, str]]:
    """The messages that ask for a critique again: the first critique, and what is wrong with it."""
    if not complaint:
        return []
    said = [{"role": "assistant", "content": earlier.text}] if earlier and earlier.text else []
    again = f"Your reply cannot be used. {complaint} Reply once more, in the form asked for."
    return [*said, {"role": "user", "content": again}]


def _check(section: CriticSection, cache_path: Path | None) -> None:
    """Refuse settings that contradict each other."""
    if not section.base_urls and not section.cache_only:
        raise ConfigError("the critic has no URL", hint="give base_urls, e.g. http://127.0.0.1:8000/v1")
    if section.cache_only and cache_path is None:
        raise ConfigError("a critic that answers from its cache alone needs one", hint="name a file with critic.cache")
    prices = prices_of(section.prices, section.model)
    if section.prices and not prices:
        what, hint = f"there are no prices of {section.model}", "one table for all, or one for each model by its name"
        raise ConfigError(what, where="critic.prices", hint=hint)
    if prices and (set(prices) != {"prompt", "completion"} or not all(isinstance(p, float) for p in prices.values())):
        raise ConfigError("prices of the critic need the keys 'prompt' and 'completion' (per million tokens)")
    if section.cost_budget is not None and not section.prices:
        raise ConfigError("a cost budget of the critic needs prices", hint="give critic.prices, or a token_budget")
