"""The critic that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from stepalign.config import Config
from stepalign.critics import CACHE, LEDGER, Critic, critic_prompt
from stepalign.domains.math.grading import Grader
from stepalign.domains.table import find_domain
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent, warning
from stepalign.feedback import findings
from stepalign.records import CritiqueForm
from stepalign.rollouts.review import Rules


def make_programmatic_critic(config: Config, form: CritiqueForm = "trace") -> Critic:
    """The critic of the recipe's domain, as faulty as the recipe asks. Raises ConfigError where it has none."""
    critic = find_domain(config.data).critic
    if critic is None:
        raise ConfigError(
            "the programmatic critic knows the embedded task only",
            where="critic.kind",
            hint="give a served critic: --set critic.kind=endpoint --set critic.base_urls='[\"http://...\"]' "
            "--set critic.model=NAME, or drop what needs one from condition and signal.contexts",
        )
    return critic(config.critic, form, config.training.seed)


def make_endpoint_critic(
    config: Config,
    *,
    form: CritiqueForm = "trace",
    cache_folder: Path | None = None,
    ledger_folder: Path | None = None,
    listener: Listener = silent,
) -> Critic:
    """A critic behind an OpenAI-compatible address.

    Args:
        form: what it is asked to write.
        cache_folder: where the replies lie unless ``critic.cache`` names a file; without both nothing is kept.
        ledger_folder: where the attempts are written down; a budget then holds for all processes of a run.
        listener: receives a warning when the servers pause, and when they answer again.

    Raises:
        ConfigError: no model, or a replay without a cache.
        EndpointError: no address answers.
    """
    from stepalign.critics.endpoint import EndpointCritic

    section = config.critic
    if not section.model:
        raise ConfigError("critic.model is empty", hint="--set critic.model=NAME-ON-THE-SERVER")
    if cache_folder is None:
        section = section.model_copy(update={"cache_only": False})
    critic = EndpointCritic(
        section,
        prompt=critic_prompt(config.prompts.critic, form),
        form=form,
        cache_path=Path(section.cache) if section.cache else cache_folder and cache_folder / CACHE,
        ledger_path=ledger_folder and ledger_folder / LEDGER,
        announce=lambda text: listener(warning(text)),
    )
    try:
        critic.check()
    except BaseException:
        critic.close()
        raise
    return critic


def served_model(config: Config) -> str:
    """The one model that the critic's servers offer, for a recipe that names none.

    Raises:
        ConfigError: they offer several, or have no list.
        EndpointError: no address answers, or the key is refused.
    """
    from stepalign.critics.chat import list_models, redact_url

    section = config.critic
    found = list_models(section.base_urls, section.api_key_env)
    if len(found) == 1:
        return found[0]
    what = f"the critic's server offers {len(found)} models" if found else "the critic's server lists no models"
    known = f", one of {', '.join(found[:5])}" if found else ""
    raise ConfigError(what, where=", ".join(map(redact_url, section.base_urls)), hint=f"--model NAME{known}")


def make_rules(config: Config, grader: Grader) -> Rules | None:
    """How the recipe has critiques judged; None where every one is used whatever is found in it."""
    return rules_of(config, grader) if config.critic.judged else None


def rules_of(config: Config, grader: Grader) -> Rules:
    """The recipe's policies, with the grader to compare answers."""
    section = config.critic
    has_answers = find_domain(config.data).has_answers
    return Rules(
        policies=findings.policies(section.policies.model_dump(), served=section.kind == "endpoint"),
        retries=section.retries,
        same_answer=lambda answer, expected: not has_answers or grader.compare(answer, expected).verdict != "incorrect",
    )
