"""Recipes: TOML in, one validated tree, resolved TOML out. ``--set a.b=c`` changes one key; unknown keys are refused
with a suggestion."""

from __future__ import annotations

import difflib
import importlib.resources
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from stepalign.config.other_names import OTHER_NAMES
from stepalign.config.schema import Config, all_keys
from stepalign.errors import ConfigError, meant
from stepalign.outside import encodable, keep_secrets_of, parse_json, redact_url, redacted

CRITIC_URLS = "STEPALIGN_CRITIC_URLS"
"""Environment variable with a JSON list that takes the place of ``critic.base_urls``: addresses with a password."""
PRIVATE_URLS = "STEPALIGN_URLS"
"""The same for all servers: a JSON object, such as {"sampling.base_urls": ["http://USER:PASSWORD@HOST/v1"]}."""
SHORT_FORMS = {"environment": "environment.kind"}
"""A section -> the key of it that a text in its place sets."""
Settings = Mapping[str, Any] | Iterable[str]
"""Changes of a recipe: dotted keys and their values, or ``key.path=value`` words."""


def load_config(recipe: str | Path | None, settings: Settings = ()) -> Config:
    """A recipe with changes, resolved and validated.

    Args:
        recipe: a file, or the name of a shipped recipe; None: the defaults.
        settings: dotted keys and their values, or ``key.path=value`` words as after ``--set``.

    Raises:
        ConfigError: no such file, broken TOML, an unknown key, or a value of the wrong kind.
    """
    tree: dict[str, Any] = {}
    source = "defaults"
    if recipe is not None:
        path = find_recipe(str(recipe))
        source = str(path)
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the recipe is not valid TOML: {error}", where=source) from error
        if not tree and path.name == "config.toml":  # which a run has written; a recipe may leave all to --set
            raise ConfigError("the recipe is empty", where=source, hint="put it back: a run's own is never empty")
    for short in SHORT_FORMS.keys() & tree.keys():
        set_key(tree, short, tree.pop(short))
    if private := os.environ.get(CRITIC_URLS):
        set_key(tree, "critic.base_urls", parse_json(private))
    for key, urls in parse_json(os.environ.get(PRIVATE_URLS, "{}")).items():
        set_key(tree, key, urls)
    given = parse_settings(settings)
    for key, value in given.items():
        set_key(tree, key, value)
    keep_secrets_of(tree)
    _add_own_defaults(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = ".".join(str(part) for part in error.errors()[0]["loc"])
        by_hand = next((key for key in given if first and f"{first}.".startswith(f"{key}.")), None)
        raise _as_config_error(error, f"--set {by_hand}" if by_hand else source) from None


def _add_own_defaults(tree: dict[str, Any]) -> None:
    """An embedded solver has the length and the learning rate of its own recipe where a tree names none."""
    section = tree.get("model", {})
    path = section.get("path", Config().model.path) if isinstance(section, dict) else ""
    name = path.removeprefix("embedded:") if isinstance(path, str) and path.startswith("embedded:") else ""
    file = recipe_folder() / f"{name}.toml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        return
    own = tomllib.loads(file.read_text(encoding="utf-8"))
    for table, key in (("sampling", "max_completion_length"), ("training", "learning_rate")):
        if isinstance(tree.setdefault(table, {}), dict):
            tree[table].setdefault(key, own[table][key])


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or at the root of a checkout."""
    package = Path(str(importlib.resources.files("stepalign")))
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def find_recipe(recipe: str) -> Path:
    """A recipe by path, or by the name of a shipped one ("arithmetic").

    Raises:
        ConfigError: no such file.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    shipped = recipe_folder() / f"{path.name.removesuffix('.toml')}.toml"
    if path.name == recipe.removeprefix("recipes/") and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in recipe_folder().glob("*.toml"))
    raise ConfigError(
        f"no recipe {recipe}",
        where=str(path.absolute()),
        hint=meant(path.stem, names) or f"shipped recipes: {', '.join(names)}",
    )


def parse_settings(settings: Settings) -> dict[str, Any]:
    """``key.path=value`` words as a dictionary. Raises ConfigError for a word without a value."""
    if isinstance(settings, Mapping):
        return encodable(settings)
    values = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise ConfigError(f"--set {setting} has no value", hint="write --set key.path=value")
        values[key.strip()] = parse_value(encodable(text.strip()))
    return values


