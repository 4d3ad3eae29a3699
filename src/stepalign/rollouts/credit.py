"""Credit assignment: on which terms of the loss a rollout trains, from its verdict, its context and its first error.

A method is a small function in a literal table. Its result becomes fields of the Sample, so the learner, which knows
terms and weights only, stays blind to it. Formulas, sources and departures: docs/objective.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepalign.config import Hybrid, ObjectiveSection, SamplingSection, TrainingSection
from stepalign.errors import ConfigError
from stepalign.feedback.designs import Condition, check_condition, find_design
from stepalign.feedback.designs.builtin import content_free
from stepalign.feedback.steps import split_steps
from stepalign.models.prompts import decode_with_spans, tokens_to_steps
from stepalign.objectives.divergences import find_divergence
from stepalign.records import Attempt, Context, Critique, Rollout, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The facts about a rollout when its weights are chosen."""

    verdict: Verdict
    has_context: bool
    """Whether the self-teacher has something to read that the student has not, or is another model."""
    first_error: int | None
    """Index of the first token of the first wrong step; None where there is none or it was not found."""
    step: int
    """Optimizer step, from 0."""
    group_solved: bool = False
    """Whether any rollout of the group is correct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """The fields of a Sample that decide what it trains on."""

    distillation_weight: float = 0.0
    policy_weight: float = 0.0
    magnitude_mixing: float = 0.0
    entropy_damping: float = 0.0
    first_token: int = 0
    """Completion tokens before this one do not train."""


@dataclass(frozen=True, slots=True)
class Credit:
    """A method."""

    weigh: Callable[[Condition, Facts, ObjectiveSection], LossWeights]
    needs_error: bool = False
    """Whether it wants to know where the first wrong step begins."""
    contrast: Callable[[Sequence[Attempt], Context], str | None] | None = None
    """(attempts of the group, context) -> the text in its place in a second prompt; None where there is none."""


def _as_the_condition_says(condition: Condition, facts: Facts, _: ObjectiveSection) -> LossWeights:
    return LossWeights(
        distillation_weight=condition.distillation_weight if facts.has_context else 0.0,
        policy_weight=condition.policy_weight,
    )


def _weighted_sum(_: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """Both terms on every rollout; without a context the policy term stays."""
    weight = section.distillation_weight
    return LossWeights(distillation_weight=weight if facts.has_context else 0.0, policy_weight=1.0 - weight)


def _rlsd(_: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """RLSD (arXiv 2604.03128): the verdict's advantage, sized token by token by the self-teacher, ever less so."""
    left = 1.0 - facts.step / section.rlsd_decay_steps if section.rlsd_decay_steps else 1.0
    return LossWeights(policy_weight=1.0, magnitude_mixing=section.rlsd_mixing * max(0.0, left) * facts.has_context)


