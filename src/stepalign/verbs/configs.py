"""The configuration that goes with a model: of its run, of its domain, or of the recipe that is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepalign.config import Config, Settings, changed, load_config, parse_settings
from stepalign.domains.table import recipe_of
from stepalign.errors import ConfigError

# A file's question is the whole question: nothing is added to it unless a recipe says so.
PLAIN_PROMPTS = {
    "prompts.student": "plain",
    "prompts.self_teacher": "plain_self_teacher",
    "model.plain_prompts": True,
}


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
    default = str(run / "config.toml") if run else recipe_of(model) or None
    path = str(folder / "final") if run == folder else model
    keys = {**keys, "model.path": path, "model.lora": None, "data.max_test": None}
    config = changed(load_config(recipe or default), {**keys, **parse_settings(settings or ())}, "--set")
    return config, recipe or default or "the defaults"


def config_for_file(model: str, recipe: str, settings: Settings | None) -> tuple[Config, str]:
    """The same for questions that are asked as they stand, unless the model or a recipe brings prompts."""
    config, source = config_for_model(model, recipe, settings, {})
    if source == "the defaults":
        keys = {key: value for key, value in PLAIN_PROMPTS.items() if key not in parse_settings(settings or ())}
        config = changed(config, keys, "--set")
    return config, source


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").exists() and (folder / "run.lock").exists()
