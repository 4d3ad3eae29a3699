"""One chat request to one OpenAI-compatible server: it ends as a Reply or as a Fault, never as an exception.

The client library's own retries are off, and its timeout is not trusted: it starts anew with every chunk.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from stepalign.critics.retry import Fault, fault_of_status, parse_retry_after
from stepalign.errors import ConfigError, EndpointError

_USERINFO = re.compile(r"//[^/@\s]{1,512}@")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A complete chat reply."""

    content: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


class Server:
    """One address.

    Args:
        url: base URL, ``http://host:port/v1``.
        key: sent as the bearer token; "" for servers without one.
        secrets: texts that are blotted out of whatever the server says.
        attempt_timeout, connect_timeout: seconds.

    Raises:
        ConfigError: not a URL.
    """

    def __init__(
        self, url: str, key: str, *, secrets: Sequence[str], attempt_timeout: float, connect_timeout: float
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"not a URL: {redact_url(url)!r}", hint="write it as http://host:port/v1")
        self.label = redact_url(url)
        self.in_flight = 0
        self.rests_until = 0.0
        self.failures = 0
        """In a row."""
        self._secrets, self._has_key = secrets, bool(key)
        self._attempt_timeout, self._connect_timeout = attempt_timeout, connect_timeout
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # else the library would send OPENAI_API_KEY to any server
            max_retries=0,
            timeout=openai.Timeout(attempt_timeout, connect=connect_timeout),
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
            async with asyncio.timeout(4 * self._connect_timeout):
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
        return None if model in served else await self._check_model(model, served)

    async def close(self) -> None:
        await self._client.close()

    async def _check_model(self, model: str, served: Sequence[str]) -> EndpointError | None:
        """A one-token chat: some servers load models that they do not list."""
        fields = {"model": model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
        result = await self.chat(fields, self._attempt_timeout)
        if isinstance(result, Reply) or (result.kind == "rate_limit"):
            return None
        hint = "check the name of the model, and the URL: it ends in /v1 for most servers"
        if served:
            hint = f"it serves {', '.join(served[:5])}"
        what = f"the critic does not serve {model!r}: {result.message}"
        return EndpointError(what, where=self.label, hint=hint)


def read_reply(body: str) -> Reply | Fault:
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


def read_key(variable: str | None) -> str:
    """The key in an environment variable, "" without a variable. Raises ConfigError when it is not set."""
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
