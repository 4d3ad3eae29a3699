"""The training loop: collect, learn, record, evaluate, save. It is the same for every condition.

    problems -> rollouts -> critiques -> contexts -> Samples -> optimizer step

Differences from a textbook GRPO loop: the reward may be joined or replaced by a self-teacher that reads a context,
and both sides of that comparison score the very ids that were sampled. There is no reference-policy penalty unless
``objective.beta`` asks for one, every update is on-policy unless ``training.updates_per_batch`` says otherwise, and the
loss is one sum divided by one global count unless ``objective.loss_type`` weighs tokens otherwise.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stepalign.config import EvaluationSection, TrainingSection
from stepalign.errors import BudgetSpentError, ConfigError
from stepalign.events import Event, Listener, evaluation, line, step, warning
from stepalign.models.load import Solver
from stepalign.models.sampling import Sampler
from stepalign.records import Sample, to_json
from stepalign.rollouts.stream import Batch, Stream
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.files import tidy
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.run_folder import RunFolder
from stepalign.training import checkpoint as checkpoints
from stepalign.training.breaks import Broke
from stepalign.training.distributed import Team
from stepalign.training.health import Guards, first_step
from stepalign.training.learner import Learner
from stepalign.training.mismatch import SamplerCheck
from stepalign.training.progress import Progress
from stepalign.training.recovery import SNAPSHOT_STEPS, Past
from stepalign.training.teacher import Teacher
from stepalign.training.timeline import Timeline, write_trace
from stepalign.training.trackers import Trackers
from stepalign.waiting import wait_for

_STOPPING = "stopping: the run saves itself; once more stops at once"


class _EvaluationStoppedError(Exception):
    """An Interrupted that may cross an event loop."""


class Measure(Protocol):
    """Samples, grades and measures a held-out set; finished problems are kept in ``file`` and not done again."""

    def __call__(self, name: str, file: Path, listener: Listener) -> list[dict[str, Any]]: ...


@dataclass(kw_only=True)
class Run:
    """The parts of a run, made by ``build.make_run``; ``go`` is the loop."""

    training: TrainingSection
    evaluation: EvaluationSection
    stops_at_warnings: bool
    folder: RunFolder
    solver: Solver
    sampler: Sampler
    sampler_check: SamplerCheck | None
    """For samplers that hold weights of their own."""
    stream: Stream
    accumulate: bool
    """Whether groups learn while others are still out."""
    learner: Learner | Team
    teacher: Teacher
    guards: Guards
    held_out: Sequence[str]
    """The sets that have problems: "validation", "test"."""
    measure: Measure
    fingerprints: Mapping[str, str]
    """Of the problems of each set."""
    paid: Callable[[], Mapping[str, int]]
    open_trackers: Callable[[int], Trackers]
    """Called with the finished steps."""
    listener: Listener
    stop: StopRequest
    progress: Progress = field(default_factory=Progress)

    def go(self) -> None:
        """Train to the end of the budget, from the newest checkpoint where there is one.

        Raises:
            Interrupted: asked to stop, with a checkpoint on disk once there is a step. A request in the middle of an
                update waits for its micro-batch; then the step begins anew when the run goes on.
            ConfigError: the problems have changed since the checkpoint, or a guard stops the run.
            BudgetSpentError: the critic's budget is spent; a checkpoint is on disk.
        """
        self._early: Sequence[str] = ()
        self._checkpoints = self.folder.path / "checkpoints"
        parts = (self.solver, self.learner, self.teacher, self._checkpoints, self.guards.section)
        self.past = Past(*parts, ahead=self.stream.ahead, limit=self.training.save_total_limit)
        self.past.keep(0)
        self.timeline = Timeline(self.folder, self.stream.ahead + 1)
        self._resume()
        self.trackers = self.open_trackers(self.progress.step)
        try:
            with self.stop.held(_STOPPING):
                self._train()
        finally:
            self.trackers.close()
            self.learner.close()
            self.timeline.write()
            write_trace(self.folder.path)
        checkpoints.save_final(self.solver, self.folder.path / "final")

    def _train(self) -> None:
        self.past.keep(self.progress.step)
        self.publish_weights()
        if self.evaluation.at_start if self.progress.step == 0 else self.due(self.evaluation.eval_steps):
            self.evaluate()  # before the first step, or where an evaluation was interrupted
        batches = self.stream.batches(self.progress.step, self.training.max_steps, self.listener, self._early)
        with contextlib.closing(batches):
            try:
                self._steps(batches)
            except Interrupted:  # between two steps, wherever in sampling, critiques, learning or evaluation
                self._save_stopped()
                raise

    def _steps(self, batches: Iterator[Batch]) -> None:
        """Until the end of the budget."""
        while not self.ended:
            with self._saved_if_the_budget_ends():
                batch, numbers = self._learn_as_they_come() if self.accumulate else self._learn(batches)
            if self.stream.ahead:
                numbers |= batch.staleness(self.progress.step)
            self.progress.step += 1
            self.record(batch, numbers)
            if self.progress.step % SNAPSHOT_STEPS == 0:
                self.past.keep(self.progress.step)
            self.publish_weights()
            if self.due(self.evaluation.eval_steps):
                self.evaluate()
            if self.due(self.training.save_steps):
                self.save()
            self.stop_if_asked()

    def _learn(self, batches: Iterator[Batch]) -> tuple[Batch, dict[str, float]]:
        """Collect a step, then learn from it."""
        before = self.progress.seconds_by_phase["sampling"]
        with self.timed("sampling"):
            batch = next(batches)
        self._book_feedback(min(batch.feedback_seconds, self.progress.seconds_by_phase["sampling"] - before))
        self.timeline.collected(self.progress.step + 1, batch.times)
        self.stop_if_asked()
        with self.timed("learning"):
            numbers = self._check_sampler(batch)
            return batch, numbers | self._update(batch)

    def _update(self, batch: Batch) -> dict[str, float]:
        return self.learner.update(batch.samples, self.teacher, self.progress.step, self.progress.rate_factor)

    def _learn_as_they_come(self) -> tuple[Batch, dict[str, float]]:
        """Learn from the groups of a step while others are out; waiting for them is booked as sampling."""
        step, found = self.progress.step, list[Batch]()

        def parts() -> Iterator[list[Sample]]:
            arriving = self.stream.arriving(step)
            while True:
                try:
                    with self.timed("sampling"):
                        samples = next(arriving)
                except StopIteration as end:
                    found.append(end.value)
                    break
                with self.timed("learning"):
                    yield samples
            self.stop_if_asked()
            checked.update(self._check_sampler(found[0]))
            last.enter_context(self.timed("learning"))  # to the end of the optimizer step

        checked: dict[str, float] = {}
        assert isinstance(self.learner, Learner)  # one process: the recipe was checked
        with contextlib.ExitStack() as last:
            numbers = self.learner.update_as_they_come(parts(), self.teacher, step, self.progress.rate_factor)
        self.timeline.collected(step + 1, found[0].times)
        return found[0], checked | numbers

    def _check_sampler(self, batch: Batch) -> dict[str, float]:
        return self.sampler_check(batch, self.progress.step) if self.sampler_check else {}

    # -- the parts of a step ------------------------------------------------------------------------------------------

    def publish_weights(self) -> None:
        """Let the sampler draw from the weights as they are now."""
        self.learner.gather()
        weights = {name: one for name, one in self.solver.model.named_parameters() if one.requires_grad}
        wait_for(self.sampler.publish(weights, self.progress.step))

    def record(self, batch: Batch, numbers: Mapping[str, float]) -> None:
        """Put the step on disk and look at its health."""
        progress, done = self.progress, self.progress.step
        row = {**batch.numbers, **numbers, **progress.count(batch, self.paid())}
        self.folder.append("rollouts", ({"record_step": done, **to_json(r)} for r in batch.rollouts))
        self.folder.append("critiques", ({"record_step": done, **to_json(c)} for c in batch.critiques))
        self.folder.append("contexts", ({"record_step": done, **to_json(c)} for c in batch.contexts))
        sentences = self.guards.look({"step": done, **row}, progress.masked)
        sentences += [first] if done == 1 and (first := first_step(row)) else []
        warnings = [f"step {done}: {sentence}" for sentence in sentences]
        progress.warnings += warnings
        for sentence in warnings:
            self.listener(warning(sentence))
        broke, back = self.guards.broke, None
        if broke is not None:
            self.past.mark_wrecks(broke, done)
            if broke.policy == "roll_back":
                back = self.past.back(broke, done, [one["step"] for one in progress.roll_backs])
            if back is not None:
                row["rolled_back_to"] = back
        self.folder.append("metrics", [{"step": done, **row}])
        self.timeline.write()
        self.listener(step(done, self.training.max_steps, row))
        self.trackers.step(done, row)
        if broke is not None:
            self._meet(broke, back)
        if warnings and self.stops_at_warnings:
            self.save(keeps_all=True)
            raise ConfigError(
                f"the run was stopped by a guard: {warnings[-1]}",
                where=str(self.folder.path),
                hint="change the recipe; the last checkpoint is kept, and --resume goes on from it all the same",
            )

    def _meet(self, broke: Broke, back: int | None) -> None:
        """Go on from where a break was taken back to, or end the run."""
        progress, done = self.progress, self.progress.step
        if back is None:
            healthy = self.past.last_checkpoint()
            again = "no checkpoint is healthy"
            if healthy:
                again = f"{healthy} is the last healthy one: --resume --set guards.policy=roll_back goes on from there"
            raise ConfigError(
                f"the run was stopped by a guard ({broke.guard}): step {done}: {broke.sentence}",
                where=str(self.folder.path),
                hint=f"{again}; or lower training.learning_rate, with another --out",
            )
        factor = self.guards.section.learning_rate_factor
        progress.rate_factor *= factor
        progress.roll_backs.append({"step": done, "to": back, "guard": broke.guard, "sentence": broke.sentence})
        text = f"step {done}: {broke.sentence}: rolled back to step {back}, learning rate x {progress.rate_factor:g}"
        progress.warnings.append(text)
        self.listener(warning(text))
        self._remind_guards()
        self.stream.forget()
        self.save()

    def evaluate(self) -> None:
        """Measure the held-out sets that are due at this step."""
        done = self.progress.step
        due = ("validation", "test") if self.ended or self.evaluation.checkpoint_rule != "last" else ("validation",)
        with self.timed("evaluation"):
            for name in due:
                if name not in self.held_out or (done, name) in self.evaluated:
                    continue
                file = self.folder.path / "samples" / f"step-{done:05d}-{name}.jsonl"
                try:
                    rows = self.measure(name, file, self._evaluating)
                except _EvaluationStoppedError:
                    raise Interrupted from None
                self.evaluated.add((done, name))
                totals = {"rollouts": self.progress.num_rollouts, "seconds": self.progress.seconds}
                self.folder.append("evaluations", [{"step": done, "set": name, **totals, "metrics": rows}])
                self.listener(evaluation(done, name, rows))
                self.trackers.evaluated(done, name, rows)

    def save(self, *, keeps_all: bool = False) -> None:
        """Write a checkpoint and delete the oldest; with ``keeps_all`` none, as this one may hold diverged weights."""
        with self.timed("saving"):
            progress = self.progress
            progress.guards_spoken = self.guards.warned
            others = [f"samples/step-{step:05d}-{name}" for step, name in sorted(self.evaluated)]
            others.append("versions.json")
            state = {
                "progress": progress.as_json(),
                "sizes": self.folder.sizes(others),
                "sums": self.folder.sums(others),
                "problems": self.fingerprints,
                "collected_early": self.stream.collected_early(progress.step),
            }
            checkpoints.save_checkpoint(
                self._checkpoints,
                progress.step,
                solver=self.solver,
                write=lambda folder: self.learner.write(folder, self.teacher),
                state=json.loads(json.dumps(state)),
            )
            if not keeps_all:
                self.past.thin(progress.step, ended=self.ended)
        self.past.keep(progress.step)
        self.stop.kept = f"the run is saved after {self._steps_done}"

    @property
    def _steps_done(self) -> str:
        return f"{self.progress.step} step{'s' if self.progress.step > 1 else ''}"

    # -- resuming, stopping, timing -----------------------------------------------------------------------------------

    def _resume(self) -> None:
        tidy(self.folder.path)
        wrecks = self.guards.section.policy == "warn"
        found = checkpoints.load_latest(self._checkpoints, self.listener, wrecks=wrecks)
        for name, digest in (found.state.get("problems", {}) if found else {}).items():
            if digest != self.fingerprints[name]:
                raise ConfigError(
                    f"the {name} problems have changed since the run began",
                    where=f"data.{name}",
                    hint="put the old ones back, or give another --out",
                )
        self._refuse_lost_checkpoints(found)
        saved = found.state if found else {}
        self.folder.rewind(saved.get("sizes", {}), saved.get("sums", {}))
        rows = read_json_lines(self.folder.path / "evaluations.jsonl")
        self.evaluated = {(row["step"], row["set"]) for row in rows}
        if found is None:
            return
        self.past.restore(found)
        self.progress.load(found.state["progress"])
        self._early = found.state.get("collected_early", ())
        self.guards.warned = self.progress.guards_spoken
        self._remind_guards()
        self.stop.kept = f"the run is saved after {self._steps_done}"
        self.listener(line(f"continues from {found.folder.name}"))

    def _remind_guards(self) -> None:
        taken_back = [(one["to"], one["step"]) for one in self.progress.roll_backs]
        self.guards.remember(read_json_lines(self.folder.path / "metrics.jsonl"), taken_back)

    def _refuse_lost_checkpoints(self, found: checkpoints.Checkpoint | None) -> None:
        """Before the first checkpoint a run begins anew; behind it there must be one."""
        *_, last = {"step": 0}, *read_json_lines(self.folder.path / "metrics.jsonl")
        if found is None and 0 < self.training.save_steps < last["step"]:
            raise ConfigError(
                f"there is no checkpoint, and the records go to step {last['step']}: {self._checkpoints.name}/ is lost",
                where=str(self._checkpoints),
                hint="put it back; without it, begin anew with another --out",
            )

    @property
    def ended(self) -> bool:
        """Whether the steps, the tokens or the seconds of the run are spent."""
        section, progress = self.training, self.progress
        return (
            progress.step >= section.max_steps
            or (section.token_budget is not None and progress.num_tokens >= section.token_budget)
            or (section.time_budget is not None and progress.seconds >= section.time_budget)
        )

    def due(self, every: int) -> bool:
        return self.ended or (every > 0 and self.progress.step % every == 0)

    def stop_if_asked(self) -> None:
        if self.stop.asked:
            raise Interrupted

    def _save_stopped(self) -> None:
        if self.progress.step:  # before the first step a new start is the same, evaluation included
            self.save()
            self.stop.kept = f"everything so far is saved, {self._steps_done}"

    @contextlib.contextmanager
    def _saved_if_the_budget_ends(self) -> Iterator[None]:
        """The step begins anew when the run goes on: same rollouts, and the critiques paid for are in the cache."""
        try:
            yield
        except BudgetSpentError:
            if self.progress.step:
                self.save()
            raise

    def _evaluating(self, event: Event) -> None:
        self.listener(event)
        if self.stop.asked and event.done < event.total:  # a long evaluation goes on where it stopped
            raise _EvaluationStoppedError

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start, begun = time.perf_counter(), time.time()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.timeline.add(phase, begun, begun + spent, step=self.progress.step)
            self.progress.seconds_by_phase[phase] += spent
            if phase in ("sampling", "learning"):
                self.progress.seconds += spent

    def _book_feedback(self, seconds: float) -> None:
        """Waiting for critiques is a phase of its own; those that came while the sampler was busy cost no time."""
        self.progress.seconds_by_phase["sampling"] -= seconds
        self.progress.seconds_by_phase["feedback"] += seconds
