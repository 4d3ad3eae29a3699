"""One chat request to one OpenAI-compatible server: it ends as a reply or as a fault, never as an exception."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2 as httpx

from stepalign.errors import ConfigError, EndpointError
from stepalign.outside import keep_secret, parse_json, redacted, shown, split_url, without_secrets
from stepalign.waiting import wait_for

_CONNECT_SECONDS = 10.0
_BYTES_PER_TOKEN = 64
_ENVELOPE_BYTES = 2**20
"""A body is at most this long, and so many bytes for each token that was asked for besides."""
_DETAIL = 300
"""Characters of an error's body in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """A complete chat reply."""

    content: str | None
    """A reply that holds nothing but a field of reasoning is that, as a thinking block."""
    finish_reason: str | None
    """The server's; "refusal" where the message is one."""
    prompt_tokens: int
    completion_tokens: int
    model: str = ""
    """The model that the server says has written it."""


FaultKind = Literal[
    "rate_limit",
    "server",
    "client",
    "connect",
    "timeout",
    "cut_body",
    "bad_json",
    "empty_choices",
    "bad_reply",
    "too_long",
    "other_model",
    "cancelled",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFault:
    """One failed attempt."""

    kind: FaultKind
    message: str
    """One line, free of secrets and of characters that a terminal obeys."""
    status: int | None = None
    """HTTP status, None where no response came."""
    retry_after: float | None = None
    """Seconds that the server asks to wait."""

    @property
    def retryable(self) -> bool:
        return self.kind not in ("client", "too_long", "cancelled")

    @property
    def is_outage(self) -> bool:
        """Whether the server seems to be down; one that asks to wait is alive."""
        return self.kind in ("connect", "timeout", "cut_body", "server") and self.retry_after is None


def fault_of_status(status: int, message: str, retry_after: float | None = None) -> ChatFault:
    """The fault behind an HTTP status: 408, 409, 429 and 5xx are worth another attempt."""
    kind: FaultKind = "server" if status >= 500 or status in (408, 409) else "client"
    if status == 429 or (status == 503 and retry_after is not None):
        kind = "rate_limit"
    return ChatFault(kind=kind, message=message, status=status, retry_after=retry_after)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait from a Retry-After header, seconds or an HTTP date; None where it cannot be read.

    Args:
        now: seconds since the epoch.

    Source: RFC 9110, section 10.2.3.
    """
    if not value or len(value) > 64:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if math.isfinite(seconds) else None


_DIALECTS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("max_tokens", "max_completion_tokens", re.compile(r"max_tokens.{0,200}max_completion_tokens", re.I | re.S)),
    (
        *("temperature", ""),
        re.compile(
            r"temperature\W.{0,120}(?:only the default|not supported with|is deprecated|is not supported)"
            r"|unsupported parameter\W{1,4}temperature",
            re.I | re.S,
        ),
    ),
)
"""Field, what is sent instead ("" for nothing), and the words of servers that do not take the field: reasoning models.
Words against one value, such as "temperature must be positive", are an error of the recipe."""


class ChatServer:
    """One address.

    Args:
        url: base URL, ``http://host:port/v1``. User and password are sent as a header, its query with each request.
        key: sent as the bearer token; "" for servers without one.
        attempt_timeout: seconds.
        announce: gets a line when the server takes a field of the request in another way than others.

    Raises:
        ConfigError: not a URL.
    """

    def __init__(
        self, url: str, key: str, *, attempt_timeout: float, announce: Callable[[str], None] = lambda line: None
    ) -> None:
        try:
            address = split_url(url)
        except ValueError as error:
            hint = "write it as http://host:port/v1"
            raise ConfigError(f"not a URL: {error}", where=redacted(url), hint=hint) from None
        self.label = address.label
        self._has_key, self._announce = bool(key), announce
        self._attempt_timeout = attempt_timeout
        self._unknown: dict[str, str] = {}
        """Fields of the request that the server does not take -> what is sent instead."""
        bearer = f"Bearer {key}" if key else ""
        self._client = httpx.AsyncClient(
            base_url=address.url,
            params=address.query,
            # Not compressed: a body could be small on the wire and fill the memory.
            headers={"Accept-Encoding": "identity", "Authorization": address.authorization or bearer},
            timeout=httpx.Timeout(attempt_timeout, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        if not (address.authorization or bearer):
            del self._client.headers["Authorization"]

    async def chat(self, fields: Mapping[str, Any], time_left: float) -> ChatReply | ChatFault:
        """One attempt, ended after ``time_left`` seconds or the attempt's own limit."""
        limit = min(self._attempt_timeout, time_left)
        tokens = max(int(fields.get(name) or 0) for name in ("max_tokens", "max_completion_tokens"))
        while True:
            sent = {self._unknown.get(name, name): value for name, value in fields.items()}
            sent.pop("", None)
            body = await self._send("POST", "chat/completions", limit, _BYTES_PER_TOKEN * tokens, sent)
            if not isinstance(body, ChatFault):
                return read_reply(without_secrets(body))
            if body.status not in (400, 422) or not self._learn(body.message, sent):
                return body

    def _learn(self, refusal: str, sent: Mapping[str, Any]) -> bool:
        """Whether a refusal names a field that can be sent in another way."""
        for name, other, words in _DIALECTS:
            if name in sent and words.search(refusal):
                if name not in self._unknown:
                    instead = f"{other} is sent instead" if other else "the model's own is in force"
                    self._announce(f"critic: {self.label} does not take {name}; {instead}")
                self._unknown[name] = other
                return True
        return False

    async def _send(self, method: str, path: str, limit: float, size: int, fields: Any = None) -> str | ChatFault:
        """The body of a response with status 2xx, at most ``size`` bytes longer than an envelope."""
        size += _ENVELOPE_BYTES
        try:
            content = None if fields is None else json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
            headers = {"Content-Type": "application/json"} if content else {}
            request = self._client.build_request(method, path, content=content, headers=headers)
            async with asyncio.timeout(limit):
                response = await self._client.send(request, stream=True)
                try:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > size:
                            return ChatFault(kind="too_long", message=f"the reply is longer than {size:,} bytes")
                finally:
                    await response.aclose()
        except httpx.ConnectTimeout:
            return ChatFault(kind="connect", message=f"cannot connect within {_CONNECT_SECONDS:.0f} s: {self.label}")
        except (TimeoutError, httpx.TimeoutException):
            return ChatFault(kind="timeout", message=f"no reply within {limit:.0f} s")
        except httpx.ConnectError as error:
            secure = " (a server without a certificate speaks http://)" if "SSL" in repr(error) else ""
            return ChatFault(kind="connect", message=f"cannot connect: {self.label}{secure}")
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, httpx.DecodingError) as error:
            return ChatFault(kind="cut_body", message=f"the reply broke off: {self.label} ({type(error).__name__})")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the request cannot be sent, now or later
            return ChatFault(kind="client", message=shown(f"{type(error).__name__}: {error}")[:_DETAIL])
        text = body.decode("utf-8", "replace")
        if response.is_success:
            return text
        after = parse_retry_after(response.headers.get("retry-after"), time.time())
        detail = response.headers.get("location", "") if response.is_redirect else error_text(text)
        return fault_of_status(
            response.status_code, shown(f"HTTP {response.status_code}: {' '.join(detail.split())}")[:_DETAIL], after
        )

    async def models(self) -> list[str] | EndpointError:
        """The names of the models it serves, none where it has no list; or why it cannot be asked."""
        body = await self._send("GET", "models", 2 * _CONNECT_SECONDS, _ENVELOPE_BYTES)
        if not isinstance(body, ChatFault):
            try:
                return [str(entry["id"]) for entry in parse_json(body)["data"]]
            except (ValueError, LookupError, TypeError, RecursionError):
                return []
        if body.status in (401, 403):
            what = "the critic refuses the key" if self._has_key else "the critic asks for a key"
            hint = "--set critic.api_key_env=NAME, the environment variable that holds the key"
            return EndpointError(what, where=self.label, hint=hint)
        if body.kind in ("connect", "timeout", "cut_body"):
            hint = "start the server, or correct the URL; it ends in /v1 for most servers"
            if body.message.endswith("http://)"):
                hint = "a server without a certificate speaks http://"
            return EndpointError("the critic does not answer", where=self.label, hint=hint)
        return []

    async def close(self) -> None:
        await self._client.aclose()


