"""What contexts teach about rollouts: every attempt under every context, and the numbers over all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from stepalign.events import Listener, progress, silent
from stepalign.feedback import designs
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder
from stepalign.records import Critique, Rollout
from stepalign.signal.localisation import Summary, localise_rollouts, summarise_rollout, truth_of
from stepalign.signal.records import CASES, AttemptInContexts, Shown, analyse_attempts
from stepalign.signal.table import ScoredCompletion, to_page
from stepalign.signal.trace import WrongResult

DEFINITION = "A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)"


def analyse(
    solver: Solver,
    prompts: PromptBuilder,
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    *,
    temperature: float,
    num_shown: int,
    top_k: int,
    model_name: str,
    wrong_result: WrongResult | None = None,
    more_critiques: Sequence[Critique] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Score rollouts under every context, in memory; see docs/formats.md (signal.json) for what comes out.

    Rollouts that some context has nothing to say about are left out of that context and counted in ``num_rollouts``.
    ``more_critiques`` are those in further forms, for designs that ask their critic for something else than the rest.
    """
    attempts, _ = attempts_under(rollouts, contexts, more_critiques)
    found: list[ScoredCompletion] = []
    analysed = analyse_attempts(
        solver, prompts, attempts, temperature=temperature, top_k=top_k, wrong_result=wrong_result
    )
    for done, one in enumerate(analysed, 1):
        found.append(one.scored)
        listener(progress("scoring", done, len(attempts)))
    labels = {name: designs.find_design(name).label for name in contexts}
    return summarise(lambda: found, header(model_name, temperature), labels, num_shown=num_shown)


def attempts_under(
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    more_critiques: Sequence[Critique] = (),
) -> tuple[list[AttemptInContexts], dict[str, dict[str, int]]]:
    """Every rollout in its group, under every context that has something to say.

    Returns:
        Attempts in the order of the rollouts, and per context how many rollouts it leaves out for which reason.
    """
    critiques = {(c.form, c.rollout_id): c for c in (*more_critiques, *(c for _, c in rollouts if c is not None))}
    problems = list({rollout.problem_id: rollout.problem for rollout, _ in rollouts}.values())
    shown: dict[str, dict[str, Shown]] = {rollout.rollout_id: {} for rollout, _ in rollouts}
    left_out: dict[str, dict[str, int]] = {name: defaultdict(int) for name in contexts}
    for members in designs.group_rollouts([rollout for rollout, _ in rollouts]):
        group = [rollouts[i][0].attempt for i in members]
        for name in contexts:
            form = designs.find_design(name).form
            of_form = {i: c for (f, i), c in critiques.items() if f == form}
            usable = [c for c in of_form.values() if c.status == "ok"]
            made = designs.make_group(group, of_form, usable=usable, other_problems=problems)
            for attempt, context in zip(group, designs.make_contexts(name, made), strict=True):
                if context.text is None:
                    left_out[name][context.masked or "nothing to show"] += 1
                else:
                    shown[attempt.rollout_id][name] = Shown(text=context.text, introduction=context.introduction)
    attempts = [
        AttemptInContexts(
            attempt=rollout.attempt,
            ids=rollout.completion.ids,
            contexts=shown[rollout.rollout_id],
            critique=critique or critiques.get(("trace", rollout.rollout_id)),
        )
        for rollout, critique in rollouts
    ]
    return [attempt for attempt in attempts if attempt.contexts], left_out


def header(model_name: str, temperature: float, **more: Any) -> dict[str, Any]:
    """What signal.json says about all rollouts together."""
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
        truth = truth_of(scored)
        for name, table in scored.tables.items():
            found[name].append(summarise_rollout(table, truth))
        if len(by_case[scored.case]) < num_shown:
            by_case[scored.case].append(scored.rollout_id)
    names = [*(name for name in labels if name in found), *(name for name in found if name not in labels)]
    return {
        **head,
        "contexts": [{"name": name, "label": labels.get(name, name)} for name in names],
        "localisation": _without_undefined([{"context": name, **localise_rollouts(found[name])} for name in names]),
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
