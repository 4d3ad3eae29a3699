"""Which parts of a text are thinking: the one list of marks, read by graders, critics, steps and pages. Pure functions.

A mark is the same as plain text and as a special token of a tokenizer.
"""

from __future__ import annotations

import re

_TABLE = (
    # Opening and closing mark                                   models that write them
    (r"<[ \t]?(?:think(?:ing)?|thoughts?)[ \t]?>", r"<[ \t]?/[ \t]?(?:think(?:ing)?|thoughts?)[ \t]?>"),  # most
    *((rf"<{name}>", rf"</{name}>") for name in ("reasoning", "reason", "reflection", "scratchpad", "analysis")),
    (r"<inner_monologue>", r"</inner_monologue>"),
    (r"<[a-z]{1,12}[:_|]think>", r"</[a-z]{1,12}[:_|]think>"),  # <seed:think>, <mm:think>, <longcat_think>
    (r"\[THINK\]", r"\[/THINK\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|think(?:ing)?(?:_start)?\|>", r"<\|(?:/think(?:ing)?|think(?:ing)?_end)\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"\[unused16\]", r"\[unused17\]"),  # Pangu
    (r"<unused94>thought", r"<unused95>"),  # MedGemma
    (r"<\|channel>[ \t]?thought", r"<channel\|>"),  # Gemma 4
    (  # gpt-oss; without its special tokens, the channels' names are left
        r"<\|channel\|>(?!final\b)[^<]{0,100}(?:<\|constrain\|>[^<]{0,20})?<\|message\|>|\A(?-i:analysis(?=[A-Z]))",
        r"<\|channel\|>final\b[^<]{0,100}(?:<\|constrain\|>[^<]{0,20})?<\|message\|>|assistantfinal",
    ),
    (r"^Here(?: is|'s) my thought process:", r"^Here(?: is|'s) my response:"),  # Granite 3.2
)
MARK = "|".join(f"{opening}|{closing}" for opening, closing in _TABLE)
"""Any mark, as a regular expression without groups, for the flags I and M."""
_SIDES = "|".join(f"(?P<o{kind}>{opening})|(?P<c{kind}>{closing})" for kind, (opening, closing) in enumerate(_TABLE))
_MARKS = re.compile(rf"(?=[<\[◁ah])(?:{_SIDES})", re.I | re.M)  # how each mark begins: three times as fast
_OPENED = re.compile(f"(?:{'|'.join(opening for opening, _ in _TABLE)})\\s*\\Z", re.I | re.M)
_PIECES = frozenset({"<|channel|>", "<|message|>", "<|channel>", "<unused94>"})


def is_mark(token: str) -> bool:
    """Whether a special token is a mark or a part of one."""
    return token in _PIECES or _MARKS.fullmatch(token) is not None


def find_thoughts(text: str) -> tuple[list[tuple[int, int]], int]:
    """The spans of thoughts that end, marks included, and the start of one that never does (else the text's length).

    A closing mark without an opening one ends a thought that the prompt opened. A thought ends with its own kind of
    mark only; one that speaks of its opening mark ends with the last closing one.
    """
    marks = [((match.lastgroup or "")[:1], (match.lastgroup or "")[1:], match) for match in _MARKS.finditer(text)]
    spans: list[tuple[int, int]] = []
    index = 0
    while index < len(marks):
        side, kind, mark = marks[index]
        if side == "c":
            spans = [(0, mark.end())]
            index += 1
            continue
        depth, last = 0, 0
        for at in range(index, len(marks)):
            if marks[at][1] == kind:
                opens = marks[at][0] == "o"
                depth += 1 if opens else -1
                last = last if opens else at
                if not depth:
                    break
        if not last:
            return spans, mark.start()
        spans.append((mark.start(), marks[last][2].end()))
        index = last + 1
    return spans, len(text)


def thinking_end(text: str) -> int:
    """The end of the last thought that ends; 0 without one."""
    spans, _ = find_thoughts(text)
    return spans[-1][1] if spans else 0


def after_thinking(text: str) -> str:
    """The text behind the last thought that ends, up to one that does not."""
    spans, cut = find_thoughts(text)
    return text[spans[-1][1] if spans else 0 : cut]


def without_thinking(text: str) -> str:
    """The text without its thoughts."""
    spans, cut = find_thoughts(text)
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), cut]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def assume_thought(text: str) -> str:
    """A completion whose prompt is known to open a thought, with a mark that opens one where it has none."""
    return text if find_thoughts(text)[0] else f"<think>{text}"


def opened_thought(prompt: str) -> str:
    """The mark of a thought that a prompt opens at its end, "" for none: graders read it before the completion."""
    opened = _OPENED.search(prompt[-200:])
    return opened[0] if opened else ""
