"""A run is a file: what is written is what is read, unknown keys are errors, and arms differ where they say so."""

from __future__ import annotations

import itertools
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

import annotated_types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stepalign.config import (
    ArmSection,
    Config,
    all_keys,
    arm_config,
    changed,
    difference,
    find_recipe,
    load_config,
    recipe_folder,
    to_toml,
    validate,
)
from stepalign.config.other_names import OTHER_NAMES
from stepalign.config.sections import ENVIRONMENTS
from stepalign.errors import ConfigError
from stepalign.objectives.divergences import DIVERGENCES
from stepalign.verbs.compare import arm_differences

RECIPES = sorted(path.stem for path in recipe_folder().glob("*.toml"))


# ---------------------------------------------------------------------------------------------------------------------
# Every leaf of the tree with a strategy for its values, from its annotation and bounds


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, st.SearchStrategy[Any]]:
    found: dict[str, st.SearchStrategy[Any]] = {}
    hints = typing.get_type_hints(model)
    for name, field in model.model_fields.items():
        key, hint = prefix + name, hints[name]
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            found |= leaves(hint, f"{key}.")
        elif key == "objective.divergence":
            found[key] = st.sampled_from([*DIVERGENCES, "jensen_shannon(0.3)"])
        elif key == "environment.kind":  # a name of the table, or a class
            found[key] = st.sampled_from([*ENVIRONMENTS, "replies.py:Echo"])
        elif key == "sampling.engine":
            found[key] = st.sampled_from(["local", "vllm", "draws.py:Own"])
        elif key == "sampling.stop":  # no empty text ends a completion
            found[key] = st.lists(TEXT.filter(bool), max_size=3).map(tuple)
        elif key not in ("compare.arms", "evaluation.ks"):
            found[key] = values(hint, field.metadata)
    return found


def values(hint: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([values(kind, bounds) for kind in inner])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple:
        return st.lists(values(inner[0], bounds), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values(inner[1], []), max_size=3)
    if hint is types.NoneType:
        return st.none()
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return st.fixed_dictionaries({}, optional=leaves(hint))
    low = next((b.ge if isinstance(b, annotated_types.Ge) else b.gt for b in bounds if isinstance(b, LOWER)), None)
    high = next((b.le if isinstance(b, annotated_types.Le) else b.lt for b in bounds if isinstance(b, UPPER)), None)
    open_low = any(isinstance(b, annotated_types.Gt) for b in bounds)
    open_high = any(isinstance(b, annotated_types.Lt) for b in bounds)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(low + open_low if low is not None else -(2**40), 2**40)
    if hint is float:
        return st.floats(low, high, exclude_min=open_low, exclude_max=open_high, allow_nan=False, allow_infinity=False)
    if hint is str:
        return TEXT
    assert hint is Any, hint
    return st.one_of(st.booleans(), st.integers(-(2**40), 2**40), TEXT, st.lists(TEXT, max_size=2))


LOWER = (annotated_types.Ge, annotated_types.Gt)
UPPER = (annotated_types.Le, annotated_types.Lt)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = leaves()


@st.composite
def configs(draw: st.DrawFn) -> Config:
    chosen = draw(st.lists(st.sampled_from(sorted(LEAVES)), max_size=12, unique=True))
    tree = {key: draw(LEAVES[key]) for key in chosen}
    samples = tree.get("evaluation.num_samples", 12)
    tree["evaluation.ks"] = draw(st.lists(st.integers(1, samples), max_size=3))
    return changed(Config(), tree)


def test_the_strategies_reach_every_key() -> None:
    assert LEAVES.keys() | {"compare.arms", "evaluation.ks"} <= set(all_keys())
    assert len(LEAVES) > 80


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_what_is_written_is_read_again(tmp_path: Path, config: Config) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert load_config(str(file)) == config
    assert difference(load_config(str(file)), config) == {}


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_survive_the_way_to_disk_and_back(tmp_path: Path, name: str) -> None:
    config = load_config(name)
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(str(tmp_path / "config.toml")) == config


@settings(max_examples=60)
@given(data=st.data())
def test_the_difference_is_what_was_changed(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(k for k in LEAVES if "options" not in k and k != "model.lora")))
    new = data.draw(LEAVES[key])
    config = changed(Config(), {key: new})
    old = Config().model_dump(mode="json")
    for part in key.split("."):
        old = old[part]
    found = difference(Config(), config)
    if list(new) == old if isinstance(new, tuple) else new == old:
        assert found == {}
    else:
        assert {k.removeprefix(key).split(".")[0] for k in found} == {""}
        assert all(k.startswith(key) for k in found)


# ---------------------------------------------------------------------------------------------------------------------
# Keys


def sections(model: type[BaseModel] = Config) -> set[type[BaseModel]]:
    found = {model}
    for hint in typing.get_type_hints(model).values():
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= sections(kind)
    return found


