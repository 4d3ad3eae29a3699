"""JSON and LaTeX in a critic's reply: the object among other words, and backslashes that JSON took for its own.

JSON knows ``\\b``, ``\\f``, ``\\n``, ``\\r``, ``\\t`` as control characters, so that a model that writes ``\\frac`` or
``\\times`` with one backslash has sent a form feed and a tab. Other commands make the JSON invalid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from stepalign.outside import encodable

_MAX_OBJECTS = 64
"""Places at which an object may begin that are tried, the last ones of a reply."""
_COMMANDS = re.compile(
    "n(?:abla|atural|cong|earrow|eq|ewline|exists|geq|gtr|leftarrow|leq|less|mid|olimits|onumber|ormalsize|ot|otin"
    "|parallel|prec|rightarrow|sim|subseteq|succ|supseteq|warrow)"
    "|r(?:angle|brace|brack|ceil|floor|ho|ight|ightarrow|ightharpoonup|ightleftharpoons|m|vert|Vert)"
    "|t(?:ag|an|anh|au|binom|ext|extbf|extit|extrm|extsf|extstyle|exttt|extup|frac|herefore|heta|hickapprox|hicksim"
    "|hickspace|hinspace|ilde|imes|iny|o|op|riangle|riangleleft|riangleq|riangleright)"
)
"""Of LaTeX, those that begin like an escape of JSON and cannot be a line break or a tab before a word."""
_DOUBTFUL = ("ne", "neg", "ni", "nu", "num")
"""A line break before "e" or "u" as well; a command where the reply has other single backslashes and no double ones."""
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[A-Za-z]+|.)", re.S)
_OBJECT = re.compile(r"\{\s*\"")
_SENT = {"\x07": "a", "\x08": "b", "\t": "t", "\x0b": "v", "\x0c": "f", "\r": "r"}
"""A control character -> the letter of the escape that it was."""
_SWALLOWED = re.compile("([\x07\x08\t\x0b\x0c\r])([A-Za-z]+)")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def find_object(text: str, keys: Collection[str]) -> dict[str, Any] | None:
    """The last JSON object of a text that has all of the keys; None without one."""
    text = _doubled(text)
    decoder = json.JSONDecoder(strict=False)
    found, end = None, 0
    for start in [match.start() for match in _OBJECT.finditer(text)][-_MAX_OBJECTS:]:
        if start < end:
            continue  # inside an object
        try:
            value, after = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if keys <= value.keys():
            found, end = encodable(value), after
    return found


def restored(text: str) -> str:
    """Text in which a control character before the rest of a LaTeX command is the backslash and letter it was."""

    def command(match: re.Match[str]) -> str:
        letter = _SENT[match[1]]
        is_command = match[1] not in "\t\r" or _COMMANDS.fullmatch(letter + match[2]) is not None
        return f"\\{letter}{match[2]}" if is_command else match[0]

    return _SWALLOWED.sub(command, text)


def _doubled(text: str) -> str:
    """JSON in which the backslashes of LaTeX are doubled, where they are not."""
    escapes = [match[1] for match in _ESCAPE.finditer(text)]
    careful = any(escape == "\\" for escape in escapes)
    careless = any(_is_latex(escape) for escape in escapes)

    def mended(match: re.Match[str]) -> str:
        doubtful = match[1] in _DOUBTFUL and careless and not careful
        return f"\\{match[0]}" if _is_latex(match[1]) or doubtful else match[0]

    return _ESCAPE.sub(mended, text)


def _is_latex(escape: str) -> bool:
    """Whether what follows a backslash is none of JSON's escapes."""
    if re.fullmatch(r"u[0-9a-fA-F]{4}", escape) or escape in ('"', "\\", "/"):
        return False
    if escape[0] in "bf":
        return len(escape) > 1
    return escape[0] not in "nrt" or _COMMANDS.fullmatch(escape) is not None
