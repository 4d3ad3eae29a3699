"""How long a run takes: from published speeds of a device, or from twenty seconds of its own work on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepalign.config import Config
from stepalign.feedback.designs import find_condition, find_design

if TYPE_CHECKING:
    from stepalign.models.load import Solver

MEASURED_SECONDS = 20.0
"""Half of them sample, half of them learn; loading the model comes before."""
SCORING_FLOPS = {"cpu": 8e10, "cuda": 2.0e14}
"""Floating-point operations a second of the learner: one thread of a CPU (docs/results/speed.md), one H100
(docs/results/gpu_step.md)."""
CPU_SAMPLING_FLOPS = 4e10
"""The same of the local sampler, one thread, 135 million parameters."""
LAYER_SECONDS = {True: 0.106 / 28, False: 0.0335 / 28}
"""On one H100 the local sampler waits for kernels: seconds for a layer and a token of all rows, with adapters or
not."""
SMALL = 5_000_000
"""Parameters below which a model has no published speed: what it takes is not arithmetic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Tokens a second; NaN where nothing is known."""

    sampled: float
    """Completion tokens."""
    learnt: float
    """Of student prompts and completions, forward and backward, with the self-teacher's passes where there are some."""
    length: float = math.nan
    """Mean tokens of a completion, where most of them have ended by themselves."""
    source: str = ""