def test_every_key_has_a_default() -> None:
    needed = {
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if field.default is PydanticUndefined and field.default_factory is None
    }
    assert needed == {"ArmSection.name"}
    assert validate({}, "nothing") == Config()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.lerning_rate", "training.learning_rate"),
        ("condtion", "condition"),
        ("sampling.num_generation", "sampling.num_generations"),
        ("objective.teacher.wieghts", "objective.teacher.weights"),
        ("model.lora.rank", "model.lora.r"),
        ("trainig.seed", "training"),
        ("max_steps", "training.max_steps"),  # the right key in the wrong place
        ("model.num_generations", "sampling.num_generations"),
        ("sampling.max_new_tokens", "sampling.max_completion_length"),  # the words of other libraries
        ("model.model_name_or_path", "model.path"),
        ("evaluation.max_new_tokens", "evaluation.max_completion_length"),
        ("critic.max_new_tokens", "critic.max_tokens"),
    ],
)
def test_unknown_keys_are_errors_with_the_key_that_was_meant(key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}=1"])
    assert caught.value.exit_code == 2
    assert key.split(".")[0] in caught.value.what
    assert caught.value.hint == f"did you mean {meant}?"


def test_the_words_of_other_trainers_mean_keys_that_exist():
    assert len(OTHER_NAMES) > 150
    for word, meaning in OTHER_NAMES.items():
        assert " " in meaning or meaning in all_keys()
        assert f"training.{word}" not in all_keys() or meaning == f"training.{word}"


def test_an_unknown_key_of_an_arm_is_an_error_too() -> None:
    arm = ArmSection(name="a", set={"training.seeed": 1})
    with pytest.raises(ConfigError, match=r"unknown key training\.seeed") as caught:
        arm_config(Config(), arm, 0)
    assert caught.value.where == "arm a"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.max_steps=7", 7),
        ("training.learning_rate=3e-4", 3e-4),
        ("training.learning_rate = 3e-4", 3e-4),
        ("model.gradient_checkpointing=true", True),
        ("model.path=runs/a=b", "runs/a=b"),  # only the first "=" divides
        ("model.path='with space'", "with space"),
        ('model.path="quoted"', "quoted"),
        ("prompts.system=", ""),
        ("prompts.student={{ question }}", "{{ question }}"),  # not a TOML table
        ("prompts.student={{ question }}\nThink.", "{{ question }}\nThink."),
        ("signal.contexts=['reference']", ("reference",)),
        ("evaluation.ks=[1, 4]", (1, 4)),
        ("critic.prices={prompt = 1.5}", {"prompt": 1.5}),
        ("model.lora.r=8", 8),
        ("training.save_total_limit=null", None),
    ],
)
def test_set_takes_toml_values_and_plain_words(setting: str, expected: Any) -> None:
    node: Any = load_config(None, [setting])
    for name in setting.partition("=")[0].strip().split("."):
        node = getattr(node, name)
    assert node == expected
    assert type(node) is type(expected)


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def test_changes_are_words_or_a_mapping() -> None:
    words, keys = ["training.max_steps=2", "critic.model=a"], {"training.max_steps": 2, "critic.model": "a"}
    assert load_config(Path("arithmetic"), keys) == load_config("arithmetic", words)


def test_null_unsets_what_a_recipe_sets() -> None:
    assert load_config("gsm8k").data.max_test == 500
    config = load_config("gsm8k", ["data.max_test=null", "objective.entry_clip=null"])
    assert (config.data.max_test, config.objective.entry_clip) == (None, None)
    with pytest.raises(ConfigError, match=r"training\.max_steps"):
        load_config("gsm8k", ["training.max_steps=null"])


def test_what_can_be_none_is_none_by_default() -> None:
    """TOML leaves out what is None, so that nothing else may be meant by its absence."""
    tree = Config().model_dump(mode="json")
    flat = {key: node for key in all_keys() if (node := _at(tree, key)) is not None and key != "compare.arms"}
    for key, value in flat.items():
        if key.startswith("model.lora."):
            continue
        try:
            accepted = changed(Config(), {key: None})
        except ConfigError:
            continue
        assert _at(accepted.model_dump(mode="json"), key) == value, key


def test_an_error_says_whether_recipe_or_command_line_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('training.max_steps = "many"\n')
    for words, where in (([], str(file)), (["training.max_steps=some"], "--set training.max_steps")):
        with pytest.raises(ConfigError) as told:
            load_config(str(file), words)
        assert told.value.where == where
    with pytest.raises(ConfigError) as told:
        load_config("gsm8k", ["training.report_to=wadb"])
    assert told.value.where == "--set training.report_to"
    with pytest.raises(ConfigError) as told:
        load_config("gsm8k", ["training.learningrate=1"])
    assert (told.value.where, told.value.hint) == (
        "--set training.learningrate",
        "did you mean training.learning_rate?",
    )


