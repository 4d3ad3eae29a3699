"""The measurements of a preflight: what each design shows, what the self-teacher makes of it, where A_t falls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stepalign.build import Session, find_truth
from stepalign.critics.calculation import CalculationCritic
from stepalign.domains.table import find_domain
from stepalign.events import Listener, progress
from stepalign.feedback import designs
from stepalign.feedback.designs.builtin import content_free
from stepalign.models.prompts import unknown_id
from stepalign.records import Attempt, Completion, Context, Critique, Grade, Problem, Sample
from stepalign.rollouts.collect import RolloutCollector
from stepalign.rollouts.early import JudgedGroup
from stepalign.rollouts.environment import SingleTurn
from stepalign.rollouts.order import derive_seed, problems_of_step
from stepalign.rollouts.review import make_rules
from stepalign.rollouts.samples import SampleMaker
from stepalign.token_signal.counterfactual import SPIKES, agreement, resample, strongest
from stepalign.token_signal.table import NULL, SHUFFLED
from stepalign.verbs.signal.collect import more_critiques
from stepalign.waiting import wait_for

TRIES = 4
"""Completions of the student for every problem, and of the self-teacher for every attempt."""
GROUP = 4
"""Attempts at a problem where a design compares siblings."""
CONTINUATIONS = 4
"""Of each of the two versions of a strong token."""


@dataclass(slots=True)
class Shown:
    """What one design shows of the rollouts, and what the self-teacher does with it."""

    contexts: list[Context]
    samples: list[Sample]
    masked: Counter[str]
    critiques: list[Critique | None]
    rates: dict[int, float] = field(default_factory=dict)
    """By rollout, the share of the self-teacher's completions that are right."""
    texts: list[str] = field(default_factory=list)
    """The self-teacher's completions."""
    unknown: list[float] = field(default_factory=list)
    """Share of tokens of each prompt that stand for a word without one."""
    gradients: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By rollout_id, the size of the update that each token would make."""
    what_if: Mapping[str, Any] = field(default_factory=dict)
    """Success of other tokens at the strongest ones (``token_signal.counterfactual``)."""


class Look:
    """The measurements of one preflight."""

    def __init__(
        self,
        session: Session,
        problems: Sequence[Problem],
        names: Sequence[str],
        num: int,
        listener: Listener,
        out: Path,
    ) -> None:
        self.session, self.config, self.names, self.listener = session, session.config, names, listener
        self.out, self.seed = out, derive_seed(session.config.training.seed, "preflight")
        needs = {need for name in names for need in designs.find_design(name).needs}
        compares = any(
            designs.find_condition(name).policy_weight and not designs.find_design(name).penalty for name in names
        )
        self.group = max(GROUP, self.config.sampling.num_generations) if "siblings" in needs or compares else 1
        count = max(2, -(-num // self.group))
        self.problems = problems_of_step(problems, 0, min(count, len(problems)), self.config.training.seed)
        self.rules = make_rules(self.config.critic, self.config.data, session.grader)
        self.seconds: dict[str, float] = {}

    def measure(self) -> None:
        """Everything, in the order in which it costs most and fails first."""
        self.groups = self._rollouts()
        self.rollouts = [rollout for group in self.groups for rollout in group.rollouts]
        self.wrong = [rollout.verdict == "incorrect" for rollout in self.rollouts]
        self.shown = {name: self._show(name) for name in self.names}
        self.student = self._student()
        for at, (name, shown) in enumerate(self.shown.items()):
            if designs.find_design(name).has_context:
                self._teach(shown, name, at)
        self.analysed = self._score()
        for name, shown in self.shown.items():
            shown.gradients = self._gradients(shown)
            if designs.find_design(name).has_context and isinstance(self.session.maker.environment, SingleTurn):
                shown.what_if = self._what_if(name)

    def _rollouts(self) -> list[JudgedGroup]:
        """Rollouts as the first step would draw them, without critiques yet."""
        sampling = self.config.sampling.model_copy(update={"num_generations": self.group})
        begin = time.perf_counter()
        collector = RolloutCollector(maker=self.session.maker, sampling=sampling)
        groups = wait_for(collector.collect(self.problems, 0, self.seed, self.listener)).groups
        tokens = sum(len(r.completion.ids) for group in groups for r in group.rollouts)
        self.seconds["token"] = (time.perf_counter() - begin) / max(1, tokens)
        pairs = [(rollout, None) for group in groups for rollout in group.rollouts]
        begin = time.perf_counter()
        asked = [name for name in self.names if designs.find_design(name).needs_critic]
        found = more_critiques(self.config, self.out, pairs, asked, self.rules, self.session)
        self.critiques = {(one.form, one.rollout_id): one for one in found}
        self.seconds["critique"] = (time.perf_counter() - begin) / max(1, len(found))
        return groups

    def _show(self, name: str) -> Shown:
        """The contexts and Samples that the trainer would make."""
        form = designs.find_design(name).form
        own = [
            replace(group, critiques=[self.critiques.get((form, r.rollout_id)) for r in group.rollouts])
            for group in self.groups
        ]
        maker = SampleMaker(
            tokenizer=self.session.solver.tokenizer,
            prompts=self.session.prompts,
            condition=designs.find_condition(name),
            objective=self.config.objective,
        )
        made = maker.make(own, 0)
        return Shown(made.contexts, made.samples, made.masked, [c for group in own for c in group.critiques])

    def _student(self) -> dict[str, float]:
        """By problem, the share of right completions in new tries of the student."""
        sampling = self.config.sampling
        tried = wait_for(
            self.session.maker.attempt(
                self.problems,
                num_samples=TRIES,
                temperature=sampling.temperature,
                max_tokens=sampling.max_completion_length,
                seed=derive_seed(self.seed, "student"),
                on_graded=self._counting("student", len(self.problems)),
            )
        )
        self.tries = [rollout for rollouts in tried for rollout in rollouts]
        return {
            problem.problem_id: float(np.mean([r.verdict == "correct" for r in rollouts]))
            for problem, rollouts in zip(self.problems, tried, strict=True)
        }

    def _counting(self, name: str, total: int) -> Any:
        done = Counter[str]()

        def count(*_: Any) -> None:
            done[name] += 1
            self.listener(progress(name, done[name], total))

        return count

    def _teach(self, shown: Shown, name: str, at: int) -> None:
        """Let the self-teacher solve every problem with the contexts at hand."""
        session, sampling = self.session, self.config.sampling
        places = [i for i, context in enumerate(shown.contexts) if context.text is not None]
        prompts = [self._prompt(shown.contexts[i], self.rollouts[i].problem) for i in places]
        unknown = unknown_id(session.solver.tokenizer)
        shown.unknown = [sum(token == unknown for token in prompt) / len(prompt) for prompt in prompts]
        given: dict[tuple[int, int], Grade | None] = {}
        count = self._counting(f"self-teacher {at + 1}/{len(self.names)}", len(places) * TRIES)

        def ended(row: int, index: int, _: Completion, grade: Grade | None) -> None:
            given[row, index] = grade
            count()

        drawn = wait_for(
            session.maker.complete(
                [self.rollouts[i].problem for i in places],
                prompts,
                num_samples=TRIES,
                temperature=sampling.temperature,
                max_tokens=sampling.max_completion_length,
                seed=derive_seed(self.seed, "self-teacher", name),
                on_ended=ended,
            )
        )
        for row, (i, prompt, completions) in enumerate(zip(places, prompts, drawn, strict=True)):
            texts = [session.maker.written(prompt, completion) for completion in completions]
            graded = session.grader.grade_many(texts, [self.rollouts[i].problem.answer] * len(texts))
            grades = [given[row, index] or grade for index, grade in enumerate(graded)]
            shown.rates[i] = float(np.mean([grade.verdict == "correct" for grade in grades]))
            shown.texts += texts

    def _prompt(self, context: Context, problem: Problem) -> tuple[int, ...]:
        assert context.text is not None
        return self.session.prompts.self_teacher(problem, context.text, introduction=context.introduction).ids

    def _score(self) -> list[Any]:
        """A_t of every rollout under each design, its null of equal length, and another attempt's context."""
        from stepalign.token_signal.analyse import AttemptInContexts, Shown, analyse_attempts

        subjects = []
        for at, rollout in enumerate(self.rollouts):
            contexts: dict[str, Any] = {}
            for name, one in self.shown.items():
                context = one.contexts[at]
                if (penalty := designs.find_design(name).penalty) and not context.masked:
                    contexts[name] = Shown(text="", penalty=penalty * self.wrong[at])
                if context.text is None:
                    continue
                texts = {"": context.text, NULL: content_free(context.text), SHUFFLED: self._stranger(at, one)}
                contexts |= {
                    name + suffix: Shown(text=text, introduction=context.introduction)
                    for suffix, text in texts.items()
                    if text
                }
            if not contexts:  # a policy gradient alone: the student beside itself
                contexts["none"] = Shown(text="", penalty=0.0)
            critique = self._truth(rollout.attempt)
            subjects.append(
                AttemptInContexts(
                    attempt=rollout.attempt, ids=rollout.completion.ids, contexts=contexts, critique=critique
                )
            )
        begin, found = time.perf_counter(), []
        for one in analyse_attempts(
            self.session.solver,
            self.session.prompts,
            subjects,
            temperature=self.config.sampling.temperature,
            top_k=max(1, self.config.signal.top_k),
            truth=find_truth(self.config, self.session.solver),
            max_micro_batch_tokens=self.config.training.max_micro_batch_tokens,
        ):
            found.append(one)
            self.listener(progress("scoring", len(found), len(subjects)))
        sides = sum(1 + len(subject.contexts) for subject in subjects)
        self.seconds["side"] = (time.perf_counter() - begin) / max(1, sides)
        return found

    def _stranger(self, at: int, shown: Shown) -> str:
        """The same design's context of the next attempt at another problem."""
        own, count = self.rollouts[at].problem_id, len(self.rollouts)
        others = ((at + step) % count for step in range(1, count))
        texts = (shown.contexts[i].text for i in others if self.rollouts[i].problem_id != own)
        return next((text for text in texts if text), "")

    def _truth(self, attempt: Attempt) -> Critique | None:
        """Where the attempt first goes wrong: by a program that knows, else by a critic's correction of it."""
        domain, section = find_domain(self.config.data), type(self.config.critic)()
        critic = None
        if domain.critic is not None and domain.knows(attempt.problem):
            critic = domain.critic(section, "trace", 0)
        elif domain.calculates:
            critic = CalculationCritic("trace")
        found = wait_for(critic.critique(attempt)) if critic else None
        if found is not None and found.status == "ok":
            return found
        return self.critiques.get(("trace", attempt.rollout_id))

    def _gradients(self, shown: Shown) -> dict[str, np.ndarray]:
        from stepalign.training.first_step import gradient_sizes
        from stepalign.training.learner import make_objective

        solver, config = self.session.solver, self.config
        objective = make_objective(config.objective, config.sampling.temperature, solver.head_VH)
        sizes = gradient_sizes(solver, shown.samples, objective, max_tokens=config.training.max_micro_batch_tokens)
        return {s.rollout_id: size for s, size in zip(shown.samples, sizes, strict=True)}

    def _what_if(self, name: str) -> dict[str, Any]:
        """Continuations at the strongest tokens of a design."""
        spikes = []
        for rollout, one in zip(self.rollouts, self.analysed, strict=True):
            if (found := one.scores.contexts.get(name)) is None:
                continue
            prompt_ids = self.session.prompts.student(rollout.problem)
            spikes += strongest(rollout, name, prompt_ids, found.log_ratio, found.teacher.top_ids[:, 0])
        spikes.sort(key=lambda spike: spike.log_ratio)
        self.listener(progress(f"what if: {name}", 0, len(spikes[:SPIKES])))
        rows = resample(
            self.session.maker,
            spikes[:SPIKES],
            num_samples=CONTINUATIONS,
            temperature=self.config.sampling.temperature,
            max_tokens=self.config.sampling.max_completion_length,
            seed=derive_seed(self.seed, "what if"),
            end_ids=self.session.solver.end_ids,
        )
        return {**agreement(rows), "rows": rows}
