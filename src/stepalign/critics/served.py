"""A critic for a script or a notebook, without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepalign.config import Config, changed
from stepalign.critics import CRITIC_PROMPTS
from stepalign.critics.endpoint import EndpointCritic
from stepalign.records import CritiqueForm


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
