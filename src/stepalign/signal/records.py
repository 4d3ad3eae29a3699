"""From attempts and contexts to token tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepalign.feedback.designs import DESIGNS
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder, TeacherPrompt, decode, unknown_id
from stepalign.records import Attempt, Critique
from stepalign.signal.score import Scores, ScoringJob, SideScores, score
from stepalign.signal.table import DIGITS, LEAST_ALTERNATIVE, ScoredCompletion, TokenTable
from stepalign.signal.trace import Labels, Trace, WrongResult, trace

CASES = {"A": "correct", "B": "correct", "C": "incomplete", "D": "one_wrong_step", "F": "wrong_approach"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the self-teacher sees under one context."""

    text: str
    introduction: str = ""
    """The sentence in front of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptInContexts:
    """One attempt with its token ids, the contexts to score it under, and what is known about it."""

    attempt: Attempt
    ids: Sequence[int]
    """Token ids of the completion."""
    contexts: Mapping[str, Shown]
    critique: Critique | None = None
    labels: Labels = field(default_factory=Labels)
    case: str = ""
    """What kind of attempt it is; the critic's case where this is empty."""
    spans: Sequence[tuple[int, int]] | None = None
    """Characters of the attempt's text behind each token, where its text is more than its tokens spell."""
    prompts: PromptBuilder | None = None
    """Prompts of its own; those of the analysis where there are none."""


@dataclass(frozen=True, slots=True)
class Analysed:
    """One attempt with its numbers."""

    subject: AttemptInContexts
    scored: ScoredCompletion
    scores: Scores


def analyse_attempts(
    solver: Solver,
    prompts: PromptBuilder,
    subjects: Iterable[AttemptInContexts],
    *,
    temperature: float,
    top_k: int,
    wrong_result: WrongResult | None = None,
    max_micro_batch_tokens: int = 16384,
) -> Iterator[Analysed]:
    """Score attempts and describe them, in order, with bounded memory.

    Raises:
        ConfigError: a label that does not fit its attempt, or a question without room for a context.
    """
    waiting: list[tuple[AttemptInContexts, dict[str, TeacherPrompt]]] = []  # those whose scores are on their way

    def jobs() -> Iterator[ScoringJob]:
        for subject in subjects:
            problem, own = subject.attempt.problem, subject.prompts or prompts
            teachers = {
                name: own.self_teacher(problem, shown.text, introduction=shown.introduction)
                for name, shown in subject.contexts.items()
            }
            waiting.append((subject, teachers))
            yield ScoringJob(
                completion_ids=tuple(subject.ids),
                student_prompt_ids=own.student(problem),
                teacher_prompt_ids={name: teacher.ids for name, teacher in teachers.items()},
            )

    names, unknown_token = _token_names(solver), unknown_id(solver.tokenizer)
    scored = score(solver, jobs(), temperature=temperature, top_k=top_k, max_micro_batch_tokens=max_micro_batch_tokens)
    for scores in scored:
        subject, teachers = waiting.pop(0)
        cut = trace(
            solver,
            subject.attempt,
            subject.ids,
            subject.critique,
            labels=subject.labels,
            wrong_result=wrong_result,
            spans=subject.spans,
        )
        unknown = sum(token == unknown_token for token in subject.ids)
        yield Analysed(subject, _scored(subject, cut, scores, teachers, names, unknown), scores)


def _comes_from_critic(context: str) -> bool:
    """Whether the critique's reading belongs beside a context: not where a design shows something else."""
    return context not in DESIGNS or DESIGNS[context].needs_critic  # others are contexts of a plain file, or one's own


def _scored(
    subject: AttemptInContexts,
    cut: Trace,
    scores: Scores,
    teachers: Mapping[str, TeacherPrompt],
    names: Callable[[int], str],
    unknown_tokens: int,
) -> ScoredCompletion:
    attempt, critique = subject.attempt, subject.critique
    critic_case = critique.case if critique else ""
    tables = {}
    for name, shown in subject.contexts.items():
        found, from_critic = scores.contexts[name], _comes_from_critic(name)
        tables[name] = TokenTable(
            context=name,
            text=shown.text,
            tokens=cut.tokens,
            step=cut.step,
            log_ratio=_rounded(found.log_ratio),
            student_log_prob=_rounded(scores.student.log_probs),
            teacher_log_prob=_rounded(found.teacher.log_probs),
            forward_kl=_rounded(found.forward_kl),
            student_entropy=_rounded(scores.student.entropy),
            teacher_entropy=_rounded(found.teacher.entropy),
            top_student=_alternatives(scores.student, names),
            top_teacher=_alternatives(found.teacher, names),
            dropped_tokens=teachers[name].dropped_tokens,
            critic_case=critic_case if from_critic else "",
            first_error=critique.first_error if critique and from_critic else "",
        )
    return ScoredCompletion(
        rollout_id=attempt.rollout_id,
        question=attempt.problem.question,
        expected_answer=attempt.problem.answer or None,
        reference=attempt.problem.reference,
        verdict=attempt.verdict,
        case=subject.case or CASES.get(critic_case, "unknown"),
        text=cut.text,
        token_ids=subject.ids,
        tokens=cut.tokens,
        spans=cut.spans,
        special=[i for i, (a, b) in enumerate(cut.spans) if a == b],
        unknown_tokens=unknown_tokens,
        steps=cut.steps,
        step=cut.step,
        wrong_tokens=cut.wrong_tokens,
        result_tokens=cut.result_tokens,
        tables=tables,
    )


def _rounded(values: np.ndarray) -> np.ndarray:
    """As signal.jsonl holds them, so that numbers over rollouts do not depend on where these come from."""
    return np.round(values.astype(np.float64), DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _alternatives(side: SideScores, names: Callable[[int], str]) -> list[list[tuple[str, float]]] | None:
    """Per token (text, log-probability), ...; those below one in ten thousand are in the arrays only."""
    if not side.top_ids.shape[1]:
        return None
    log_probs = np.round(side.top_log_probs.astype(np.float64), 4)
    return [
        [(names(token), value) for token, value in zip(ids, values, strict=True) if value >= LEAST_ALTERNATIVE]
        for ids, values in zip(side.top_ids.tolist(), log_probs.tolist(), strict=True)
    ]


def _token_names(solver: Solver) -> Callable[[int], str]:
    """Tokens as text, special ones by their own name; each is decoded once."""
    known: dict[int, str] = {}

    def name(token: int) -> str:
        if token not in known:
            known[token] = decode(solver.tokenizer, [token]) or str(solver.tokenizer.convert_ids_to_tokens(token))
        return known[token]

    return name
