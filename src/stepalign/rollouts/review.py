"""Reviews: a critique is aligned with its attempt, its findings are noted, and a policy says what to do about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from stepalign.config import CriticSection, DataSection
from stepalign.critics import Critic
from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.grading import Grader
from stepalign.domains.table import find_domain
from stepalign.errors import BudgetSpentError
from stepalign.feedback import designs, findings
from stepalign.feedback.alignment import Alignment, align
from stepalign.records import Attempt, Context, Critique


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How critiques are reviewed."""

    policies: Mapping[str, findings.Policy]
    """Per finding; see ``findings.policies``."""
    retries: int = 1
    """How often a critique is asked for again."""
    same_answer: Callable[[str, str], bool] | None = None
    """(answer, expected) -> whether they agree; by default equal as plain text."""


def make_rules(section: CriticSection, data: DataSection, grader: Grader) -> Rules:
    """The policies of a recipe, with its grader to compare answers."""
    has_answers = find_domain(data).has_answers
    return Rules(
        policies=findings.policies(section.policies.model_dump(), served=section.kind == "endpoint"),
        retries=section.retries,
        same_answer=lambda answer, expected: not has_answers or grader.compare(answer, expected).verdict != "incorrect",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A critique with what was found in it and what is done about it."""

    attempt: Attempt
    critique: Critique
    """Its findings, policy, case and first error filled in."""
    alignment: Alignment | None = None
    """None without a usable text, without rules, and for a hint or other words than the solver's."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Finding -> where or what."""


def review(attempt: Attempt, critique: Critique, rules: Rules | None, *, tries_left: int = 0) -> Review:
    """Review one critique. Without rules it is taken as it comes."""
    if rules is None:
        return Review(attempt=attempt, critique=critique)
    problem, alignment = attempt.problem, None
    if critique.status == "ok" and critique.form == "trace":
        alignment = align(
            attempt,
            critique,
            expected_answer=problem.answer or None,
            extract_answer=extract_answer,
            same_answer=rules.same_answer,
        )
    details = findings.find(
        findings.Reading(critique=critique, verdict=attempt.verdict, attempt=attempt.text, alignment=alignment)
    )
    policy, decided_by = findings.decide(
        details, rules.policies, tries_left=tries_left, has_reference=bool(problem.reference)
    )
    reviewed = replace(
        critique,
        first_error=critique.first_error or (alignment.first_error_label if alignment else ""),
        case=critique.case or (alignment.case if alignment else ""),
        findings=tuple(details),
        policy=policy,
        decided_by=decided_by,
    )
    return Review(attempt=attempt, critique=reviewed, alignment=alignment, details=details)


async def ask(critic: Critic, attempt: Attempt, rules: Rules | None) -> Review:
    """The review of a critique, asked for again where a finding's policy says so and tries are left.

    Raises:
        BudgetSpentError: the critic may spend no more; what it was paid for is in its cache.
    """
    earlier, complaint = None, ""
    for tries_left in range(rules.retries if rules else 0, -1, -1):
        critique = _with_costs_of(await critic.critique(attempt, earlier=earlier, complaint=complaint), earlier)
        if critique.unpaid:
            raise BudgetSpentError(
                critique.reason, where="critic.token_budget, critic.cost_budget", hint="raise the budget and continue"
            )
        found = review(attempt, critique, rules, tries_left=tries_left)
        if found.critique.policy != "retry":
            return found
        earlier, complaint = critique, findings.FINDINGS[found.critique.decided_by].request
    raise AssertionError("a policy asks for more tries than there are")


def shown_contexts(design: str, group: designs.Group) -> list[Context]:
    """The contexts of a design, except for critiques that a policy keeps from the self-teacher."""
    shown = designs.make_contexts(design, group)
    if not designs.find_design(design).needs_critic:
        return shown
    critiques = {one.rollout_id: one for one in group.critiques if one is not None}
    references: dict[str, Context] = {}
    if any(critique.policy == "fall_back" for critique in critiques.values()):
        references = {one.rollout_id: one for one in designs.make_contexts("reference", group)}
    for index, context in enumerate(shown):
        critique = critiques.get(context.rollout_id)
        if critique is None:
            continue
        if critique.policy == "mask" and context.text is not None:
            shown[index] = replace(context, text=None, masked=f"critique with the finding {critique.decided_by}")
        elif critique.policy == "fall_back":
            shown[index] = replace(references[context.rollout_id], turn=context.turn)
    return shown


async def ask_all(
    critic: Critic, attempts: Iterable[Attempt], rules: Rules | None, *, ahead: int
) -> AsyncIterator[Review]:
    """One review per attempt, as the replies come, with at most ``ahead`` under way. Raises as :func:`ask` does."""
    arrived: asyncio.Queue[asyncio.Task[Review]] = asyncio.Queue()
    waiting: set[asyncio.Task[Review]] = set()
    remaining = iter(attempts)
    try:
        while True:
            while len(waiting) < ahead and (attempt := next(remaining, None)) is not None:
                task = asyncio.create_task(ask(critic, attempt, rules))
                task.add_done_callback(arrived.put_nowait)
                waiting.add(task)
            if not waiting:
                return
            task = await arrived.get()
            waiting.remove(task)
            yield task.result()
    finally:
        for task in waiting:
            task.cancel()


def _with_costs_of(critique: Critique, earlier: Critique | None) -> Critique:
    """A second reply costs both."""
    if earlier is None:
        return critique
    return replace(
        critique,
        retries=earlier.retries + 1,
        prompt_tokens=critique.prompt_tokens + earlier.prompt_tokens,
        completion_tokens=critique.completion_tokens + earlier.completion_tokens,
        seconds=critique.seconds + earlier.seconds,
        attempts=critique.attempts + earlier.attempts,
        cached=critique.cached and earlier.cached,
    )
