"""The critic that the designs of a recipe need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.config import Config, changed
from stepalign.critics import CACHE, Critic
from stepalign.domains.table import find_domain, make_programmatic_critic
from stepalign.events import Listener, silent
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.rollouts.order import derive_seed

if TYPE_CHECKING:
    from stepalign.build.session import Session


def make_critic(
    config: Config,
    folder: Path | None,
    design_names: Sequence[str],
    listener: Listener = silent,
    ledger_folder: Path | None = None,
    session: Session | None = None,
) -> Critic | None:
    """The critic that the designs need, or None when none of them does.

    A critic writes one form of critique: that of the first design which needs one. The solver's own forms need a
    session; without one, the critic is what can be asked before there is a solver.

    Args:
        folder: where an endpoint's replies are kept unless ``critic.cache`` names a file.
        listener: receives a warning when the endpoint pauses.
        ledger_folder: the run folder, where every attempt of the endpoint is written down.

    Raises:
        ConfigError: a programmatic critic for problems it does not know.
        EndpointError: the endpoint does not answer.
    """
    forms = designs.critique_forms(design_names)
    if not forms:
        return None
    form, section = forms[0], config.critic
    if form == "turns":
        from stepalign.critics.turns import TurnByTurn

        one = make_critic(config, folder, ["step_aligned"], listener, ledger_folder)
        return None if one is None else TurnByTurn(one, reads_questions=section.kind == "endpoint")
    if form in OWN_FORMS:
        return _own_critic(config, folder, form, listener, ledger_folder, session)
    if section.kind != "endpoint":
        return make_programmatic_critic(config.data, section, form, config.training.seed)
    from stepalign.critics.served import open_endpoint_critic

    files = {"cache_folder": folder, "ledger_folder": ledger_folder}
    return open_endpoint_critic(section, prompt=config.prompts.critic, form=form, **files, listener=listener)


OWN_FORMS = ("own", "second_turn")
"""The forms of critique that the solver itself writes, or has a part in."""


def _own_critic(
    config: Config, folder: Path | None, form: str, listener: Listener, ledger: Path | None, session: Session | None
) -> Critic | None:
    from stepalign.rollouts.own_critic import OWN, OwnCritic, SecondTries, SecondTurn

    inner = make_critic(config, folder, ["step_aligned"], listener, ledger) if form == "second_turn" else None
    if session is None:
        return inner
    sampling = config.sampling
    tries = SecondTries(
        tokenizer=session.solver.tokenizer,
        sampler=session.sampler,
        prompts=session.prompts,
        temperature=sampling.temperature,
        max_tokens=sampling.max_completion_length,
        seed=derive_seed(config.training.seed, form),
        room=session.solver.context_length,
    )
    if inner is not None:
        return SecondTurn(inner, tries, inner.name)
    prompt = config.prompts.critic
    template = load_template(find_domain(config.data).prompts.get(prompt, prompt))
    return OwnCritic(tries, template, f"{OWN}:{config.model.path}")


def check_critic(config: Config, design_names: Sequence[str], folder: Path | None = None) -> None:
    """Ask whether the critic that the designs need would work, and write nothing. Raises as ``make_critic`` does.

    Servers that have answered a run in ``folder``, or into the cache that the recipe names, are not asked again.
    """
    cache = Path(config.critic.cache) if config.critic.cache else folder and folder / CACHE
    if cache is None or not cache.is_file():
        config, folder = changed(config, {"critic.cache": ""}, "critic check"), None
    critic = make_critic(config, folder, design_names)
    if critic is not None:
        critic.close()
