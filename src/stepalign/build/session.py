"""A session: a solver with the means to sample from it and to judge what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stepalign.build.solver import make_prompts, trained_solver
from stepalign.config import Config, SamplingSection
from stepalign.domains.math.grading import Grader, canonical_answer
from stepalign.domains.table import find_domain, make_grader
from stepalign.evaluation.evaluate import (
    EvaluatedProblem,
    OnGraded,
    judging_of,
    metric_rows,
    metrics_of,
    sample_and_grade,
)
from stepalign.events import Listener, line, silent
from stepalign.models.sampling import own_sampler
from stepalign.records import Problem, Rollout
from stepalign.rollouts.order import derive_seed
from stepalign.waiting import wait_for

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.models.prompts import PromptBuilder
    from stepalign.models.sampling import Sampler
    from stepalign.rollouts.collect import RolloutMaker
    from stepalign.rollouts.environment import Replier
    from stepalign.rollouts.review import Rules


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

    @property
    def rules(self) -> Rules | None:
        """How critiques are reviewed; None where the recipe takes them as they come."""
        from stepalign.rollouts.review import make_rules

        section = self.config.critic
        return make_rules(section, self.config.data, self.grader) if section.judged else None

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
            by_prompt=find_engine(self.config.sampling).by_prompt,
            file=file,
            listener=listener,
        )
        drawn = {"level": section.confidence, "resamples": section.bootstrap_samples}
        return graded, [*metric_rows(metrics_of(graded, self.config.ks), **drawn), *judging_of(graded, **drawn)]

    def close(self) -> None:
        self.grader.close()
        self.sampler.close()
        getattr(self.replier, "close", lambda: None)()


def open_session(config: Config, listener: Listener = silent, folder: Path | None = None) -> Session:
    """Load the solver and what goes with it, and say on one line what was chosen for it.

    Args:
        folder: of the run, where an environment keeps what it has paid for.

    Raises:
        ConfigError: anything that the recipe got wrong.
        EndpointError: no rollout server answers.
    """
    from stepalign.models.load import dtype_of

    engine = find_engine(config.sampling)
    if engine.asks_servers:
        from stepalign.models.sampling.server import check_servers

        wait_for(check_servers(config.sampling.base_urls))
    solver = trained_solver(config)
    listener(line(f"solver {config.model.path} on {solver.device} in {dtype_of(solver)}"))
    grader = make_grader(config.data)
    replier = make_replier(config, grader, folder)
    return Session(config, solver, engine.make(solver, config.sampling), make_prompts(config, solver), grader, replier)


class Engine(NamedTuple):
    """Of ``sampling.engine``, looked up without torch."""

    make: Callable[[Solver, SamplingSection], Sampler]
    """Raises ConfigError for an address that is none."""
    has_own_weights: bool
    """Whether completions are drawn from a copy of the weights, in a process of its own or not."""
    asks_servers: bool | None
    """Whether ``sampling.base_urls`` are needed, or refused; None: either is good."""
    by_prompt: bool = False
    """Whether a completion follows from its prompt and the seed alone, whatever is drawn beside it."""
    check: Callable[[Solver], None] = lambda solver: None
    """Raises ConfigError for an architecture, of which the shapes are enough, that it cannot draw from."""


def _local(solver: Solver, section: SamplingSection) -> Sampler:
    from stepalign.models.sampling.local import LocalSampler

    return LocalSampler(solver, max_batch_tokens=section.max_batch_tokens, stop=section.stop)


def _check_local(solver: Solver) -> None:
    from stepalign.models.sampling.local import check_sampler

    check_sampler(solver)


def _vllm(solver: Solver, section: SamplingSection) -> Sampler:
    from stepalign.models.sampling.vllm import VllmSampler

    urls, ends, folder = section.base_urls, solver.end_ids, section.sync_folder
    return VllmSampler(
        urls, solver.model, ends, way=section.sync, folder=folder, timeout=section.timeout, stop=section.stop
    )


ENGINES = {
    "local": Engine(_local, has_own_weights=False, asks_servers=False, by_prompt=True, check=_check_local),
    "vllm": Engine(_vllm, has_own_weights=True, asks_servers=True),
}


def find_engine(section: SamplingSection) -> Engine:
    """The engine that a recipe names, or a class of its own. Raises ConfigError for a class that is no sampler."""
    if section.engine in ENGINES:
        return ENGINES[section.engine]
    own = own_sampler(section.engine)
    return Engine(own, has_own_weights=own.has_own_weights, asks_servers=None)


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
