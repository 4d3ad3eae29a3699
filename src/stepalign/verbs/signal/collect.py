"""Rollouts for an analysis, with the critiques that its contexts show."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from stepalign.build import OWN_FORMS, Session, make_critic
from stepalign.config import Config
from stepalign.critics import Critic
from stepalign.feedback import designs
from stepalign.records import Attempt, Critique, Problem, Rollout
from stepalign.rollouts.collect import RolloutCollector
from stepalign.rollouts.review import Rules, ask
from stepalign.waiting import wait_for


def collect_for_signal(
    session: Session, problems: Sequence[Problem], folder: Path, seed: int
) -> list[tuple[Rollout, Critique | None]]:
    """``signal.num_rollouts`` graded rollouts at the sampling temperature, with the critiques that the contexts need.

    One rollout per problem; groups of eight where a context shows siblings.
    """
    config = session.config
    contexts = config.signal.contexts
    with_siblings = any("siblings" in designs.find_design(name).needs for name in contexts)
    num_generations = max(8, config.sampling.num_generations) if with_siblings else 1
    forms = designs.critique_forms(contexts)
    critic = _make_critic(config, folder, contexts, forms[0], session) if forms else None
    collector = RolloutCollector(
        maker=session.maker,
        sampling=config.sampling.model_copy(update={"num_generations": num_generations}),
        critic=critic,
        rules=session.rules,
    )
    chosen = problems[: -(-config.signal.num_rollouts // num_generations)]
    with closing(critic) if critic else nullcontext():
        groups = wait_for(collector.collect(chosen, 0, seed)).groups
    return [pair for group in groups for pair in zip(group.rollouts, group.critiques, strict=True)]


def more_critiques(
    config: Config,
    folder: Path | None,
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    rules: Rules | None = None,
    session: Session | None = None,
) -> list[Critique]:
    """Critiques in the forms that some context asks for and the rollouts do not come with; the solver's own forms with
    a session only."""
    there = {critique.form for _, critique in rollouts if critique is not None}
    found: list[Critique] = []
    for form in designs.critique_forms(contexts):
        if form in there or (form in OWN_FORMS and session is None):
            continue
        if critic := _make_critic(config, folder, contexts, form, session):
            with closing(critic):
                found += wait_for(_critiques(critic, [rollout.attempt for rollout, _ in rollouts], rules))
    return found


async def _critiques(critic: Critic, attempts: Sequence[Attempt], rules: Rules | None) -> list[Critique]:
    return [found.critique for found in await asyncio.gather(*(ask(critic, attempt, rules) for attempt in attempts))]


def _make_critic(
    config: Config, folder: Path | None, contexts: Sequence[str], form: str, session: Session | None
) -> Critic | None:
    """The critic of the contexts that show one form; keys of the recipe may be there for others."""
    named = [name for name in contexts if form in designs.critique_forms([name])]
    return make_critic(config, folder, named, session=session, strict=False)
