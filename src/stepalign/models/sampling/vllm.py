"""Completions from vLLM servers, over HTTP alone: token ids in; ids and log-probabilities out, each as it ends (TITO).

A prompt is one streamed request for its n completions: a server answers n requests for one completion each several
times more slowly. Completion i of a request is drawn from its seed + i, so that those that a broken stream still owed
are asked for again by themselves, from any server, and none is lost or doubled. The name of the model, or the salt of
the prefix cache, says which version of the weights is meant.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from stepalign.errors import ConfigError, EndpointError
from stepalign.models.sampling import OnFinished
from stepalign.models.sampling.server import CONNECT_SECONDS, Fault, Policy, Server, introduce, one_line, server_at
from stepalign.models.sampling.sync import WAYS, choose, delete
from stepalign.records import Completion, FinishReason

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_REST = 15.0
POLL_SECONDS = 0.02
FRUITLESS = 8
"""Replies in a row to a prompt that begin, break off and hold nothing of use, until sampling fails."""
LONGEST_LINE = 2**24
LEAST_LOG_PROB, GREATEST_LOG_PROB = -100.0, 1e-3
"""Of a token that was drawn, nats; rounding included."""
BROKEN = (httpx2.HTTPError, httpx2.StreamError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
WHOLE = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
"""The whole distribution, whatever defaults the folder of a model gives its server."""


class VllmSampler:
    """Draws from vLLM servers; the least loaded one gets the next prompt.

    Args:
        urls: ``http://host:port/v1``, one or several that serve the same model.
        model: the model that learns; of it the form of its adapter is read.
        end_ids: ids that end a completion.
        way: how weights reach the servers: "auto", or a name of ``sync.WAYS``.
        folder: where versions are written for the servers to read; "" is a temporary folder of this machine.
        stop: texts that end a completion; their tokens belong to it.
        timeout: seconds without news, from a server until it is asked no more, from all of them until sampling fails.

    Raises:
        ConfigError: none is named, or one is not a URL.
    """

    has_own_weights = True

    def __init__(
        self,
        urls: Sequence[str],
        model: Any,
        end_ids: Sequence[int],
        *,
        way: str = "auto",
        folder: str = "",
        timeout: float = 300.0,
        stop: Sequence[str] = (),
    ) -> None:
        if not urls:
            hint = '--set sampling.base_urls=["http://127.0.0.1:8000/v1"]'
            raise ConfigError("no rollout server is named", where="sampling.base_urls", hint=hint)
        self._servers = [server_at(url) for url in urls]
        self._model, self._end_ids, self._timeout, self._setting = model, list(end_ids), timeout, way
        self._stop = {"stop": list(stop), "include_stop_str_in_output": True} if stop else {}
        self._run = f"stepalign-{uuid.uuid4().hex[:12]}"
        self._way, self._policy = WAYS["none"], Policy(f"{self._run}-0", 0)
        self._old: list[Policy] = []
        self._root = Path(folder).expanduser().absolute() / self._run if folder else None
        self._temporary = not folder
        self._tls = ssl.create_default_context()
        self._changing = threading.Lock()
        """Around changes of loads and users: sampling and publishing may be in two threads, each with its own loop."""
        self._publishing = False
        self._heard, self._why = time.monotonic(), ""
        """When a server last said something, and the last fault."""

    # -- weights ------------------------------------------------------------------------------------------------------

    async def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """See :class:`stepalign.models.sampling.Sampler`. Servers that are down get the weights when they answer.

        Raises:
            EndpointError: a server cannot take them.
        """
        if not weights:
            self._policy.version = version
            return
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="stepalign-weights-"))
        self._way = choose(self._setting, weights)
        name = f"{self._run}-{version}"
        folder = self._root / name
        self._way.write(self._model, weights, folder)
        with self._changing:
            self._publishing = True
        try:
            # Weights that change under a completion would be two versions in it, and a call that asks again for what a
            # broken stream owed would put the old ones back.
            while not self._way.named and self._policy.users:
                await asyncio.sleep(POLL_SECONDS)
            if self._policy.folder is not None:
                self._old.append(self._policy)
            self._policy = Policy(name, version, weights, folder)
            async with self._client() as client:
                await asyncio.gather(*(self._bring(client, server, self._policy) for server in self._servers))
                await self._let_go(client)
        finally:
            self._publishing = False

    async def _bring(self, client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
        """Let a server have a version, if it answers."""
        with suppress(Fault):
            await self._prepare(client, server, policy)

    async def _prepare(self, client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
        """Know a server, and see that it has a version. Raises Fault, EndpointError."""
        while True:  # one caller at a time; the others find the work done
            with self._changing:
                if not server.syncing:
                    server.syncing = True
                    break
            await asyncio.sleep(POLL_SECONDS)
        try:
            if not server.model:
                await introduce(client, server)
            if not await self._way.has(client, server, policy):
                await self._way.send(client, server, policy)
            server.holds.add(policy.name)
        except Fault:
            self._failed(server)
            raise
        finally:
            server.syncing = False

    async def _let_go(self, client: httpx2.AsyncClient) -> None:
        """Drop older versions that nothing draws from any more."""
        for policy in [old for old in self._old if not old.users]:
            self._old.remove(policy)
            for server in self._servers:
                if policy.name in server.holds:
                    server.holds.discard(policy.name)
                    with suppress(Fault):
                        await self._way.drop(client, server, policy)
            delete(policy)

    def close(self) -> None:
        """See :class:`stepalign.models.sampling.Sampler`: the files that the servers read."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    # -- completions --------------------------------------------------------------------------------------------------

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        """See :class:`stepalign.models.sampling.Sampler`.

        Raises:
            ConfigError: a prompt leaves no room for a completion in a server's context.
            EndpointError: a server refuses the request, or none answers within the timeout.
        """
        policy, self._heard = await self._current(), time.monotonic()
        fields = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop_token_ids": self._end_ids,
            **self._stop,
            "cache_salt": policy.name,
            **WHOLE,
        }
        results: dict[tuple[int, int], Completion] = {}

        async def complete(row: int) -> None:
            # Neighbouring seeds belong to neighbouring samples: prompts stay n apart, or two would share their noise.
            first_seed = (seed + row * num_samples) % 2**62
            missing, fruitless = set(range(num_samples)), 0
            while missing:
                start = min(missing)
                count = next(k for k in range(1, num_samples + 1) if start + k not in missing)
                asked = {**fields, "prompt": [list(prompts[row])], "n": count, "seed": first_seed + start}
                owed = len(missing)
                try:
                    async for index, completion in self._request(client, policy, asked):
                        missing.discard(start + index)
                        results[row, start + index] = completion
                        if on_finished is not None:
                            on_finished(row, start + index, completion)
                except Fault as fault:
                    self._why = str(fault)
                    fruitless = fruitless + isinstance(fault, _Broken) if len(missing) == owed else 0
                    if fruitless == FRUITLESS:
                        what = f"{fruitless} replies in a row to the same prompt held nothing of use; {fault}"
                        hint = "stepalign serve MODEL --print shows the command of a server that fits"
                        raise EndpointError(what, where="sampling.base_urls", hint=hint) from None

        try:
            async with self._client() as client, asyncio.TaskGroup() as tasks:
                for row in range(len(prompts)):
                    tasks.create_task(complete(row))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            with self._changing:
                policy.users -= 1
        return [[results[row, index] for index in range(num_samples)] for row in range(len(prompts))]

    async def _current(self) -> Policy:
        """The version of the moment, which stays until its user gives it back."""
        while True:
            with self._changing:
                if self._way.named or not self._publishing:
                    self._policy.users += 1
                    return self._policy
            await asyncio.sleep(POLL_SECONDS)

    async def _request(
        self, client: httpx2.AsyncClient, policy: Policy, fields: Mapping[str, Any]
    ) -> AsyncIterator[tuple[int, Completion]]:
        """(index, completion) as each ends. Raises Fault when some are owed, EndpointError when none will come."""
        server = await self._pick(fields["n"])
        try:
            await self._prepare(client, server, policy)
            (prompt,) = fields["prompt"]
            if server.context_length and len(prompt) + fields["max_tokens"] > server.context_length:
                raise ConfigError(
                    f"a prompt of {len(prompt)} tokens leaves no room for a completion of {fields['max_tokens']} in "
                    f"the rollout server's {server.context_length}",
                    where=server.label,
                    hint="start it with a larger --max-model-len, or shorten sampling.max_completion_length",
                )
            model = policy.name if self._way.named else server.model
            body = {**fields, "model": model, "logprobs": 0, "return_token_ids": True, "stream": True}
            began = False
            try:
                async with client.stream("POST", f"{server.url}/v1/completions", json=body) as reply:
                    if reply.status_code != 200:
                        self._refused(server, reply.status_code, await anext(reply.aiter_text(), ""))
                    began = True
                    async for index, part in self._read(reply, body):
                        server.failures = 0
                        yield index, part.completion(policy.version, server.label, greedy=fields["temperature"] == 0)
            except BROKEN as error:
                server.forget()
                self._failed(server)
                what = f"the reply of {server.label} broke off ({type(error).__name__}: {one_line(str(error))})"
                raise (_Broken if began else Fault)(what) from None
        finally:
            with self._changing:
                server.in_flight -= fields["n"]

    def _refused(self, server: Server, status: int, text: str) -> None:
        """Say what an error status means. Raises Fault or EndpointError."""
        if status >= 500 or status in (404, 408, 429):  # 404: restarted, our version is lost
            server.forget()
            self._failed(server)
            raise Fault(f"{server.label} answers HTTP {status}: {one_line(text)}")
        what = f"the rollout server refuses the request: HTTP {status}: {one_line(text)}"
        raise EndpointError(what, where=server.label, hint="stepalign serve MODEL --print shows how it is started")

    async def _read(self, reply: httpx2.Response, asked: Mapping[str, Any]) -> AsyncIterator[tuple[int, _Part]]:
        """The completions of a stream as each ends. Raises one of ``BROKEN`` where it is not what was asked for."""
        parts = [_Part(asked["max_tokens"], self._model.config.get_text_config().vocab_size) for _ in range(asked["n"])]
        async for event in self._events(reply):
            if event.get("model", asked["model"]) != asked["model"]:
                raise ValueError(f"it draws from {event['model']}, not from {asked['model']}")
            for choice in event["choices"]:
                index = choice["index"]
                if type(index) is not int or not 0 <= index < len(parts):
                    raise ValueError(f"no completion has the number {index}")
                part = parts[index]
                part.add(choice)
                if part.reason == "stop" and not self._stop and part.ids[-1] not in self._end_ids:
                    raise ValueError(f"a completion is said to stop at {part.ids[-1]}, which ends none here")
                if part.whole:
                    yield index, part
        if owed := sum(not part.whole for part in parts):
            raise ValueError(f"{owed} of {len(parts)} completions are missing")

    async def _events(self, reply: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
        """What a stream says before its end mark. Raises ValueError where no event comes within the timeout."""
        line, heard = "", time.monotonic()
        async for text in reply.aiter_text():
            *lines, line = (line + text).split("\n")
            for event in lines:
                data = event.removeprefix("data:").strip()
                if data == event.strip():  # a comment, or nothing
                    continue
                if data == "[DONE]":
                    return
                found = json.loads(data)
                if "error" in found:
                    raise ValueError(found["error"])
                yield found
                self._heard = heard = time.monotonic()
            if time.monotonic() - heard > self._timeout or len(line) > LONGEST_LINE:
                raise ValueError(f"no event within {self._timeout:.0f} s, or within {LONGEST_LINE} characters")

    async def _pick(self, count: int) -> Server:
        """The least loaded server that does not rest, booked for so many completions."""
        while True:
            now = time.monotonic()
            if now - self._heard > self._timeout:
                labels = ", ".join(server.label for server in self._servers)
                what = f"no rollout server has answered for {self._timeout:.0f} s; {self._why}".rstrip("; ")
                raise EndpointError(what, where=labels, hint="start them: stepalign serve MODEL")
            with self._changing:
                awake = [server for server in self._servers if server.rests_until <= now]
                if awake:
                    server = min(awake, key=lambda one: one.in_flight)
                    server.in_flight += count
                    return server
            await asyncio.sleep(POLL_SECONDS)

    def _failed(self, server: Server) -> None:
        """Let a server rest, longer with each failure in a row, spread out (full jitter)."""
        server.failures += 1
        server.rests_until = time.monotonic() + random.uniform(0.02, min(LONGEST_REST, 0.1 * 2.0**server.failures))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        timeout = httpx2.Timeout(self._timeout, connect=CONNECT_SECONDS)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx2.AsyncClient(timeout=timeout, limits=limits, verify=self._tls) as client:
            yield client


class _Broken(Fault):
    """A reply that began and is no use."""


@dataclass(slots=True)
class _Part:
    """The state of one completion."""

    most: int
    """Tokens."""
    vocabulary: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    reason: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        if self.reason is not None:
            raise ValueError("a completion goes on after its end")
        ids = choice.get("token_ids") or []
        log_probs = ((choice.get("logprobs") or {}).get("token_logprobs")) or []
        if len(ids) != len(log_probs):
            raise ValueError(f"{len(ids)} ids with {len(log_probs)} log-probabilities")
        if not all(type(i) is int and 0 <= i < self.vocabulary for i in ids):
            raise ValueError(f"ids that the vocabulary has not: {ids}")
        if not all(LEAST_LOG_PROB <= p <= GREATEST_LOG_PROB for p in log_probs):  # NaN neither
            raise ValueError(f"log-probabilities that no drawn token has: {log_probs}")
        self.ids += ids
        self.log_probs += map(float, log_probs)
        self.reason = choice.get("finish_reason")
        if self.reason == "length" and len(self.ids) < self.most:
            raise ValueError(f"a completion is cut at {len(self.ids)} tokens, where {self.most} were asked for")
        if len(self.ids) > self.most or (self.whole and not self.ids):
            raise ValueError(f"a completion of {len(self.ids)} tokens, where 1 to {self.most} were asked for")

    @property
    def whole(self) -> bool:
        return self.reason in ("stop", "length")

    def completion(self, version: int, server: str, *, greedy: bool) -> Completion:
        reason: FinishReason = "stop" if self.reason == "stop" else "length"
        # Greedy: the only one that can be drawn.
        log_probs = (0.0,) * len(self.ids) if greedy else tuple(self.log_probs)
        return Completion(
            ids=tuple(self.ids), log_probs=log_probs, finish_reason=reason, policy_version=version, server=server
        )