def list_models(urls: Sequence[str], api_key_env: str) -> list[str]:
    """The models that the first server that answers offers; [] where it has no list.

    Raises:
        EndpointError: none answers, or the key is refused.
    """
    key = read_key(api_key_env)

    async def ask(url: str) -> list[str] | EndpointError:
        server = ChatServer(url, key, attempt_timeout=20.0)
        try:
            return await server.models()
        finally:
            await server.close()

    answers = [wait_for(ask(url)) for url in urls]
    lists = [answer for answer in answers if not isinstance(answer, EndpointError)]
    for fault in answers[:1]:
        if isinstance(fault, EndpointError) and not lists:
            raise fault
    return lists[0] if lists else []


def read_reply(body: str) -> ChatReply | ChatFault:
    """A chat reply out of a response body; servers behind proxies send anything under status 200."""
    try:
        data = parse_json(body)
    except (ValueError, RecursionError):
        return ChatFault(kind="bad_json", message="the reply is not JSON")
    data = data if isinstance(data, dict) else {}
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        detail = error_text(choice if "error" in choice else data)
        return ChatFault(kind="empty_choices", message=f"the reply holds no message{detail and f': {shown(detail)}'}")
    content, reason = _texts(message.get("content")), choice.get("finish_reason")
    if not content and isinstance(message.get("refusal"), str):
        content, reason = message["refusal"], "refusal"
    if not content and (thoughts := _texts(message.get("reasoning_content") or message.get("reasoning"))):
        content = f"<think>{thoughts}"
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens = _count(usage.get("prompt_tokens"))
    # Some leave the tokens of thinking, which are paid for, to the total.
    completion_tokens = max(_count(usage.get("completion_tokens")), _count(usage.get("total_tokens")) - prompt_tokens)
    return ChatReply(
        content=content,
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens if prompt_tokens else _count(usage.get("completion_tokens")),
        model=data["model"] if isinstance(data.get("model"), str) else "",
    )


