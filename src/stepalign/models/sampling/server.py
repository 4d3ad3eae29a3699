"""One vLLM server over HTTP: what is known of it, one request, and the calls by which it takes new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from stepalign.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from torch import Tensor

CONNECT_SECONDS = 5.0


class Fault(Exception):  # noqa: N818 - not an error yet: another server, or the same one later, may answer
    """A request that did not succeed, worth another try."""


@dataclass(slots=True)
class Server:
    """One vLLM server, as far as it is known."""

    url: str
    """Without ``/v1``."""
    label: str
    """The same without a password."""
    in_flight: int = 0
    """Completions that it is drawing for us."""
    model: str = ""
    """Name of its base model; "" before it was asked."""
    context_length: int | None = None
    holds: set[str] = field(default_factory=set)
    """Names of our versions that it has."""
    syncing: bool = False
    link: Any = None
    """The state that a way keeps for it."""
    rests_until: float = 0.0
    failures: int = 0
    """In a row."""

    def forget(self) -> None:
        """It may be another process by now."""
        self.model, self.link = "", None
        self.holds.clear()


@dataclass(slots=True)
class Policy:
    """One version of the weights, as servers get to know it."""

    name: str
    """Unique to this process: a server never takes another run's weights for ours."""
    version: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None
    """Where they are written, for ways that hand over files."""
    users: int = 0
    """Calls that draw from it."""


async def ask(client: httpx2.AsyncClient, method: str, server: Server, path: str, **fields: Any) -> httpx2.Response:
    """One request, whatever its status. Raises Fault without an answer, or with one that says the server is ill."""
    try:
        async with asyncio.timeout(client.timeout.read):  # of the whole reply: one that trickles has no other end
            reply = await client.request(method, server.url + path, **fields)
    except (httpx2.TransportError, httpx2.DecodingError, TimeoutError) as error:
        raise Fault(f"{server.label} does not answer ({type(error).__name__})") from None
    if reply.status_code >= 500 or reply.status_code == 429:
        raise Fault(f"{server.label}{path} answers HTTP {reply.status_code}: {one_line(reply.text)}")
    return reply


def server_at(url: str, key: str = "sampling.base_urls") -> Server:
    """A server by its address. Raises ConfigError for one that is none, with the key that has it."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:  # a port that is none, or a password with a character that ends it
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"not a URL: {url!r}", where=key, hint="write it as http://host:port/v1")
    root = url.rstrip("/").removesuffix("/v1")
    return Server(root, str(httpx2.URL(root).copy_with(userinfo=b"")))


async def introduce(client: httpx2.AsyncClient, server: Server) -> None:
    """Ask a server for its base model. Raises Fault, EndpointError."""
    reply = await ask(client, "GET", server, "/v1/models")
    try:
        base = next(entry for entry in reply.json()["data"] if not entry.get("parent"))
        length = base.get("max_model_len")
        server.context_length = length if isinstance(length, int) else None
        server.model = str(base["id"])
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        what = f"no vLLM server: /v1/models answers HTTP {reply.status_code}: {one_line(reply.text)}"
        raise EndpointError(what, where=server.label, hint="give the address of the server; it ends in /v1") from None


async def check_servers(urls: Sequence[str]) -> None:
    """See that a server answers before anything is loaded. Raises ConfigError, EndpointError."""
    faults = []
    async with httpx2.AsyncClient(timeout=CONNECT_SECONDS) as client:
        for server in map(server_at, urls):
            try:
                await introduce(client, server)
            except Fault as fault:
                faults.append(str(fault))
    if len(faults) == len(urls):
        hint = "start one: stepalign serve MODEL; or correct sampling.base_urls"
        raise EndpointError("no rollout server answers", where="; ".join(faults), hint=hint)


def one_line(text: str) -> str:
    return " ".join(text.split())[:200]


async def weight_version(client: httpx2.AsyncClient, server: Server) -> str | None:
    """The label of the weights that a server holds; None where it has no such route."""
    reply = await ask(client, "GET", server, "/weight_info")
    if reply.status_code != 200:
        return None
    try:
        return str(reply.json()["weight_version"])
    except (ValueError, LookupError, TypeError):
        raise Fault(f"{server.label} does not say which weights it holds: {one_line(reply.text)}") from None


async def offers(client: httpx2.AsyncClient, server: Server, path: str) -> bool:
    """Whether a server has a route that takes POST: it refuses GET there, and knows no route elsewhere."""
    return (await ask(client, "GET", server, path)).status_code == 405


def cannot(server: Server, what: str) -> EndpointError:
    hint = "stepalign serve MODEL --print shows how it is started"
    return EndpointError(f"the rollout server cannot {what}", where=server.label, hint=hint)


Action = Callable[[], Awaitable[None]]


async def transfer(client: httpx2.AsyncClient, server: Server, policy: Policy, connect: Action, update: Action) -> None:
    """Put new weights in the place of a server's own. Its requests have ended, and what they had cached is dropped.

    The calls belong together; after a failure between them all of them are made again.
    """
    if not await offers(client, server, "/update_weights"):
        raise cannot(server, "take new weights while it runs")
    await ask(client, "POST", server, "/pause", params={"mode": "keep"}, json={})
    try:
        await connect()
        await post(client, server, "/start_weight_update", is_checkpoint_format=True)
        await update()
        await post(client, server, "/finish_weight_update", weight_version=policy.name)
        await ask(client, "POST", server, "/reset_prefix_cache", json={})
    finally:
        await ask(client, "POST", server, "/resume", json={})


async def post(client: httpx2.AsyncClient, server: Server, path: str, **body: Any) -> None:
    """One call of a transfer. Raises Fault, and EndpointError where it is refused."""
    reply = await ask(client, "POST", server, path, json=body)
    if reply.status_code != 200:
        raise cannot(server, f"take new weights: {path} answers {one_line(reply.text)}")
