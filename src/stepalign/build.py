"""From a configuration to live objects: the only factory, and the last place that sees the whole configuration.

Importing it loads no torch; opening a session does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.config import Config, ModelSection, SamplingSection, changed
from stepalign.critics import CACHE, Critic
from stepalign.domains.domain import Truth
from stepalign.domains.math.grading import Grader, canonical_answer
from stepalign.domains.table import find_domain, make_grader, make_programmatic_critic
from stepalign.evaluation.evaluate import EvaluatedProblem, OnGraded, metric_rows, metrics_of, sample_and_grade
from stepalign.events import Listener, line, silent
from stepalign.feedback import designs
from stepalign.feedback.prompts import Template, load_template
from stepalign.problems.sets import fingerprint
from stepalign.records import Problem, Rollout
from stepalign.rollouts.order import derive_seed
from stepalign.rollouts.review import make_rules
from stepalign.stopping import StopRequest
from stepalign.storage.run_folder import RunFolder
from stepalign.training.distributed import Team, shard
from stepalign.training.ranks import ONE_PROCESS, Ranks, join, num_ranks
from stepalign.waiting import wait_for

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.models.prompts import PromptBuilder
    from stepalign.models.sampling import Sampler
    from stepalign.rollouts.collect import RolloutMaker
    from stepalign.rollouts.environment import Replier
    from stepalign.training.learner import Learner
    from stepalign.training.loop import Run
    from stepalign.training.teacher import Teacher


@dataclass(slots=True)
class Session:
    """A solver with the means to sample from it and to judge what it writes."""

    config: Config
    solver: Solver
    sampler: Sampler
    prompts: PromptBuilder
    grader: Grader
    replier: Replier | None = None
    """The environment's author of messages; None for a single turn."""

    @property
    def maker(self) -> RolloutMaker:
        """Draws and grades rollouts, at any settings."""
        from stepalign.rollouts.collect import RolloutMaker
        from stepalign.rollouts.environment import Conversation, SingleTurn

        section = self.config.environment
        limits = {"max_turns": section.max_turns, "max_reply_length": section.max_reply_length}
        environment = SingleTurn(self.prompts)
        if self.replier is not None:
            environment = Conversation(prompts=self.prompts, replier=self.replier, **limits)
        return RolloutMaker(
            tokenizer=self.solver.tokenizer,
            sampler=self.sampler,
            environment=environment,
            grader=self.grader,
            max_turn_length=section.max_turn_length if self.replier else None,
        )

    def attempt(
        self, problems: Sequence[Problem], num_samples: int, seed: int, on_graded: OnGraded = lambda *_: None
    ) -> list[list[Rollout]]:
        """Graded rollouts as the evaluation draws them."""
        return wait_for(
            self.maker.attempt(
                problems,
                num_samples=num_samples,
                temperature=self.config.evaluation.temperature,
                max_tokens=self.config.evaluation_length,
                seed=seed,
                on_graded=on_graded,
            )
        )

    def measure(
        self, problems: Sequence[Problem], name: str, file: Path, listener: Listener
    ) -> tuple[list[EvaluatedProblem], list[dict[str, Any]]]:
        """Sample and grade a set of problems as ``evaluation`` says; the graded problems, and the metrics as rows.

        Args:
            name: "validation" or "test"; each has seeds of its own.
            file: JSON lines where finished problems are kept.
        """
        section = self.config.evaluation
        graded = sample_and_grade(
            problems,
            num_samples=section.num_samples,
            seed=derive_seed(section.seed, name),
            attempt=self.attempt,
            canonical=canonical_answer,
            by_prompt=self.config.sampling.engine == "local",
            file=file,
            listener=listener,
        )
        metrics = metrics_of(graded, self.config.ks)
        return graded, metric_rows(metrics, level=section.confidence, resamples=section.bootstrap_samples)

    def close(self) -> None:
        self.grader.close()
        self.sampler.close()
        getattr(self.replier, "close", lambda: None)()


def make_replier(config: Config, grader: Grader, folder: Path | None = None) -> Replier | None:
    """The environment of a recipe, its domain's own where it names none; None for a single turn.

    Raises:
        ConfigError: see ``repliers.make_replier``.
    """
    from stepalign.rollouts import repliers

    own = find_domain(config.data).environment
    if config.environment.kind == "auto":
        return own(config.data) if own else None
    return repliers.make_replier(config.environment, config.critic, grader, folder)


