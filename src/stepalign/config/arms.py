"""One configuration made from another: the arms of a comparison, what they may spend, and in which keys two differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepalign.config.recipe import set_key, validate
from stepalign.config.schema import ArmSection, CompareSection, Config
from stepalign.errors import ConfigError


def changed(config: Config, settings: Mapping[str, Any], source: str = "arm") -> Config:
    """A configuration with dotted keys changed. Raises ConfigError like ``load_config``."""
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        set_key(tree, key, value)
    return validate(tree, source)


def arm_config(config: Config, arm: ArmSection, seed: int) -> Config:
    """The configuration of one arm with one seed: the shared one with the arm's keys, and without arms."""
    base = changed(config, {"compare": {}}, "comparison")
    own = changed(base, {**arm.set, "training.seed": seed}, f"arm {arm.name}")
    return changed(own, _budget_keys(config.compare, own), f"arm {arm.name}")


def _budget_keys(compare: CompareSection, arm: Config) -> dict[str, Any]:
    """Keys that make an arm spend the comparison's budget. Raises ConfigError for a budget of no size."""
    size = compare.budget_size
    if size is None:
        if compare.budget != "optimizer_steps":
            raise ConfigError(
                f"the budget {compare.budget} has no size",
                where="compare.budget",
                hint="--set compare.budget_size=NUMBER",
            )
        return {}
    per_step = arm.training.problems_per_step * arm.sampling.num_generations
    return {
        "optimizer_steps": {"training.max_steps": math.ceil(size)},
        "rollouts": {"training.max_steps": math.ceil(size / per_step)},
        "completion_tokens": {"training.token_budget": math.ceil(size)},
        "training_seconds": {"training.time_budget": size},
    }[compare.budget]


def difference(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two configurations differ, with both values."""
    left, right = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    missing = object()
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key, missing) != right.get(key, missing)}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
