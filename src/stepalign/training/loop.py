"""The training loop: collect, learn, record, evaluate, save. It is the same for every condition.

    problems -> rollouts -> critiques -> contexts -> Samples -> optimizer step

What differs from a textbook GRPO loop: the reward may be joined or replaced by a self-teacher that reads a context,
and both sides of that comparison score the very ids that were sampled. There is no reference-policy penalty unless
``objective.beta`` asks for one, every update is on-policy unless ``training.updates_per_batch`` says otherwise, and the
loss is one sum divided by one global count unless ``objective.loss_type`` weighs tokens otherwise.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stepalign.build import (
    Session,
    find_truth,
    make_critic,
    open_session,
)
from stepalign.config import Config, check_checkpoint_rule
from stepalign.critics import RUN_FILES
from stepalign.critics.budget import cost
from stepalign.domains.math.grading import canonical_answer
from stepalign.domains.table import load_sets
from stepalign.errors import BudgetSpentError, ConfigError
from stepalign.evaluation.evaluate import metric_rows, metrics_of, sample_and_grade
from stepalign.events import Event, Listener, evaluation, line, step, warning
from stepalign.models.load import Solver, is_shipped, save_solver
from stepalign.problems.sets import fingerprint
from stepalign.records import Problem, to_json
from stepalign.rollouts.collect import RolloutCollector
from stepalign.rollouts.credit import check_terms
from stepalign.rollouts.order import derive_seed
from stepalign.rollouts.review import make_rules
from stepalign.rollouts.samples import SampleMaker
from stepalign.rollouts.stream import Batch, Stream
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.files import move_into_place, seal, write_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.run_folder import RunFolder
from stepalign.training import checkpoint as checkpoints
from stepalign.training.health import Guards
from stepalign.training.learner import Learner
from stepalign.training.preflight import check_dtype, check_material, check_prompts
from stepalign.training.teacher import Teacher
from stepalign.training.trackers import check_trackers, open_trackers
from stepalign.waiting import wait_for

PHASES = ("sampling", "feedback", "learning", "evaluation", "saving")


@dataclass(slots=True)
class Progress:
    """What a run has done so far; it is part of every checkpoint."""

    step: int = 0
    """Finished optimizer steps."""
    num_rollouts: int = 0
    num_tokens: int = 0
    """Completion tokens sampled for training."""
    seconds: float = 0.0
    """Spent in training phases, evaluation and saving left out."""
    seconds_by_phase: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    critic: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    guard_history: list[dict[str, float]] = field(default_factory=list)
    guards_spoken: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Progress:
        progress = cls(**fields)
        for name in ("critic", "masked", "findings"):
            setattr(progress, name, Counter(getattr(progress, name)))
        return progress


def train(
    config: Config, out: Path, *, resume: bool, listener: Listener, stop: StopRequest, shared_folder: Path | None = None
) -> Progress:
    """Run one condition.

    Args:
        config: the resolved run.
        out: the run folder.
        resume: continue from the newest checkpoint in it.
        listener: told about progress.
        stop: when asked, the run saves itself and raises Interrupted.
        shared_folder: where the critique cache lies when several runs share one; the run folder by default.

    Raises:
        ConfigError, EndpointError, LockedError: see the session and the run folder; nothing is half-written.
        Interrupted: asked to stop; the checkpoint is on disk.
    """
    torch.set_num_threads(
        1 if config.model.device == "cpu" and is_shipped(config.model.path) else torch.get_num_threads()
    )
    check_trackers(config.training)
    loaded = load_sets(config.data)
    for name, found in loaded.items():
        for reason, count in found.skipped.items():
            listener(line(f"{name}: {count} rows skipped: {reason}"))
    sets = {name: found.problems for name, found in loaded.items()}
    check_checkpoint_rule(config, {name: len(problems) for name, problems in sets.items()})
    progress = Progress()
    check_material(config, sets["train"], listener)
    check_dtype(config, listener)
    session = open_session(config)
    try:
        check_prompts(config, session.solver, session.prompts, sets)
        with RunFolder(out, config, resume=resume, extra=RUN_FILES) as folder:
            run = _Run(config, folder, session, sets, progress, listener, stop, shared_folder or out)
            try:
                run.go()
            finally:
                run.close()
            summary = {**run_summary(config, progress), "peak_memory_bytes": _peak_memory()}
            write_json(out / "summary.json", summary)
    finally:
        session.close()
    return progress


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Run:
    """The pieces of one run, put together once; ``go`` is the loop."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        session: Session,
        sets: dict[str, tuple[Problem, ...]],
        progress: Progress,
        listener: Listener,
        stop: StopRequest,
        shared_folder: Path,
    ) -> None:
        self.config, self.folder, self.session, self.sets = config, folder, session, sets
        self.progress, self.listener, self.stop = progress, listener, stop
        self.fingerprints = {name: fingerprint(problems) for name, problems in sets.items()}
        self.guards = Guards(config.guards, config.objective.teacher.weights)
        condition = check_terms(config)
        self.critic = make_critic(config, shared_folder, [condition.design], listener, folder.path)
        self.stream = Stream(
            collector=RolloutCollector(
                maker=session.maker,
                sampling=config.sampling,
                critic=self.critic,
                rules=make_rules(config.critic, config.data, session.grader) if config.critic.judged else None,
            ),
            samples=SampleMaker(
                tokenizer=session.solver.tokenizer,
                prompts=session.prompts,
                condition=condition,
                objective=config.objective,
                skip_zero_std_groups=config.sampling.skip_zero_std_groups,
                truth=find_truth(config, session.solver),
            ),
            problems=sets["train"],
            problems_per_step=config.training.problems_per_step,
            seed=config.training.seed,
        )
        self.learner = Learner(
            session.solver,
            config.objective,
            config.training,
            temperature=config.sampling.temperature,
            max_completion_length=config.sampling.max_completion_length,
        )
        self.teacher = Teacher(
            session.solver.model, config.objective.teacher, keeps_reference=config.objective.beta > 0
        )
        self._resume()
        self.trackers = open_trackers(
            config.training, config.model_dump(mode="json"), folder.path, self.progress.step, listener
        )

    def go(self) -> None:
        section = self.config.training
        self.publish_weights()
        if self.config.evaluation.at_start if self.progress.step == 0 else self._due(self.config.evaluation.eval_steps):
            self.evaluate()  # before the first step, or where an evaluation was interrupted
        batches = self.stream.batches(self.progress.step, section.max_steps, self.listener)
        while not self._ended():
            with self.timed("sampling"), self._saved_if_the_budget_ends():
                batch = next(batches)
            self._book_feedback(batch.feedback_seconds)
            self._stop_if_asked()
            with self.timed("learning"):
                numbers = self.learner.update(batch.samples, self.teacher, self.progress.step)
            self.progress.step += 1
            self.publish_weights()
            self.record(batch, numbers)
            if self._due(self.config.evaluation.eval_steps):
                self.evaluate()
            if self._due(section.save_steps):
                self.save()
            self._stop_if_asked()
        save_final(self.session.solver, self.folder.path / "final")

    def publish_weights(self) -> None:
        """Let the sampler draw from the weights as they are now."""
        named = self.session.solver.model.named_parameters()
        weights = {name: parameter for name, parameter in named if parameter.requires_grad}
        wait_for(self.session.sampler.publish(weights, self.progress.step))

    # -- the parts of a step ------------------------------------------------------------------------------------------

    def record(self, batch: Batch, numbers: dict[str, float]) -> None:
        """Put the step on disk and look at its health."""
        progress = self.progress
        progress.num_rollouts += len(batch.rollouts)
        progress.num_tokens += int(batch.numbers["num_tokens"])
        progress.masked += batch.masked
        for critique in batch.critiques:
            progress.critic["calls"] += 1
            progress.critic[critique.status] += 1
            progress.critic["cached"] += critique.cached
            progress.critic["retries"] += critique.retries
            progress.findings.update(critique.findings)
        if (ledger := getattr(self.critic, "ledger", None)) is not None:  # a served critic costs something
            for name in ("attempts", "prompt_tokens", "completion_tokens"):
                progress.critic[name] = getattr(ledger, name)
        step_numbers = {
            **batch.numbers,
            **numbers,
            "masked": float(sum(batch.masked.values())),
            "total_rollouts": float(progress.num_rollouts),
            "total_tokens": float(progress.num_tokens),
            "seconds": progress.seconds,
        }
        done = progress.step
        self.folder.append("rollouts", ({"record_step": done, **to_json(r)} for r in batch.rollouts))
        self.folder.append("critiques", ({"record_step": done, **to_json(c)} for c in batch.critiques))
        self.folder.append("contexts", ({"record_step": done, **to_json(c)} for c in batch.contexts))
        warnings = self.guards.look(step_numbers, progress.masked)
        for sentence in warnings:
            progress.warnings.append(f"step {done}: {sentence}")
            self.listener(warning(progress.warnings[-1]))
        self.folder.append("metrics", [{"step": done, **step_numbers}])
        self.listener(step(done, self.config.training.max_steps, step_numbers))
        self.trackers.step(done, step_numbers)
        if warnings and self.config.guards.stop:
            self.save()
            raise ConfigError(
                f"the run was stopped by a guard: {progress.warnings[-1]}",
                where=str(self.folder.path),
                hint="change the recipe; the last checkpoint is kept, and --resume goes on from it all the same",
            )

    def evaluate(self) -> None:
        """Measure the held-out sets that are due at this step."""
        done, section = self.progress.step, self.config.evaluation
        last = self._ended()
        names = ["validation", "test"] if last or section.checkpoint_rule != "last" else ["validation"]
        with self.timed("evaluation"):
            for name in names:
                if not self.sets[name] or (done, name) in self.evaluated:
                    continue
                graded = sample_and_grade(
                    self.sets[name],
                    num_samples=section.num_samples,
                    seed=derive_seed(section.seed, name),
                    attempt=self.session.attempt,
                    canonical=canonical_answer,
                    file=self.folder.path / "samples" / f"step-{done:05d}-{name}.jsonl",
                    listener=self._evaluating,
                )
                rows = metric_rows(
                    metrics_of(graded, self.config.ks), level=section.confidence, resamples=section.bootstrap_samples
                )
                totals = {"rollouts": self.progress.num_rollouts, "seconds": self.progress.seconds}
                self.evaluated.add((done, name))
                self.folder.append("evaluations", [{"step": done, "set": name, **totals, "metrics": rows}])
                self.listener(evaluation(done, name, rows))
                self.trackers.evaluated(done, name, rows)

    def save(self) -> None:
        """Write a checkpoint and let old ones go."""
        with self.timed("saving"):
            progress = self.progress
            progress.guard_history, progress.guards_spoken = self.guards.history, self.guards.warned
            state = {"progress": progress.as_json(), "sizes": self.folder.sizes(), "problems": self.fingerprints}
            root = self.folder.path / "checkpoints"
            checkpoints.save_checkpoint(
                root,
                progress.step,
                solver=self.session.solver,
                optimizer=self.learner.optimizer,
                teacher=self.teacher.state(),
                state=json.loads(json.dumps(state)),
            )
            limit = self.config.training.save_total_limit
            for old in checkpoints.find_checkpoints(root)[:-limit] if limit else []:
                shutil.rmtree(old)

    # -- resuming, stopping, timing -----------------------------------------------------------------------------------

    def _resume(self) -> None:
        found = checkpoints.load_latest(self.folder.path / "checkpoints")
        if found is not None:
            self._refuse_other_problems(found.state.get("problems", {}))
        self.folder.rewind(found.state["sizes"] if found else {})
        rows = read_json_lines(self.folder.path / "evaluations.jsonl")
        self.evaluated = {(row["step"], row["set"]) for row in rows}
        if found is None:
            return
        checkpoints.restore_weights(self.session.solver, found.weights)
        checkpoints.restore_optimizer(self.learner.optimizer, found.optimizer)
        self.teacher.load(found.teacher)
        saved = Progress.from_json(found.state["progress"])
        for name in Progress.__slots__:
            setattr(self.progress, name, getattr(saved, name))
        self.guards.history, self.guards.warned = saved.guard_history, saved.guards_spoken
        self.listener(line(f"continues from {found.folder.name}"))

    def _refuse_other_problems(self, before: dict[str, str]) -> None:
        """A file may have changed under its name: half a run on other problems would be nobody's run."""
        for name, digest in before.items():
            if digest != self.fingerprints[name]:
                raise ConfigError(
                    f"the {name} problems have changed since the run began",
                    where=f"data.{name} = {getattr(self.config.data, name)}",
                    hint="put the old ones back, or give another --out",
                )

    def _ended(self) -> bool:
        """Whether the steps, the tokens or the seconds of the run are spent."""
        section, progress = self.config.training, self.progress
        return (
            progress.step >= section.max_steps
            or (section.token_budget is not None and progress.num_tokens >= section.token_budget)
            or (section.time_budget is not None and progress.seconds >= section.time_budget)
        )

    def _due(self, every: int) -> bool:
        return self._ended() or (every > 0 and self.progress.step % every == 0)

    def _stop_if_asked(self) -> None:
        if self.stop.asked:
            if self.progress.step:  # before the first step a new start is the same, evaluation included
                self.save()
            raise Interrupted

    @contextmanager
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
        if event.done < event.total:  # what is evaluated is kept: a long evaluation goes on where it stopped
            self._stop_if_asked()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.progress.seconds_by_phase[phase] += spent
            if phase in ("sampling", "learning"):
                self.progress.seconds += spent

    def _book_feedback(self, seconds: float) -> None:
        """Waiting for critiques is a phase of its own; those that came while the sampler was busy cost no time."""
        self.progress.seconds_by_phase["sampling"] -= seconds
        self.progress.seconds_by_phase["feedback"] += seconds

    def close(self) -> None:
        self.trackers.close()
        if self.critic is not None:
            self.critic.close()


def save_final(solver: Solver, folder: Path) -> None:
    """The last weights in Hugging Face layout; adapters stay adapters."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_solver(solver, temporary)
    seal(temporary)
    move_into_place(temporary, folder)


def run_summary(config: Config, progress: Progress) -> dict[str, Any]:
    """What a comparison says about one run; see docs/formats.md."""
    critic: dict[str, Any] = {
        name: progress.critic.get(name, 0) for name in ("calls", "malformed", "failed", "cached", "attempts")
    }
    critic |= {name: progress.critic.get(name, 0) for name in ("retries", "prompt_tokens", "completion_tokens")}
    critic["cost"] = cost(config.critic.prices, critic["prompt_tokens"], critic["completion_tokens"])
    critic["findings"] = dict(progress.findings) if config.critic.judged else None
    return {
        "seed": config.training.seed,
        "steps": progress.step,
        "rollouts": progress.num_rollouts,
        "completion_tokens": progress.num_tokens,
        "seconds": progress.seconds,
        "seconds_by_phase": progress.seconds_by_phase,
        "critic": critic,
        "masked": dict(progress.masked),
        "warnings": progress.warnings,
    }
