"""A teacher behind vLLM servers: the k likeliest tokens at every place of a completion, by ``prompt_logprobs``.

Prompt and completion go as ids, and nothing is drawn but one token that vLLM insists on. The servers give
log-probabilities at temperature 1 and know no other here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2

from stepalign.errors import ConfigError, EndpointError
from stepalign.models.sampling.server import Fault, Server, ask, introduce, one_line, server_at
from stepalign.records import Sample, ServedTop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "objective.teacher.base_urls"
AT_ONCE = 16
"""Requests under way at each server."""
REST_SECONDS, LONGEST_REST = 0.1, 10.0
PROBE = "The sum of 17 and 25 is 42, so 3 * 14 = 42."
"""A text whose tokens most vocabularies number in their own way."""


class ServedTeacher:
    """Scores Samples.

    Args:
        urls: ``http://host:port/v1``, one or several that serve the same model.
        k: how many tokens; servers refuse more than their ``--max-logprobs``.
        timeout: seconds without any answer after which scoring fails.

    Raises:
        ConfigError: an address is no URL.
    """

    def __init__(self, urls: Sequence[str], k: int, *, timeout: float = 300.0) -> None:
        self._servers = [server_at(url, KEY) for url in urls]
        self._k, self._timeout, self._heard = k, timeout, 0.0

    async def score(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with a teacher, each with what the servers say of its completion; the others as they are.

        Raises:
            ConfigError: a sequence does not fit the server's context.
            EndpointError: a server refuses a request, or none answers within the timeout.
        """
        self._heard, limit = time.monotonic(), asyncio.Semaphore(AT_ONCE * len(self._servers))

        async def scored(sample: Sample) -> Sample:
            if sample.teacher_prompt_ids is None:
                return sample
            async with limit:
                found = await self._asked(client, sample.teacher_prompt_ids, sample.completion_ids)
            return replace(sample, served=self._top(found, sample.completion_ids))

        async with self._client() as client:
            return list(await asyncio.gather(*map(scored, samples)))

    async def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that a server answers, and that each one which does reads ids as the solver's tokenizer does.

        Raises:
            ConfigError: another vocabulary.
            EndpointError: a server refuses the request, or none answers; none is asked twice.
        """
        ids, faults = tokenizer.encode(PROBE, add_special_tokens=False) or [0], list[str]()
        async with self._client() as client:
            for server in self._servers:
                try:
                    found = await self._request(client, server, ids)
                except Fault as fault:
                    faults.append(str(fault))
                    continue
                for token, entries in zip(ids[1:], found[1:], strict=True):
                    theirs, own = str(entries[str(token)].get("decoded_token")), str(tokenizer.decode([token]))
                    if theirs.strip() != own.strip() and "\ufffd" not in theirs + own:
                        what = f"the teacher at {server.label} has another vocabulary than the solver: "
                        hint = "a teacher scores the student's own ids: serve one of the same family"
                        raise ConfigError(f"{what}{token} is {theirs!r}, not {own!r}", where=KEY, hint=hint)
        if len(faults) == len(self._servers):
            raise self._no_answer("; ".join(faults))

    async def _asked(
        self, client: httpx2.AsyncClient, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[Mapping[str, Any]]:
        """The entries of each completion token: id as text -> log-probability, rank, text."""
        rest, why = REST_SECONDS, ""
        while True:
            server = min(self._servers, key=lambda one: (one.failures, one.in_flight))
            server.in_flight += 1
            try:
                found = await self._request(client, server, [*prompt, *completion])
                self._heard, server.failures = time.monotonic(), 0
                return found[len(prompt) :]
            except Fault as fault:
                server.failures += 1
                why = str(fault)
            finally:
                server.in_flight -= 1
            if time.monotonic() - self._heard > self._timeout:
                raise self._no_answer(why)
            await asyncio.sleep(rest)
            rest = min(2 * rest, LONGEST_REST)

    def _no_answer(self, why: str) -> EndpointError:
        labels = ", ".join(one.label for one in self._servers)
        return EndpointError(f"no server of the teacher answers: {why}", where=labels, hint="start it again")

    async def _request(self, client: httpx2.AsyncClient, server: Server, ids: list[int]) -> list[Mapping[str, Any]]:
        if not server.model:
            await introduce(client, server)
        if server.context_length and len(ids) >= server.context_length:
            raise ConfigError(
                f"prompt and completion have {len(ids)} tokens, and the teacher's server takes {server.context_length}",
                where=server.label,
                hint="start it with a larger --max-model-len, or shorten sampling.max_completion_length",
            )
        body = {"model": server.model, "prompt": [ids], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": self._k}
        reply = await ask(client, "POST", server, "/v1/completions", json=body)
        if reply.status_code in (404, 408):  # restarted with another model, or busy
            server.forget()
            raise Fault(f"{server.label} answers HTTP {reply.status_code}: {one_line(reply.text)}")
        if reply.status_code != 200:
            what = f"the teacher's server refuses the request: HTTP {reply.status_code}: {one_line(reply.text)}"
            hint = f"start it with --max-logprobs {self._k}, or --set objective.top_k= with fewer"
            raise EndpointError(what, where=server.label, hint=hint)
        found: list[Mapping[str, Any]] = []
        with suppress(ValueError, LookupError, TypeError):
            entries = json.loads(reply.text)["choices"][0]["prompt_logprobs"]
            if all(str(token) in entry for token, entry in zip(ids[1:], entries[1:], strict=True)):
                found = entries
        if len(found) != len(ids):
            what = f"the teacher's server gives no log-probabilities of the prompt: {one_line(reply.text)}"
            raise EndpointError(what, where=server.label, hint="it has to be vLLM")
        return found

    def _top(self, found: Sequence[Mapping[str, Any]], completion: Sequence[int]) -> ServedTop:
        """(ids, log-probabilities) of the k likeliest at each place, likeliest first, and those of the tokens taken."""
        ids: list[tuple[int, ...]] = []
        log_probs: list[tuple[float, ...]] = []
        for entries in found:
            best = sorted(entries.items(), key=lambda entry: -entry[1]["logprob"])[: self._k]
            ids.append(tuple(int(token) for token, _ in best))
            log_probs.append(tuple(float(entry["logprob"]) for _, entry in best))
        taken = (float(e[str(token)]["logprob"]) for token, e in zip(completion, found, strict=True))
        return tuple(ids), tuple(log_probs), tuple(taken)

    def _client(self) -> httpx2.AsyncClient:
        timeout = httpx2.Timeout(self._timeout, connect=5.0)
        return httpx2.AsyncClient(timeout=timeout, verify=ssl.create_default_context())
