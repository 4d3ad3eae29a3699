"""From a configuration to live objects: everything that `train`, `evaluate` and `signal` share."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.config import Config, changed
from stepalign.critics import Critic
from stepalign.domains.domain import Truth
from stepalign.domains.math.grading import Grader
from stepalign.domains.table import find_domain, make_grader, make_programmatic_critic
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.models.load import Solver, load_solver
from stepalign.models.prompts import PromptBuilder
from stepalign.models.sampling import Sampler
from stepalign.models.sampling.local import LocalSampler
from stepalign.records import Attempt, Critique, Problem, Rollout
from stepalign.rollouts.collect import RolloutCollector, RolloutMaker
from stepalign.rollouts.environment import SingleTurn
from stepalign.rollouts.review import Rules, ask, make_rules
from stepalign.waiting import wait_for


@dataclass(slots=True)
class Session:
    """A solver with the means to sample from it and to judge what it writes."""

    config: Config
    solver: Solver
    sampler: Sampler
    prompts: PromptBuilder
    grader: Grader

    @property
    def maker(self) -> RolloutMaker:
        """Draws and grades rollouts, at any settings."""
        environment = (find_domain(self.config.data).environment or SingleTurn)(self.prompts)
        return RolloutMaker(
            tokenizer=self.solver.tokenizer, sampler=self.sampler, environment=environment, grader=self.grader
        )

    def attempt(self, problems: Sequence[Problem], num_samples: int, seed: int) -> list[list[Rollout]]:
        """Graded rollouts as the evaluation draws them."""
        return wait_for(
            self.maker.attempt(
                problems,
                num_samples=num_samples,
                temperature=self.config.evaluation.temperature,
                max_tokens=self.config.evaluation_length,
                seed=seed,
            )
        )

    def close(self) -> None:
        self.grader.close()


def open_session(config: Config) -> Session:
    """Load the solver and what goes with it. Raises ConfigError for anything the recipe got wrong."""
    model, solver = config.model, recipe_solver(config)
    if model.lora is not None:
        solver = with_lora(solver, config)
    if model.gradient_checkpointing:
        solver.model.activation_checkpointing_enable()
    sampler = LocalSampler(solver, max_batch_tokens=config.sampling.max_batch_tokens)
    return Session(config, solver, sampler, make_prompts(config, solver), make_grader(config.data))


def find_truth(config: Config, solver: Solver) -> Truth | None:
    """Where attempts first go wrong, as far as the recipe's domain knows."""
    truth = find_domain(config.data).truth
    return truth(solver.tokenizer) if truth is not None else None


def recipe_solver(config: Config, *, weights: bool = True) -> Solver:
    """The solver that a recipe names; without weights its device does not matter."""
    model = config.model
    return load_solver(
        model.path,
        dtype=model.dtype,
        device=model.device if weights else "cpu",
        trust_remote_code=model.trust_remote_code,
        plain_prompts=model.plain_prompts,
        weights=weights,
    )


def with_lora(solver: Solver, config: Config) -> Solver:
    """The solver with trainable adapters. Raises ConfigError when peft is not installed."""
    section = config.model.lora
    assert section is not None
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("model.lora needs peft", hint='pip install "stepalign[lora]"') from error
    import torch

    torch.manual_seed(config.training.seed)  # the adapter's first values are part of the run's seed
    adapters = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        target_modules=list(section.targets),
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = get_peft_model(solver.model, adapters)  # type: ignore[arg-type]
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "cast_input_dtype_enabled")]
    for layer in layers:
        layer.cast_input_dtype_enabled = False  # ``Solver.computing`` brings adapters and inputs to the model's dtype
    return Solver(model, solver.tokenizer)  # type: ignore[arg-type]


