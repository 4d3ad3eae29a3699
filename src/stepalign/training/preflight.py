"""What is found out before the first step, so that no run stops midway over a prompt or trains in vain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stepalign.build import make_prompts, recipe_solver
from stepalign.config import Config
from stepalign.domains.domain import Domain
from stepalign.domains.table import find_domain, load_sets
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent, warning
from stepalign.feedback.designs import Need, find_condition, find_design
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder
from stepalign.problems.sets import named
from stepalign.records import Problem
from stepalign.rollouts.order import problems_of_step
from stepalign.training.trackers import check_trackers

SHOWN = 5
"""Problems that an error names; the others are counted."""
MATERIAL: dict[Need, tuple[str, Callable[[Domain, Problem], bool], str]] = {
    "reference": (
        "a reference solution",
        lambda domain, problem: bool(problem.reference),
        "name the column that holds them in data.columns, or choose a condition that needs none",
    ),
    "tests": (
        "Python tests",
        lambda domain, problem: domain.has_details,
        "--set data.columns=python for problems that have tests, or choose a condition that needs none",
    ),
}
"""What a design shows of the problem itself: its name, whether a problem has it, and what to do where none has."""


def check_inputs(config: Config) -> None:
    """All of a run's problems and prompts, without its weights. Raises ConfigError as the run would."""
    sets = load_sets(config.data)
    check_trackers(config.training)
    check_material(config, sets["train"].problems)
    solver = recipe_solver(config, weights=False)
    check_prompts(config, solver, make_prompts(config, solver), {name: found.problems for name, found in sets.items()})


def check_dtype(config: Config, listener: Listener) -> None:
    """Raises ConfigError for float16, where small gradients vanish; warns where bfloat16 would swallow the updates."""
    model, training = config.model, config.training
    if not training.max_steps:
        return
    if model.dtype == "float16":
        raise ConfigError(
            "float16 cannot be trained: small gradients vanish in it",
            where="model.dtype",
            hint="--set model.dtype=bfloat16, or float32",
        )
    if model.dtype == "bfloat16" and model.lora is None:
        listener(
            warning(
                "all weights train in bfloat16, which rounds away updates below 1/512 of a weight: at a learning rate "
                f"of {training.learning_rate:g} most of them may never move; float32 or model.lora keep them"
            )
        )


def check_material(config: Config, problems: Sequence[Problem], listener: Listener = silent) -> None:
    """Look whether the problems have what the condition shows of them, and count those that have not.

    Raises:
        ConfigError: not one of the training problems has it.
    """
    design, domain = find_design(find_condition(config.condition).design), find_domain(config.data)
    for need, (name, is_there, hint) in MATERIAL.items():
        if need not in design.needs or not config.training.max_steps:
            continue
        lacking = sum(not is_there(domain, problem) for problem in problems)
        if lacking == len(problems):
            raise ConfigError(
                f"no training problem has {name}, and the condition {config.condition} shows nothing else",
                where="condition, data.train",
                hint=hint,
            )
        if lacking:
            listener(warning(f"{lacking} of {len(problems)} training problems lack {name}; their rollouts are masked"))


def check_prompts(
    config: Config, solver: Solver, prompts: PromptBuilder, sets: Mapping[str, Sequence[Problem]]
) -> None:
    """Build every prompt that the run is going to need.

    Raises:
        ConfigError: a template fails or has no place for a context, or questions are too long; the first of them are
            named, the others counted.
    """
    condition = find_condition(config.condition)
    if condition.design != "none" and not prompts.shows_context:
        raise ConfigError(
            "the self-teacher's prompt never shows its context, so there would be nothing to learn from it",
            where="prompts.self_teacher",
            hint="put {{ feedback }} where it belongs",
        )
    introduction = find_design(condition.design).introduction
    for name, problems in sets.items():
        trains = name == "train"
        used = _trained_on(config, problems) if trains else problems
        length = config.sampling.max_completion_length if trains else config.evaluation_length
        limit = solver.context_length
        sizes = [(problem, len(prompts.student(problem))) for problem in used]
        too_long = [
            f"{named(who)}: {size} tokens" for who, size in sizes if limit is not None and size + length > limit
        ]
        if too_long:
            raise ConfigError(
                f"{_some(too_long)} of {len(used)} {name} problems leave no room for a completion of {length} tokens "
                f"in the model's {limit}",
                where=f"data.{name}",
                hint=f"drop them, or shorten {'sampling' if trains else 'evaluation'}.max_completion_length",
            )
        if trains and condition.design != "none":
            no_room = [named(p) for p in used if not prompts.has_room(p, introduction)]
            if no_room:
                raise ConfigError(
                    f"{_some(no_room)} of {len(used)} {name} problems leave no room for a context in the "
                    f"self-teacher's prompt of {prompts.max_teacher_prompt_length} tokens",
                    where="prompts.max_teacher_prompt_length",
                    hint="raise it where the model's context allows, or drop these problems",
                )


def _trained_on(config: Config, problems: Sequence[Problem]) -> Sequence[Problem]:
    section = config.training
    if section.max_steps * section.problems_per_step >= len(problems):
        return problems if section.max_steps else ()
    steps = range(section.max_steps)
    return [p for step in steps for p in problems_of_step(problems, step, section.problems_per_step, section.seed)]


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them: "7 (a, b, c, d, e, ...)"."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
