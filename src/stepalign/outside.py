"""Text from outside: made encodable where it comes in, visible and without secrets where a person reads it.

Rows, replies, stored records, tools and the command line bring text that UTF-8 cannot hold (a lone surrogate is legal
in JSON) and characters that a terminal obeys. Every reader of JSON uses :func:`parse_json`, every other border
:func:`encodable`; every page passes :func:`visible`, every message :func:`shown`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_IN_JSON = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")
# C0 and C1 controls, soft hyphen, zero-width and direction marks, line separators, byte-order mark, language tags,
# lone surrogates: characters that a reader cannot see, or that a terminal obeys.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
    "|[\U000e0000-\U000e007f]"
)


def encodable(value: Any) -> Any:
    """A text, or a tree of JSON, that UTF-8 can hold: a pair of surrogates becomes its character, a lone one U+FFFD."""
    if isinstance(value, str):
        if not _SURROGATE.search(value):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, Mapping):
        return {encodable(key): encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(inner) for inner in value]
    return value


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, with encodable texts. Raises ValueError or RecursionError."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    tree = json.loads(text)
    return encodable(tree) if _SURROGATE_IN_JSON.search(text) else tree


def visible(text: object) -> str:
    """Text with every invisible or terminal-controlling character spelled out; newline and tab stay.

    Control characters become their Unicode pictures (ESC becomes ␛), all others ``⟨U+202E⟩``. Nothing in the result can
    move a cursor, colour a terminal, or reorder its line.
    """

    def picture(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"

    return _INVISIBLE.sub(picture, str(text))


# ---------------------------------------------------------------------------------------------------------------------
# Secrets

_SHOWN = 60
"""Characters of a long value in a message."""
REDACTED = "[redacted]"
_SHORTEST_SECRET = 6
"""Characters. Shorter ones would blot out common text."""
_secrets: set[str] = set()
"""Keys, passwords and values of queries that this process has met, in every spelling."""
_URL = re.compile(r"(?P<scheme>https?://)(?P<rest>.*)", re.I | re.S)
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")
_QUERY = re.compile(r"\?(?=[\w.-]+=)|\?(?=[^@]*$)")
_HARMLESS = frozenset({"api-version", "api_version", "version", "deployment", "region", "timeout"})
"""Names in a query whose values are no secrets."""
_SECRET_NAME = re.compile(
    r"(?:^|[-_])(?:api|access|secret|private|auth|bearer|subscription)[-_]?(?:key|token)$"
    r"|^(?:key|token|authorization|credentials?)$|secret|passw",
    re.I,
)
_IN_TEXT = (
    (re.compile(r"(https?://)[^\s/?#]*@", re.I), r"\1"),
    (
        re.compile(r"([?&][^=&#\s]*(?:key|token|secret|sig|pass|auth|cred)[^=&#\s]*=)[^&#\s\"']+", re.I),
        rf"\1{REDACTED}",
    ),
)


@dataclass(frozen=True, slots=True)
class Address:
    """A server's URL in its parts."""

    url: str
    """Without user, password, query and fragment, and without a slash at its end."""
    user: str
    """"user:password", as written."""
    query: dict[str, str]

    @property
    def authorization(self) -> str:
        """The header for user and password; "" without."""
        user = unquote(self.user).encode()
        return f"Basic {base64.b64encode(user if b':' in user else user + b':').decode()}" if self.user else ""

    @property
    def label(self) -> str:
        """The URL as it may be written and shown."""
        kept = "&".join(f"{name}={value}" for name, value in self.query.items() if name in _HARMLESS)
        return f"{self.url}?{kept}" if kept else self.url


def split_url(url: str) -> Address:
    """An ``http(s)`` URL in its parts, and its secrets kept from now on.

    A password may hold any character, also those that a URL should spell otherwise: where there is an ``@`` before the
    host, or no host where one should be, everything up to the last ``@`` before the query is user and password.

    Raises:
        ValueError: why it is no URL; the message holds no part of it.
    """
    url = url.strip()
    whole = _URL.fullmatch(url)
    if whole is None:
        raise ValueError("it does not start with http:// or https://")
    rest = whole["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    begin = 0
    if "@" in authority or not _HOST.fullmatch(authority):
        query = _QUERY.search(rest)
        begin = rest.rfind("@", 0, query.start() if query else len(rest)) + 1
    user, (rest, _, fragment) = rest[: max(0, begin - 1)], rest[begin:].partition("#")
    path, _, query_text = rest.partition("?")
    pairs = parse_qsl(query_text, keep_blank_values=True) if "=" in query_text else []
    address = Address(f"{whole['scheme'].lower()}{path.rstrip('/')}", user, dict(pairs))
    password = user.partition(":")[2] or user
    values = [value for name, value in pairs if name not in _HARMLESS] or [query_text] * (not pairs)
    keep_secret(user, password, address.authorization.removeprefix("Basic "), fragment, *values)
    if fault := _fault_of_authority(path.partition("/")[0]):
        raise ValueError(fault)
    if re.search(r"[\s\x00-\x1f\x7f]", rest):
        raise ValueError("it holds a space or a control character")
    return address


def _fault_of_authority(authority: str) -> str:
    host, _, port = authority.rpartition(":") if re.search(r":[^\]]*$", authority) else (authority, "", "80")
    if not host:
        return "it names no host"
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return "the port is no number from 1 to 65535"
    try:
        named = host.encode("idna").decode()
    except UnicodeError:
        return "the host is no name"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+(%[\w.-]+)?\]", named):
        return "the host is no name"
    return ""


def redact_url(url: str) -> str:
    """The URL without user, password and secret values of its query; what is no URL is redacted as text."""
    try:
        return split_url(url).label
    except ValueError:
        return redacted(url)


def keep_secret(*texts: str) -> None:
    """Blot these texts out of every message from now on, in all the spellings that they may come back in."""
    for text in texts:
        for spelt in {text, unquote(text), quote(unquote(text), safe="")}:
            _secrets.update(
                form for form in (spelt, json.dumps(spelt)[1:-1], repr(spelt)[1:-1]) if len(form) >= _SHORTEST_SECRET
            )


def names_a_secret(name: str) -> bool:
    """Whether a field of this name holds a key or a password."""
    return _SECRET_NAME.search(name) is not None


def keep_secrets_of(value: Any) -> None:
    """Keep the secrets of every URL in a tree of settings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            keep_secrets_of(inner)
    elif isinstance(value, str) and value.lstrip().lower().startswith(("http://", "https://")):
        redact_url(value)


def without_secrets(text: str) -> str:
    """Text without the secrets that were kept."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text


def redacted(text: str) -> str:
    """Text without the secrets that were kept, and without those of URLs in it."""
    text = without_secrets(text)
    for pattern, kept in _IN_TEXT:
        text = pattern.sub(kept, text)
    return text


def difference_shown(before: object, now: object) -> str:
    """ "A there and B here": of long values the part where they differ."""
    texts = [repr(before), repr(now)]
    if max(map(len, texts)) > 2 * _SHOWN:
        same = next((at for at, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), 0)
        start = max(0, same - _SHOWN // 3)
        texts = [
            f"{'...' * (start > 0)}{one[start : start + _SHOWN]}{'...' * (len(one) > start + _SHOWN)}" for one in texts
        ]
    return f"{texts[0]} there and {texts[1]} here"


def shown(text: object) -> str:
    """A message as a person may read it: without secrets, every character visible."""
    return visible(redacted(str(text)))
