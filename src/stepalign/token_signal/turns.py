"""Rollouts of several turns: their steps, and the signal of contexts that teach one turn each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stepalign.feedback.steps import split_steps
from stepalign.records import Step, Turn
from stepalign.token_signal.score import ContextScores, Scores, SideScores


def split_turns(text: str, spans: Sequence[tuple[int, int]], turns: Sequence[Turn]) -> list[Step]:
    """The steps of every turn: "2.1" is step 1 of the solver's second turn, a message is one step with its author's
    name. Their texts join to the whole text.

    Args:
        spans: half-open span of characters per token.
    """
    starts = [0, *(spans[turn.start][0] for turn in turns[1:]), len(text)]
    found: list[Step] = []
    number = 0
    for turn, start, end in zip(turns, starts, starts[1:], strict=False):
        number += turn.role == "solver"
        steps = split_steps(text[start:end]) if turn.role == "solver" else []
        for step in steps or [Step(label="", start=0, end=end - start, text=text[start:end])] * (end > start):
            label = turn.role if turn.role != "solver" else f"{number}.{step.label}".rstrip(".")
            found.append(replace(step, label=label, start=start + step.start, end=start + step.end))
    return found


def key_of(name: str, place: int) -> str:
    """The name under which a context is scored as far as it teaches one turn."""
    return f"{name}\0{place}"


def of_the_turns(scores: Scores, turns: Sequence[Turn], taught: Mapping[str, Sequence[int]]) -> Scores:
    """Scores in which every token has the context that teaches its turn, and no signal where nothing trains on it.

    Args:
        taught: for each context the places of the turns that have a context of their own, scored under ``key_of``;
            none where one context teaches them all.
    """
    if not turns:
        return scores
    contexts = {}
    for name, places in taught.items():
        parts = {place: scores.contexts[key_of(name, place)] for place in places}
        whole = scores.contexts.get(name)
        student, nothing = scores.student, np.zeros_like(scores.student.log_probs)
        made = ContextScores(log_ratio=nothing.copy(), forward_kl=nothing.copy(), teacher=_copied(student))
        for place, turn in enumerate(turns):
            source = parts.get(place) if places else whole
            if source is None or turn.role != "solver":
                continue
            inside = slice(turn.start, turn.end)
            made.log_ratio[inside], made.forward_kl[inside] = source.log_ratio[inside], source.forward_kl[inside]
            for column in SideScores.__slots__:
                getattr(made.teacher, column)[inside] = getattr(source.teacher, column)[inside]
        contexts[name] = made
    return replace(scores, contexts=contexts)


def _copied(side: SideScores) -> SideScores:
    return SideScores(**{column: getattr(side, column).copy() for column in SideScores.__slots__})
