"""One rollout in the terminal: the twin of the page's token viewer.

Colours come from the page's scale. Without colours (``NO_COLOR``, a pipe, a file) strong tokens carry their value as
text, and in every case reinforced tokens have a line above, suppressed ones a line below. Text of models and critics is
made visible first: no escape sequence, direction mark or control character of theirs reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from stepalign.errors import ConfigError
from stepalign.report import scale
from stepalign.report.payload import viewer_data
from stepalign.report.text import signed, visible

MARKED = 0.4
"""Share of the limit from which a token carries its value as text where there are no colours."""
SIDE_BY_SIDE = 76
"""Columns per context from which on contexts stand beside each other."""
_STATUS = {"right": "right", "wrong": "first wrong step", "after_error": "after the error", "unknown": ""}


def print_rollout(
    signal: Mapping[str, Any],
    rollout: int | str = 0,
    *,
    contexts: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print one rollout of a signal.json under each context, step by step, coloured by A_t.

    Args:
        rollout: position (from 0) or rollout_id.
        contexts: names of the contexts to show; all of them by default.

    Raises:
        ConfigError: when there is no such rollout or context.
    """
    console = console or Console()
    data = viewer_data(signal, alternatives=0)
    chosen = find_rollout(data, rollout)
    shown = find_contexts(data, chosen, contexts)
    console.print(_heading(chosen, data))
    texts = [rollout_text(chosen, context, data, colour=_has_colour(console)) for context in shown]
    if len(texts) > 1 and console.width >= SIDE_BY_SIDE * len(texts):
        beside = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in texts:
            beside.add_column(ratio=1)
        beside.add_row(*texts)
        console.print(beside)
    else:
        for text in texts:
            console.print(text)
    console.print(_legend(data), style="dim")


def rollout_text(
    rollout: Mapping[str, Any], context: Mapping[str, Any], data: Mapping[str, Any], *, colour: bool
) -> Text:
    """One rollout under one context, of the data that ``payload.viewer_data`` makes."""
    out = Text()
    out.append(f"\n{visible(data['contexts'][context['context']]['label'])}", style="bold underline")
    out.append(f"   sum {signed(_total(context['a']), 2)} {visible(data['unit'])}\n", style="dim")
    special, joined = set(rollout["special"]), set(rollout["joined"])
    for label, status, first, last in rollout["steps"]:
        head = f"\n{_step_name(label)}  sum {signed(_total(context['a'][first:last]), 2)}"
        out.append(head + (f"  {_STATUS.get(status, '')}" if _STATUS.get(status) else ""), style="dim")
        out.append("\n")
        for token in range(first, last):
            out.append(visible(rollout["gaps"].get(token, "")))
            if token in joined:
                continue
            piece = visible(rollout["pieces"][token]) or "∅"
            # The step ends its line by itself.
            shape = piece.replace("\n", "⏎\n").removesuffix("\n" if token == last - 1 else "")
            value = context["a"][token]
            out.append(f"⟨{shape}⟩" if token in special else shape, style=_style(value, data["limit"], colour))
            if not colour and value is not None and abs(value) >= MARKED * data["limit"]:
                out.append(f"({signed(value, 1)})")
        out.append("\n")
    return out


def _style(value: float | None, limit: float, colour: bool) -> Style:
    at = scale.level(value, limit)
    if not colour or at == 0:
        return Style(overline=at > 0, underline=at < 0)
    return Style(color=scale.ink(at), bgcolor=scale.background(at), overline=at > 0, underline=at < 0)


def _has_colour(console: Console) -> bool:
    return console.is_terminal and not console.no_color and console.color_system is not None


def find_rollout(data: Mapping[str, Any], rollout: int | str) -> Mapping[str, Any]:
    rollouts = data["rollouts"]
    for position, candidate in enumerate(rollouts):
        if rollout in (candidate["id"], position):
            return candidate
    if isinstance(rollout, str) and rollout.isdigit() and int(rollout) < len(rollouts):
        return rollouts[int(rollout)]
    raise ConfigError(f"there is no rollout {rollout!r}", hint=f"choose 0 to {len(rollouts) - 1}, or a rollout_id")


def find_contexts(data: Mapping[str, Any], rollout: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    have = {data["contexts"][entry["context"]]["name"]: entry for entry in rollout["contexts"]}
    for name in names:
        if name not in have:
            raise ConfigError(f"this rollout has no context {name!r}", hint=f"choose from {', '.join(have)}")
    return [have[name] for name in names or have]


def _heading(rollout: Mapping[str, Any], data: Mapping[str, Any]) -> Text:
    out = Text(f"rollout {visible(rollout['id'])}", style="bold")
    facts = [rollout["case"].replace("_", " "), rollout["verdict"], f"{len(rollout['pieces'])} tokens", data["model"]]
    out.append("  " + " · ".join(visible(fact) for fact in facts if fact), style="dim")
    out.append(f"\nquestion  {visible(rollout['question'])}", style="")
    if rollout["expected"] is not None:
        out.append(f"\nexpected  {visible(rollout['expected'])}")
    if rollout["unknown"]:
        out.append(f"\n{unknown_note(rollout)}", style="yellow")
    return out


def unknown_note(rollout: Mapping[str, Any]) -> str:
    """What a reader must know about a text that the model's tokenizer was not made for."""
    unknown, total = rollout["unknown"], len(rollout["pieces"])
    note = f"{unknown} of {total} tokens {'is' if unknown == 1 else 'are'} unknown to this model's tokenizer"
    return f"{note}: the numbers mean little" if 2 * unknown > total else note


def _legend(data: Mapping[str, Any]) -> Text:
    return Text(
        f"\nA_t in {visible(data['unit'])}: blue or line above = likelier with the feedback, orange or line below ="
        f" less likely; scale ±{data['limit']:.2f} ({data['percentile']}th percentile of |A|)"
    )


def _step_name(label: str) -> str:
    return {"": "text", "answer": "answer"}.get(label, f"step {visible(label)}")


def _total(values: Sequence[float | None]) -> float:
    return sum(value for value in values if value is not None)
