"""One chat request to one OpenAI-compatible server: it ends as a Reply or as a Fault, never as an exception.

The client library's own retries are off, see ``servers.py``; its timeout starts anew with every chunk, so that a second
one bounds the whole attempt.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai

from stepalign.errors import ConfigError, EndpointError
from stepalign.outside import parse_json
from stepalign.waiting import wait_for

_CONNECT_SECONDS = 5.0
_USERINFO = re.compile(r"//[^/@\s]{1,512}@")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A complete chat reply."""

    content: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


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
    "cancelled",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One failed attempt."""

    kind: FaultKind
    message: str
    """One line, free of secrets."""
    status: int | None = None
    """HTTP status, None where no response came."""
    retry_after: float | None = None
    """Seconds that the server asks to wait."""

    @property
    def retryable(self) -> bool:
        return self.kind not in ("client", "cancelled")

    @property
    def is_outage(self) -> bool:
        """Whether the server seems to be down; one that asks to wait is alive."""
        return self.kind in ("connect", "timeout", "cut_body", "server") and self.retry_after is None


def fault_of_status(status: int, message: str, retry_after: float | None = None) -> Fault:
    """The fault behind an HTTP error status: 408, 409, 429 and 5xx are worth another attempt."""
    kind: FaultKind = "server" if status >= 500 or status in (408, 409) else "client"
    if status == 429 or (status == 503 and retry_after is not None):
        kind = "rate_limit"
    return Fault(kind=kind, message=message, status=status, retry_after=retry_after)


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


class Server:
    """One address.

    Args:
        url: base URL, ``http://host:port/v1``.
        key: sent as the bearer token; "" for servers without one.
        secrets: texts that are blotted out of every message of the server.
        attempt_timeout: seconds.

    Raises:
        ConfigError: not a URL.
    """

    def __init__(self, url: str, key: str, *, secrets: Sequence[str], attempt_timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"not a URL: {redact_url(url)!r}", hint="write it as http://host:port/v1")
        self.label = redact_url(url)
        self._secrets, self._has_key = secrets, bool(key)
        self._attempt_timeout = attempt_timeout
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # else the library would send OPENAI_API_KEY to any server
            max_retries=0,
            timeout=openai.Timeout(attempt_timeout, connect=_CONNECT_SECONDS),
        )
        self._client.organization = self._client.project = None  # nor these, which it also reads from the environment

    async def chat(self, fields: Mapping[str, Any], time_left: float) -> Reply | Fault:
        """One attempt, ended after ``time_left`` seconds or the attempt's own limit."""
        limit = min(self._attempt_timeout, time_left)
        try:
            async with asyncio.timeout(limit):
                response = await self._client.chat.completions.with_raw_response.create(**fields)
                body = response.text
        except openai.APIStatusError as error:
            after = parse_retry_after(error.response.headers.get("retry-after"), time.time())
            detail = " ".join(redacted(error.response.text, self._secrets).split())[:200]
            return fault_of_status(error.status_code, f"HTTP {error.status_code}: {detail}", after)
        except (TimeoutError, openai.APITimeoutError):
            return Fault(kind="timeout", message=f"no reply within {limit:.0f} s")
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            kind = "connect" if "Connect" in cause else "cut_body"
            what = "cannot connect" if kind == "connect" else "the reply broke off"
            return Fault(kind=kind, message=f"{what}: {self.label} ({cause})")
        except (openai.OpenAIError, ValueError) as error:  # the request cannot be sent, now or later
            return Fault(kind="client", message=redacted(f"{type(error).__name__}: {error}", self._secrets)[:200])
        return read_reply(redacted(body, self._secrets))

    async def models(self) -> list[str] | EndpointError:
        """The names of the models it serves, none where it has no list; or why it cannot be asked."""
        try:
            async with asyncio.timeout(4 * _CONNECT_SECONDS):
                listing = await self._client.models.with_raw_response.list()
            return [str(entry["id"]) for entry in json.loads(listing.text)["data"]]
        except openai.APIStatusError as error:
            if error.status_code not in (401, 403):
                return []
            what = "the critic refuses the key" if self._has_key else "the critic asks for a key"
            hint = "--set critic.api_key_env=NAME, the environment variable that holds the key"
            return EndpointError(what, where=self.label, hint=hint)
        except (openai.APIConnectionError, TimeoutError) as error:
            hint = "start the server, or correct the URL; it ends in /v1 for most servers"
            if self.label.startswith("https:") and "SSL" in repr(error.__cause__):
                hint = "a server without a certificate speaks http://"
            return EndpointError("the critic does not answer", where=self.label, hint=hint)
        except (openai.OpenAIError, ValueError, LookupError, TypeError):
            return []

    async def check(self, model: str) -> EndpointError | None:
        """What keeps the server from serving the model; None when nothing does."""
        served = await self.models()
        if isinstance(served, EndpointError):
            return served
        if model in served:
            return None
        # A one-token chat: some servers load models that they do not list.
        fields = {"model": model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
        result = await self.chat(fields, self._attempt_timeout)
        if isinstance(result, Reply) or (result.kind == "rate_limit"):
            return None
        hint = "check the name of the model, and the URL: it ends in /v1 for most servers"
        if served:
            hint = f"it serves {', '.join(served[:5])}"
        what = f"the critic does not serve {model!r}: {result.message}"
        return EndpointError(what, where=self.label, hint=hint)

    async def close(self) -> None:
        await self._client.close()


def list_models(urls: Sequence[str], api_key_env: str) -> list[str]:
    """The models that the first server that answers offers; [] where it has no list.

    Raises:
        EndpointError: none answers, or the key is refused.
    """
    key = read_key(api_key_env)

    async def ask() -> list[str]:
        fault: EndpointError | None = None
        for url in urls:
            server = Server(url, key, secrets=secrets_of(key, urls), attempt_timeout=20.0)
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

    return wait_for(ask())


def read_reply(body: str) -> Reply | Fault:
    """A chat reply out of a response body; servers behind proxies send anything under status 200."""
    try:
        data = parse_json(body)
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
    return Reply(
        content=content if isinstance(content, str) else None,
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# ---------------------------------------------------------------------------------------------------------------------
# Secrets


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
    return key


def secrets_of(key: str, urls: Sequence[str]) -> list[str]:
    """What must never be written: the key and the passwords in URLs. Very short ones would blot out common text."""
    return [text for text in (key, *map(_password, urls)) if len(text) >= 6]


def redacted(text: str, secrets: Sequence[str]) -> str:
    """Text from a server without our secrets, which a server may echo."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return text


def redact_url(url: str) -> str:
    """The URL without ``user:password@``."""
    return _USERINFO.sub("//", url)


def _password(url: str) -> str:
    match = _USERINFO.search(url)
    return match.group(0)[2:-1].partition(":")[2] if match else ""
