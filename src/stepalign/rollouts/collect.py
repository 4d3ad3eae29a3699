"""From problems to Samples: sample, grade, critique, design the context, pack. One call per optimizer step."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch

from stepalign.config import ObjectiveSection
from stepalign.critics import Critic, CritiqueRequest
from stepalign.domains.math.grading import Grader
from stepalign.errors import ConfigError
from stepalign.evaluation import canaries
from stepalign.events import Listener, progress, silent
from stepalign.feedback import designs
from stepalign.feedback.findings import FINDINGS
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder, decode
from stepalign.models.sampling import Sampler
from stepalign.objectives.policy_gradient import group_advantages
from stepalign.records import Attempt, Completion, Context, Critique, Problem, Rollout, Sample
from stepalign.rollouts.credit import HYBRIDS, Facts, Terms, first_wrong_token
from stepalign.rollouts.review import Rules, follow
from stepalign.storage.fingerprint import digest

Probe = Callable[[Attempt, Sequence[int]], tuple[int, int] | None]
"""Where the truth about steps is known: (attempt, completion ids) -> (position of the first
wrong token, id of the right one there)."""


def derive_seed(*parts: object) -> int:
    """A seed for one purpose, from the run's seed and anything that tells the purposes apart.

    Every random draw of a run starts from such a seed and none from what was drawn before, so a resumed run needs no
    generator state to continue with the same bits.
    """
    return int.from_bytes(digest(repr(parts))[:8]) >> 1


def problems_of_step(problems: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of one step: consecutive pieces of epoch after epoch, each shuffled by itself."""
    chosen = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, len(problems))
        chosen.append(problems[_epoch_order(len(problems), epoch, seed)[place]])
    return chosen


_orders: dict[tuple[int, int, int], list[int]] = {}


