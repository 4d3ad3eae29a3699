"""For those who train with TRL: its SDPO shows each rollout a context of ours, made while it trains."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from stepalign.critics import Critic
from stepalign.domains.math import grade
from stepalign.domains.math.extraction import extract_answer
from stepalign.errors import ConfigError
from stepalign.feedback import designs, findings
from stepalign.models.prompts import decode
from stepalign.problems.dumped import words_of
from stepalign.problems.rows import Row
from stepalign.problems.sets import problem_id
from stepalign.records import Attempt, Context, Critique, Grade, Problem
from stepalign.rollouts.review import Rules, ask, shown_contexts
from stepalign.waiting import wait_for


def problem_of(row: Row) -> Problem:
    """The last message of ``prompt``, the columns ``solution`` or ``answer``, and ``reference`` where there is one."""
    prompt = row["prompt"]
    question = prompt if isinstance(prompt, str) else words_of(prompt[-1])
    answer = next((row[name] for name in ("solution", "answer") if row.get(name) not in (None, "")), None)
    return Problem(
        problem_id=problem_id(question),
        question=question,
        answer="" if answer is None else str(answer),
        reference=row.get("reference") or None,
    )


class StepAlignCallback(TrainerCallback):
    """Gives ``SDPOTrainer`` of TRL 1.16 the context of a design for every rollout: its critique, by default.

    ::

        with sa.Critic("http://127.0.0.1:8000/v1", model="my-critic") as critic:
            trainer = SDPOTrainer(..., args=SDPOConfig(..., include_environment_feedback=True))
            trainer.add_callback(sa.StepAlignCallback(trainer, critic))
            trainer.train()

    TRL takes one ``privileged_context`` a row, written before training. Here the row's is replaced, for each rollout,
    by the text that the design shows of this very rollout; one without a text counts as one without feedback. The
    event ``on_teacher_context_built`` then counts the self-teacher's prompts that TRL has cut. The trainer logs
    ``stepalign/context_fraction``; ``masked`` counts the reasons of rollouts without a context.

    Args:
        trainer: the SDPOTrainer; its prompts end in a message of the user, or are plain text.
        critic: any object with our critics' ``critique`` method; None for a design that needs none.
        design: a name of ``DESIGNS`` or one of your own (``file.py:function``); its group is the rollouts of a problem
            that are on the same rank.
        problem: the problem of a row of the data set; :func:`problem_of` by default.
        policies: finding -> policy, as in ``critic.policies``.

    Raises:
        ConfigError: a trainer without teacher contexts, or with settings under which no context is shown; an unknown
            design; no critic for a design that needs one.
        BudgetSpentError: while it trains, where the critic has a budget.
    """

    def __init__(
        self,
        trainer: Any,
        critic: Critic | None = None,
        *,
        design: str = "step_aligned",
        problem: Callable[[Row], Problem] = problem_of,
        policies: Mapping[str, findings.Policy] | None = None,
    ) -> None:
        found = designs.find_design(design)
        if not (hasattr(trainer, "teacher_context_builder") and hasattr(trainer, "_prepare_training_batch")):
            name = type(trainer).__name__
            raise ConfigError(f"{name} builds no teacher contexts", where="trainer", hint="SDPOTrainer of trl==1.16.0")
        if not trainer.args.include_environment_feedback:
            raise ConfigError(
                "SDPO would ignore every context",
                where="SDPOConfig.include_environment_feedback",
                hint="SDPOConfig(include_environment_feedback=True)",
            )
        if found.needs_critic and critic is None:
            raise ConfigError(f"the design {design} needs a critic", where="critic", hint="sa.Critic(URL, model=NAME)")
        if found.show_turn is not None or not found.has_context:
            raise ConfigError(
                f"the design {design} shows no context for a whole rollout",
                where="design",
                hint="design='step_aligned'",
            )
        self.masked: Counter[str] = Counter()
        """Rollouts without a context so far, by reason."""
        self.cut_prompts = 0
        """Prompts of the self-teacher at the limit ``max_reprompt_len``: TRL keeps the end of a longer one."""
        self.last_metrics: dict[str, float] = {}
        """Of the last batch, for the trainer."""
        self._trainer, self._critic, self._design, self._problem = trainer, critic, design, problem
        self._rules = Rules(
            policies=findings.policies(policies or {}, served=True),
            same_answer=lambda answer, expected: grade(f"\\boxed{{{answer}}}", expected).verdict != "incorrect",
        )
        self._builder, self._prepare = trainer.teacher_context_builder, trainer._prepare_training_batch
        trainer.teacher_context_builder, trainer._prepare_training_batch = self, self._prepare_rows
        self._rows: Sequence[Row] = ()

    def _prepare_rows(self, inputs: Sequence[Row]) -> Any:
        self._rows = inputs  # the builder is given their prompts alone
        return self._prepare(inputs)

    def build(self, output: Mapping[str, Any], prompts: Sequence[Any], rewards: Any, feedbacks: Any = None) -> Any:
        """TRL's builder, with a text of ours for each rollout in the place of ``feedbacks``."""
        contexts = self._contexts(self._attempts(output, rewards.tolist()))
        self.masked.update(context.masked for context in contexts if context.text is None)
        built = self._builder.build(output, prompts, rewards, feedbacks=[context.text for context in contexts])
        shown = sum(context.text is not None for context in contexts)
        self.last_metrics = {**self._builder.last_metrics, "stepalign/context_fraction": shown / len(contexts)}
        return built

    def _attempts(self, output: Mapping[str, Any], rewards: Sequence[float]) -> list[Attempt]:
        """The rollouts of this rank. A reward is right or wrong by the threshold of TRL's own."""
        trainer, masks = self._trainer, output["completion_mask"].bool()
        step = f"{trainer.state.global_step}-{trainer.accelerator.process_index}"
        attempts = []
        for index, (row, ids, mask) in enumerate(zip(self._rows, output["completion_ids"], masks, strict=True)):
            kept = ids[mask].tolist()
            text = decode(trainer._tokenizer, kept)
            right = rewards[index] >= trainer.args.success_reward_threshold
            attempts.append(
                Attempt(
                    rollout_id=f"{step}-{index}",
                    problem=self._problem(row),
                    text=text,
                    grade=Grade(score=float(right), answer=extract_answer(text)),
                    truncated=not kept or kept[-1] not in trainer.eos_token_ids,
                )
            )
        return attempts

    def _contexts(self, attempts: Sequence[Attempt]) -> list[Context]:
        """One per rollout, in their order."""
        critiques = wait_for(self._critiques(attempts))
        usable = [one for one in critiques.values() if one.status == "ok" and one.policy != "mask"]
        problems = {attempt.problem.problem_id: attempt.problem for attempt in attempts}
        contexts: dict[str, Context] = {}
        for name in problems:
            members = [attempt for attempt in attempts if attempt.problem.problem_id == name]
            group = designs.make_group(members, critiques, usable=usable, other_problems=list(problems.values()))
            contexts |= {context.rollout_id: context for context in shown_contexts(self._design, group)}
        return [contexts[attempt.rollout_id] for attempt in attempts]

    async def _critiques(self, attempts: Sequence[Attempt]) -> dict[str, Critique]:
        """All at once; none of a completion without text, which trains nothing."""
        if self._critic is None or not designs.find_design(self._design).needs_critic:
            return {}
        asked = [ask(self._critic, attempt, self._rules) for attempt in attempts if attempt.text]
        return {review.attempt.rollout_id: review.critique for review in await asyncio.gather(*asked)}

    def on_teacher_context_built(
        self, args: Any, state: Any, control: Any, *, teacher_attention_mask: Any, completion_mask: Any, **_: Any
    ) -> None:
        """TRL's event behind each batch of self-teacher prompts."""
        width = teacher_attention_mask.shape[1] - completion_mask.shape[1]
        cut = int((teacher_attention_mask[:, :width].sum(1) >= args.max_reprompt_len).sum())
        if cut and not self.cut_prompts:
            warnings.warn(
                f"TRL keeps the last {args.max_reprompt_len} tokens of a prompt (max_reprompt_len)", stacklevel=2
            )
        self.cut_prompts += cut