def test_the_last_setting_wins_and_the_recipe_gives_way() -> None:
    assert load_config("arithmetic", ["training.max_steps=3", "training.max_steps=4"]).training.max_steps == 4


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("training.max_steps", "has no value"),
        ("training.max_steps=many", "training.max_steps"),
        ("training.max_steps=-1", "greater than or equal to 0"),
        ("training.learning_rate=0", "greater than 0"),
        ("training.learning_rate=nan", "training.learning_rate"),
        ("sampling.temperature=inf", "sampling.temperature"),
        ("objective.divergence=forward", "forward_kl"),
        ("condition.name=x", "unknown key condition"),
        ("evaluation.ks=[13]", "evaluation.ks"),
        ("training.max_steps.more=1", "training.max_steps"),
    ],
)
def test_wrong_values_are_errors_that_name_the_key(setting: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("arithmetic", [setting])
    assert told in str(caught.value) or told.replace("unknown key ", "") in str(caught.value)


def test_missing_and_broken_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe") as caught:
        find_recipe("arithmetics")
    assert caught.value.hint == "did you mean arithmetic?"
    with pytest.raises(ConfigError, match="no recipe"):
        find_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="no recipe"):
        find_recipe(str(tmp_path))  # a folder
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(broken))
    broken.write_bytes(b"condition = '\xff'\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(broken))


# ---------------------------------------------------------------------------------------------------------------------
# Arms


def named_keys(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a raw TOML table, written as "a.b" or as a.b."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= named_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@pytest.mark.parametrize("name", RECIPES)
def test_arms_differ_from_the_recipe_exactly_in_the_keys_they_name(name: str) -> None:
    raw = tomllib.loads(find_recipe(name).read_text(encoding="utf-8"))
    config = load_config(name)
    shared = named_keys({k: v for k, v in raw.items() if k != "compare"})
    said = {arm["name"]: named_keys(arm.get("set", {})) for arm in raw.get("compare", {}).get("arms", [])}
    expected = {
        arm: {k: v for k, v in keys.items() if shared.get(k, lookup(Config(), k)) != v} for arm, keys in said.items()
    }
    assert arm_differences(config) == expected if said else True


def lookup(config: Config, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return list(node) if isinstance(node, tuple) else node


@pytest.mark.parametrize("name", [name for name in RECIPES if load_config(name).compare.arms])
def test_two_arms_differ_only_in_keys_that_one_of_them_names(name: str) -> None:
    config = load_config(name)
    for one, other in itertools.combinations(config.compare.arms, 2):
        between = difference(arm_config(config, one, 3), arm_config(config, other, 3))
        assert between.keys() <= named_keys(one.set).keys() | named_keys(other.set).keys()
        seeds = difference(arm_config(config, one, 3), arm_config(config, one, 4))
        assert seeds == {"training.seed": (3, 4)}


def test_a_table_in_an_arm_changes_its_own_keys_only() -> None:
    """In TOML, set = { objective.divergence = "reverse_kl" } is a table in a table."""
    text = """
        objective.teacher.weights = "ema"
        objective.epsilon = 0.3
        [[compare.arms]]
        name = "quoted"
        set = { "objective.divergence" = "reverse_kl" }
        [[compare.arms]]
        name = "plain"
        set = { objective.divergence = "reverse_kl", critic.prices = { prompt = 1.0 } }
    """
    config = validate(tomllib.loads(text), "text")
    quoted, plain = (arm_config(config, arm, 0) for arm in config.compare.arms)
    assert difference(quoted, plain).keys() == {"critic.prices.prompt"}
    assert plain.objective.teacher.weights == "ema"


def test_an_arm_may_open_a_section_that_is_off() -> None:
    arm = ArmSection(name="adapters", set={"model.lora.r": 4})
    config = arm_config(Config(), arm, 0)
    assert config.model.lora is not None
    assert (config.model.lora.r, config.model.lora.alpha) == (4, None)


def test_arms_need_different_names_that_are_folder_names() -> None:
    with pytest.raises(ConfigError, match="different names"):
        validate({"compare": {"arms": [{"name": "a"}, {"name": "a"}]}}, "x")
    for name in ("../up", "a/b", "", ".hidden", "a" * 65):
        with pytest.raises(ConfigError, match=r"compare\.arms"):
            validate({"compare": {"arms": [{"name": name}]}}, "x")


def test_defaults_of_derived_values() -> None:
    assert Config().ks == (1, 12)
    assert load_config(None, ["evaluation.num_samples=1"]).ks == (1,)
    assert load_config(None, ["evaluation.ks=[2, 3]"]).ks == (2, 3, 12)
    assert Config().evaluation_length == 1024
    embedded, other = (load_config(None, {"model.path": path}) for path in ("embedded:arithmetic", "x/y"))
    assert (embedded.evaluation_length, embedded.training.learning_rate) == (64, 1e-3)
    assert (other.evaluation_length, other.training.learning_rate) == (1024, 5e-6)
    assert load_config(None, ["sampling.max_completion_length=9"]).evaluation_length == 9
    assert load_config(None, ["evaluation.max_completion_length=9"]).evaluation_length == 9
    assert not math.isnan(Config().training.learning_rate)