def open_session(config: Config, listener: Listener = silent, folder: Path | None = None) -> Session:
    """Load the solver and what goes with it, and say on one line what was chosen for it.

    Args:
        folder: of the run, where an environment keeps what it has paid for.

    Raises:
        ConfigError: anything that the recipe got wrong.
        EndpointError: no rollout server answers.
    """
    from stepalign.models.load import dtype_of

    if config.sampling.engine == "vllm":
        from stepalign.models.sampling.vllm import check_servers

        wait_for(check_servers(config.sampling.base_urls))
    solver = _trained_solver(config)
    listener(line(f"solver {config.model.path} on {solver.device} in {dtype_of(solver)}"))
    grader = make_grader(config.data)
    replier = make_replier(config, grader, folder)
    return Session(config, solver, make_sampler(config.sampling, solver), make_prompts(config, solver), grader, replier)


def make_sampler(section: SamplingSection, solver: Solver) -> Sampler:
    """The sampler that a recipe names. Raises ConfigError for an address that is none."""
    if section.engine == "local":
        from stepalign.models.sampling.local import LocalSampler

        return LocalSampler(solver, max_batch_tokens=section.max_batch_tokens, stop=section.stop)
    from stepalign.models.sampling.vllm import VllmSampler

    urls, ends, folder = section.base_urls, solver.end_ids, section.sync_folder
    return VllmSampler(
        urls, solver.model, ends, way=section.sync, folder=folder, timeout=section.timeout, stop=section.stop
    )


def _trained_solver(config: Config) -> Solver:
    """The recipe's solver as it trains: with adapters, with gradient checkpointing."""
    from stepalign.models.load import limit_threads, with_lora

    solver = recipe_solver(config)
    limit_threads(solver)
    if config.model.lora is not None:
        solver = with_lora(solver, config.model.lora, seed=config.training.seed, path=config.model.path)
    if config.model.gradient_checkpointing:
        solver.model.activation_checkpointing_enable()
    return solver


def find_truth(config: Config, solver: Solver) -> Truth | None:
    """Where attempts first go wrong, as far as the recipe's domain knows."""
    truth = find_domain(config.data).truth
    return truth(solver.tokenizer) if truth is not None else None


def model_choice(section: ModelSection) -> tuple[str, str]:
    """(device, dtype) of a recipe on this machine, "auto" resolved."""
    from stepalign.models.load import choose

    return choose(section.device, section.dtype)


def recipe_solver(config: Config, *, weights: bool = True) -> Solver:
    """The solver that a recipe names; without weights its device does not matter."""
    from stepalign.models.load import load_solver

    model = config.model
    return load_solver(
        model.path,
        dtype=model.dtype,
        device=model.device if weights else "cpu",
        trust_remote_code=model.trust_remote_code,
        plain_prompts=model.plain_prompts,
        weights=weights,
    )


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
            rules=make_rules(config.critic, config.data, session.grader) if config.critic.judged else None,
        ),
        samples=SampleMaker(
            tokenizer=solver.tokenizer,
            prompts=session.prompts,
            condition=find_terms(config),
            objective=objective,
            skip_zero_std_groups=sampling.skip_zero_std_groups,
            truth=find_truth(config, solver),
        ),
        problems=problems["train"],
        problems_per_step=training.problems_per_step,
        seed=training.seed,
        ahead=config.rollouts.ahead,
        overlaps=sampling.engine != "local",
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
        sampler_check=None
        if sampling.engine == "local"
        else SamplerCheck(solver, session.sampler, sampling.temperature, sampling.check_steps, listener),
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
    return learner, Teacher(solver.model, config.objective.teacher, keeps_reference=config.objective.beta > 0)


def _make_team(config: Config, whole: Solver | None) -> tuple[Team, Teacher]:
    """The learner of this rank. Rank 0 brings the recipe and its own whole solver; the others load theirs."""
    ranks = join(config.training.rank_timeout)
    config = Config.model_validate(ranks.say(config.model_dump(mode="json") if whole else None))
    solver = shard(whole or _trained_solver(config))
    learner, teacher = make_learner(config, solver, ranks)
    return Team(ranks, solver, learner, teacher, whole), teacher


def follow_rank_0(config: Config) -> None:
    """The work of a rank above 0: its part of the learner, until rank 0 has ended the run."""
    _make_team(config, None)[0].follow()


