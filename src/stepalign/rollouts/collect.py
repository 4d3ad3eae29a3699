"""From problems to judged groups: prompt, sample, let the environment reply, grade, criticise. Async where it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from stepalign.config import SamplingSection
from stepalign.critics import Critic
from stepalign.domains.math.grading import Grader
from stepalign.events import Listener, progress, silent
from stepalign.models.prompts import decode, opened_by
from stepalign.models.sampling import OnFinished, Sampler
from stepalign.records import Attempt, Completion, Grade, Problem, Rollout
from stepalign.rollouts.early import Collected, JudgedGroup
from stepalign.rollouts.environment import Environment
from stepalign.rollouts.order import derive_seed
from stepalign.rollouts.review import Review, Rules, ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutMaker:
    """Draws completions and grades them."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    environment: Environment
    grader: Grader

    async def complete(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        """``num_samples`` completions of each prompt, with every turn that the environment asks for.

        A turn goes on behind the very ids so far. ``max_tokens`` bounds all turns of a completion together, the tokens
        of the environment included; one that leaves no room for another turn has finish reason "length".
        """
        ends: dict[tuple[int, int], asyncio.Task[Completion]] = {}

        def first_turn_ended(row: int, index: int, completion: Completion) -> None:
            ends[row, index] = tasks.create_task(further_turns(row, index, completion))

        async def further_turns(row: int, index: int, completion: Completion) -> Completion:
            turn = 0
            while completion.finish_reason == "stop":
                reply = await self.environment.reply(problems[row], completion)
                if reply is None:
                    break
                room = max_tokens - len(completion.ids) - len(reply)
                if room <= 0:
                    completion = replace(completion, finish_reason="length")
                    break
                turn += 1
                ((more,),) = await self.sampler.sample(
                    [(*prompts[row], *completion.ids, *reply)],
                    num_samples=1,
                    temperature=temperature,
                    max_tokens=room,
                    seed=derive_seed(seed, row, index, turn),
                )
                completion = _joined(completion, reply, more)
            if on_finished is not None:
                on_finished(row, index, completion)
            return completion

        try:
            async with asyncio.TaskGroup() as tasks:  # what fails in one turn ends the sampling
                await self.sampler.sample(
                    prompts,
                    num_samples=num_samples,
                    temperature=temperature,
                    max_tokens=max_tokens,
                    seed=seed,
                    on_finished=first_turn_ended,
                )
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [[ends[row, index].result() for index in range(num_samples)] for row in range(len(prompts))]

    def text(self, completion: Completion) -> str:
        return decode(self.tokenizer, completion.ids)

    def written(self, prompt: Sequence[int], completion: Completion) -> str:
        """The text that is graded: the solver's own tokens of all turns, each behind the mark of a thought that the
        tokens before it open."""
        turns: list[str] = []
        for sampled, pairs in groupby(zip(completion.ids, completion.sampled_mask, strict=True), key=itemgetter(1)):
            ids = [token for token, _ in pairs]
            if sampled:
                turns.append(opened_by(self.tokenizer, prompt) + decode(self.tokenizer, ids))
            else:
                prompt = ids
        return "\n".join(turns)

    async def attempt(
        self,
        problems: Sequence[Problem],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_graded: Callable[[int, list[Rollout]], None] = lambda *_: None,
    ) -> list[list[Rollout]]:
        """``num_samples`` graded rollouts of each problem; comparisons of answers run side by side.

        Args:
            on_graded: called with (problem index, its rollouts) as soon as all completions of a problem have ended.
        """
        prompts = [tuple(self.environment.start(problem)) for problem in problems]
        ended: list[dict[int, Completion]] = [{} for _ in problems]
        found: dict[int, list[Rollout]] = {}

        def finished(row: int, index: int, completion: Completion) -> None:
            ended[row][index] = completion
            if len(ended[row]) < num_samples:
                return
            problem, completions = problems[row], [ended[row][index] for index in range(num_samples)]
            texts = [self.text(completion) for completion in completions]
            written = [self.written(prompts[row], completion) for completion in completions]
            grades = self.grader.grade_many(written, [problem.answer] * num_samples)
            graded = enumerate(zip(completions, texts, grades, strict=True))
            found[row] = [_rollout(f"{problem.problem_id}-{at}", problem, *parts, index=at) for at, parts in graded]
            on_graded(row, found[row])

        await self.complete(
            problems,
            prompts,
            num_samples=num_samples,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            on_finished=finished,
        )
        return [found[row] for row in range(len(problems))]


def _joined(completion: Completion, reply: Sequence[int], more: Completion) -> Completion:
    """Two turns with the environment's tokens between them."""
    return Completion(
        ids=(*completion.ids, *reply, *more.ids),
        log_probs=(*completion.log_probs, *(float("nan"),) * len(reply), *more.log_probs),
        sampled_mask=(*completion.sampled_mask, *(False,) * len(reply), *more.sampled_mask),
        finish_reason=more.finish_reason,
        policy_version=min(completion.policy_version, more.policy_version),
    )


def _rollout(
    name: str, problem: Problem, completion: Completion, text: str, grade: Grade, *, step: int = 0, index: int
) -> Rollout:
    truncated = completion.finish_reason == "length"
    attempt = Attempt(rollout_id=name, problem=problem, text=text, grade=grade, truncated=truncated)
    return Rollout(attempt=attempt, completion=completion, step=step, group_index=index)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutCollector:
    """Collects the judged groups of a step."""

    maker: RolloutMaker
    sampling: SamplingSection
    critic: Critic | None = None
    rules: Rules | None = None
    """How critiques are reviewed; without rules they are taken as they come."""

    async def collect(
        self,
        problems: Sequence[Problem],
        step: int,
        seed: int,
        listener: Listener = silent,
        on_group: Callable[[JudgedGroup], None] | None = None,
    ) -> Collected:
        """One group per problem.

        Critiques are asked for as each completion finishes, not after the batch; ``on_group`` is called with each group
        when its last critique is there.
        """
        rollouts: dict[tuple[int, int], Rollout] = {}
        reviews: dict[tuple[int, int], asyncio.Task[Review]] = {}
        whole: dict[int, asyncio.Task[JudgedGroup]] = {}
        num_generations = self.sampling.num_generations

        def finished(row: int, index: int, completion: Completion) -> None:
            problem, text = problems[row], self.maker.text(completion)
            grade = self.maker.grader.grade(self.maker.written(prompts[row], completion), problem.answer)
            name = f"s{step:05d}-p{row:04d}-g{index:02d}"
            rollout = _rollout(name, problem, completion, text, grade, step=step, index=index)
            rollouts[row, index] = rollout
            if self.critic is not None:
                reviews[row, index] = asyncio.create_task(ask(self.critic, rollout.attempt, self.rules))
            if all((row, one) in rollouts for one in range(num_generations)):
                whole[row] = asyncio.create_task(judged(row))
            listener(progress("sampling", len(rollouts), len(problems) * num_generations))

        async def judged(row: int) -> JudgedGroup:
            places = [(row, index) for index in range(num_generations)]
            found = [(await reviews[place]).critique if place in reviews else None for place in places]
            members = [rollouts[place] for place in places]
            group = JudgedGroup(problem=problems[row], prompt_ids=prompts[row], rollouts=members, critiques=found)
            if on_group is not None:
                on_group(group)
            return group

        begin = time.time()
        prompts = [tuple(self.maker.environment.start(problem)) for problem in problems]
        await self.maker.complete(
            problems,
            prompts,
            num_samples=num_generations,
            temperature=self.sampling.temperature,
            max_tokens=self.sampling.max_completion_length,
            seed=derive_seed(seed, "rollouts", step),
            on_finished=finished,
        )
        sampled = time.time()
        groups = await asyncio.gather(*(whole[row] for row in range(len(problems))))
        return Collected(groups=groups, times=(begin, sampled, time.time()))