def _epoch_order(length: int, epoch: int, seed: int) -> list[int]:
    key = (length, epoch, seed)
    if key not in _orders:
        order = list(range(length))
        random.Random(derive_seed(seed, "problem order", epoch)).shuffle(order)
        _orders[key] = order
    return _orders[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one step trains on, and the records behind it."""

    rollouts: list[Rollout]
    critiques: list[Critique]
    contexts: list[Context]
    samples: list[Sample]
    numbers: dict[str, float]
    masked: Counter[str]
    """Rollouts without a context, by reason."""
    feedback_seconds: float
    """Spent waiting for critiques after the last completion."""


@dataclass(slots=True)
class Collector:
    """Everything a step needs before the optimizer."""

    solver: Solver
    sampler: Sampler
    prompts: PromptBuilder
    grader: Grader
    critic: Critic | None
    condition: designs.Condition
    num_generations: int
    temperature: float
    max_completion_length: int
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    """Says how rewards are scaled and how verdict and self-teacher work together."""
    rules: Rules | None = None
    """How critiques are judged; without rules they are taken as they come."""
    skip_zero_std_groups: bool = False
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if self.skip_zero_std_groups and self.num_generations < 2:
            raise ConfigError(
                "a group of one has no two rewards, so that every group would be skipped",
                where="sampling.skip_zero_std_groups",
                hint="--set sampling.num_generations=8, or leave the key out",
            )

    def collect(self, problems: Sequence[Problem], step: int, seed: int, listener: Listener = silent) -> Batch:
        """Roll out and prepare one step. Critiques are asked for as each completion finishes, not after the batch."""
        student_prompts = [self.prompts.student(problem) for problem in problems]
        total = len(problems) * self.num_generations
        rollouts: dict[tuple[int, int], Rollout] = {}
        pending: dict[Future[Critique], CritiqueRequest] = {}

        def finished(row: int, index: int, completion: Completion) -> None:
            problem = problems[row]
            rollout = self._grade(problem, completion, f"s{step:05d}-p{row:04d}-g{index:02d}", step, index)
            rollouts[row, index] = rollout
            if self.critic is not None:
                request = CritiqueRequest(attempt=rollout.attempt)
                pending[self.critic.submit(request)] = request
            listener(progress("sampling", len(rollouts), total))

        self.sampler.sample(
            student_prompts,
            num_samples=self.num_generations,
            temperature=self.temperature,
            max_tokens=self.max_completion_length,
            seed=derive_seed(seed, "rollouts", step),
            on_finished=finished,
        )
        sampled = time.perf_counter()
        reviews = follow(self.critic, pending, self.rules) if self.critic is not None else ()
        critiques = {review.critique.rollout_id: review.critique for review in reviews}
        groups = [[rollouts[row, index] for index in range(self.num_generations)] for row in range(len(problems))]
        judged = [[(rollout, critiques.get(rollout.rollout_id)) for rollout in group] for group in groups]
        return self._prepare(step, problems, student_prompts, judged, time.perf_counter() - sampled)

    def _grade(self, problem: Problem, completion: Completion, name: str, step: int, index: int) -> Rollout:
        text = decode(self.solver.tokenizer, completion.ids)
        attempt = Attempt(
            rollout_id=name,
            problem=problem,
            text=text,
            grade=self.grader.grade(text, problem.answer),
            truncated=completion.finish_reason == "length",
        )
        return Rollout(attempt=attempt, completion=completion, step=step, group_index=index)

    def _prepare(
        self,
        step: int,
        problems: Sequence[Problem],
        student_prompts: Sequence[tuple[int, ...]],
        groups: Sequence[Sequence[tuple[Rollout, Critique | None]]],
        feedback_seconds: float,
    ) -> Batch:
        """Contexts and Samples of a step's judged rollouts, and the numbers about them."""
        flat = [rollout for group in groups for rollout, _ in group]
        critiques = [critique for group in groups for _, critique in group if critique is not None]
        by_name = {critique.rollout_id: critique for critique in critiques}
        usable = [critique for critique in critiques if critique.status == "ok" and critique.policy != "mask"]
        rewards_PG = torch.tensor([[rollout.reward for rollout, _ in group] for group in groups])
        advantages_PG = group_advantages(rewards_PG, scale=self.objective.scale_rewards).tolist()
        trains_P = _have_signal(rewards_PG) if self.skip_zero_std_groups else [True] * len(groups)
        contexts: list[Context] = []
        samples: list[Sample] = []
        counts: Counter[str] = Counter(context_dropped_tokens=0, contexts_cut=0, unlocated_errors=0)
        masked: Counter[str] = Counter()
        for row, (problem, prompt, group) in enumerate(zip(problems, student_prompts, groups, strict=True)):
            shown = _contexts(
                self.condition.design,
                designs.make_group(
                    [rollout.attempt for rollout, _ in group], by_name, usable=usable, other_problems=problems
                ),
            )
            contexts += shown
            for index, ((rollout, critique), context) in enumerate(zip(group, shown, strict=True)):
                facts = self._facts(rollout, critique, context, step)
                counts["unlocated_errors"] += facts.verdict == "incorrect" and facts.first_error is None
                terms = HYBRIDS[self.objective.hybrid](self.condition, facts, self.objective)
                if not trains_P[row]:
                    terms = Terms(first_token=len(rollout.completion.ids))
                teacher_prompt = None
                if context.text is not None and (terms.distillation_weight or terms.magnitude_mixing):
                    teacher_prompt = self.prompts.self_teacher(problem, context.text, introduction=context.introduction)
                    counts["context_dropped_tokens"] += teacher_prompt.dropped_tokens
                    counts["contexts_cut"] += teacher_prompt.dropped_tokens > 0
                elif context.masked:
                    masked[context.masked] += 1
                samples.append(
                    _sample(
                        rollout,
                        student_prompt_ids=prompt,
                        teacher_prompt_ids=teacher_prompt.ids if teacher_prompt else None,
                        advantage=advantages_PG[row][index],
                        terms=terms,
                        probe=self.probe(rollout.attempt, rollout.completion.ids) if self.probe else None,
                    )
                )
        if self.objective.hybrid != "rosd":
            del counts["unlocated_errors"]  # nobody sought them
        numbers = {
            **_rollout_numbers(flat, rewards_PG),
            **(_critique_numbers(critiques) if self.rules else {}),
            **{name: float(count) for name, count in counts.items()},
            "skipped_groups": float(len(groups) - sum(trains_P)),
        }
        return Batch(
            rollouts=flat,
            critiques=critiques,
            contexts=contexts,
            samples=samples,
            numbers=numbers,
            masked=masked,
            feedback_seconds=feedback_seconds,
        )

    def _facts(self, rollout: Rollout, critique: Critique | None, context: Context, step: int) -> Facts:
        seeks_error = self.objective.hybrid == "rosd"
        return Facts(
            verdict=rollout.verdict,
            has_context=context.text is not None,
            first_error=first_wrong_token(rollout, critique, self.solver.tokenizer) if seeks_error else None,
            step=step,
        )


def _sample(
    rollout: Rollout,
    *,
    student_prompt_ids: tuple[int, ...],
    teacher_prompt_ids: tuple[int, ...] | None,
    advantage: float,
    terms: Terms,
    probe: tuple[int, int] | None,
) -> Sample:
    completion = rollout.completion
    return Sample(
        rollout_id=rollout.rollout_id,
        student_prompt_ids=student_prompt_ids,
        teacher_prompt_ids=teacher_prompt_ids,
        completion_ids=completion.ids,
        sampler_log_probs=completion.log_probs,
        loss_mask=tuple(place >= terms.first_token for place in range(len(completion.ids))),
        advantage=advantage,
        distillation_weight=terms.distillation_weight,
        policy_weight=terms.policy_weight,
        magnitude_mixing=terms.magnitude_mixing,
        entropy_damping=terms.entropy_damping,
        probe=probe,
    )


def _contexts(design: str, group: designs.Group) -> list[Context]:
    """The design's contexts, but for critiques that a policy keeps from the self-teacher."""
    shown = designs.make_contexts(design, group)
    if not designs.find_design(design).needs_critic:
        return shown
    for index, (context, critique) in enumerate(zip(shown, group.critiques, strict=True)):
        if critique is None:
            continue
        if critique.policy == "mask" and context.text is not None:
            shown[index] = replace(context, text=None, masked=f"critique with the finding {critique.decided_by}")
        elif critique.policy == "fall_back":
            shown[index] = designs.make_contexts("reference", group)[index]
    return shown


def _critique_numbers(critiques: Sequence[Critique]) -> dict[str, float]:
    """How many critiques of a step have each finding, and what was done about them."""
    found = Counter(name for critique in critiques for name in critique.findings)
    return {
        **{f"findings/{name}": float(found[name]) for name in FINDINGS},
        "critiques/fall_back": float(sum(critique.policy == "fall_back" for critique in critiques)),
        "critiques/retries": float(sum(critique.retries for critique in critiques)),
    }


def _have_signal(rewards_PG: torch.Tensor) -> list[bool]:
    """Which groups hold two different rewards. An undecided one (NaN) is none."""
    return [len({reward for reward in row if reward == reward}) > 1 for row in rewards_PG.tolist()]


def _mean_spread(rewards_PG: torch.Tensor) -> float:
    """Mean over groups of the rewards' standard deviation, NaN where no group has two decided rewards."""
    decided = [row[~row.isnan()] for row in rewards_PG]
    spreads = [float(row.std()) for row in decided if len(row) > 1]
    return sum(spreads) / len(spreads) if spreads else float("nan")


def _rollout_numbers(rollouts: Sequence[Rollout], rewards_PG: torch.Tensor) -> dict[str, float]:
    """Metrics of a step's rollouts under TRL's names where they mean the same."""
    lengths = [len(r.completion.ids) for r in rollouts]
    decided = [r.reward for r in rollouts if r.verdict != "undecided"]
    num_problems, num_generations = rewards_PG.shape
    same = ((rewards_PG == rewards_PG[:, :1]).all(1)).float().mean() if num_generations > 1 else torch.nan
    texts, answers = [r.text for r in rollouts], [r.answer for r in rollouts]
    groups = [answers[start : start + num_generations] for start in range(0, len(answers), num_generations)]
    return {
        "reward": sum(decided) / len(decided) if decided else float("nan"),
        "reward_std": _mean_spread(rewards_PG),
        "frac_reward_zero_std": float(same),
        "undecided": float(len(rollouts) - len(decided)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(r.completion.finish_reason == "length" for r in rollouts) / len(rollouts),
        "completions/tail_compression": _mean_of_defined([canaries.tail_compression(text) for text in texts]),
        "completions/repetitive_ratio": sum(map(canaries.is_repetitive, texts)) / len(texts),
        "completions/hedge_words": sum(map(canaries.hedge_words, texts)) / len(texts),
        "completions/distinct_answers": _mean_of_defined([canaries.distinct_answers(group) for group in groups]),
        "num_problems": float(num_problems),
        "num_rollouts": float(len(rollouts)),
        "num_tokens": float(sum(lengths)),
    }


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
