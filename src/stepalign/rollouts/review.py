"""From a critic's replies to decisions: align each with its attempt, note the findings, apply the policies.

Replies are read in the order in which they come; a critique that is asked for again goes back to the critic while the
others are still on their way.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from stepalign.critics import Critic, CritiqueRequest
from stepalign.domains.math.extraction import extract_answer
from stepalign.errors import BudgetSpentError
from stepalign.feedback import findings
from stepalign.feedback.alignment import Alignment, align
from stepalign.records import Critique


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How critiques are judged."""

    policies: Mapping[str, findings.Policy]
    """Per finding; see ``findings.policies``."""
    retries: int = 1
    """How often a critique is asked for again."""
    same_answer: Callable[[str, str], bool] | None = None
    """(answer, expected) -> whether they agree; by default equal as plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A critique with what was found in it and what is done about it."""

    request: CritiqueRequest
    critique: Critique
    """Its findings, policy, case and first error filled in."""
    alignment: Alignment | None = None
    """None without a usable text, without rules, and for a hint or other words than the solver's."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Finding -> where or what."""


def review(request: CritiqueRequest, critique: Critique, rules: Rules | None, *, tries_left: int = 0) -> Review:
    """Judge one critique. Without rules it is taken as it comes."""
    if rules is None:
        return Review(request=request, critique=critique)
    attempt, problem = request.attempt, request.attempt.problem
    alignment = None
    if critique.status == "ok" and critique.form == "trace":
        alignment = align(
            attempt,
            critique,
            expected_answer=problem.answer or None,
            extract_answer=extract_answer,
            same_answer=rules.same_answer,
        )
    details = findings.find(findings.Reading(critique=critique, verdict=attempt.verdict, alignment=alignment))
    policy, decided_by = findings.decide(
        details, rules.policies, tries_left=tries_left, has_reference=bool(problem.reference)
    )
    judged = replace(
        critique,
        first_error=critique.first_error or (alignment.first_error_label if alignment else ""),
        case=critique.case or (alignment.case if alignment else ""),
        findings=tuple(details),
        policy=policy,
        decided_by=decided_by,
    )
    return Review(request=request, critique=judged, alignment=alignment, details=details)


def follow(
    critic: Critic,
    pending: Mapping[Future[Critique], CritiqueRequest],
    rules: Rules | None,
    *,
    more: Iterable[CritiqueRequest] = (),
    ahead: int = 0,
) -> Iterator[Review]:
    """One review per request, as the replies come.

    Args:
        pending: what was asked for already.
        more: further requests, asked for whenever fewer than ``ahead`` are under way.

    Raises:
        BudgetSpentError: the critic may spend no more; what it was paid for is in its cache.
    """
    arrived: queue.SimpleQueue[Future[Critique]] = queue.SimpleQueue()
    waiting: dict[Future[Critique], tuple[CritiqueRequest, Critique | None]] = {}
    tries = rules.retries if rules else 0
    tries_left: dict[str, int] = {}

    def expect(future: Future[Critique], request: CritiqueRequest, earlier: Critique | None = None) -> None:
        waiting[future] = (request, earlier)
        future.add_done_callback(arrived.put)

    for future, request in pending.items():
        expect(future, request)
    remaining = iter(more)
    while True:
        while len(waiting) < ahead and (request := next(remaining, None)) is not None:
            expect(critic.submit(request), request)
        if not waiting:
            return
        future = arrived.get()
        request, earlier = waiting.pop(future)
        critique = _with_costs_of(future.result(), earlier)
        if critique.unpaid:
            raise BudgetSpentError(
                critique.reason, where="critic.token_budget, critic.cost_budget", hint="raise the budget and continue"
            )
        name = request.attempt.rollout_id
        left = tries_left.get(name, tries)
        found = review(request, critique, rules, tries_left=left)
        if found.critique.policy != "retry":
            yield found
            continue
        tries_left[name] = left - 1
        complaint = findings.FINDINGS[found.critique.decided_by].request
        again = replace(request, earlier=critique, complaint=complaint)
        expect(critic.submit(again), again, critique)


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
