"""Statements of code: every line that begins one begins a step. The code is untrusted and need not compile.

Any language is read line by line. Comments and decorators go with the statement that follows, closing brackets and the
rest of an open bracket with the statement before. Time is linear in the length of the code.
"""

from __future__ import annotations

import re
from itertools import pairwise

DATA = {
    *("json", "jsonl", "csv", "tsv", "text", "txt", "plain", "plaintext", "output", "console"),
    *("markdown", "md", "latex", "tex", "math"),
}
"""Languages of a fence whose lines state nothing."""

_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*+"|(?<!\w)\'(?:[^\'\\\n]|\\.){0,400}+\'|\\.')
_COMMENT = re.compile(r"(?:^|(?<=\s))(?:#(?!(?:include|define|if|el|end|un|pragma)|\[|!)|--\s).*|^//.*")
_SLASHES = re.compile(r"(?:^|(?<=\s))//.*")
_COLON_BLOCK = re.compile(r"^[ \t]*(?:def|class|if|elif|else|for|while|with|try|except)\b[^\n]*:[ \t]*$", re.M)
"""A line that opens a block by a colon. In such a language "//" divides."""
_HANGING = re.compile(r"(?:\.\w|&&|\|\||\?|\|>|<<|[+*/]\s)")
_CLOSING = re.compile(r"(?:[{}()\[\];,>]|end\b[;.)]?|fi\b|done\b|esac\b|\s)+")
_CALL_ENDS = re.compile(r"}\s*[,)\]]")
_ATTACHED = re.compile(r"@[\w.]+(?:\(.*\))?|#\[.*\]|/\*.*")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_LONG = ('"""', "'''", "`", "/*")
"""Marks of what may run over lines."""

_STRONG = re.compile(
    r"\s*(?:(?:async )?def \w+\s*\(|class \w+.*[:{]|(?:import|from|using|package|require|use) [\w.{*\"'<]|return\b"
    r"|(?:if|elif|for|while|with|except|switch|else if)\b.*[:{]\s*(?:#.*)?$|(?:else|try|do|finally)\s*[:{]|}\s*else"
    r"|(?:print|println|printf|console\.log|puts|echo|assert)\b\s*[(\"'$\w]|#include\b|#!/|(?:pub )?fn \w+|func \w+"
    r"|(?:export |async )*function\b|(?:const|let|var|val|int|long|double|float|char|bool|void|auto|string) \w+"
    r"|(?:public|private|protected|static)\b|(?:SELECT|INSERT|UPDATE|DELETE|CREATE|WITH)\b.*"
    r"|[^\s].*\{\s*(?://.*)?$)"
)
_CODE = re.compile(
    r"\s*(?:#|//|--|/?\*|@\w|[\])}{;,]+|\"\"\"|'''|(?:pass|break|continue|end|else|begin|fi|done|then)\b\W*$"
    r"|[\w.\[\]\"'(), *&$:<>]{1,80}(?<![=<>!\s])\s*(?:[-+*/%|&^:]|//|\*\*|<<|>>)?=(?!=)\s*\S"
    r"|[\w.]+\(.*[);,({]\s*$|.*;\s*(?://.*)?$|(?:FROM|WHERE|GROUP|ORDER|JOIN|LEFT|AND|OR|VALUES|SET|HAVING|LIMIT)\b)"
)


def is_code(text: str) -> bool:
    """Whether a text is a program rather than prose or formulas: most of its statements begin like one."""
    edges = [*statement_starts(text), len(text)]
    heads = [text[start : min(end, start + 400)].strip("\n").split("\n")[:4] for start, end in pairwise(edges)]
    strong = [any(_STRONG.match(line) for line in head) for head in heads]
    likely = [found or bool(_CODE.match(head[0])) for found, head in zip(strong, heads, strict=True)]
    return any(strong) and sum(likely) >= 0.75 * len(likely)


def statement_starts(code: str) -> list[int]:
    """Where the statements of some code start, in characters."""
    comment = None if _COLON_BLOCK.search(code) else _SLASHES
    last = {mark: code.rfind(mark if mark != "/*" else "*/") for mark in _LONG}
    starts: list[int] = []
    opened: list[str] = []  # brackets; "block" for a brace that opens one
    first_comment: int | None = None
    indent, within, joined = 0, "", False
    at = 0
    for raw in code.split("\n"):
        begin, at = at, at + len(raw) + 1
        line = raw.strip()
        if within:
            within = "" if within in line else within
            continue
        if not line:
            continue
        plain = _COMMENT.sub("", _LITERAL.sub(lambda found: found[0][0].strip("\\") * 2, line)).strip()
        plain = comment.sub("", plain).strip() if comment else plain
        depth = len(raw) - len(raw.lstrip())
        if not plain or _ATTACHED.fullmatch(plain):
            first_comment = begin if first_comment is None and not joined else first_comment
        elif not starts or not _continues(plain, depth - indent, opened, joined):
            starts.append(begin if first_comment is None else first_comment)
            first_comment, indent = None, depth
            while opened and opened[-1] != "block":
                opened.pop()
        joined = plain.endswith("\\")
        _follow(plain, opened)
        if _COLON_BLOCK.match(plain):  # with a bracket that was never closed
            opened.clear()
        within = next(
            ("*/" if mark == "/*" else mark for mark in _LONG if plain.count(mark) % 2 and last[mark] >= at), ""
        )
        if within == "*/" and "*/" in plain:
            within = ""
    return starts


def _continues(plain: str, deeper: int, opened: list[str], joined: bool) -> bool:
    """Whether a line goes on with the statement before it."""
    inside = bool(opened) and opened[-1] != "block"
    closes = _CLOSING.fullmatch(plain) or (inside and plain[0] in _PAIRS) or _CALL_ENDS.match(plain)
    return bool(joined or closes or (deeper > 0 and (inside or _HANGING.match(plain))))


def _follow(plain: str, opened: list[str]) -> None:
    """Keep the open brackets up to date. A brace behind "=", "(", "," and the like holds values, any other a block."""
    before = ""
    for sign in plain:
        if sign in "([":
            opened.append(sign)
        elif sign == "{":
            opened.append("{" if before and before in "=([,:?" else "block")
        elif sign in _PAIRS and opened:
            opened.pop()
        before = sign if not sign.isspace() else before