def prompt_templates(config: Config) -> tuple[Template, Template]:
    """The templates of student and self-teacher. Raises ConfigError for one that is missing or asks for too much."""
    section, own = config.prompts, find_domain(config.data).prompts
    student, self_teacher = (load_template(own.get(name, name)) for name in (section.student, section.self_teacher))
    student.refuse_others_than(("question",), "a student's prompt")
    self_teacher.refuse_others_than(("question", "introduction", "feedback"), "a self-teacher's prompt")
    return student, self_teacher


def make_prompts(config: Config, solver: Solver) -> PromptBuilder:
    """The prompts of student and self-teacher; the latter leaves room for a completion in the model's context."""
    from stepalign.models.prompts import PromptBuilder

    section = config.prompts
    student, self_teacher = prompt_templates(config)
    return PromptBuilder(
        solver.tokenizer,
        student=student,
        self_teacher=self_teacher,
        system=section.system,
        student_chat_options=section.student_chat_options,
        teacher_chat_options=section.teacher_chat_options,
        max_teacher_prompt_length=section.max_teacher_prompt_length,
        context_length=solver.context_length,
        completion_length=config.sampling.max_completion_length,
        allow_different_suffix=section.allow_different_suffix,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Critics


def make_critic(
    config: Config,
    folder: Path | None,
    design_names: Sequence[str],
    listener: Listener = silent,
    ledger_folder: Path | None = None,
    session: Session | None = None,
) -> Critic | None:
    """The critic that the designs need, or None when none of them does.

    A critic writes one form of critique: that of the first design which needs one. The solver's own forms need a
    session; without one, the critic is what can be asked before there is a solver.

    Args:
        folder: where an endpoint's replies are kept unless ``critic.cache`` names a file.
        listener: receives a warning when the endpoint pauses.
        ledger_folder: the run folder, where every attempt of the endpoint is written down.

    Raises:
        ConfigError: a programmatic critic for problems it does not know.
        EndpointError: the endpoint does not answer.
    """
    forms = designs.critique_forms(design_names)
    if not forms:
        return None
    form, section = forms[0], config.critic
    if form == "turns":
        from stepalign.critics.turns import TurnByTurn

        one = make_critic(config, folder, ["step_aligned"], listener, ledger_folder)
        return None if one is None else TurnByTurn(one, reads_questions=section.kind == "endpoint")
    if form in OWN_FORMS:
        return _own_critic(config, folder, form, listener, ledger_folder, session)
    if section.kind != "endpoint":
        return make_programmatic_critic(config.data, section, form, config.training.seed)
    from stepalign.critics.served import open_endpoint_critic

    files = {"cache_folder": folder, "ledger_folder": ledger_folder}
    return open_endpoint_critic(section, prompt=config.prompts.critic, form=form, **files, listener=listener)


OWN_FORMS = ("own", "second_turn")
"""The forms of critique that the solver itself writes, or has a part in."""


def _own_critic(
    config: Config, folder: Path | None, form: str, listener: Listener, ledger: Path | None, session: Session | None
) -> Critic | None:
    from stepalign.rollouts.own_critic import OWN, OwnCritic, SecondTries, SecondTurn

    inner = make_critic(config, folder, ["step_aligned"], listener, ledger) if form == "second_turn" else None
    if session is None:
        return inner
    sampling = config.sampling
    tries = SecondTries(
        tokenizer=session.solver.tokenizer,
        sampler=session.sampler,
        prompts=session.prompts,
        temperature=sampling.temperature,
        max_tokens=sampling.max_completion_length,
        seed=derive_seed(config.training.seed, form),
        room=session.solver.context_length,
    )
    if inner is not None:
        return SecondTurn(inner, tries, inner.name)
    prompt = config.prompts.critic
    template = load_template(find_domain(config.data).prompts.get(prompt, prompt))
    return OwnCritic(tries, template, f"{OWN}:{config.model.path}")


def check_critic(config: Config, design_names: Sequence[str], folder: Path | None = None) -> None:
    """Ask whether the critic that the designs need would work, and write nothing. Raises as ``make_critic`` does.

    Servers that have answered a run in ``folder``, or into the cache that the recipe names, are not asked again.
    """
    cache = Path(config.critic.cache) if config.critic.cache else folder and folder / CACHE
    if cache is None or not cache.is_file():
        config, folder = changed(config, {"critic.cache": ""}, "critic check"), None
    critic = make_critic(config, folder, design_names)
    if critic is not None:
        critic.close()
