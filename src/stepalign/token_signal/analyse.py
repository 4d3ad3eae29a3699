"""Attempts under contexts: scored, cut into steps, and laid out as token tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from stepalign.domains.domain import Truth
from stepalign.errors import ConfigError
from stepalign.events import Listener, progress, silent
from stepalign.feedback import designs
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder, TeacherPrompt, decode_with_spans, token_text, unknown_id
from stepalign.records import Attempt, Critique, Rollout
from stepalign.rollouts.credit import UNLIKELY
from stepalign.token_signal.marks import Labels, mark_steps
from stepalign.token_signal.score import Pair, Scores, ScoringJob, SideScores, score
from stepalign.token_signal.summary import CASES, header, summarise
from stepalign.token_signal.table import (
    DIGITS,
    LEAST_ALTERNATIVE,
    NULL,
    SHUFFLED,
    ScoredCompletion,
    TokenTable,
    calibrate,
)
from stepalign.token_signal.turns import key_of, of_the_turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The text of one context as the self-teacher sees it."""

    text: str
    introduction: str = ""
    """The sentence in front of it."""
    penalty: float = 0.0
    """Without a text: the advantage of unlikely tokens, in the place of A."""
    turns: Mapping[int, str] = field(default_factory=dict)
    """Place of a turn -> the text that teaches it alone; ``text`` then has them all."""

    def texts(self, name: str) -> dict[str, str]:
        """The texts to score, each under a name of its own."""
        return {key_of(name, place): text for place, text in self.turns.items()} or {name: self.text}


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
    """The kind of attempt; the critic's case where this is empty."""
    spans: Sequence[tuple[int, int]] | None = None
    """Characters of the attempt's text behind each token, where its text is more than its tokens spell."""
    prompts: PromptBuilder | None = None
    """Prompts of its own; those of the analysis where there are none."""


@dataclass(frozen=True, slots=True)
class Analysed:
    """One attempt with its numbers: rounded in the table, as float32 in the scores."""

    subject: AttemptInContexts
    scored: ScoredCompletion
    scores: Scores


