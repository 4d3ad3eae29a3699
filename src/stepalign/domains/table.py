"""The table of domains, and the problems and the grader of a recipe by it. Loads no torch."""

from __future__ import annotations

from stepalign.config import CriticSection, DataSection
from stepalign.critics import Critic
from stepalign.critics.calculation import CalculationCritic
from stepalign.domains.arithmetic.domain import ARITHMETIC
from stepalign.domains.conversation import open_conversation
from stepalign.domains.domain import Domain, open_grader
from stepalign.domains.math.grading import Grader
from stepalign.domains.python.grading import PYTHON
from stepalign.domains.text.domain import TEXT
from stepalign.domains.words.domain import WORDS
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet
from stepalign.problems.sets import SETS, find_overlaps, hold_out, named
from stepalign.records import CritiqueForm


def _load_tasks(source: str, data: DataSection, name: str, limit: int | None) -> ProblemSet:
    from stepalign.domains import verifiers

    return verifiers.load_tasks(source, limit)


def _open_rewards(data: DataSection) -> Grader:
    for name, source in (("validation", data.validation), ("test", data.test)):
        if source and source.partition("?")[0] != data.train.partition("?")[0]:
            raise ConfigError(
                f"{data.train} grades its own tasks only, and these problems are not from it: {source}",
                where=f"data.{name}",
                hint=f"take them from the same taskset, or none at all: --set data.{name}=null",
            )
    return open_grader(data.train, seconds=data.grader_seconds)


MATH = Domain(name="math", calculates=True)
VERIFIERS = Domain(
    name="verifiers",
    source="verifiers:",
    load=_load_tasks,
    grade=_open_rewards,
    has_answers=False,
    environment=open_conversation,
)

DOMAINS = {domain.name: domain for domain in (ARITHMETIC, MATH, PYTHON, TEXT, VERIFIERS, WORDS)}


def find_domain(data: DataSection) -> Domain:
    """The domain of a recipe: the one that its source, its grader or its columns name, else "math"."""
    for domain in DOMAINS.values():
        by_source = domain.source and any(name.startswith(domain.source) for name in (data.train, data.grader))
        if by_source or (domain.columns and data.columns == domain.columns):
            return domain
    return MATH


def holds_sets(source: str) -> bool:
    """Whether a name alone, such as ``embedded:arithmetic``, names a training, validation and test set."""
    return any(domain.source == source.partition("?")[0] for domain in DOMAINS.values())


def recipe_of(model: str) -> str:
    """The shipped recipe for a domain's own model, "" for any other: ``embedded:arithmetic`` has "arithmetic"."""
    return next((domain.name for domain in DOMAINS.values() if domain.source == model), "")


def make_grader(data: DataSection) -> Grader:
    """The grader of a recipe. Raises ConfigError when it cannot be started here, or when it would leave out a judge."""
    judge = next((name for name in ("judge", "second_judge") if getattr(data, name).base_urls), "")
    if judge and (data.grader or find_domain(data) is not TEXT):
        graded = f"data.grader = {data.grader}" if data.grader else f"the domain {find_domain(data).name}"
        raise ConfigError(
            f"the judge would read nothing: {graded} grades",
            where=f"data.{judge}",
            hint='a judge reads rubrics: data.columns = "text" without data.grader',
        )
    return open_grader(data.grader, seconds=data.grader_seconds) if data.grader else find_domain(data).grade(data)


def load_set(data: DataSection, name: str) -> ProblemSet:
    """The problems of "train", "validation" or "test"; an empty set when the recipe names none.

    Each set is loaded by the domain that its own source names.

    Raises:
        ConfigError: see ``load_problems``.
    """
    limit: int | None = getattr(data, f"max_{name}")
    shares = data.validation is None and data.validation_share > 0 and name in ("train", "validation")
    source: str | None = data.train if shares else getattr(data, name)
    if source is None:
        return ProblemSet(problems=())
    owners = (domain for domain in DOMAINS.values() if domain.source and source.startswith(domain.source))
    load = next(owners, MATH).load
    if not shares:
        return load(source, data, name, limit)
    whole = load(source, data, "train", None)
    kept = hold_out(whole.problems, data.validation_share)[name]
    return ProblemSet(problems=kept[:limit], skipped=whole.skipped)


def load_sets(data: DataSection) -> dict[str, ProblemSet]:
    """All three sets.

    Raises:
        ConfigError: no training problems, or a problem that is in two sets: a score on it would measure memory.
    """
    sets = {name: load_set(data, name) for name in SETS}
    if not sets["train"].problems:
        skipped = "".join(f"; {count} rows: {reason}" for reason, count in sets["train"].skipped.items())
        raise ConfigError(f"there are no training problems{skipped}", where=f"data.train = {data.train}")
    if overlaps := find_overlaps({name: found.problems for name, found in sets.items()}):
        first, second = overlaps[0].first, overlaps[0].second
        problem = next(p for p in sets[first].problems if p.problem_id == overlaps[0].first_id)
        many = "1 problem is" if len(overlaps) == 1 else f"{len(overlaps)} problems are"
        raise ConfigError(
            f"{many} in two sets, such as {named(problem)} in {first} and {second}",
            where=f"data.{first}, data.{second}",
            hint="give disjoint files; data.validation_share sets training problems aside for validation",
        )
    return sets


def has_program(data: DataSection, section: CriticSection) -> bool:
    """Whether the recipe's critic is a program that knows its problems."""
    domain = find_domain(data)
    programs = {"programmatic": domain.critic is not None, "calculation": domain.calculates}
    return programs.get(section.kind, False)


def make_programmatic_critic(data: DataSection, section: CriticSection, form: CritiqueForm, seed: int) -> Critic:
    """The program that knows the truth: the domain's own, as faulty as the recipe asks, or the calculation critic.

    Raises:
        ConfigError: it knows no such problems.
    """
    domain = find_domain(data)
    if section.kind == "calculation" and not has_program(data, section):
        raise ConfigError(
            f"the calculation critic knows no problems of the domain {domain.name}",
            where="critic.kind",
            hint="it reads word problems and mathematics with reference solutions; --set critic.kind=endpoint",
        )
    if section.kind == "calculation":
        return CalculationCritic(form)
    critic = domain.critic
    if critic is None:
        raise ConfigError(
            "the programmatic critic knows the embedded task only",
            where="critic.kind",
            hint="give a served critic: --set critic.kind=endpoint --set critic.base_urls='[\"http://...\"]' "
            "--set critic.model=NAME, or drop what needs one from condition and signal.contexts",
        )
    return critic(section, form, seed)
