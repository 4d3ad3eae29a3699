"""The lines of ``--dry-run``: the resolved configuration, the prompts of one problem, the token budgets."""

from __future__ import annotations

from dataclasses import replace

from stepalign.config import Config, to_toml
from stepalign.critics import critic_prompt
from stepalign.domains.math.grade import Grade
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.records import Attempt, Critique, CritiqueForm, Problem
from stepalign.report.text import visible


def describe(config: Config) -> str:
    """Everything that a run would do first, without doing it. Loads the tokenizer; of the model its shapes only.

    Raises:
        ConfigError: anything the recipe got wrong.
    """
    from stepalign.build import model_choice
    from stepalign.training.distributed import num_ranks
    from stepalign.verbs.checks import Inputs, run_checks
    from stepalign.verbs.footprint import describe_memory, describe_tokens, memory_parts

    inputs = Inputs(config)
    run_checks(inputs)
    sets, solver, prompts = inputs.sets, inputs.solver, inputs.prompts
    condition = designs.find_condition(config.condition)
    problem = sets["train"].problems[0]
    student_ids = prompts.student(problem)
    parts = [
        ("configuration", to_toml(config)),
        ("problems", "\n".join(f"{name}: {_count(found.problems, found.skipped)}" for name, found in sets.items())),
        (f"student prompt ({len(student_ids)} tokens)", solver.tokenizer.decode(list(student_ids))),
    ]
    design = designs.find_design(condition.design)
    teacher_tokens = 0
    if condition.distillation_weight:
        context = _example_context(condition.design, problem)
        teacher = prompts.self_teacher(problem, context, introduction=design.introduction)
        teacher_tokens = len(teacher.ids)
        note = "" if not design.needs_critic else "; the reference replaces the critique that a run would ask for"
        parts.append(
            (f"self-teacher prompt ({len(teacher.ids)} tokens{note})", solver.tokenizer.decode(list(teacher.ids)))
        )
    if design.needs_critic:
        parts.append(("critic prompt", _critic_prompt(config, problem, design.form)))
    parts.append(("token budgets", _budgets(config, len(student_ids))))
    tokens = {"student_tokens": len(student_ids), "teacher_tokens": teacher_tokens}
    device, dtype = model_choice(config.model)
    sizes = memory_parts(config, solver, **tokens, device=device, dtype=dtype, ranks=num_ranks())
    parts.append(("cost", f"{describe_memory(sizes)}\n{describe_tokens(config, **tokens)}"))
    # Problems and templates are foreign text: what a terminal would obey is made visible.
    return "\n\n".join(f"== {title} ==\n{visible(text.rstrip())}" for title, text in parts)


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
