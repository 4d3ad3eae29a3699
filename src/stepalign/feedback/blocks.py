"""Blocks of a text that steps do not cut: fenced code and data, displayed formulas, tables, tool calls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from stepalign.feedback.code import DATA, is_code

Block = tuple[int, int, str]
"""Start of the opening line, start of the closing line, kind: "code", "call" for a tool call, else ""."""

# The edges of blocks of code or of displayed formulas, and whole tool calls and tables; a blank line ends formulas that
# were left open.
_BLOCK_EDGE = re.compile(
    r"^(?:[ \t]{0,12}(?:(?P<fence>`{3,12}|~{3,12})(?P<info>[^\n]*)"
    r"|\\begin\{(?P<begins>[a-z]{1,16}\*?)\}|\\end\{(?P<ends>[a-z]{1,16}\*?)\}"
    r"|(?P<display>\\\[|\\\]|\$\$)[ \t.,;]*+\r?$"
    r"|<(?P<call>tool_(?:call|response|result|use)|function(?:_call|_response|=[\w.-]{1,80})?)>"
    r"(?:(?!</?(?:tool_|function))(?s:.))*+</(?:tool|function)\w*>)"
    r"|(?P<table>(?:[ \t]{0,3}\|[^\n]*\|[ \t]*\r?(?:\n|\Z)){2,})"
    r"|(?P<blank>(?:[ \t\r]*+\n)++))",
    re.M,
)


@lru_cache(maxsize=2)
def find_blocks(text: str) -> list[Block]:
    """Every block of a text, in order. Code that is left open runs to the end; formulas left open are no block."""
    blocks: list[Block] = []
    opened: re.Match[str] | None = None
    for edge in _BLOCK_EDGE.finditer(text):
        if opened is None and (edge["call"] or edge["table"]):
            last_line = text.rfind("\n", edge.start(), edge.end() - 1) + 1
            blocks.append((edge.start(), max(last_line, edge.start()), "call" if edge["call"] else ""))
        elif opened is None:
            opened = edge if _opens_block(edge) else None
        elif _closes_block(opened, edge):
            blocks.append((opened.start(), edge.start(), _kind(text, opened, edge.start())))
            opened = None
        elif edge["blank"] and not opened["fence"]:
            opened = None
    if opened is not None and opened["fence"]:
        blocks.append((opened.start(), len(text), _kind(text, opened, len(text))))
    return blocks


def _kind(text: str, opened: re.Match[str], end: int) -> str:
    """Whether a fence holds code; without the name of a language its lines tell."""
    if not opened["fence"]:
        return ""
    language = opened["info"].strip().lower().split(" ")[0].strip("{}.")
    return "code" if (language not in DATA if language else is_code(text[opened.end() : end])) else ""


def _opens_block(edge: re.Match[str]) -> bool:
    if edge["fence"]:
        return "`" not in edge["info"]  # "```x = 1```" is code within a line
    return edge["begins"] is not None or edge["display"] in ("\\[", "$$")


def _closes_block(opened: re.Match[str], edge: re.Match[str]) -> bool:
    if opened["fence"]:
        return bool(edge["fence"]) and edge["fence"].startswith(opened["fence"]) and not edge["info"].strip()
    if opened["begins"]:
        return edge["ends"] == opened["begins"]
    return edge["display"] == {"\\[": "\\]", "$$": "$$"}[opened["display"]]


def outside_blocks(text: str, starts: Iterable[int]) -> list[int]:
    """The starts, in ascending order, that are not inside a block; the first character of one is outside."""
    blocks = find_blocks(text)
    kept: list[int] = []
    next_block = 0
    for start in starts:
        while next_block < len(blocks) and blocks[next_block][1] < start:
            next_block += 1
        if next_block == len(blocks) or start <= blocks[next_block][0]:
            kept.append(start)
    return kept