def stored_reply(stored: Mapping[str, Any]) -> ChatReply:
    """A reply of the cache. Raises TypeError for anything else."""
    reply = ChatReply(**stored)
    if not isinstance(reply.content, str | None) or not isinstance(reply.finish_reason, str | None):
        raise TypeError("no reply")
    return replace(reply, prompt_tokens=int(reply.prompt_tokens), completion_tokens=int(reply.completion_tokens))


def error_text(answer: Any) -> str:
    """The message in an error's body, or the body; "" where there is none."""
    if isinstance(answer, str):
        try:
            answer = parse_json(answer)
        except (ValueError, RecursionError):
            return answer
    found = answer
    for name in ("error", "message", "detail"):
        if isinstance(found, list) and found:
            found = found[0]
        found = found.get(name, found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else json.dumps(answer) if found else ""


def _texts(content: Any) -> str | None:
    """The text of a message: as it is, or the parts of a list that are text, without those that are thinking."""
    if isinstance(content, list):
        parts = [
            part for part in content if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")
        ]
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def read_key(variable: str) -> str:
    """The key in an environment variable, "" without a variable. Raises ConfigError when it is not set."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set",
            where="critic.api_key_env",
            hint=f"export {variable}=..., or drop api_key_env if the server needs no key",
        )
    keep_secret(key)
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {variable} holds characters that no header can carry",
            where="critic.api_key_env",
            hint=f"export {variable}=... again, with the key alone",
        )
    return key
