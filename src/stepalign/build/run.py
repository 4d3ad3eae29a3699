"""The parts of a training run, on one rank or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.build.session import Session
from stepalign.build.solver import find_truth, has_teacher, other_teacher, served_teacher, trained_solver
from stepalign.config import Config, TeacherSection
from stepalign.critics import Critic
from stepalign.events import Listener
from stepalign.feedback import designs
from stepalign.problems.sets import fingerprint
from stepalign.records import Problem
from stepalign.stopping import StopRequest
from stepalign.storage.run_folder import RunFolder
from stepalign.training.distributed import Team, shard
from stepalign.training.ranks import ONE_PROCESS, Ranks, join, num_ranks

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.training.learner import Learner
    from stepalign.training.loop import Run
    from stepalign.training.teacher import Teacher


def find_terms(config: Config) -> designs.Condition:
    """The recipe's condition. Raises ConfigError where the loss would have no signal."""
    from stepalign.rollouts.credit import check_terms

    return check_terms(config.condition, config.sampling, config.training, config.objective)


def make_run(
    session: Session,
    problems: Mapping[str, Sequence[Problem]],
    critic: Critic | None,
    folder: RunFolder,
    listener: Listener,
    stop: StopRequest,
) -> Run:
    """The parts of a training run.

    Args:
        problems: of the sets "train", "validation" and "test".
        critic: what the recipe's condition needs, or None.
        folder: where the run is recorded.
    """
    from stepalign.rollouts.collect import RolloutCollector
    from stepalign.rollouts.samples import SampleMaker
    from stepalign.rollouts.stream import Stream
    from stepalign.training.health import Guards
    from stepalign.training.loop import Run
    from stepalign.training.mismatch import SamplerCheck
    from stepalign.training.trackers import open_trackers

    config, solver = session.config, session.solver
    sampling, training, objective = config.sampling, config.training, config.objective
    learner, teacher = _make_team(config, solver) if num_ranks() > 1 else make_learner(config, solver, ONE_PROCESS)
    stream = Stream(
        collector=RolloutCollector(
            maker=session.maker,
            sampling=sampling,
            critic=critic,
            rules=session.rules,
        ),
        samples=SampleMaker(
            tokenizer=solver.tokenizer,
            prompts=session.prompts,
            condition=find_terms(config),
            objective=objective,
            skip_zero_std_groups=sampling.skip_zero_std_groups,
            truth=find_truth(config, solver),
        ),
        teacher=served_teacher(config),
        problems=problems["train"],
        problems_per_step=training.problems_per_step,
        seed=training.seed,
        ahead=config.rollouts.ahead,
        overlaps=session.sampler.has_own_weights,
    )

    def paid() -> dict[str, int]:
        ledger = getattr(critic, "ledger", None)  # a served critic costs something
        return {name: getattr(ledger, name) for name in ("attempts", "prompt_tokens", "completion_tokens") if ledger}

    def measure(name: str, file: Path, listener: Listener) -> list[dict[str, Any]]:
        return session.measure(problems[name], name, file, listener)[1]

    return Run(
        training=training,
        evaluation=config.evaluation,
        stops_at_warnings=config.guards.stop,
        folder=folder,
        solver=solver,
        sampler=session.sampler,
        sampler_check=SamplerCheck(solver, session.sampler, sampling.temperature, sampling.check_steps, listener)
        if session.sampler.has_own_weights
        else None,
        stream=stream,
        accumulate=config.rollouts.accumulate,
        learner=learner,
        teacher=teacher,
        guards=Guards(config.guards, objective.teacher.weights),
        held_out=[name for name in ("validation", "test") if problems[name]],
        measure=measure,
        fingerprints={name: fingerprint(found) for name, found in problems.items()},
        paid=paid,
        open_trackers=lambda done: open_trackers(training, config.model_dump(mode="json"), folder.path, done, listener),
        listener=listener,
        stop=stop,
    )


def make_learner(config: Config, solver: Solver, ranks: Ranks) -> tuple[Learner, Teacher]:
    """The learner of this process, and its self-teacher."""
    from stepalign.training.learner import Learner
    from stepalign.training.teacher import Teacher

    learner = Learner(
        solver,
        config.objective,
        config.training,
        temperature=config.sampling.temperature,
        max_completion_length=config.sampling.max_completion_length,
        ranks=ranks,
    )
    section, anchored, other = config.objective.teacher, config.objective.beta > 0, other_teacher(config, solver)
    if not (has_teacher(config) or anchored):
        section = TeacherSection(weights="live")  # which keeps no copy
    return learner, Teacher(solver.model, section, keeps_reference=anchored, other=other)


def _make_team(config: Config, whole: Solver | None) -> tuple[Team, Teacher]:
    """The learner of this rank. Rank 0 brings the recipe and its own whole solver; the others load theirs."""
    ranks = join(config.training.rank_timeout)
    config = Config.model_validate(ranks.say(config.model_dump(mode="json") if whole else None))
    solver = shard(whole or trained_solver(config))
    learner, teacher = make_learner(config, solver, ranks)
    return Team(ranks, solver, learner, teacher, whole), teacher


def follow_rank_0(config: Config) -> None:
    """The work of a rank above 0: its part of the learner, until rank 0 has ended the run."""
    _make_team(config, None)[0].follow()
