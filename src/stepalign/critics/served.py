"""Critics behind servers: of a recipe, and of a script or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepalign.config import Config, CriticSection, changed
from stepalign.critics import CACHE, CRITIC_PROMPTS, LEDGER, critic_prompt
from stepalign.critics.budget import Ledger
from stepalign.critics.chat import list_models
from stepalign.critics.endpoint import EndpointCritic
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent, warning
from stepalign.outside import redact_url
from stepalign.records import CritiqueForm


def open_endpoint_critic(
    section: CriticSection,
    *,
    prompt: str,
    form: CritiqueForm = "trace",
    cache_folder: Path | None = None,
    ledger_folder: Path | Ledger | None = None,
    listener: Listener = silent,
) -> EndpointCritic:
    """The critic of a recipe, its servers checked.

    Args:
        prompt: the recipe's; see :func:`stepalign.critics.critic_prompt`.
        form: the form of critique to write.
        cache_folder: keeps the replies unless ``critic.cache`` names a file; without both nothing is kept.
        ledger_folder: keeps the ledger; a budget then holds for all processes of a run. Or the ledger itself.
        listener: receives a warning when a server goes down, and when it answers again.

    Raises:
        ConfigError: no model, or a replay without a cache.
        EndpointError: no address answers.
    """
    if not section.model:
        raise ConfigError("critic.model is empty", hint="--set critic.model=NAME-ON-THE-SERVER")
    replays = section.cache_only  # and asks no server
    if cache_folder is None:
        section = section.model_copy(update={"cache_only": False})
    critic = EndpointCritic(
        section,
        prompt=critic_prompt(prompt, form),
        form=form,
        cache_path=Path(section.cache) if section.cache else cache_folder and cache_folder / CACHE,
        ledger_path=ledger_folder / LEDGER if isinstance(ledger_folder, Path) else ledger_folder,
        announce=lambda text: listener(warning(text)),
    )
    try:
        if not replays:
            critic.check()
    except BaseException:
        critic.close()
        raise
    return critic


def served_model(section: CriticSection) -> str:
    """The one model that the critic's servers offer, for a recipe that names none.

    Raises:
        ConfigError: they offer several, or have no list.
        EndpointError: no address answers, or the key is refused.
    """
    found = list_models(section.base_urls, section.api_key_env)
    if len(found) == 1:
        return found[0]
    what = f"the critic's server offers {len(found)} models" if found else "the critic's server lists no models"
    known = f", one of {', '.join(found[:5])}" if found else ""
    raise ConfigError(what, where=", ".join(map(redact_url, section.base_urls)), hint=f"--model NAME{known}")


def served_critic(
    url: str | Sequence[str],
    model: str,
    *,
    prompt: str | Path | None = None,
    form: CritiqueForm = "trace",
    cache: str | Path | None = None,
    **keys: Any,
) -> EndpointCritic:
    """A critic behind an OpenAI-compatible address, for a script or a notebook.

    Args:
        url: one address or several, such as "http://127.0.0.1:8000/v1".
        model: its name on the server.
        prompt: packaged template, file or inline Jinja text; None takes the packaged one for the form.
        cache: sqlite file that keeps replies, so that none is paid for twice.
        keys: further keys of ``[critic]`` (docs/keys.md), such as ``api_key_env`` or ``sees``.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or a missing environment variable.
    """
    urls = [url] if isinstance(url, str) else list(url)
    given = {"kind": "endpoint", "base_urls": urls, "model": model, **keys}
    section = changed(Config(), {f"critic.{key}": value for key, value in given.items()}, "Critic").critic
    cache_path = None if cache is None else Path(cache)
    return EndpointCritic(section, prompt=prompt or CRITIC_PROMPTS[form], form=form, cache_path=cache_path)