def published(config: Config, solver: Solver, *, student_tokens: int, teacher_tokens: int, device: str) -> Rates:
    """Rates from the published speeds of a device."""
    kind, model = "cuda" if device.startswith("cuda") else "cpu", config.model
    size = sum(parameter.numel() for parameter in solver.model.parameters())
    completion = config.sampling.max_completion_length
    passes = 2 + (2 if model.lora else 4) + (2 if model.gradient_checkpointing else 0)
    student, taught = student_tokens + completion, teacher_tokens and teacher_tokens + completion
    learnt = SCORING_FLOPS[kind] / size / (passes + 2 * taught / student)
    if size < SMALL:
        return Rates(sampled=math.nan, learnt=math.nan, source="no published speed of a model this small")
    if config.sampling.engine == "vllm":
        sampled = math.nan
    elif kind == "cpu":
        sampled = CPU_SAMPLING_FLOPS / (2 * size)
    else:
        rows = config.sampling.num_generations * config.training.problems_per_step
        rows = min(rows, max(1, config.sampling.max_batch_tokens // student))
        layers = solver.model.config.get_text_config().num_hidden_layers
        sampled = rows / (layers * LAYER_SECONDS[model.lora is not None])
    source = "published speed of one H100" if kind == "cuda" else "published speed of one CPU thread"
    return Rates(sampled=sampled, learnt=learnt, source=source)


def measured(config: Config, problems: Any, context: Callable[[Any], str], seconds: float = MEASURED_SECONDS) -> Rates:
    """Rates of this machine: load the model, sample for half of the time, learn for the other half, write nothing.

    Args:
        problems: of a step.
        context: an example of what the self-teacher is shown of a problem.

    Raises:
        ConfigError, EndpointError: as training does.
    """
    from stepalign.build import make_learner, open_session
    from stepalign.records import Sample
    from stepalign.training.ranks import ONE_PROCESS
    from stepalign.waiting import wait_for

    session = open_session(config)
    try:
        named = session.solver.model.named_parameters()
        wait_for(session.sampler.publish({name: p for name, p in named if p.requires_grad}, 0))
        prompts = [tuple(session.prompts.student(problem)) for problem in problems]
        options = {"num_samples": config.sampling.num_generations, "temperature": config.sampling.temperature}

        def draw(length: int) -> Any:
            return wait_for(session.sampler.sample(prompts, max_tokens=length, seed=0, **options))

        (length, spent), drawn = _longest(draw, config.sampling.max_completion_length, seconds / 2)
        flat = [(row, one) for row, found in enumerate(drawn) for one in found]
        tokens = [len(one.ids) for _, one in flat]
        ended = [len(one.ids) for _, one in flat if one.finish_reason == "stop"]
        distils = bool(find_condition(config.condition).distillation_weight)
        introduction = find_design(find_condition(config.condition).design).introduction
        samples = []
        for place, (row, one) in enumerate(flat):
            shown = session.prompts.self_teacher(problems[row], context(problems[row]), introduction=introduction)
            samples.append(
                Sample(
                    rollout_id=str(place),
                    student_prompt_ids=prompts[row],
                    completion_ids=one.ids,
                    teacher_prompt_ids=shown.ids if distils else None,
                    sampler_log_probs=one.log_probs,
                    loss_mask=(True,) * len(one.ids),
                    advantage=1.0,
                    distillation_weight=float(distils),
                    policy_weight=float(not distils),
                )
            )
        learner, teacher = make_learner(config, session.solver, ONE_PROCESS)
        (count, busy), _ = _longest(lambda n: learner.update(samples[:n], teacher, 0), len(samples), seconds / 2)
        learnt = sum(len(s.student_prompt_ids) + len(s.completion_ids) for s in samples[:count])
    finally:
        session.close()
    mean = sum(ended) / len(ended) if 2 * len(ended) > len(flat) else math.nan
    source = f"measured here on {len(flat)} completions of at most {length} tokens, {count} of them learnt"
    return Rates(sampled=sum(tokens) / spent, learnt=learnt / busy, length=mean, source=source)


def _longest(work: Callable[[int], Any], most: int, seconds: float) -> tuple[tuple[int, float], Any]:
    """((size, seconds), result) of the largest piece of work, doubled from 1 on, that leaves no time for another."""
    size, left = 1, seconds
    while True:
        start = time.perf_counter()
        result = work(size)
        spent = time.perf_counter() - start
        left -= spent
        if size == most or 2 * spent > left:
            return (size, spent), result
        size = min(most, 2 * size)


def describe_hours(config: Config, rates: Rates, *, student_tokens: int, held_out: dict[str, int]) -> str:
    """One line that begins with "hours".

    Args:
        held_out: problems of the sets that are measured.
    """
    sampling, training, evaluation = config.sampling, config.training, config.evaluation
    completions = sampling.num_generations * training.problems_per_step * training.max_steps
    every = evaluation.eval_steps or training.max_steps + 1
    between = max(0, training.max_steps - 1) // every
    times = {"validation": between + 1 + evaluation.at_start, "test": 1}
    if evaluation.checkpoint_rule != "last":
        times["test"] = times["validation"]
    answers = sum(times[name] * held_out.get(name, 0) for name in times) * evaluation.num_samples

    def hours(length: float, evaluated: float) -> dict[str, float]:
        parts = {
            "sampling": completions * length / rates.sampled / 3600,
            "learning": completions * (student_tokens + length) / rates.learnt / 3600,
        }
        return parts | ({"evaluation": answers * evaluated / rates.sampled / 3600} if held_out else {})

    most = hours(sampling.max_completion_length, config.evaluation_length)
    known = [seconds for seconds in most.values() if seconds == seconds]
    parts = ", ".join(f"{name} {hours_text(value)}" for name, value in most.items())
    text = (
        f"hours at most: {hours_text(sum(known) if len(known) == len(most) else math.nan)} = {parts} ({rates.source})"
    )
    if rates.length == rates.length:
        shorter = sum(hours(rates.length, rates.length).values())
        text += f"; {hours_text(shorter)} with completions of {rates.length:,.0f} tokens, the mean of those drawn"
    if most["sampling"] != most["sampling"]:
        text += "; --measure finds out"
    if config.critic.kind == "endpoint" and find_design(find_condition(config.condition).design).needs_critic:
        waits = completions / config.critic.concurrency / 3600
        text += f"; the critic {hours_text(waits)} more for each second that a critique takes"
    return text


def hours_text(value: float) -> str:
    return (
        "unknown" if value != value else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}" if value >= 0.01 else "0"
    )
