"""One rollout in the terminal: the twin of the page's token viewer.

Colours come from the page's scale. Without colours (``NO_COLOR``, a pipe, a file) strong tokens carry their value as
text, and in every case reinforced tokens have a line above, suppressed ones a line below. Text of models and critics is
made visible first: no escape sequence, direction mark or control character of theirs reaches the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from stepalign.errors import ConfigError
from stepalign.report import scale
from stepalign.report.text import signed, visible
from stepalign.token_signal.table import ScoredCompletion, TokenTable, context_labels, read_page

MARKED = 0.4
"""Share of the limit from which a token carries its value as text where there are no colours."""
SIDE_BY_SIDE = 76
"""Columns per context from which on contexts stand beside each other."""
_STATUS = {"wrong": "first wrong step", "right": "right", "after_error": "after the error"}


def print_rollout(
    signal: Mapping[str, Any], rollout: int | str = 0, *, contexts: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print one rollout of a signal.json under each context, step by step, coloured by A_t.

    Args:
        rollout: position (from 0) or rollout_id.
        contexts: names of the contexts to show; all of them by default.

    Raises:
        ConfigError: when there is no such rollout or context.
    """
    console = console or Console()
    for part in rollout_parts(signal, rollout, contexts=contexts, console=console):
        console.print(part)


def rollout_parts(
    signal: Mapping[str, Any], rollout: int | str = 0, *, contexts: Sequence[str] = (), console: Console
) -> Iterator[RenderableType]:
    """The parts that ``print_rollout`` prints, for a console of this width and these colours."""
    rollouts, labels = read_page(signal), context_labels(signal)
    chosen = find_rollout(rollouts, rollout)
    limit, unit = scale.limit_of(rollouts), visible(signal.get("unit", "nats"))
    colour = console.is_terminal and not console.no_color and console.color_system is not None
    yield _heading(chosen, str(signal.get("model", "")))
    own = {str(context["name"]): context["limit"] for context in signal.get("contexts") or [] if "limit" in context}
    texts = [
        rollout_text(chosen, table, visible(labels[table.context]), unit, own.get(table.context, limit), colour=colour)
        for table in find_tables(chosen, contexts)
    ]
    if len(texts) > 1 and console.width >= SIDE_BY_SIDE * len(texts):
        beside = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in texts:
            beside.add_column(ratio=1)
        beside.add_row(*texts)
        yield beside
    else:
        yield from texts
    if own:
        numbers = ", ".join(f"{visible(labels[name])} ±{bound:.4g}" for name, bound in own.items())
        yield Text(f"\nnumbers as in the dump; blue is positive, orange negative; scales {numbers}", style="dim")
        return
    yield Text(
        f"\nA_t in {unit}: blue or line above = likelier with the feedback, orange or line below = less likely; "
        f"scale ±{limit:.2f} ({scale.PERCENTILE}th percentile of |A|)",
        style="dim",
    )


def rollout_text(
    rollout: ScoredCompletion, table: TokenTable, label: str, unit: str, limit: float, *, colour: bool
) -> Text:
    """One rollout under one context, coloured by A_t; without colours strong tokens carry their value.

    Args:
        limit: |A_t| of the strongest colour.
    """
    out = Text()
    out.append(f"\n{label}", style="bold underline")
    out.append(f"   sum {signed(np.nansum(table.log_ratio), 2)} {unit}\n", style="dim")
    for step, first, last in rollout.stretches():
        name = _name(step.label)
        status = f"  {_STATUS[step.status]}" if step.status in _STATUS else ""
        out.append(f"\n{name}  sum {signed(np.nansum(table.log_ratio[first:last]), 2)}{status}\n", style="dim")
        for gap, token, piece in shown_tokens(rollout, first, last):
            out.append(gap)
            # The step ends its line by itself.
            shape = piece.replace("\n", "⏎\n").removesuffix("\n" if token == last - 1 else "")
            value = float(table.log_ratio[token])
            out.append(shape, style=_style(scale.level(value, limit), colour))
            if not colour and piece and abs(value) >= MARKED * limit:
                out.append(f"({signed(value, 1)})")
        out.append("\n")
    return out


def _name(label: str) -> str:
    """A step as a reader calls it; in a rollout of several turns a message is a step with its author's name."""
    known = {"": "text", "answer": "answer", "tool": "the tool", "user": "the user"}
    turn = label.removesuffix(".answer")
    return known.get(label) or (f"answer {visible(turn)}" if turn != label else f"step {visible(label)}")


def shown_tokens(rollout: ScoredCompletion, first: int, last: int) -> Iterator[tuple[str, int, str]]:
    """(text in front that no token covers, token, its own text) of tokens first to last - 1, harmless and visible.

    Further pieces of a character have no text of their own.
    """
    gaps, joined, special = rollout.gaps(), rollout.joined(), set(rollout.special)
    # A line break and the indentation behind it are often one token: the blanks are shown where the next step begins.
    indent = re.search(r"\n([ \t]+)\Z", rollout.tokens[first - 1]) if first else None
    for token in range(first, last):
        text = rollout.tokens[token]
        text = re.sub(r"\n[ \t]+\Z", "\n", text) if token == last - 1 else text
        piece = "" if token in joined else visible(text) or "∅"
        gap = (indent[1] if indent and token == first else "") + visible(gaps.get(token, ""))
        yield gap, token, f"⟨{piece}⟩" if token in special else piece


def _style(at: int, colour: bool) -> Style:
    lines = Style(overline=at > 0, underline=at < 0)
    return lines + Style(color=scale.ink(at), bgcolor=scale.background(at)) if colour and at else lines


def find_rollout(rollouts: Sequence[ScoredCompletion], rollout: int | str) -> ScoredCompletion:
    """A rollout by its position (from 0) or rollout_id. Raises ConfigError where there is none."""
    by_id = {candidate.rollout_id: candidate for candidate in reversed(rollouts)}
    if rollout in by_id:
        return by_id[str(rollout)]
    if (isinstance(rollout, int) or rollout.isdigit()) and 0 <= int(rollout) < len(rollouts):
        return rollouts[int(rollout)]
    raise ConfigError(f"there is no rollout {rollout!r}", hint=f"choose 0 to {len(rollouts) - 1}, or a rollout_id")


def find_tables(rollout: ScoredCompletion, names: Sequence[str]) -> list[TokenTable]:
    """The tables of the named contexts, all without names. Raises ConfigError where one is missing."""
    for name in names:
        if name not in rollout.tables:
            raise ConfigError(f"this rollout has no context {name!r}", hint=f"choose from {', '.join(rollout.tables)}")
    return [rollout.tables[name] for name in names or rollout.tables]


def _heading(rollout: ScoredCompletion, model: str) -> Text:
    out = Text(f"rollout {visible(rollout.rollout_id)}", style="bold")
    facts = [rollout.case.replace("_", " "), rollout.verdict, f"{len(rollout.tokens)} tokens", model]
    out.append("  " + " · ".join(visible(fact) for fact in facts if fact), style="dim")
    out.append(f"\nquestion  {visible(rollout.question)}", style="")
    if rollout.expected_answer is not None:
        out.append(f"\nexpected  {visible(rollout.expected_answer)}")
    unknown, total = rollout.unknown_tokens, len(rollout.tokens)
    if unknown:
        note = f"{unknown} of {total} tokens {'is' if unknown == 1 else 'are'} unknown to this model's tokenizer"
        out.append(f"\n{note}{': the numbers mean little' if 2 * unknown > total else ''}", style="yellow")
    return out