def make_prompts(config: Config, solver: Solver) -> PromptBuilder:
    """The prompts of student and self-teacher; the latter leaves room for a completion in the model's context."""
    section, own = config.prompts, find_domain(config.data).prompts
    room = (solver.context_length or 10**9) - config.sampling.max_completion_length
    return PromptBuilder(
        solver.tokenizer,
        student=load_template(own.get(section.student, section.student)),
        self_teacher=load_template(own.get(section.self_teacher, section.self_teacher)),
        system=section.system,
        student_chat_options=section.student_chat_options,
        teacher_chat_options=section.teacher_chat_options,
        max_teacher_prompt_length=max(1, min(section.max_teacher_prompt_length, room)),
        allow_different_suffix=section.allow_different_suffix,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Critics


def make_critic(
    config: Config,
    folder: Path | None,
    design_names: Sequence[str],
    listener: Listener = silent,
    ledger_folder: Path | None = None,
) -> Critic | None:
    """The critic that the designs need, or None when none of them does.

    A critic writes one form of critique: that of the first design which needs one.

    Args:
        folder: where the cache of an endpoint's replies lies unless ``critic.cache`` names a file.
        listener: receives a warning when the endpoint pauses.
        ledger_folder: the run folder, where every attempt of the endpoint is written down.

    Raises:
        ConfigError: a programmatic critic for problems it does not know.
        EndpointError: the endpoint does not answer.
    """
    forms = designs.critique_forms(design_names)
    if not forms:
        return None
    form, section = forms[0], config.critic
    if section.kind == "programmatic":
        return make_programmatic_critic(config.data, section, form, config.training.seed)
    from stepalign.critics.endpoint import open_endpoint_critic

    files = {"cache_folder": folder, "ledger_folder": ledger_folder}
    return open_endpoint_critic(section, prompt=config.prompts.critic, form=form, **files, listener=listener)


def check_critic(config: Config, design_names: Sequence[str]) -> None:
    """Ask whether the critic that the designs need would work, and write nothing. Raises as ``make_critic`` does."""
    without_cache = changed(config, {"critic.cache": ""}, "critic check")
    critic = make_critic(without_cache, None, design_names)
    if critic is not None:
        critic.close()


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts for analysis


def collect_for_signal(
    session: Session, problems: Sequence[Problem], folder: Path, seed: int
) -> list[tuple[Rollout, Critique | None]]:
    """``signal.num_rollouts`` graded rollouts at the sampling temperature, with the critiques that the contexts need.

    One rollout per problem; groups of eight where a context shows siblings.
    """
    config = session.config
    contexts = config.signal.contexts
    with_siblings = any("siblings" in designs.find_design(name).needs for name in contexts)
    num_generations = max(8, config.sampling.num_generations) if with_siblings else 1
    forms = designs.critique_forms(contexts)
    critic = make_critic(config, folder, _of_form(contexts, forms[0])) if forms else None
    collector = RolloutCollector(
        maker=session.maker,
        sampling=config.sampling.model_copy(update={"num_generations": num_generations}),
        critic=critic,
        rules=make_rules(config.critic, config.data, session.grader) if config.critic.judged else None,
    )
    chosen = problems[: -(-config.signal.num_rollouts // num_generations)]
    try:
        groups, _ = wait_for(collector.collect(chosen, 0, seed))
    finally:
        if critic is not None:
            critic.close()
    return [pair for group in groups for pair in zip(group.rollouts, group.critiques, strict=True)]


def more_critiques(
    config: Config,
    folder: Path | None,
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    rules: Rules | None = None,
) -> list[Critique]:
    """Critiques in the forms that some context asks for and the rollouts do not come with."""
    there = {critique.form for _, critique in rollouts if critique is not None}
    found: list[Critique] = []
    for form in designs.critique_forms(contexts):
        critic = make_critic(config, folder, _of_form(contexts, form)) if form not in there else None
        if critic is None:
            continue
        try:
            found += wait_for(_critiques(critic, [rollout.attempt for rollout, _ in rollouts], rules))
        finally:
            critic.close()
    return found


async def _critiques(critic: Critic, attempts: Sequence[Attempt], rules: Rules | None) -> list[Critique]:
    return [found.critique for found in await asyncio.gather(*(ask(critic, attempt, rules) for attempt in attempts))]


def _of_form(contexts: Sequence[str], form: str) -> list[str]:
    return [
        name for name in contexts if designs.find_design(name).needs_critic and designs.find_design(name).form == form
    ]