def analyse(
    solver: Solver,
    prompts: PromptBuilder,
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    *,
    temperature: float,
    num_shown: int,
    top_k: int,
    model_name: str,
    truth: Truth | None = None,
    more_critiques: Sequence[Critique] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Score rollouts under every context, in memory; see docs/formats.md (signal.json) for what comes out.

    Rollouts that some context has nothing to say about are left out of that context and counted in ``num_rollouts``.

    Args:
        more_critiques: in further forms, for designs that ask their critic for something else than the rest.
    """
    attempts, _ = attempts_under(rollouts, contexts, more_critiques)
    found: list[ScoredCompletion] = []
    for one in analyse_attempts(solver, prompts, attempts, temperature=temperature, top_k=top_k, truth=truth):
        found.append(one.scored)
        listener(progress("scoring", len(found), len(attempts)))
    labels = {name: designs.find_design(name).label for name in contexts}
    return summarise(lambda: found, header(model_name, temperature), labels, num_shown=num_shown)


def attempts_under(
    rollouts: Sequence[tuple[Rollout, Critique | None]],
    contexts: Sequence[str],
    more_critiques: Sequence[Critique] = (),
) -> tuple[list[AttemptInContexts], dict[str, dict[str, int]]]:
    """Every rollout in its group, under every context that has something to say.

    Returns:
        Attempts in the order of the rollouts, and per context how many rollouts it leaves out for which reason.
    """
    critiques = {(c.form, c.rollout_id): c for c in (*more_critiques, *(c for _, c in rollouts if c is not None))}
    problems = list({rollout.problem_id: rollout.problem for rollout, _ in rollouts}.values())
    shown: dict[str, dict[str, Shown]] = {rollout.rollout_id: {} for rollout, _ in rollouts}
    left_out: dict[str, dict[str, int]] = {name: defaultdict(int) for name in contexts}
    attempt_of = {rollout.rollout_id: rollout.attempt for rollout, _ in rollouts}
    for members in designs.group_rollouts([rollout for rollout, _ in rollouts]):
        group = [rollouts[i][0].attempt for i in members]
        for name in contexts:
            form = designs.find_design(name).form
            of_form = {i: c for (f, i), c in critiques.items() if f == form}
            usable = [c for c in of_form.values() if c.status == "ok"]
            made = designs.make_group(group, of_form, usable=usable, other_problems=problems)
            for context in designs.make_contexts(name, made):
                if (penalty := designs.find_design(name).penalty) and not context.masked:
                    is_wrong = attempt_of[context.rollout_id].verdict == "incorrect"
                    shown[context.rollout_id][name] = Shown(text="", penalty=penalty * is_wrong)
                elif context.text is None:
                    left_out[name][context.masked or "nothing to show"] += 1
                elif attempt_of[context.rollout_id].turns and context.turn is not None:
                    before = shown[context.rollout_id].get(name)
                    turns = {**(before.turns if before else {}), context.turn: context.text}
                    text, words = "\n\n".join(turns.values()), context.introduction
                    shown[context.rollout_id][name] = Shown(text=text, introduction=words, turns=turns)
                else:
                    shown[context.rollout_id][name] = Shown(text=context.text, introduction=context.introduction)
    attempts = [
        AttemptInContexts(
            attempt=rollout.attempt,
            ids=rollout.completion.ids,
            contexts=shown[rollout.rollout_id],
            critique=critiques.get(("trace", rollout.rollout_id)) or critique,
        )
        for rollout, critique in rollouts
    ]
    return [attempt for attempt in attempts if attempt.contexts], left_out


def check_positions(
    solver: Solver, prompts: PromptBuilder, subject: AttemptInContexts, where: str = ""
) -> tuple[int, ...]:
    """The student's prompt ids. Raises ConfigError where they leave no room for the attempt: beyond its positions a
    model's numbers mean nothing."""
    ids, room = prompts.student(subject.attempt.problem), solver.context_length
    needed = len(ids) + len(subject.ids)
    if room is not None and needed > room:
        raise ConfigError(
            f"{needed} tokens of prompt and attempt, and the model has {room} positions",
            where=where or f"attempt {subject.attempt.rollout_id}",
            hint="shorten the attempt, leave it out, or take a model with more positions",
        )
    return ids


def analyse_attempts(
    solver: Solver,
    prompts: PromptBuilder,
    subjects: Iterable[AttemptInContexts],
    *,
    temperature: float,
    top_k: int,
    truth: Truth | None = None,
    max_micro_batch_tokens: int = 16384,
    kept: dict[Pair, Any] | None = None,
) -> Iterator[Analysed]:
    """Score attempts and describe them, in order, with bounded memory.

    Raises:
        ConfigError: a label that does not fit its attempt, or a question without room for a context.
    """
    waiting: list[tuple[AttemptInContexts, dict[str, TeacherPrompt]]] = []  # those whose scores are on their way

    def jobs() -> Iterator[ScoringJob]:
        for subject in subjects:
            problem, own = subject.attempt.problem, subject.prompts or prompts
            student_ids = check_positions(solver, own, subject)
            teachers = {
                key: own.self_teacher(
                    problem, text, introduction=shown.introduction, completion_length=len(subject.ids)
                )
                if text
                else TeacherPrompt(student_ids, 0)
                for name, shown in subject.contexts.items()
                for key, text in shown.texts(name).items()
            }
            waiting.append((subject, teachers))
            yield ScoringJob(
                completion_ids=tuple(subject.ids),
                student_prompt_ids=student_ids,
                teacher_prompt_ids={name: teacher.ids for name, teacher in teachers.items()},
            )

    @cache
    def name_of(token: int) -> str:
        return token_text(solver.tokenizer, token)

    options = {"temperature": temperature, "top_k": top_k, "max_micro_batch_tokens": max_micro_batch_tokens}
    for scores in score(solver, jobs(), **options, kept=kept):
        subject, teachers = waiting.pop(0)
        taught = {name: tuple(shown.turns) for name, shown in subject.contexts.items()}
        scores = of_the_turns(_punished(subject, scores), subject.attempt.turns, taught)
        for name, places in taught.items():
            if places:
                dropped = sum(teachers[key_of(name, place)].dropped_tokens for place in places)
                teachers[name] = TeacherPrompt((), dropped)
        yield Analysed(subject, _lay_out(solver, subject, scores, teachers, name_of, truth), scores)


def _punished(subject: AttemptInContexts, scores: Scores) -> Scores:
    """The scores with the advantage of unlikely tokens in the place of A, where a design has that and no text."""
    advantage = {
        name: np.where(scores.student.log_probs < UNLIKELY, shown.penalty, 0.0).astype(np.float32)
        for name, shown in subject.contexts.items()
        if not shown.text
    }
    found = {name: replace(scores.contexts[name], log_ratio=values) for name, values in advantage.items()}
    return replace(scores, contexts={**scores.contexts, **found}) if found else scores


def _lay_out(
    solver: Solver,
    subject: AttemptInContexts,
    scores: Scores,
    teachers: Mapping[str, TeacherPrompt],
    name_of: Callable[[int], str],
    truth: Truth | None,
) -> ScoredCompletion:
    attempt, critique, ids = subject.attempt, subject.critique, subject.ids
    text, spans = (attempt.text, subject.spans) if subject.spans else decode_with_spans(solver.tokenizer, ids)
    marks = mark_steps(
        attempt, ids, text, spans, critique=critique, labels=subject.labels, truth=truth
    )  # fmt: skip
    tokens = [text[a:b] or str(solver.tokenizer.convert_ids_to_tokens(i)) for (a, b), i in zip(spans, ids, strict=True)]
    unknown = unknown_id(solver.tokenizer)
    tables = {}
    for name, shown in subject.contexts.items():
        found, read = scores.contexts[name], critique if _comes_from_critic(name) else None
        tables[name] = TokenTable(
            context=name,
            text=shown.text,
            tokens=tokens,
            step=marks.step,
            log_ratio=_rounded(found.log_ratio),
            student_log_prob=_rounded(scores.student.log_probs),
            teacher_log_prob=_rounded(found.teacher.log_probs),
            forward_kl=_rounded(found.forward_kl),
            student_entropy=_rounded(scores.student.entropy),
            teacher_entropy=_rounded(found.teacher.entropy),
            top_student=_alternatives(scores.student, name_of),
            top_teacher=_alternatives(found.teacher, name_of),
            dropped_tokens=teachers[name].dropped_tokens,
            critic_case=read.case if read else "",
            first_error=read.first_error if read else "",
        )
    return ScoredCompletion(
        rollout_id=attempt.rollout_id,
        question=attempt.problem.question,
        expected_answer=attempt.problem.answer or None,
        reference=attempt.problem.reference,
        verdict=attempt.verdict,
        case=subject.case or _case(critique, attempt.verdict),
        text=text,
        token_ids=ids,
        tokens=tokens,
        spans=spans,
        special=[i for i, (a, b) in enumerate(spans) if a == b],
        unknown_tokens=sum(token == unknown for token in ids),
        tables=calibrate(tables),
        **marks._asdict(),
    )


def _case(critique: Critique | None, verdict: str) -> str:
    """The kind of attempt, as the critic says; a model that corrects a right answer is not believed."""
    case = CASES.get(critique.case, "unknown") if critique else "unknown"
    believed = verdict != "correct" or case == "correct" or (critique is not None and critique.truth is True)
    return case if believed else "unknown"


def _comes_from_critic(context: str) -> bool:
    """Whether the critique's reading belongs beside a context: not where a design shows something else."""
    # Contexts that are no design of ours come from a file, or are a user's own.
    if context.endswith((NULL, SHUFFLED)):
        return False
    return context not in designs.DESIGNS or designs.DESIGNS[context].needs_critic


def _rounded(values: np.ndarray) -> np.ndarray:
    """As signal.jsonl holds them, so that numbers over rollouts are the same from memory and from the file."""
    return np.round(values.astype(np.float64), DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _alternatives(side: SideScores, name_of: Callable[[int], str]) -> list[list[tuple[str, float]]] | None:
    """Per token (text, log-probability), strongest first; those below one in ten thousand are in the arrays only."""
    if not side.top_ids.shape[1]:
        return None
    log_probs = np.round(side.top_log_probs.astype(np.float64), 4)
    return [
        [(name_of(token), value) for token, value in zip(ids, values, strict=True) if value >= LEAST_ALTERNATIVE]
        for ids, values in zip(side.top_ids.tolist(), log_probs.tolist(), strict=True)
    ]
