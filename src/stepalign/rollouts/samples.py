"""From judged groups to what trains: one Context and one Sample per rollout. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from stepalign.config import ObjectiveSection
from stepalign.domains.domain import Truth
from stepalign.feedback import designs
from stepalign.models.prompts import PromptBuilder
from stepalign.objectives.policy_gradient import group_advantages
from stepalign.records import Context, Critique, Problem, Rollout, Sample
from stepalign.rollouts.credit import HYBRIDS, Facts, LossWeights, first_wrong_token, unlikely
from stepalign.rollouts.early import JudgedGroup
from stepalign.rollouts.metrics import has_two_rewards
from stepalign.rollouts.review import shown_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Prepared:
    """The Contexts and Samples of a step, in the order of its rollouts, and what was counted on the way."""

    contexts: list[Context] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    masked: Counter[str] = field(default_factory=Counter)
    """Rollouts without a context, by reason."""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMaker:
    """Makes the Samples of one condition."""

    tokenizer: PreTrainedTokenizerBase
    prompts: PromptBuilder
    condition: designs.Condition
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    """How rewards are scaled, and how verdict and self-teacher work together."""
    skip_zero_std_groups: bool = False
    """Whether groups without two different rewards train not at all."""
    truth: Truth | None = None

    def make(self, groups: Sequence[JudgedGroup], step: int) -> Prepared:
        """Contexts and Samples of groups of equal size; of a design for turns one of each per turn of the solver."""
        rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
        advantages_PG = group_advantages(torch.tensor(rewards), scale=self.objective.scale_rewards).tolist()
        critiques = [critique for group in groups for critique in group.critiques if critique is not None]
        usable = [critique for critique in critiques if critique.status == "ok" and critique.policy != "mask"]
        problems = [group.problem for group in groups]
        found = Prepared()
        counts = Counter(context_dropped_tokens=0, contexts_cut=0, unlocated_errors=0, skipped_groups=0)
        for group, rewards_G, advantages_G in zip(groups, rewards, advantages_PG, strict=True):
            skipped = self.skip_zero_std_groups and not has_two_rewards(rewards_G)
            counts["skipped_groups"] += skipped
            shown_group = designs.make_group(
                [rollout.attempt for rollout in group.rollouts],
                {critique.rollout_id: critique for critique in group.critiques if critique is not None},
                usable=usable,
                other_problems=problems,
            )
            contexts = shown_contexts(self.condition.design, shown_group)
            found.contexts += contexts
            solved = any(one.verdict == "correct" for one in group.rollouts)
            members = zip(group.rollouts, group.critiques, advantages_G, strict=True)
            of_rollout = {rollout.rollout_id: (rollout, critique, a) for rollout, critique, a in members}
            for context in contexts:
                rollout, critique, advantage = of_rollout[context.rollout_id]
                weights = self._weights(rollout, critique, context, step, counts, solved)
                if skipped:
                    weights = LossWeights(first_token=len(rollout.completion.ids))
                teacher_ids = contrast_ids = None
                if self.condition.bare and (weights.distillation_weight or weights.magnitude_mixing):
                    teacher_ids = group.prompt_ids
                elif context.text is not None and (weights.distillation_weight or weights.magnitude_mixing):
                    teacher_ids = self._teacher_ids(group.problem, context.text, context.introduction, counts)
                    contrast_ids = self._contrast_ids(group, context)
                elif context.masked:
                    found.masked[context.masked] += 1
                sample = self._sample(rollout, group.prompt_ids, teacher_ids, advantage, weights)
                if contrast_ids is not None:
                    sample = replace(sample, contrast_prompt_ids=contrast_ids)
                found.samples.append(sample if context.turn is None else _of_turn(sample, rollout, context.turn))
        if not HYBRIDS[self.objective.hybrid].needs_error:
            del counts["unlocated_errors"]
        found.numbers = {name: float(count) for name, count in counts.items()}
        return found

    def _weights(
        self,
        rollout: Rollout,
        critique: Critique | None,
        context: Context,
        step: int,
        counts: Counter[str],
        solved: bool,
    ) -> LossWeights:
        credit = HYBRIDS[self.objective.hybrid]
        first_error = first_wrong_token(rollout, critique, self.tokenizer) if credit.needs_error else None
        counts["unlocated_errors"] += rollout.verdict == "incorrect" and first_error is None
        has_context = context.text is not None or self.condition.bare
        known = {"verdict": rollout.verdict, "first_error": first_error, "step": step}
        facts = Facts(**known, has_context=has_context, group_solved=solved)
        return credit.weigh(self.condition, facts, self.objective)

    def _teacher_ids(self, problem: Problem, text: str, introduction: str, counts: Counter[str]) -> tuple[int, ...]:
        prompt = self.prompts.self_teacher(problem, text, introduction=introduction)
        counts["context_dropped_tokens"] += prompt.dropped_tokens
        counts["contexts_cut"] += prompt.dropped_tokens > 0
        return prompt.ids

    def _contrast_ids(self, group: JudgedGroup, context: Context) -> tuple[int, ...] | None:
        contrast = HYBRIDS[self.objective.hybrid].contrast
        text = contrast([one.attempt for one in group.rollouts], context) if contrast else None
        if text is None:
            return None
        return self.prompts.self_teacher(group.problem, text, introduction=context.introduction).ids

    def _sample(
        self,
        rollout: Rollout,
        student_ids: tuple[int, ...],
        teacher_ids: tuple[int, ...] | None,
        advantage: float,
        weights: LossWeights,
    ) -> Sample:
        completion = rollout.completion
        mask = [by_solver and place >= weights.first_token for place, by_solver in enumerate(completion.sampled_mask)]
        if penalty := designs.find_design(self.condition.design).penalty:
            chosen = unlikely(rollout)
            mask, advantage = [a and b for a, b in zip(mask, chosen, strict=True)], penalty if any(chosen) else 0.0
        return Sample(
            rollout_id=rollout.rollout_id,
            student_prompt_ids=student_ids,
            teacher_prompt_ids=teacher_ids,
            completion_ids=completion.ids,
            sampler_log_probs=completion.log_probs,
            loss_mask=tuple(mask),
            advantage=advantage,
            distillation_weight=weights.distillation_weight,
            policy_weight=weights.policy_weight,
            magnitude_mixing=weights.magnitude_mixing,
            entropy_damping=weights.entropy_damping,
            probe=self.truth.wrong_result(rollout.attempt, completion.ids) if self.truth else None,
        )


def _of_turn(sample: Sample, rollout: Rollout, place: int) -> Sample:
    """The part of a sample that is one turn: the very ids before it go behind both prompts."""
    if not rollout.attempt.turns:
        return sample
    turn = rollout.attempt.turns[place]
    contrast = sample.contrast_prompt_ids
    before, inside = sample.completion_ids[: turn.start], slice(turn.start, turn.end)
    return replace(
        sample,
        student_prompt_ids=(*sample.student_prompt_ids, *before),
        teacher_prompt_ids=None if sample.teacher_prompt_ids is None else (*sample.teacher_prompt_ids, *before),
        contrast_prompt_ids=None if contrast is None else (*contrast, *before),
        completion_ids=sample.completion_ids[inside],
        sampler_log_probs=sample.sampler_log_probs[inside],
        loss_mask=sample.loss_mask[inside],
        probe=None,
    )


def joined(parts: Iterable[Prepared]) -> Prepared:
    """What was made of groups one by one, as one step."""
    whole, numbers = Prepared(), Counter[str]()
    for part in parts:
        whole.contexts += part.contexts
        whole.samples += part.samples
        whole.masked += part.masked
        numbers.update(part.numbers)
    whole.numbers = dict(numbers)
    return whole
