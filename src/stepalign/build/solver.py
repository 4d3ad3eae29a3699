"""A recipe's solver, and its prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepalign.config import Config, ModelSection
from stepalign.domains.domain import Truth
from stepalign.domains.table import find_domain
from stepalign.feedback.designs import find_condition
from stepalign.feedback.prompts import Template, load_template

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.models.prompts import PromptBuilder
    from stepalign.models.served_teacher import ServedTeacher


def model_choice(section: ModelSection) -> tuple[str, str]:
    """(device, dtype) of a recipe on this machine, "auto" resolved."""
    from stepalign.models.load import choose

    return choose(section.device, section.dtype)


def recipe_solver(config: Config, *, weights: bool = True) -> Solver:
    """The solver that a recipe names; without weights its device does not matter."""
    from stepalign.models.load import load_solver

    model = config.model
    return load_solver(
        model.path,
        dtype=model.dtype,
        device=model.device if weights else "cpu",
        trust_remote_code=model.trust_remote_code,
        plain_prompts=model.plain_prompts,
        weights=weights,
    )


def has_teacher(config: Config) -> bool:
    """Whether a run of this recipe is scored by a teacher: a policy gradient alone has none."""
    from stepalign.rollouts.credit import uses_teacher

    return uses_teacher(find_condition(config.condition), config.objective)


def other_teacher(config: Config, solver: Solver, *, weights: bool = True) -> Solver | None:
    """The model of ``objective.teacher.model``, beside the solver and in its number format; None where none teaches.

    Raises:
        ConfigError: it is not there, or has another vocabulary than the solver.
    """
    from stepalign.models.load import check_same_vocabulary, dtype_of, load_solver

    path, trust = config.objective.teacher.model, config.model.trust_remote_code
    if not path or not has_teacher(config):
        return None
    device, dtype = (str(solver.device), dtype_of(solver)) if weights else ("cpu", "auto")
    other = load_solver(path, dtype=dtype, device=device, trust_remote_code=trust, plain_prompts=True, weights=weights)
    check_same_vocabulary(solver, other, path)
    return other


def served_teacher(config: Config) -> ServedTeacher | None:
    """The servers of ``objective.teacher.base_urls``, or None. Raises ConfigError for what is no address."""
    section = config.objective
    if not section.teacher.base_urls or not has_teacher(config):
        return None
    from stepalign.models.served_teacher import ServedTeacher

    return ServedTeacher(section.teacher.base_urls, section.top_k or 1, timeout=config.sampling.timeout)


def trained_solver(config: Config) -> Solver:
    """The recipe's solver as it trains: with adapters, with gradient checkpointing."""
    from stepalign.models.load import limit_threads, with_lora

    solver = recipe_solver(config)
    limit_threads(solver)
    if config.model.lora is not None:
        solver = with_lora(solver, config.model.lora, seed=config.training.seed, path=config.model.path)
    if config.model.gradient_checkpointing:
        solver.model.activation_checkpointing_enable()
    return solver


def find_truth(config: Config, solver: Solver) -> Truth | None:
    """Where attempts first go wrong, as far as the recipe's domain knows."""
    truth = find_domain(config.data).truth
    return truth(solver.tokenizer) if truth is not None else None


def prompt_templates(config: Config) -> tuple[Template, Template]:
    """The templates of student and self-teacher. Raises ConfigError for one that is missing or asks for too much."""
    section, own = config.prompts, find_domain(config.data).prompts
    student, self_teacher = (load_template(own.get(name, name)) for name in (section.student, section.self_teacher))
    student.refuse_others_than(("question",), "a student's prompt")
    self_teacher.refuse_others_than(("question", "introduction", "feedback"), "a self-teacher's prompt")
    return student, self_teacher


def make_prompts(config: Config, solver: Solver) -> PromptBuilder:
    """The prompts of student and self-teacher; the latter leaves room for a completion in the model's context."""
    from stepalign.models.prompts import PromptBuilder

    section = config.prompts
    student, self_teacher = prompt_templates(config)
    return PromptBuilder(
        solver.tokenizer,
        student=student,
        self_teacher=self_teacher,
        system=section.system,
        student_chat_options=section.student_chat_options,
        teacher_chat_options=section.teacher_chat_options,
        max_teacher_prompt_length=section.max_teacher_prompt_length,
        context_length=solver.context_length,
        completion_length=config.sampling.max_completion_length,
        allow_different_suffix=section.allow_different_suffix,
    )
