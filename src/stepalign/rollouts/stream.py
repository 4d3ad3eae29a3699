"""The stream of Batches that the trainer eats."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepalign.events import Listener, silent
from stepalign.records import Context, Critique, Problem, Rollout, Sample
from stepalign.rollouts.collect import RolloutCollector
from stepalign.rollouts.metrics import critique_numbers, rollout_numbers
from stepalign.rollouts.order import problems_of_step
from stepalign.rollouts.samples import SampleMaker
from stepalign.waiting import wait_for


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Batches of one run, step after step."""

    collector: RolloutCollector
    samples: SampleMaker
    problems: Sequence[Problem]
    problems_per_step: int
    seed: int
    ahead: int = 0
    """Steps that a batch is collected early. 0 is strictly on-policy; with k the weights that drew a batch are up to k
    optimizer steps behind those that learn from it."""

    def batches(self, start: int, end: int, listener: Listener = silent) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``end`` - 1. Each is collected when it is asked for, or ``ahead`` earlier.

        Raises:
            BudgetSpentError: see ``review.ask``.
        """
        collected: deque[Batch] = deque()
        for step in range(start, end):
            chosen = problems_of_step(self.problems, step, self.problems_per_step, self.seed)
            collected.append(self.batch(chosen, step, listener))
            if len(collected) > self.ahead:
                yield collected.popleft()
        yield from collected

    def batch(self, problems: Sequence[Problem], step: int, listener: Listener = silent) -> Batch:
        """Collect and prepare one step."""
        groups, feedback_seconds = wait_for(self.collector.collect(problems, step, self.seed, listener))
        prepared = self.samples.make(groups, step)
        critiques = [critique for group in groups for critique in group.critiques if critique is not None]
        return Batch(
            rollouts=[rollout for group in groups for rollout in group.rollouts],
            critiques=critiques,
            contexts=prepared.contexts,
            samples=prepared.samples,
            numbers={
                **rollout_numbers([group.rollouts for group in groups]),
                **(critique_numbers(critiques) if self.collector.rules else {}),
                **prepared.numbers,
            },
            masked=prepared.masked,
            feedback_seconds=feedback_seconds,
        )
