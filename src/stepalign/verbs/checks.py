"""The checks of a recipe: everything that can be found out before the first step, in one list.

``train``, ``compare`` and ``--dry-run`` run the same list: keys, then files, then what loads a model's tokenizer and
shapes. Nothing here loads weights, and nothing before ``loads_model`` loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepalign.build import (
    check_critic_keys,
    find_engine,
    find_terms,
    has_teacher,
    make_replier,
    model_choice,
    other_teacher,
    prompt_templates,
    served_teacher,
)
from stepalign.config import Config, check_checkpoint_rule
from stepalign.critics import critic_prompt
from stepalign.domains.domain import Domain
from stepalign.domains.table import find_domain, make_grader
from stepalign.errors import ConfigError
from stepalign.events import warning
from stepalign.feedback.designs import Need, find_condition, find_design
from stepalign.feedback.prompts import load_template
from stepalign.models.places import adapted_base, find_model
from stepalign.problems.columns import as_preset
from stepalign.problems.sets import named
from stepalign.records import Problem
from stepalign.rollouts.order import problems_of_step
from stepalign.training.ranks import num_ranks
from stepalign.training.trackers import check_trackers
from stepalign.verbs.inputs import Inputs
from stepalign.waiting import wait_for

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
"""The part of a problem that a design shows: its name, whether a problem has it, and what to do where none has."""


def run_checks(inputs: Inputs, *, loads_model: bool | None = None) -> None:
    """Run the checks in their order.

    Args:
        loads_model: only those that load tokenizer and shapes, or only the others; all of them by default.

    Raises:
        ConfigError: the first thing that is wrong, with the key and the change that mends it.
    """
    for check in CHECKS:
        if loads_model in (None, check.loads_model):
            check.function(inputs)


def check_recipe(config: Config) -> None:
    """Check the keys alone, before any file is read. Raises ConfigError."""
    find_terms(config)
    check_checkpoint_rule(config)


def trackers(inputs: Inputs) -> None:
    """Every tracker of ``training.report_to`` is installed."""
    check_trackers(inputs.config.training)


def terms(inputs: Inputs) -> None:
    """The loss has a signal, whatever the rollouts are."""
    find_terms(inputs.config)


def checkpoint_rule(inputs: Inputs) -> None:
    """The rule has steps and problems to choose from, by the recipe and by the files."""
    check_checkpoint_rule(inputs.config)
    check_checkpoint_rule(inputs.config, {name: len(found) for name, found in inputs.problems.items()})


def material(inputs: Inputs) -> None:
    """The problems have what the condition shows of them; those that lack it are counted in a warning."""
    config, problems = inputs.config, inputs.problems["train"]
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
            inputs.listener(
                warning(f"{lacking} of {len(problems)} training problems lack {name}; their rollouts are masked")
            )


def ranks(inputs: Inputs) -> None:
    """The loss does not depend on how many ranks share the samples."""
    if num_ranks() > 1 and inputs.config.objective.loss_type == "bnpo":
        raise ConfigError(
            f"bnpo takes a mean per micro-batch, and {num_ranks()} ranks cut the samples in their own way",
            where="objective.loss_type",
            hint="choose dapo, grpo or dr_grpo, or train in one process",
        )


def grader(inputs: Inputs) -> None:
    """A grader that the recipe names can be started."""
    if inputs.config.data.grader:
        make_grader(inputs.config.data).close()


def rollout_servers(inputs: Inputs) -> None:
    """Servers are named where they draw, and not for the local sampler; a sampler of the user's own is one."""
    section = inputs.config.sampling
    if find_engine(section).asks_servers not in (None, bool(section.base_urls)):
        raise ConfigError(
            "rollouts from servers need their addresses, and addresses need the engine that asks them",
            where="sampling.engine, sampling.base_urls",
            hint='--set sampling.engine=vllm --set sampling.base_urls=["http://127.0.0.1:8000/v1"]',
        )


def old_completions(inputs: Inputs) -> None:
    """A warning where completions of older weights meet an objective that expects those of the weights that learn."""
    objective, ahead = inputs.config.objective, inputs.config.rollouts.ahead
    sampled = objective.divergence.partition("(")[0] in ("reverse_kl", "sampled_token")
    if ahead and sampled and objective.importance_clip is None and find_terms(inputs.config).distillation_weight:
        text = (
            f"rollouts.ahead = {ahead} with {objective.divergence}, an expectation over the student's own completions: "
            "those of older weights bias it; forward_kl bears them, objective.importance_clip = 2.0 corrects for them"
        )
        inputs.listener(warning(text))