def _srpo(_: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """SRPO (arXiv 2604.02288): wrong rollouts with a context go to the self-teacher, all others to the verdict."""
    if facts.has_context and facts.verdict == "incorrect":
        return LossWeights(distillation_weight=1.0, entropy_damping=section.srpo_entropy_damping)
    return LossWeights(policy_weight=1.0)


def _rosd(condition: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """ROSD (arXiv 2605.28014): only tokens from the first error on train; all of them where none was found."""
    return replace(_as_the_condition_says(condition, facts, section), first_token=facts.first_error or 0)


def _rebellious(_: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """RLRT (arXiv 2605.10781): the verdict, and on correct rollouts most where the self-teacher expected otherwise."""
    turned = -1.0 if facts.verdict == "correct" and facts.has_context else 0.0
    return LossWeights(policy_weight=1.0, magnitude_mixing=turned)


def _cliff(_: Condition, facts: Facts, section: ObjectiveSection) -> LossWeights:
    """HDPO (arXiv 2603.23871): the verdict, and the self-teacher only where no rollout of the group is correct."""
    if facts.has_context and not facts.group_solved:
        return LossWeights(distillation_weight=1.0)
    return LossWeights(policy_weight=1.0)


def _wrong_sibling(attempts: Sequence[Attempt], context: Context) -> str | None:
    """CEPO (arXiv 2605.19436): wrong evidence in the form of the right one, an answer or a whole attempt."""
    others = (one for one in attempts if one.verdict == "incorrect" and one.rollout_id != context.rollout_id)
    wrong = next((one for one in others if one.answer), None)
    if wrong is None:
        return None
    return f"<answer> {wrong.answer}" if context.design == "answer" else wrong.text


def _without_content(attempts: Sequence[Attempt], context: Context) -> str | None:
    """The form of the context alone: the change that its mere presence makes."""
    return content_free(context.text or "")


HYBRIDS: dict[Hybrid, Credit] = {
    "none": Credit(_as_the_condition_says),
    "weighted_sum": Credit(_weighted_sum),
    "rlsd": Credit(_rlsd),
    "srpo": Credit(_srpo),
    "rosd": Credit(_rosd, needs_error=True),
    "rebellious": Credit(_rebellious),
    "cliff": Credit(_cliff),
    "cepo": Credit(_rlsd, contrast=_wrong_sibling),
    "calibrated": Credit(_rlsd, contrast=_without_content),
}
"""The samples that a rollout trains on, by ``objective.hybrid``."""


def check_terms(
    name: str, sampling: SamplingSection, training: TrainingSection, objective: ObjectiveSection
) -> Condition:
    """A recipe's condition. Raises ConfigError where the loss would have no signal, whatever the rollouts are."""
    hybrid = objective.hybrid
    condition = check_condition(name, sampling.num_generations, training.problems_per_step)
    design = find_design(condition.design)
    if condition.bare and not objective.teacher.is_other:
        raise ConfigError(
            f"the condition {name} shows the question alone, and the self-teacher would be the student",
            where="objective.teacher.model",
            hint="--set objective.teacher.model=FOLDER, another model of the same vocabulary",
        )
    if objective.teacher.is_other and uses_teacher(condition, objective):
        _check_other_teacher(objective, sampling)
    if hybrid != "none" and not (design.has_context or condition.bare):
        raise ConfigError(
            f"the hybrid {hybrid} needs a self-teacher, and the condition {name} shows it nothing",
            where="objective.hybrid",
            hint="choose a condition with a context, such as stepalign or refsol",
        )
    if HYBRIDS[hybrid].contrast is not None and condition.bare:
        raise ConfigError(
            f"the hybrid {hybrid} compares two contexts, and the condition {name} shows none",
            where="objective.hybrid",
            hint="--set objective.hybrid=rlsd, or choose a condition with a context",
        )
    if sampling.skip_zero_std_groups and sampling.num_generations < 2:
        raise ConfigError(
            "a group of one has no two rewards, so that every group would be skipped",
            where="sampling.skip_zero_std_groups",
            hint="--set sampling.num_generations=8, or leave the key out",
        )
    example = Facts(verdict="correct", has_context=True, first_error=None, step=0, group_solved=True)
    uses_verdicts = HYBRIDS[hybrid].weigh(condition, example, objective).policy_weight
    is_compared = uses_verdicts and not design.penalty
    if is_compared and sampling.num_generations < 2 and training.max_steps:
        raise ConfigError(
            "an advantage compares the completions of a problem, and there is only one",
            where="sampling.num_generations = 1",
            hint="--set sampling.num_generations=8, or drop the policy term",
        )
    return condition


def uses_teacher(condition: Condition, objective: ObjectiveSection) -> bool:
    """Whether a teacher may score a rollout of this run, its own weights or another model's."""
    if not (condition.bare or find_design(condition.design).has_context):
        return False
    verdicts: tuple[Verdict, ...] = ("correct", "incorrect")
    cases = [
        Facts(verdict=verdict, has_context=True, first_error=None, step=0, group_solved=verdict == "correct")
        for verdict in verdicts
    ]
    weights = [HYBRIDS[objective.hybrid].weigh(condition, facts, objective) for facts in cases]
    return any(one.distillation_weight or one.magnitude_mixing for one in weights)


def _check_other_teacher(objective: ObjectiveSection, sampling: SamplingSection) -> None:
    """Raise ConfigError for what a teacher that is another model cannot do, and one behind servers even less."""
    teacher, served = objective.teacher, bool(objective.teacher.base_urls)
    takes_several = find_divergence(objective.divergence).formula is not None
    reasons: dict[str, tuple[bool, str, str]] = {
        "objective.teacher.weights": (teacher.weights != "initial", "it is frozen", "initial"),
        "objective.teacher.model": (served and bool(teacher.model), "servers are named as well", "''"),
        "objective.top_k": (
            served and objective.top_k is None and takes_several,
            "servers give its likeliest tokens only",
            "20",
        ),
        "objective.top_k_support": (
            served and takes_several and objective.top_k_support != "teacher",
            "those are its own",
            "teacher",
        ),
        "sampling.temperature": (served and sampling.temperature != 1, "servers score at temperature 1", "1.0"),
        "objective.hybrid": (
            served and (objective.hybrid == "srpo" or HYBRIDS[objective.hybrid].contrast is not None),
            f"{objective.hybrid} wants more than that",
            "none",
        ),
    }
    for key, (holds, reason, mends) in reasons.items():
        if holds:
            raise ConfigError(f"the teacher is another model: {reason}", where=key, hint=f"--set {key}={mends}")


UNLIKELY = math.log(0.5)
"""Log-probability below which a token is unlikely: something else was likelier."""


def unlikely(rollout: Rollout) -> list[bool]:
    """The tokens that the design ``fixed_negative`` punishes: those of a wrong rollout that were unlikely."""
    return [rollout.verdict == "incorrect" and p < UNLIKELY for p in rollout.completion.log_probs]


def first_wrong_token(rollout: Rollout, critique: Critique | None, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Where the rollout's first wrong step begins, by the critique's label of it; None where it is not known."""
    if critique is None or not critique.first_error:
        return None
    steps = split_steps(rollout.text)
    wrong = next((place for place, step in enumerate(steps) if step.label == critique.first_error), None)
    if wrong is None:
        return None
    try:
        text, spans = decode_with_spans(tokenizer, rollout.completion.ids)
    except ValueError:  # a tokenizer without spans
        return None
    owners = tokens_to_steps(text, spans, [step.start for step in steps])
    return next((i for i, (start, end) in enumerate(spans) if end > start and owners[i] == wrong), None)
