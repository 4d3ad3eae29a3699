"""Critics that ask the solver itself: it reads its own attempt again, or tries once more with a critique at hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stepalign.critics.variants import Around
from stepalign.feedback.critique import parse_critique
from stepalign.feedback.designs.design import FEEDBACK, joined
from stepalign.models.prompts import PromptBuilder, decode
from stepalign.models.sampling import Sampler
from stepalign.records import Attempt, Completion, Critique

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stepalign.feedback.prompts import Template

OWN = "own"
"""How the names of critiques that a solver wrote itself begin. They locate no error: it is the one that made it."""


@dataclass(slots=True)
class SecondTries:
    """Draws one completion behind each prompt. Prompts that come while others are drawn wait and then go together."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    prompts: PromptBuilder
    temperature: float
    max_tokens: int
    seed: int
    room: int | None
    """Positions of the model."""
    _waiting: list[tuple[tuple[int, ...], asyncio.Future[Completion]]] = field(default_factory=list)
    _drawing: asyncio.Task[None] | None = None

    async def draw(self, prompt: tuple[int, ...]) -> Completion | None:
        """None where the prompt leaves no room for a completion."""
        if self.room is not None and len(prompt) + self.max_tokens > self.room:
            return None
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, future))
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.create_task(self._draw())
        return await future

    async def _draw(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                found = await self.sampler.sample(
                    [prompt for prompt, _ in batch],
                    num_samples=1,
                    temperature=self.temperature,
                    max_tokens=self.max_tokens,
                    seed=self.seed,
                )
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), (completion,) in zip(batch, found, strict=True):
                future.set_result(completion)


@dataclass(slots=True)
class OwnCritic:
    """The solver, with the weights it has at that moment, in the part of the critic: shown the attempt, no answer."""

    tries: SecondTries
    template: Template
    name: str

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`."""
        shown = {"question": attempt.problem.question, "attempt": attempt.text, "truncated": attempt.truncated}
        prompt = self.tries.prompts.messages_ids(self.template.messages(sees="nothing", structured=False, **shown))
        found = await self.tries.draw(prompt)
        critique = Critique(rollout_id=attempt.rollout_id, critic=self.name, status="failed", text="", truth=False)
        critique = replace(critique, form="own", reason="the attempt leaves no room for a critique")
        if found is None:
            return critique
        reply = decode(self.tries.tokenizer, found.ids)
        read = parse_critique(reply, found.finish_reason)
        return replace(critique, status=read.status, text=read.text, raw=reply, reason=read.reason, case=read.case)

    def close(self) -> None:
        """The sampler belongs to the session."""


@dataclass(slots=True)
class SecondTurn(Around):
    """A critic's trace with the solver's next attempt behind it, as in RLTF-SD (arXiv 2602.02482)."""

    tries: SecondTries

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`."""
        if earlier is not None:  # without the second attempt, which the critic has not written
            earlier = replace(earlier, text=earlier.raw or earlier.text)
        found = await self.critic.critique(attempt, earlier=earlier, complaint=complaint)
        found = replace(found, form="second_turn")
        if found.status != "ok":
            return found
        prompt = self.tries.prompts.self_teacher(attempt.problem, found.text, introduction=FEEDBACK)
        again = await self.tries.draw(prompt.ids)
        if again is None or not (text := decode(self.tries.tokenizer, again.ids).strip()):
            return replace(found, status="failed", text="", reason="no second attempt")
        return replace(found, text=joined(found.text, text))
