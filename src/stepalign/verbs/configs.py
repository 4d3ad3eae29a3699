"""The configuration that goes with a model: of its run, of its domain, or of the recipe that is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from stepalign.config import Config, Settings, changed, load_config, parse_settings
from stepalign.domains.table import recipe_of
from stepalign.errors import ConfigError
from stepalign.outside import split_url
from stepalign.storage.sums import check_sums

# A file's question is the whole question: nothing is added to it unless a recipe says so.
PLAIN_PROMPTS = {"prompts.student": "plain", "prompts.self_teacher": "plain_self_teacher", "model.plain_prompts": True}


DEFAULTS = "the defaults"


def config_for_model(model: str, recipe: str, settings: Settings | None, keys: Mapping[str, Any]) -> tuple[Config, str]:
    """The configuration that goes with a model, and its source: its run, the embedded recipe, or the one named.

    Args:
        model: a run folder, a folder in it, a model folder, a Hub name, or the name of an embedded solver.
        settings: keys and values, or ``key=value`` texts, which win over everything.
        keys: values that win over the recipe.

    Raises:
        ConfigError: a comparison folder, or an unusable recipe or setting.
    """
    folder = Path(model)
    if (folder / "arms").is_dir():
        runs = sorted(str(final.parent.relative_to(folder)) for final in folder.glob("arms/*/seed-*/final"))
        raise ConfigError(
            "a comparison holds many models; one of its runs is needed",
            where=model,
            hint=f"give {folder / 'arms' / 'ARM' / 'seed-N'}; finished: {', '.join(runs) or 'none yet'}",
        )
    # RUN, RUN/final and RUN/checkpoints/step-N all belong to RUN.
    run = next((f for f in (folder, *folder.absolute().parents[:2]) if _is_run(f)), None)
    if run and not recipe and not (run / "config.toml").exists():
        raise ConfigError(
            "config.toml is missing beside the weights of a run",
            where=str(run / "config.toml"),
            hint="put it back as it was, or name a recipe with --recipe",
        )
    if run and not recipe:
        check_sums(run, "config.toml")
    default = str(run / "config.toml") if run else recipe_of(model) or None
    path = str(folder / "final") if run == folder else model
    keys = {**keys, "model.path": path, "model.lora": None, "data.max_test": None}
    base = load_config(recipe or default, () if recipe or default else {"model.path": path})
    config = changed(base, {**keys, **parse_settings(settings or ())}, "--set")
    return config, recipe or default or DEFAULTS


def config_for_file(model: str, recipe: str, settings: Settings | None) -> tuple[Config, str]:
    """The same for questions that are asked as they stand, unless the model or a recipe brings prompts."""
    config, source = config_for_model(model, recipe, settings, {})
    if source == DEFAULTS:
        keys = {key: value for key, value in PLAIN_PROMPTS.items() if key not in parse_settings(settings or ())}
        config = changed(config, keys, "--set")
    return config, source


def prompts_said(config: Config, prompts_from: str) -> str:
    """One line with what both sides read, for the terminal."""
    section = config.prompts
    student, teacher = (text.strip().splitlines()[0] for text in (section.student, section.self_teacher))
    return (
        f"student prompt {student!r}, self-teacher prompt {teacher!r}, system message "
        f"{section.system or 'as the chat template has it'!r}, chat options {section.student_chat_options or 'none'}, "
        f"temperature {config.sampling.temperature:g} (from {prompts_from}; --recipe, --set or columns of the file "
        "change them)"
    )


def config_with_critic(
    of_run: Config | None, critic: str, model: str, settings: Settings | None, *, cache_only: bool = False
) -> Config:
    """The run's own recipe, or the defaults, with the critic that is named.

    Args:
        critic: a recipe, addresses separated by commas, "programmatic" or "calculation".
        model: its name on the server; "" asks the server, which may have only one.

    Raises:
        ConfigError: no critic is named, or several are served.
        EndpointError: the server that is asked for its model does not answer.
    """
    given, base = parse_settings(settings or ()), of_run or load_config(None)
    keys: dict[str, Any] = {"critic.model": model} if model else {}
    if critic.startswith(("http://", "https://")):
        keys |= {
            "critic.kind": "endpoint",
            "critic.base_urls": [_api_address(url) for url in re.split(r",\s*(?=https?://)", critic)],
        }
    elif critic in ("programmatic", "calculation"):
        keys["critic.kind"] = critic
    elif re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", critic):
        raise ConfigError("an address needs its protocol", where=f"--critic {critic}", hint=f"--critic http://{critic}")
    elif critic:
        named = load_config(critic)
        keys = {"critic": named.critic.model_dump(mode="json"), "prompts.critic": named.prompts.critic, **keys}
    elif of_run is None and not any(key.startswith("critic.") for key in given):
        raise ConfigError(
            "who is the critic?",
            where="--critic",
            hint="--critic RECIPE, --critic http://HOST:PORT/v1 --model NAME, or a program: --critic calculation",
        )
    keys |= {"critic.cache_only": True} if cache_only else {}
    config = changed(base, {**keys, **given}, "--critic, --set")
    section = config.critic
    if section.kind == "endpoint" and not section.model and not section.cache_only:
        from stepalign.critics.served import served_model

        return changed(config, {"critic.model": served_model(section)}, "--model")
    return config


def _api_address(url: str) -> str:
    """A bare host means its ``/v1``, where OpenAI-compatible servers have their interface."""
    try:
        address = split_url(url)
    except ValueError:
        return url  # the critic says what is wrong with it
    scheme, _, host = address.url.partition("://")
    if "/" in host:
        return url.strip()
    user, query = f"{address.user}@" if address.user else "", f"?{urlencode(address.query)}" if address.query else ""
    return f"{scheme}://{user}{host}/v1{query}"


def parse_pairs(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dictionary. Raises ConfigError for anything else."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for name, equals, column in pairs:
        if not (equals and name.strip() and column.strip()):
            raise ConfigError(f"--columns {text} is no list of pairs", hint="write --columns question=Q,completion=C")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _is_run(folder: Path) -> bool:
    return (folder / "run.lock").exists() and any(
        (folder / f).exists() for f in ("config.toml", "final", "checkpoints")
    )
