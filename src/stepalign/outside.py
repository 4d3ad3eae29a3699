"""Text from outside: made encodable where it comes in, visible where a person reads it.

Rows, replies, stored records, tools and the command line bring text that UTF-8 cannot hold (a lone surrogate is legal
in JSON) and characters that a terminal obeys. Every reader of JSON uses :func:`parse_json`, every other border
:func:`encodable`; every message and page passes :func:`visible`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

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
