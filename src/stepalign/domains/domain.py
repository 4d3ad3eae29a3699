"""A task as a value: every part of the house outside ``domains/`` is blind to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepalign.config import CriticSection, DataSection
from stepalign.domains.math.bounded import GraderConfig
from stepalign.domains.math.grade import GraderError
from stepalign.domains.math.grading import Grader
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet, is_selection, load_problems, load_selection
from stepalign.records import Attempt, CritiqueForm, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stepalign.critics import Critic


@dataclass(frozen=True, slots=True)
class Truth:
    """The knowledge of a program about the tokens of an attempt."""

    wrong_result: Callable[[Attempt, Sequence[int]], tuple[int, int] | None]
    """(attempt, its token ids) -> (index of the token that states its first wrong value, id of the right one)."""
    result_of: Callable[[Sequence[int]], int | None]
    """Indices of the visible tokens of one step -> that of the token with its result, None where there is none."""


def load_file(source: str, data: DataSection, name: str, limit: int | None) -> ProblemSet:
    """The problems of a file, a Hub data set, or a folder of ``stepalign select``."""
    if is_selection(source):
        return load_selection(source, name, limit=limit)
    return load_problems(source, data.columns, limit=limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """A task as a value: how its problems are loaded and graded, and what is known about attempts at them."""

    name: str
    source: str = ""
    """How names of its problems begin in ``data.train``; "" where they come from files alone."""
    columns: str = ""
    """The column preset whose rows are its problems, if it has one."""
    load: Callable[[str, DataSection, str, int | None], ProblemSet] = load_file
    """(source, section, "train", "validation" or "test", limit) -> problems."""
    grade: Callable[[DataSection], Grader] = lambda data: open_grader(seconds=data.grader_seconds)
    """Opens the grader of a recipe that names none. Raises ConfigError where it cannot be started."""
    has_answers: bool = True
    """Whether expected answers are texts to be compared with others; the tests of a program are not."""
    has_details: bool = False
    """Whether grades come with output to show, such as a failed test."""
    critic: Callable[[CriticSection, CritiqueForm, int], Critic] | None = None
    """(section, form, seed) -> a program that knows the truth, as faulty as the section asks; None: there is none."""
    knows: Callable[[Problem], bool] = lambda problem: True
    """Whether that program can judge attempts at a problem."""
    truth: Callable[[PreTrainedTokenizerBase], Truth] | None = None
    """The knowledge of a program about attempts, in the tokens of a solver."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Packaged prompt -> the template that takes its place for problems of this domain, in prompts of the solver."""
    examples: Callable[[DataSection], Iterable[tuple[Problem, str]]] | None = None
    """(problem, solution in the solver's own format) without end, for a warm-up; None: training problems and their
    reference solutions."""
    calculates: bool = False
    """Whether the calculation critic knows attempts at its problems."""
    environment: Callable[[DataSection], Any] | None = None
    """Makes the ``rollouts.environment.Replier`` to completions of a recipe that names none; None: a single turn."""


def open_grader(name: str = "", *, seconds: float = 1.0, num_workers: int = 2) -> Grader:
    """The built-in grader, one of a user's own (``module:function``), or the rewards of ``verifiers:TASKSET``.

    Raises:
        ConfigError: it cannot be started.
    """
    function, argument = name or None, ""
    if name.startswith("verifiers:"):
        function, argument = "stepalign.domains.verifiers:load_grader", name
    try:
        return Grader(GraderConfig(function=function, argument=argument, seconds=seconds, num_workers=num_workers))
    except GraderError as error:
        raise ConfigError("The grader cannot be started.", where=error.where, hint=error.hint) from None