def groups_learn_alone(inputs: Inputs) -> None:
    """Under ``rollouts.accumulate`` a group needs nothing of the others."""
    config = inputs.config
    if not config.rollouts.accumulate:
        return
    objective, design = config.objective, find_design(find_condition(config.condition).design)
    engine, draws_elsewhere = config.sampling.engine, find_engine(config.sampling).has_own_weights
    reasons = {
        f"sampling.engine = {engine}, which draws where the learner works": not draws_elsewhere,
        "rollouts.ahead, which overlaps more": config.rollouts.ahead > 0,
        "objective.loss_type = bnpo, whose means depend on the cut": objective.loss_type == "bnpo",
        "objective.scale_rewards = batch": objective.scale_rewards == "batch",
        "training.updates_per_batch above 1": config.training.updates_per_batch > 1,
        "several ranks": num_ranks() > 1,
        "objective.teacher.base_urls, which score whole steps": bool(objective.teacher.base_urls),
        f"the design {config.condition}, which shows other problems": "other problems" in design.needs,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ConfigError(
            f"groups cannot learn before the step is whole with {reason}",
            where="rollouts.accumulate",
            hint="--set rollouts.accumulate=false",
        )


def environment(inputs: Inputs) -> None:
    """What replies to completions can be made; a served user answers."""
    with make_grader(inputs.config.data) as own:
        replier = make_replier(inputs.config, own)
        try:
            getattr(replier, "check", lambda: None)()
        finally:
            getattr(replier, "close", lambda: None)()


def turns(inputs: Inputs) -> None:
    """The chat template has a place for a further turn."""
    if inputs.config.environment.kind not in ("auto", "single"):
        inputs.prompts.reply("x", -1)


def number_format(inputs: Inputs) -> None:
    """No float16, where small gradients vanish; a warning where bfloat16 would swallow the updates."""
    model, training = inputs.config.model, inputs.config.training
    if not training.max_steps:
        return
    _, dtype = model_choice(model)
    if dtype == "float16":
        raise ConfigError(
            "float16 cannot be trained: small gradients vanish in it",
            where="model.dtype",
            hint="--set model.dtype=bfloat16, or float32",
        )
    if dtype == "bfloat16" and model.lora is None:
        text = (
            "all weights train in bfloat16, which rounds away updates below 1/512 of a weight: at a learning rate "
            f"of {training.learning_rate:g} most of them may never move; float32 or model.lora keep them"
        )
        inputs.listener(warning(text))


def columns(inputs: Inputs) -> None:
    """``data.columns`` is a preset or a map, whether the problems come from a file or not."""
    as_preset(inputs.config.data.columns)


def model_is_there(inputs: Inputs) -> None:
    """The model's folder is one, or its name can be one of the Hub; so is another teacher's."""
    find_model(inputs.config.model.path)
    if inputs.config.objective.teacher.model and has_teacher(inputs.config):
        find_model(inputs.config.objective.teacher.model)


def whole_model(inputs: Inputs) -> None:
    """A run does not train an adapter on: a new one would take its place."""
    model = inputs.config.model
    if inputs.config.training.max_steps and (base := adapted_base(find_model(model.path))):
        raise ConfigError(
            f"{model.path} holds an adapter of {base}, which training would leave out",
            where="model.path",
            hint=f'merge it and copy its tokenizer: python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"M.from_pretrained('{model.path}').merge_and_unload().save_pretrained('MERGED')\"",
        )


def adapter_targets(inputs: Inputs) -> None:
    """The layers that get adapters are there."""
    if inputs.config.model.lora is not None:
        from stepalign.models.load import check_targets

        check_targets(inputs.solver, inputs.config.model.lora)


def templates(inputs: Inputs) -> None:
    """The templates are there and ask for nothing unknown; the self-teacher's has a place for the context."""
    config = inputs.config
    _, self_teacher = prompt_templates(config)
    design = find_design(find_condition(config.condition).design)
    if design.needs_critic and config.critic.kind == "endpoint":
        load_template(critic_prompt(config.prompts.critic, design.form))
    if design.has_context and "feedback" not in self_teacher.variables:
        raise ConfigError(
            "the self-teacher's prompt never shows its context, so there would be nothing to learn from it",
            where="prompts.self_teacher",
            hint="put {{ feedback }} where it belongs",
        )


def critic_keys(inputs: Inputs) -> None:
    """The keys of the critic have an effect on what is trained on."""
    if inputs.config.training.max_steps:
        check_critic_keys(inputs.config)


def teacher(inputs: Inputs) -> None:
    """A teacher that is another model is there and has the solver's vocabulary; a warning where none teaches."""
    config = inputs.config
    if config.training.max_steps and config.objective.teacher.is_other and not has_teacher(config):
        key = "model" if config.objective.teacher.model else "base_urls"
        text = f"objective.teacher.{key} has no effect: under the condition {config.condition} no teacher is asked"
        inputs.listener(warning(text))
    other_teacher(config, inputs.solver, weights=False)
    if (served := served_teacher(inputs.config)) is not None and inputs.config.training.max_steps:
        wait_for(served.check(inputs.solver.tokenizer))


def sampler(inputs: Inputs) -> None:
    """The sampler knows the architecture."""
    find_engine(inputs.config.sampling).check(inputs.solver)


def question_lengths(inputs: Inputs) -> None:
    """Every question of the run leaves room for a completion in the model's context."""
    for name, problems in _used(inputs).items():
        refuse_long_questions(inputs, name, problems)


def refuse_long_questions(inputs: Inputs, name: str, problems: Sequence[Problem]) -> None:
    """Raise a ConfigError for prompts of the set "train", "validation" or "test" that leave no room for a completion.

    Every command that samples asks this before weights are loaded: beyond its positions a model writes noise.
    """
    config, limit = inputs.config, inputs.solver.context_length
    section = "sampling" if name == "train" else "evaluation"
    length = config.sampling.max_completion_length if name == "train" else config.evaluation_length
    sizes = [(problem, len(inputs.prompts.student(problem))) for problem in problems]  # builds every prompt
    too_long = [f"{named(p)}: {size} tokens" for p, size in sizes if limit is not None and size + length > limit]
    if too_long:
        raise ConfigError(
            f"{_some(too_long)} of {len(problems)} {name} problems leave no room for a completion of {length} "
            f"tokens in the model's {limit}",
            where=f"data.{name}",
            hint=f"drop them, or --set {section}.max_completion_length=TOKENS with fewer",
        )


def room_for_context(inputs: Inputs) -> None:
    """Every training question leaves room for a context in the self-teacher's prompt."""
    design = find_condition(inputs.config.condition).design
    if not find_design(design).has_context:
        return
    prompts, problems = inputs.prompts, _used(inputs)["train"]
    introduction = find_design(design).introduction
    no_room = [named(problem) for problem in problems if not prompts.has_room(problem, introduction)]
    if no_room:
        raise ConfigError(
            f"{_some(no_room)} of {len(problems)} train problems leave no room for a context in the self-teacher's "
            f"prompt of {prompts.max_teacher_prompt_length} tokens",
            where="prompts.max_teacher_prompt_length",
            hint="raise it where the model's context allows, or drop these problems",
        )


class Check(NamedTuple):
    """One entry of the list."""

    name: str
    loads_model: bool
    """Whether it loads torch, and tokenizer and shapes of the model; none needs the weights."""
    function: Callable[[Inputs], None]


CHECKS = (
    Check("trackers are installed", False, trackers),
    Check("the loss has a signal", False, terms),
    Check("the templates ask for what there is", False, templates),
    Check("the keys of the critic have an effect", False, critic_keys),
    Check("the columns are a preset or a map", False, columns),
    Check("the checkpoint rule has a choice", False, checkpoint_rule),
    Check("problems have what the condition shows", False, material),
    Check("the model is there", False, model_is_there),
    Check("the model is a whole one", False, whole_model),
    Check("rollout servers are named", False, rollout_servers),
    Check("the loss is the same on many ranks", False, ranks),
    Check("the objective bears old completions", False, old_completions),
    Check("groups can learn alone", False, groups_learn_alone),
    Check("the grader starts", False, grader),
    Check("the environment replies", False, environment),
    Check("the number format can be trained", True, number_format),
    Check("adapters have layers", True, adapter_targets),
    Check("completions can be drawn from the model", True, sampler),
    Check("the teacher has the solver's vocabulary", True, teacher),
    Check("the chat template takes further turns", True, turns),
    Check("questions fit the model's context", True, question_lengths),
    Check("contexts fit the self-teacher's prompt", True, room_for_context),
)


def _used(inputs: Inputs) -> dict[str, Sequence[Problem]]:
    """The problems that the run reads, of each set."""
    section, problems = inputs.config.training, inputs.problems
    train: Sequence[Problem] = problems["train"]
    if section.max_steps * section.problems_per_step < len(train):
        steps = range(section.max_steps)
        train = [p for step in steps for p in problems_of_step(train, step, section.problems_per_step, section.seed)]
    return {**problems, "train": train}


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them: "7 (a, b, c, d, e, ...)"."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
