"""The stream of Batches that the trainer eats.

With ``ahead`` = k a step is collected k optimizer steps before it trains, so the weights that drew it are k steps old.
A sampler with weights of its own then works while the trainer does: a step takes max(longest stage, chain / (k + 1))
instead of the chain of rollouts, critiques and update. ``arriving`` stays on-policy and shortens the chain: groups
learn while others are still out.
"""

from __future__ import annotations

import queue
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepalign.events import Listener, silent
from stepalign.records import Context, Critique, Problem, Rollout, Sample
from stepalign.rollouts.collect import RolloutCollector
from stepalign.rollouts.early import Collected, JudgedGroup, from_line, to_line
from stepalign.rollouts.metrics import critique_numbers, rollout_numbers
from stepalign.rollouts.order import problems_of_step
from stepalign.rollouts.samples import Prepared, SampleMaker, joined
from stepalign.stopping import PROCESS, Interrupted
from stepalign.waiting import BackgroundLoop, result_of, wait_for, wait_for_item

if TYPE_CHECKING:
    from stepalign.models.served_teacher import ServedTeacher

_LAST_SECONDS = 2.0
"""For a step that is nearly collected when the process is asked to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The samples of one step, and the records behind it."""

    rollouts: list[Rollout]
    critiques: list[Critique]
    contexts: list[Context]
    samples: list[Sample]
    numbers: dict[str, float]
    masked: Counter[str]
    """Rollouts without a context, by reason."""
    feedback_seconds: float
    """Spent waiting for critiques after the last completion."""
    times: tuple[float, float, float]
    """When sampling began, its last completion ended, the last critique came: seconds since the epoch."""

    def staleness(self, step: int) -> dict[str, float]:
        """Optimizer steps between the weights that drew the completions and those of ``step``: mean and maximum."""
        ages = [step - rollout.completion.policy_version for rollout in self.rollouts]
        return {"staleness": sum(ages) / len(ages), "max_staleness": float(max(ages))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Batches of one run, step after step."""

    collector: RolloutCollector
    samples: SampleMaker
    teacher: ServedTeacher | None = None
    """Scores the samples where the teacher is behind servers."""
    problems: Sequence[Problem]
    problems_per_step: int
    seed: int
    ahead: int = 0
    """Steps that a batch is collected early. 0 is strictly on-policy; with k the weights that drew a batch are k
    optimizer steps behind those that learn from it."""
    overlaps: bool = False
    """Whether the sampler has weights of its own, so that steps are collected in a thread while others train."""
    _early: deque[tuple[int, Future[Collected]]] = field(default_factory=deque)
    """Steps that are collected, or on their way, before they train."""

    def batches(self, start: int, end: int, listener: Listener = silent, early: Sequence[str] = ()) -> Generator[Batch]:
        """The batches of steps ``start`` to ``end`` - 1. Each is collected when it is asked for, or ``ahead`` earlier.

        Args:
            early: what ``collected_early`` gave when the run was saved at ``start``.

        Raises:
            BudgetSpentError: see ``review.ask``.
        """
        self._early.clear()
        for step, saved in enumerate(early, start):
            self._early.append((step, _done(from_line(saved, self._problems_of(step)))))
        in_a_thread = self.ahead and self.overlaps
        with BackgroundLoop("rollouts") if in_a_thread else nullcontext() as loop:
            for step in range(start, end):
                upcoming = self._early[-1][0] + 1 if self._early else step
                for one in range(upcoming, min(step + self.ahead + 1, end)):
                    # In a thread nothing is shown: the display belongs to the step that trains.
                    work = self.collector.collect(
                        self._problems_of(one), one, self.seed, silent if in_a_thread else listener
                    )
                    self._early.append((one, loop.run(work) if loop is not None else _done(wait_for(work))))
                yield self._batch(result_of(self._early[0][1]), step)
                if self._early:
                    self._early.popleft()

    def collected_early(self, start: int) -> list[str]:
        """The steps from ``start`` on that are collected already, one text each; those under way are waited for.

        A step that fails, that was cancelled, or that is under way when the process is asked to stop, and those behind
        it, are left out: they are collected again.
        """
        lines: list[str] = []
        for step, future in self._early if self.ahead else ():
            if PROCESS.asked:
                wait([future], _LAST_SECONDS)
            try:
                result_of(future)
            except (Exception, CancelledError, Interrupted):
                break
            if step >= start:
                lines.append(to_line(future.result()))
        return lines

    def forget(self) -> None:
        """Drop what is collected, or on its way, before it trains: the weights that drew it are taken back."""
        for _, future in self._early:
            future.cancel()
        self._early.clear()

    def batch(self, problems: Sequence[Problem], step: int, listener: Listener = silent) -> Batch:
        """Collect and prepare one step."""
        return self._batch(wait_for(self.collector.collect(problems, step, self.seed, listener)), step)

    def arriving(self, step: int) -> Generator[list[Sample], None, Batch]:
        """The samples of a step in parts, those groups that are judged by the time of asking; the batch at the end.

        Samples are made in the thread that waits, while the one that asks learns.

        Raises:
            BudgetSpentError: see ``review.ask``.
        """
        ready: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        made: dict[int, Prepared] = {}

        def judged(group: JudgedGroup) -> None:
            made[id(group)] = self.samples.make([group], step)
            ready.put(made[id(group)])

        with BackgroundLoop("rollouts") as loop:
            future = loop.run(self.collector.collect(self._problems_of(step), step, self.seed, on_group=judged))
            future.add_done_callback(lambda _: ready.put(None))
            is_open = True
            while is_open:
                found = [wait_for_item(ready)]
                while not ready.empty():
                    found.append(ready.get())
                is_open = None not in found
                if samples := [sample for part in found if part is not None for sample in part.samples]:
                    yield samples
            collected = result_of(future)
            return self._batch(collected, step, joined(made[id(group)] for group in collected.groups))

    def _problems_of(self, step: int) -> list[Problem]:
        return problems_of_step(self.problems, step, self.problems_per_step, self.seed)

    def _batch(self, collected: Collected, step: int, prepared: Prepared | None = None) -> Batch:
        groups = collected.groups
        prepared = prepared or self.samples.make(groups, step)
        if self.teacher is not None:
            prepared.samples = wait_for(self.teacher.score(prepared.samples))
        critiques = [critique for group in groups for critique in group.critiques if critique is not None]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return Batch(
            rollouts=rollouts,
            critiques=critiques,
            contexts=prepared.contexts,
            samples=prepared.samples,
            numbers={
                **rollout_numbers([group.rollouts for group in groups]),
                **(critique_numbers(critiques) if self.collector.rules else {}),
                **prepared.numbers,
            },
            masked=prepared.masked,
            feedback_seconds=collected.times[2] - collected.times[1],
            times=collected.times,
        )


def _done(collected: Collected) -> Future[Collected]:
    done: Future[Collected] = Future()
    done.set_result(collected)
    return done
