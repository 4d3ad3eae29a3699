"""signal.json: the numbers over all rollouts, and the few that are drawn token by token."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from stepalign.token_signal.localisation import Summary, known_tokens, localise, summarise_rollout
from stepalign.token_signal.table import ScoredCompletion, to_page

CASES = {"A": "correct", "B": "correct", "C": "incomplete", "D": "one_wrong_step", "F": "wrong_approach"}
"""Case of a critique -> kind of attempt, in the order of a page."""
DEFINITION = "A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)"


def header(model_name: str, temperature: float, **more: Any) -> dict[str, Any]:
    """The part of signal.json that is about all rollouts together."""
    return {
        "format": 1,
        "model": model_name,
        "temperature": temperature,
        "unit": "nats",
        "definition": DEFINITION,
        **more,
    }


def summarise(
    read: Callable[[], Iterable[ScoredCompletion]],
    head: Mapping[str, Any],
    labels: Mapping[str, str],
    *,
    num_shown: int,
) -> dict[str, Any]:
    """signal.json of all completions, which are read twice and never held.

    Args:
        read: gives all completions, in the same order each time.
        labels: contexts by name, in the order of the page; those that scored nothing are left out.
        num_shown: rollouts that are drawn token by token.
    """
    found: dict[str, list[Summary]] = defaultdict(list)
    by_case: dict[str, list[str]] = defaultdict(list)
    for scored in read():
        truth = known_tokens(scored)
        for name, table in scored.tables.items():
            found[name].append(summarise_rollout(table, truth))
        if len(by_case[scored.case]) < num_shown:
            by_case[scored.case].append(scored.rollout_id)
    names = [*(name for name in labels if name in found), *(name for name in found if name not in labels)]
    return {
        **head,
        "contexts": [{"name": name, "label": labels.get(name, name)} for name in names],
        "localisation": _without_undefined([{"context": name, **localise(found[name])} for name in names]),
        "rollouts": _pages(read(), _choose(by_case, num_shown)),
    }


def _without_undefined(localisation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers that no context defines say nothing: without a known error there is no share inside it."""
    defined = {n["name"] for entry in localisation for n in entry["numbers"] if not math.isnan(n["value"])}
    return [
        {**entry, "numbers": [number for number in entry["numbers"] if number["name"] in defined]}
        for entry in localisation
    ]


def _choose(by_case: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """A few rollouts of every case, in their order: the first of each, then the second of each, ..."""
    known = [*dict.fromkeys(CASES.values()), *by_case]
    order = [case for case in dict.fromkeys(known) if case in by_case and case != "unknown"]
    order += ["unknown"] if "unknown" in by_case else []
    ranks = range(max((len(found) for found in by_case.values()), default=0))
    chosen = [by_case[case][rank] for rank in ranks for case in order if rank < len(by_case[case])][:count]
    return [rollout_id for case in order for rollout_id in by_case[case] if rollout_id in set(chosen)]


def _pages(completions: Iterable[ScoredCompletion], chosen: Sequence[str]) -> list[dict[str, Any]]:
    wanted = set(chosen)
    pages = (to_page(scored) for scored in completions if scored.rollout_id in wanted)
    found = {page["rollout_id"]: page for page in islice(pages, len(wanted))}
    return [found[rollout_id] for rollout_id in chosen]
