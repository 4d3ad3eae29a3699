"""The critic that the designs of a recipe need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.config import Config, CriticSection, SecondCriticSection, changed
from stepalign.critics import CACHE, Critic
from stepalign.domains.table import find_domain, make_programmatic_critic
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.records import CritiqueForm
from stepalign.rollouts.order import derive_seed

if TYPE_CHECKING:
    from stepalign.build.session import Session

TRACING: tuple[CritiqueForm, ...] = ("trace", "turns", "second_turn")
"""The forms of critique that hold a corrected attempt in its own words, which a script of edits can make."""
CORRECTING: tuple[CritiqueForm, ...] = (*TRACING, "paraphrase")
"""The forms with a first wrong step and an answer, on which two critics can agree."""
CALCULATES = "the calculation critic changes the text itself"
OWN_FORMS: tuple[CritiqueForm, ...] = ("own", "second_turn")
"""The forms that the solver itself writes, or has a part in."""


def make_critic(
    config: Config,
    folder: Path | None,
    design_names: Sequence[str],
    listener: Listener = silent,
    ledger_folder: Path | None = None,
    session: Session | None = None,
    strict: bool = True,
) -> Critic | None:
    """The critic that the designs need, or None when none of them does.

    A critic writes one form of critique: that of the first design which needs one. The solver's own forms need a
    session; without one, the critic is what can be asked before there is a solver.

    Args:
        folder: where an endpoint's replies are kept unless ``critic.cache`` names a file.
        listener: receives a warning when the endpoint pauses.
        ledger_folder: the run folder, where every attempt of the endpoint is written down.
        strict: whether keys of the critic without an effect on these designs are an error. Where several designs are
            looked at, or others than the recipe's own, they are not.

    Raises:
        ConfigError: a programmatic critic for problems it does not know, or a key without an effect.
        EndpointError: the endpoint does not answer.
    """
    forms = designs.critique_forms(design_names)
    if not forms:
        return None
    form, section = forms[0], config.critic
    if strict:
        _refuse_unused(section, forms)
    if form == "turns":
        from stepalign.critics.variants import TurnByTurn

        one = make_critic(config, folder, ["step_aligned"], listener, ledger_folder, strict=False)
        return None if one is None else TurnByTurn(one, reads_questions=section.kind == "endpoint")
    if form in OWN_FORMS:
        return _own_critic(config, folder, form, listener, ledger_folder, session)
    seed = config.training.seed
    critic = _one_critic(config, section, form, seed, listener, folder, ledger_folder, ledger_folder)
    if not section.second.kind or form not in CORRECTING:
        return critic
    from stepalign.critics.variants import Agreeing

    own = {"kind": section.second.kind, "quality": section.second.quality, "answers_as": ""}
    own |= {name: value for name in ("base_urls", "model", "api_key_env") if (value := getattr(section.second, name))}
    other, ledger = section.model_copy(update=own), getattr(critic, "ledger", None) or ledger_folder
    # Two faulty programs have their faults at different rollouts.
    try:
        return Agreeing(critic, _one_critic(config, other, form, seed + 1, listener, folder, ledger, ledger_folder))
    except BaseException:
        critic.close()
        raise


def _refuse_unused(section: CriticSection, forms: Sequence[CritiqueForm]) -> None:
    """Raise ConfigError for keys that mean nothing to a critic that writes these forms."""
    second, served, first = section.second, section.kind == "endpoint", forms[0]
    edits, programs = section.writes == "edits", "calculation" in (section.kind, second.kind)
    traces, corrects, own = (not {*some}.isdisjoint(forms) for some in (TRACING, CORRECTING, OWN_FORMS))
    remembers = served and any(form != "own" for form in forms)
    reasons = [
        ("critic.second", not second.kind and second != SecondCriticSection(), "it has no kind"),
        ("critic.second.kind", second.kind and not corrects, f"two critics cannot agree on a {first}"),
        ("critic.writes", edits and not traces, f"a {first} is not the attempt with edits"),
        ("critic.writes", edits and programs, CALCULATES),
        ("critic.remembers", section.remembers and not remembers, "only a served critic remembers"),
        ("critic.solver_weights", section.solver_weights != "live" and not own, "the solver is not its own critic"),
    ]
    for key, holds, reason in reasons:
        if holds:
            raise ConfigError(reason, where=key, hint=f"drop {key}, or change the critic or the condition")


def _one_critic(
    config: Config,
    section: CriticSection,
    form: CritiqueForm,
    seed: int,
    listener: Listener,
    folder: Path | None,
    ledger: Any,
    run_folder: Path | None,
) -> Critic:
    """A program or a served model, asked as the recipe says; it remembers where there is a run to remember."""
    from stepalign.critics.variants import EditScripts, Remembering

    by_script = section.writes == "edits" and form == "trace"
    if by_script and section.kind == "calculation":
        raise ConfigError(CALCULATES, where="critic.writes", hint="drop critic.writes, or change the critic")
    asked: CritiqueForm = "edits" if by_script else form
    if section.kind != "endpoint":
        critic = make_programmatic_critic(config.data, section, asked, seed)
        return EditScripts(critic, numbers=False) if by_script else critic
    from stepalign.critics.served import open_endpoint_critic

    files = {"cache_folder": folder, "ledger_folder": ledger, "listener": listener}
    critic = open_endpoint_critic(section, prompt=config.prompts.critic, form=asked, **files)
    wrapped = EditScripts(critic, numbers=True) if by_script else critic
    if not section.remembers or run_folder is None:
        return wrapped
    return Remembering(wrapped, section.remembers, run_folder, config.rollouts.ahead)


def _own_critic(
    config: Config, folder: Path | None, form: str, listener: Listener, ledger: Path | None, session: Session | None
) -> Critic | None:
    from stepalign.rollouts.own_critic import OWN, OwnCritic, SecondTries, SecondTurn

    inner = None
    if form == "second_turn":
        inner = make_critic(config, folder, ["step_aligned"], listener, ledger, strict=False)
    if session is None:
        return inner
    sampling, sampler = config.sampling, session.sampler
    if config.critic.solver_weights == "initial":  # before a run restores or trains them
        from stepalign.models.load import Solver
        from stepalign.models.sampling.local import LocalSampler

        frozen = Solver(copy.deepcopy(session.solver.model), session.solver.tokenizer)
        sampler = LocalSampler(frozen, max_batch_tokens=sampling.max_batch_tokens, stop=sampling.stop)
    tries = SecondTries(
        tokenizer=session.solver.tokenizer,
        sampler=sampler,
        prompts=session.prompts,
        temperature=sampling.temperature,
        max_tokens=sampling.max_completion_length,
        seed=derive_seed(config.training.seed, form),
        room=session.solver.context_length,
    )
    if inner is not None:
        return SecondTurn(inner, tries)
    prompt = config.prompts.critic
    template = load_template(find_domain(config.data).prompts.get(prompt, prompt))
    return OwnCritic(tries, template, f"{OWN}:{config.model.path}")


def check_critic_keys(config: Config) -> None:
    """Raise ConfigError for keys of the critic that mean nothing to the recipe's own condition."""
    if forms := designs.critique_forms([designs.find_condition(config.condition).design]):
        _refuse_unused(config.critic, forms)


def check_critic(config: Config, design_names: Sequence[str], folder: Path | None = None) -> None:
    """Ask whether the critic that the designs need would work, and write nothing. Raises as ``make_critic`` does, for
    a key without an effect not: see ``check_critic_keys``.

    Servers that have answered a run in ``folder``, or into the cache that the recipe names, are not asked again.
    """
    cache = Path(config.critic.cache) if config.critic.cache else folder and folder / CACHE
    if cache is None or not cache.is_file():
        config, folder = changed(config, {"critic.cache": ""}, "critic check"), None
    critic = make_critic(config, folder, design_names, strict=False)
    if critic is not None:
        critic.close()
