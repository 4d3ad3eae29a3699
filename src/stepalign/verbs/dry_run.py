"""The lines of ``--dry-run``: the resolved configuration, the prompts of one problem, the token budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from stepalign.config import Config, SelectionSection, changed, difference, to_toml
from stepalign.critics import critic_prompt
from stepalign.domains.math.grade import Grade
from stepalign.domains.table import load_set
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.feedback.designs import find_condition, find_design
from stepalign.feedback.prompts import load_template
from stepalign.records import Attempt, Critique, CritiqueForm, Problem
from stepalign.report.text import visible
from stepalign.rollouts.order import problems_of_step
from stepalign.training.ranks import num_ranks
from stepalign.verbs.checks import CHECKS, checkpoint_rule, material
from stepalign.verbs.duration import Rates, describe_hours, hours_text, measured, published
from stepalign.verbs.footprint import SHAPES, describe_memory, describe_tokens, known_shape, memory_parts
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.select import CHUNK

if TYPE_CHECKING:
    from stepalign.models.load import Solver


QUESTION_TOKENS = 256
"""Of a prompt, where model or problems are not here yet."""
LOOKED_AT = 256
"""Problems of each set whose prompts are measured."""
NEED_PROBLEMS = (checkpoint_rule, material)


def describe(
    config: Config,
    *,
    measures: bool = False,
    ranks: int | None = None,
    arms: Mapping[str, Config] = MappingProxyType({}),
) -> str:
    """Everything that a run would do first, without doing it. Loads the tokenizer; of the model its shapes only.

    A model of ``footprint.SHAPES``, and problems that are yet to be selected, may be missing: sizes are known without.

    Args:
        measures: load the model and work for twenty seconds, for an estimate of hours.
        ranks: of the learner; None takes those of torchrun.
        arms: of a comparison, whose cost is wanted by arm.

    Raises:
        ConfigError: anything the recipe got wrong.
    """
    inputs = Inputs(config)
    missing = _not_here(inputs)
    for check in CHECKS:
        if missing and (check.loads_model or check.function in NEED_PROBLEMS):
            continue
        try:
            check.function(inputs)
        except ConfigError as error:
            if error.where not in missing:
                raise
    parts = [("changed keys", _changes(config))]
    if missing:
        parts.append(("not here yet", "\n".join(f"{key}: {reason}" for key, reason in missing.items())))
        solver = known_shape(config.model.path) if config.model.path in SHAPES else inputs.solver
        context = min(config.sampling.max_completion_length, config.prompts.max_teacher_prompt_length - QUESTION_TOKENS)
        sizes = _Sizes(solver, QUESTION_TOKENS, QUESTION_TOKENS + max(0, context), QUESTION_TOKENS, {})
    else:
        shown, sizes = _prompts(config, inputs)
        parts += shown
    parts.append(("token budgets", _budgets(config, sizes.student_tokens)))
    rates = None
    if measures:
        if missing:
            raise ConfigError("a measurement needs model and problems", where="--measure", hint="leave it out")
        first = problems_of_step(inputs.problems["train"], 0, config.training.problems_per_step, config.training.seed)
        design = find_condition(config.condition).design
        rates = measured(config, first, lambda problem: _example_context(design, problem))
    parts.append(("cost", "\n".join(_cost(config, sizes, rates, num_ranks() if ranks is None else ranks))))
    if arms:
        lines = [f"{name}: {'; '.join(_cost(arm, sizes, rates, ranks or num_ranks()))}" for name, arm in arms.items()]
        parts.append((f"cost of each arm, times {len(config.compare.seeds)} seeds", "\n".join(lines)))
    parts.append(("configuration", to_toml(config)))
    # Problems and templates are foreign text: what a terminal would obey is made visible.
    return "\n\n".join(f"== {title} ==\n{visible(text.rstrip())}" for title, text in parts)


def describe_selection(config: Config) -> str:
    """The lines that begin with "memory", "tokens" and "hours", of ``stepalign select``: it draws, and learns nothing.

    Raises:
        ConfigError: no such problems, or no such model.
    """
    from stepalign.build import model_choice

    path, section, data = config.model.path, config.selection, config.data
    solver = known_shape(path) if path in SHAPES and not Path(path).exists() else Inputs(config).solver
    problems = data.max_train  # of the Hub: as many as it may give
    if not data.train.startswith("hub:"):
        problems = len(load_set(data.model_copy(update={"validation_share": 0.0}), "train").problems)
    group = {"training.problems_per_step": CHUNK, "sampling.num_generations": section.num_samples, "model.lora": None}
    drawn, asks = changed(config, group), QUESTION_TOKENS
    device, dtype = model_choice(config.model)
    parts = memory_parts(drawn, solver, student_tokens=asks, teacher_tokens=0, device=device, dtype=dtype)
    held = ("base", "weights", "sampler cache", "sampler")
    sampled = section.num_samples * config.sampling.max_completion_length
    asked = asks + config.critic.max_tokens if section.critic_solves else 0
    hours = sampled / published(drawn, solver, student_tokens=asks, teacher_tokens=0, device=device).sampled / 3600
    count, each = (1, "for each problem") if problems is None else (problems, f"for {problems:,} problems")
    text = f"tokens at most: {count * sampled:,} sampled {each}"
    return "\n".join([
        describe_memory({name: size if name in held else 0.0 for name, size in parts.items()}),
        text + (f"; {count * asked:,} by the critic, of problems that pass the gates before it" if asked else ""),
        f"hours at most: {hours_text(count * hours)} {each}, critic aside",
    ])  # fmt: skip


class _Sizes(NamedTuple):
    solver: Solver
    student_tokens: int
    teacher_tokens: int
    """Of a prompt; an attempt stands for the context where the recipe itself shows none."""
    longest: int
    """Of the prompts, as far as they were looked at."""
    held_out: dict[str, int]
    """Problems of each set that is measured."""


def _not_here(inputs: Inputs) -> dict[str, str]:
    """What a run needs and this machine has not got yet, where sizes are known without it: by key, with the reason."""
    config, found = inputs.config, {}
    problems = config.data.train
    if config.selection != SelectionSection() and ":" not in problems and not Path(problems).exists():
        found["data.train"] = (
            f"{problems} is yet to be written by stepalign select; questions count as {QUESTION_TOKENS} tokens"
        )
    if config.model.path in SHAPES and not Path(config.model.path).exists():
        try:
            _ = inputs.solver
        except ConfigError as error:
            found["model.path"] = f"{error.what}; its shapes are known"
    return found


def _changes(config: Config) -> str:
    """The keys that recipe and command set, without the arms of a comparison."""
    changes = difference(Config(), config).items()
    keys = {key: new for key, (old, new) in changes if key not in ("compare.arms", "model.lora") or old}
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()) or "none"


def _cost(config: Config, sizes: _Sizes, rates: Rates | None, ranks: int) -> list[str]:
    """The lines that begin with "memory", "tokens" and "hours"."""
    from stepalign.build import model_choice

    distils = find_condition(config.condition).distillation_weight
    student, teacher = sizes.student_tokens, sizes.teacher_tokens if distils else 0
    tokens = {"student_tokens": student, "teacher_tokens": teacher}
    device, dtype = model_choice(config.model)
    drawn = {"longest": sizes.longest, "held_out": sizes.held_out}
    memory = memory_parts(config, sizes.solver, **tokens, **drawn, device=device, dtype=dtype, ranks=ranks)
    rates = rates or published(config, sizes.solver, **tokens, device=device)
    hours = describe_hours(config, rates, student_tokens=student, held_out=sizes.held_out)
    return [describe_memory(memory), describe_tokens(config, **tokens), hours]


def _prompts(config: Config, inputs: Inputs) -> tuple[list[tuple[str, str]], _Sizes]:
    """The prompts of one problem as sections, and their sizes."""
    sets, solver, prompts = inputs.sets, inputs.solver, inputs.prompts
    design_name = find_condition(config.condition).design
    design, problem = find_design(design_name), sets["train"].problems[0]
    student_ids = prompts.student(problem)
    parts = [
        ("problems", "\n".join(f"{name}: {_count(found.problems, found.skipped)}" for name, found in sets.items())),
        (f"student prompt ({len(student_ids)} tokens)", solver.tokenizer.decode(list(student_ids))),
    ]
    teacher_tokens = len(student_ids) + config.sampling.max_completion_length
    if find_condition(config.condition).distillation_weight:
        context = _example_context(design_name, problem)
        teacher = prompts.self_teacher(problem, context, introduction=design.introduction)
        teacher_tokens = len(teacher.ids)
        note = "" if not design.needs_critic else "; the reference replaces the critique that a run would ask for"
        parts.append(
            (f"self-teacher prompt ({len(teacher.ids)} tokens{note})", solver.tokenizer.decode(list(teacher.ids)))
        )
    if design.needs_critic:
        parts.append(("critic prompt", _critic_prompt(config, problem, design.form)))
    held_out = {name: len(found.problems) for name, found in sets.items() if name != "train"}
    longest = max(len(prompts.student(one)) for found in sets.values() for one in found.problems[:LOOKED_AT])
    return parts, _Sizes(solver, len(student_ids), teacher_tokens, longest, held_out)


def _count(problems: tuple[Problem, ...], skipped: object) -> str:
    return f"{len(problems)} problems" + (f", skipped {dict(skipped)}" if skipped else "")  # type: ignore[call-overload]


def _example_context(design: str, problem: Problem) -> str:
    """A context of the design for an invented attempt."""
    text = problem.reference or f"<answer> {problem.answer}"
    right = Attempt(rollout_id="example", problem=problem, text=text, grade=Grade(score=1.0, answer=problem.answer))
    wrong = replace(right, rollout_id="wrong", grade=Grade(score=0.0, answer=None))
    critiques = [
        Critique(rollout_id=name, critic="", status="ok", text=text)
        for name in ("example", "right", "wrong", "elsewhere")
    ]
    group = designs.make_group(
        [right, replace(right, rollout_id="right"), wrong],
        {critique.rollout_id: critique for critique in critiques},
        usable=critiques,
        other_problems=[replace(problem, problem_id="another")],
    )
    return designs.make_contexts(design, group)[0].text or text


def _critic_prompt(config: Config, problem: Problem, form: CritiqueForm) -> str:
    if config.critic.kind != "endpoint":
        return "(none: the program reads the attempt itself)"
    sees = config.critic.sees
    seen = {"answer": problem.answer} if sees != "nothing" else {}
    if sees == "solution" and problem.reference:
        seen["solution"] = problem.reference
    messages = load_template(critic_prompt(config.prompts.critic, form)).messages(
        question=problem.question,
        attempt="(the solver's attempt)",
        sees=sees,
        structured=config.critic.structured,
        truncated=False,
        **seen,
    )
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def _budgets(config: Config, student_tokens: int) -> str:
    sampling, training = config.sampling, config.training
    completions = sampling.num_generations * training.problems_per_step
    return "\n".join(
        [
            f"completion: at most {sampling.max_completion_length} tokens",
            f"self-teacher prompt: at most {config.prompts.max_teacher_prompt_length} tokens, context cut first",
            f"completions: {completions} a step, {completions * training.max_steps} in all",
            f"sampled tokens: at most {completions * sampling.max_completion_length} a step",
            f"student sequence of this problem: at most {student_tokens + sampling.max_completion_length} tokens",
        ]
    )