def parse_value(text: str) -> Any:
    """A value as in TOML; text that is not TOML is a string. TOML has no word for nothing: ``null`` unsets a key."""
    if text == "null":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place. Raises ConfigError when the path leads through a plain value."""
    if isinstance(value, str):
        key = SHORT_FORMS.get(key, key)
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        if node.get(name) is None:  # a section that is absent, or switched off
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(f"{name} is a value and has no key {last}", where=key)
    node[last] = value


def validate(tree: Mapping[str, Any], source: str) -> Config:
    """A tree as a Config. Raises ConfigError with the key and, for unknown keys, a suggestion."""
    keep_secrets_of(tree)
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise _as_config_error(error, source) from None


def _as_config_error(error: ValidationError, source: str) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(whole recipe)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {key}{more}", where=source, hint=_key_meant(key))
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", 'a list, such as ["a", "b"]')
    choices = re.findall(r"'([^']+)'", str(first.get("ctx", {}).get("expected", "")))
    hint = meant(str(first["input"]), choices) or f"docs/keys.md says what {key} takes"
    given = "" if isinstance(first["input"], dict | BaseModel) else f", given {first['input']!r}"
    prefix = f"{key}: " if first["loc"] else ""
    return ConfigError(f"{prefix}{message}{given}{more}", where=source, hint=hint)


def _key_meant(key: str) -> str:
    """The hint for an unknown key: the same in our words, or the nearest one."""
    known = sorted(all_keys())
    values = [one for one in known if not any(other.startswith(f"{one}.") for other in known)]
    section, last = key.split(".", 1)[0], key.rsplit(".", 1)[-1]
    ours = OTHER_NAMES.get(last, "") if section != "critic" else ""
    if " " in ours:
        return ours
    beside = f"{section}.{ours.rsplit('.', 1)[-1]}"
    same_name = [one for one in values if one.rsplit(".", 1)[-1] == last]
    parts = {one.rsplit(".", 1)[-1]: one for one in values}
    close = (
        ([beside if beside in known else ours] if ours else [])
        or difflib.get_close_matches(key, [one for one in known if "." not in one], n=1, cutoff=0.8)
        or same_name
        or difflib.get_close_matches(key, values, n=1)
        or [parts[found] for found in difflib.get_close_matches(last, parts, n=1, cutoff=0.75)]
    )
    return f"did you mean {close[0]}?" if close else "docs/keys.md lists every key, and so does train RECIPE --dry-run"


def check_checkpoint_rule(config: Config, sizes: Mapping[str, int] | None = None) -> None:
    """Refuse a rule that has nothing to choose from: its results would be an empty table after all the work.

    Args:
        config: one run.
        sizes: problems of each set, once they are known; before that a set counts as there when it is named.

    Raises:
        ConfigError: the rule needs a set that the recipe does not name, or more than one evaluated step.
    """
    rule, steps, every = config.evaluation.checkpoint_rule, config.training.max_steps, config.evaluation.eval_steps
    if rule == "last" or steps == 0:
        return
    data = config.data
    named = {"validation": data.validation is not None or data.validation_share > 0, "test": data.test is not None}
    needed = "validation" if rule == "best_on_validation" else "test"
    if not (sizes or named)[needed]:
        share = ", or --set data.validation_share=0.1" if needed == "validation" else ""
        raise ConfigError(
            f"the checkpoint rule {rule} needs {needed} problems, and there are none",
            where=f"data.{needed}",
            hint=f"--set data.{needed}=FILE{share}, or --set evaluation.checkpoint_rule=last",
        )
    if not 0 < every < steps:
        raise ConfigError(
            f"the checkpoint rule {rule} has nothing to choose from: only the last of {steps} steps is evaluated",
            where=f"evaluation.eval_steps = {every}",
            hint=f"--set evaluation.eval_steps={max(1, steps // 4)} (any number below training.max_steps), "
            "or --set evaluation.checkpoint_rule=last",
        )


def to_toml(config: Config) -> str:
    """The resolved configuration, every key included except those that are None, and addresses without the
    ``user:password@`` they may have: this text is kept in run folders."""
    return tomli_w.dumps(without_passwords(config.model_dump(mode="json")))


def without_passwords(node: Any) -> Any:
    """A tree of settings as it may be written: addresses without passwords, no key that is None."""
    if isinstance(node, dict):
        return {key: without_passwords(value) for key, value in node.items() if value is not None}
    if isinstance(node, list):
        return [without_passwords(value) for value in node]
    if isinstance(node, str):
        return redact_url(node) if node.lstrip().lower().startswith(("http://", "https://")) else redacted(node)
    return node
