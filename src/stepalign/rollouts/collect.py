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
from stepalign.models.sampling import Sampler
from stepalign.records import Attempt, Completion, Grade, Problem, Rollout, Turn
from stepalign.rollouts.early import Collected, JudgedGroup
from stepalign.rollouts.environment import BrokenOffError, Environment
from stepalign.rollouts.order import derive_seed
from stepalign.rollouts.review import Review, Rules, ask
from stepalign.stopping import PROCESS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutMaker:
    """Draws completions and grades them."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    environment: Environment
    grader: Grader
    max_turn_length: int | None = None
    """Tokens of one turn of the solver; None: only all turns together have a limit."""

    async def complete(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_ended: Callable[[int, int, Completion, Grade | None], None] = lambda *_: None,
    ) -> list[list[Completion]]:
        """``num_samples`` completions of each prompt, with every turn that the environment asks for.

        A turn goes on behind the very ids so far. ``max_tokens`` bounds all turns of a completion together, the tokens
        of the environment included; one that leaves no room for another turn has finish reason "length", and so has
        one with a turn that reaches ``max_turn_length``.

        Args:
            on_ended: called with (problem index, number of the completion, the completion, the environment's grade of
                it) as soon as it has ended.
        """
        ends: dict[tuple[int, int], asyncio.Task[Completion]] = {}
        longest = min(max_tokens, self.max_turn_length or max_tokens)

        def first_turn_ended(row: int, index: int, completion: Completion) -> None:
            ends[row, index] = tasks.create_task(further_turns(row, index, completion))

        async def further_turns(row: int, index: int, completion: Completion) -> Completion:
            if PROCESS.asked:  # hundreds may end with one token: their grades are not waited for
                raise asyncio.CancelledError
            problem, turns = problems[row], [self._turn(completion, 0)]
            while completion.finish_reason == "stop":
                try:
                    reply = await self.environment.reply(problem, turns, completion)
                except BrokenOffError:
                    completion = replace(completion, finish_reason="length")
                    break
                if reply is None:
                    break
                room = max_tokens - len(completion.ids) - len(reply.ids)
                if room <= 0:
                    completion = replace(completion, finish_reason="length")
                    break
                ((more,),) = await self.sampler.sample(
                    [(*prompts[row], *completion.ids, *reply.ids)],
                    num_samples=1,
                    temperature=temperature,
                    max_tokens=min(room, longest),
                    seed=derive_seed(seed, row, index, len(turns) // 2 + 1),
                )
                start = len(completion.ids)
                completion = _joined(completion, reply.ids, more)
                end = start + len(reply.ids)
                said = Turn(role=reply.role, text=reply.text, start=start, end=end, dropped_tokens=reply.dropped_tokens)
                turns += [said, self._turn(completion, end)]
            if len(turns) > 1:
                completion = replace(completion, turns=tuple(turns))
            on_ended(row, index, completion, await self.environment.grade(problem, turns))
            return completion

        try:
            async with asyncio.TaskGroup() as tasks:  # what fails in one turn ends the sampling
                await self.sampler.sample(
                    prompts,
                    num_samples=num_samples,
                    temperature=temperature,
                    max_tokens=longest,
                    seed=seed,
                    on_finished=first_turn_ended,
                )
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [[ends[row, index].result() for index in range(num_samples)] for row in range(len(prompts))]

    def _turn(self, completion: Completion, start: int) -> Turn:
        """The solver's turn that begins at a token and ends with the completion."""
        text = decode(self.tokenizer, completion.ids[start:])
        return Turn(role="solver", text=text, start=start, end=len(completion.ids))

    def text(self, completion: Completion) -> str:
        return decode(self.tokenizer, completion.ids)

    def written(self, prompt: Sequence[int], completion: Completion) -> str:
        """The text that is graded: the solver's own tokens, of all turns since a user's last message, each turn behind
        the mark of a thought that the tokens before it open."""
        last = max((turn.end for turn in completion.turns if turn.role == "user"), default=0)
        ids, mask = completion.ids[last:], completion.sampled_mask[last:]
        prompt = completion.ids[:last] or prompt
        turns: list[str] = []
        for sampled, pairs in groupby(zip(ids, mask, strict=True), key=itemgetter(1)):
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
        given: dict[tuple[int, int], Grade] = {}
        found: dict[int, list[Rollout]] = {}

        def finished(row: int, index: int, completion: Completion, grade: Grade | None) -> None:
            ended[row][index] = completion
            if grade is not None:
                given[row, index] = grade
            if len(ended[row]) < num_samples:
                return
            problem, completions = problems[row], [ended[row][index] for index in range(num_samples)]
            texts = [self.text(completion) for completion in completions]
            written = [self.written(prompts[row], completion) for completion in completions]
            open_ = [at for at in range(num_samples) if (row, at) not in given]
            grades = self.grader.grade_many([written[at] for at in open_], [problem.answer] * len(open_))
            given.update(zip(((row, at) for at in open_), grades, strict=True))
            graded = enumerate(zip(completions, texts, (given[row, at] for at in range(num_samples)), strict=True))
            found[row] = [_rollout(f"{problem.problem_id}-{at}", problem, *parts, index=at) for at, parts in graded]
            on_graded(row, found[row])

        await self.complete(
            problems,
            prompts,
            num_samples=num_samples,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            on_ended=finished,
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
        server=more.server,
    )


def _rollout(
    name: str, problem: Problem, completion: Completion, text: str, grade: Grade, *, step: int = 0, index: int
) -> Rollout:
    truncated = completion.finish_reason == "length"
    attempt = Attempt(
        rollout_id=name, problem=problem, text=text, grade=grade, truncated=truncated, turns=completion.turns
    )
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

        def finished(row: int, index: int, completion: Completion, grade: Grade | None) -> None:
            problem, text = problems[row], self.maker.text(completion)
            if grade is None:
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
            on_ended=finished,
        )
        sampled = time.time()
        groups = await asyncio.gather(*(whole[row] for row in range(len(problems))))
        return Collected(groups=groups, times=(begin, sampled, time.time()))
