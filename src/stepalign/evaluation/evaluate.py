"""Evaluate a solver on a set of problems: n completions each, exact metrics, problem-level intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from stepalign.errors import ConfigError, LockedError
from stepalign.evaluation.judging import judging_rows
from stepalign.evaluation.metrics import NO_SHARES, GradedCompletion, Metric, compute_metrics, mean_score, win_rate
from stepalign.evaluation.statistics import bootstrap_mean
from stepalign.events import Listener, progress, silent
from stepalign.records import FinishReason, Problem, Rollout, Verdict
from stepalign.storage import jsonl
from stepalign.storage.files import make_durable, write_atomically

CHUNK = 256
"""Problems sampled in one call, from a seed of its own."""

VERDICTS = set(get_args(Verdict))
_COLUMNS = ("answers", "verdicts", "lengths", "finish_reasons", "texts")

OnGraded = Callable[[int, list[Rollout]], None]
"""Called with (problem index, its rollouts) as soon as all its completions are graded."""
AttemptFunction = Callable[[Sequence[Problem], int, int, OnGraded], list[list[Rollout]]]
"""(problems, num_samples, seed, on_graded) -> graded rollouts per problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedProblem:
    """The graded completions of one problem."""

    problem_id: str
    answers: tuple[str | None, ...]
    """Canonical final answers: equal answers are equal strings."""
    verdicts: tuple[Verdict, ...]
    lengths: tuple[int, ...]
    """Tokens that the solver sampled."""
    finish_reasons: tuple[FinishReason, ...]
    texts: tuple[str, ...]
    question: str = ""
    answer: str = ""
    """The expected answer. Both for the reader of the file; folders of earlier versions have neither."""
    scores: tuple[float, ...] = ()
    """In [0, 1], NaN undecided; empty where the verdicts say it all."""
    judged: tuple[tuple[float, ...], ...] = ()
    """The score of each judge of each completion, where several judge; empty for one that is undecided."""

    def judgements(self) -> list[tuple[float, ...]]:
        """As ``evaluation.judging`` takes them."""
        scores = self.all_scores()
        if not self.judged:
            return list(zip(scores, map(float, self.lengths), strict=True))
        pairs = [one if len(one) == 2 else (math.nan, math.nan) for one in self.judged]
        return [(one, float(length), other) for (one, other), length in zip(pairs, self.lengths, strict=True)]

    def all_scores(self) -> tuple[float, ...]:
        """The scores, else as the verdicts have them."""
        return self.scores or tuple({"correct": 1.0, "incorrect": 0.0}.get(one, math.nan) for one in self.verdicts)

    def graded(self) -> list[GradedCompletion]:
        """As the metrics take them."""
        columns = zip(self.answers, self.verdicts, self.lengths, self.finish_reasons, self.texts, strict=True)
        return [
            GradedCompletion(answer=answer, verdict=verdict, length=length, finish_reason=reason, text=text)
            for answer, verdict, length, reason, text in columns
        ]


def sample_and_grade(
    problems: Sequence[Problem],
    *,
    num_samples: int,
    seed: int,
    attempt: AttemptFunction,
    canonical: Callable[[str], str],
    by_prompt: bool = False,
    file: Path | None = None,
    listener: Listener = silent,
) -> list[EvaluatedProblem]:
    """Sample and grade every problem. A finished problem is kept in the file at once, and stays as it is.

    Args:
        canonical: answer -> the string that it shares with all answers equal to it.
        by_prompt: a problem's completions follow from its prompt and the seed alone, whatever is drawn beside them.
        file: JSON lines, one problem a line; in the order of the problems when all are there.
        listener: receives the progress of the phase "evaluation", in problems.
    """
    wanted = {problem.problem_id: problem for problem in problems}
    done = {problem.problem_id: problem for problem in (read_samples(file) if file else [])}
    if not (done.keys() <= wanted.keys() or wanted.keys() <= done.keys()):
        raise LockedError(
            "the stored completions are of other problems", where=str(file), hint="remove that file, or write elsewhere"
        )
    right = Counter(verdict for problem in done.values() for verdict in problem.verdicts)

    def keep(rollouts: Sequence[Rollout]) -> None:
        problem = _evaluated(rollouts, canonical)
        if problem.problem_id in done:
            return
        done[problem.problem_id] = problem
        if file is not None:
            jsonl.append(file, [_row(problem)])
        right.update(problem.verdicts)
        note = f"{right['correct']} of {right.total()} completions right"
        listener(progress("evaluation", len(done), len(wanted), note))

    for start in range(0, len(problems), CHUNK):
        chunk = problems[start : start + CHUNK]
        missing = [problem for problem in chunk if problem.problem_id not in done]
        # Short completions end first. Where others follow from the place in a batch, those that are missing are drawn
        # with the others, from the chunk's own seed: by themselves they would get a second chance to be short.
        drawn = missing if by_prompt or not missing else chunk
        for rollouts in attempt(drawn, num_samples, seed + start, lambda _, rollouts: keep(rollouts)) if drawn else ():
            keep(rollouts)
    in_order = [done[problem_id] for problem_id in wanted]
    if file is not None and done.keys() == wanted.keys() and list(done) != list(wanted):
        write_atomically(file, "".join(jsonl.to_json_line(_row(problem)) + "\n" for problem in in_order))
    elif file is not None and file.exists():
        make_durable(file)  # before the numbers computed from it
    return in_order


def _row(problem: EvaluatedProblem) -> dict[str, Any]:
    row = asdict(problem)
    return {name: value for name, value in row.items() if value or name not in ("scores", "judged")}


def _evaluated(rollouts: Sequence[Rollout], canonical: Callable[[str], str]) -> EvaluatedProblem:
    scores = tuple(rollout.reward for rollout in rollouts)
    return EvaluatedProblem(
        problem_id=rollouts[0].problem_id,
        answers=tuple(None if rollout.answer is None else canonical(rollout.answer) for rollout in rollouts),
        verdicts=tuple(rollout.verdict for rollout in rollouts),
        lengths=tuple(sum(rollout.completion.sampled_mask) for rollout in rollouts),
        finish_reasons=tuple(rollout.completion.finish_reason for rollout in rollouts),
        texts=tuple(rollout.text for rollout in rollouts),
        question=rollouts[0].problem.question,
        answer=rollouts[0].problem.answer,
        scores=scores if any(0 < score < 1 for score in scores) else (),
        judged=judged if any(judged := tuple(rollout.attempt.grade.judged for rollout in rollouts)) else (),
    )


def read_samples(file: Path) -> list[EvaluatedProblem]:
    """The problems that ``sample_and_grade`` kept.

    Raises:
        ConfigError: a line that no evaluation has written; its place is named.
    """
    found: list[EvaluatedProblem] = []
    for number, row in enumerate(jsonl.read_json_lines(file), 1):
        try:
            columns: dict[str, Any] = {name: tuple(row[name]) for name in _COLUMNS}
            if len({len(values) for values in columns.values()}) != 1 or not set(columns["verdicts"]) <= VERDICTS:
                raise ValueError
            if not all(type(length) is int for length in columns["lengths"]):
                raise ValueError
            columns |= {name: str(row.get(name) or "") for name in ("question", "answer")}
            columns["scores"] = tuple(math.nan if one is None else float(one) for one in row.get("scores", ()))
            columns["judged"] = tuple(tuple(map(float, one)) for one in row.get("judged", ()))
            size = len(columns["verdicts"])
            if not {len(columns["scores"]), len(columns["judged"])} <= {0, size} or not _are_shares(columns["scores"]):
                raise ValueError
            found.append(EvaluatedProblem(problem_id=str(row["problem_id"]), **columns))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                "this line holds no completions of a problem",
                where=f"{file}:{number}",
                hint="evaluate again, or take the line out",
            ) from None
    return found


def _are_shares(scores: Sequence[float]) -> bool:
    return all(0 <= score <= 1 or math.isnan(score) for score in scores)


def metrics_of(problems: Sequence[EvaluatedProblem], ks: Sequence[int]) -> dict[str, Metric]:
    """Every metric by name, with its value per problem; "mean_score" where scores say more than verdicts."""
    found = compute_metrics([p.graded() for p in problems], ks)
    if any(problem.scores for problem in problems):
        found["mean_score"] = mean_score([problem.all_scores() for problem in problems])
    return found


def win_row(
    mine: Sequence[EvaluatedProblem], theirs: Sequence[EvaluatedProblem], *, level: float, resamples: int
) -> dict[str, Any]:
    """The win rate over another solver's completions of the same problems, with a problem-level interval.

    Raises:
        ConfigError: the problems are others.
    """
    others = {problem.problem_id: problem for problem in theirs}
    if others.keys() != {problem.problem_id for problem in mine}:
        raise ConfigError("the completions to win over are of other problems", where=f"{len(others)} problems")
    pairs = [(problem.all_scores(), others[problem.problem_id].all_scores()) for problem in mine]
    metric = win_rate(*zip(*pairs, strict=True))
    return metric_rows({metric.name: metric}, level=level, resamples=resamples)[0]


def judging_of(problems: Sequence[EvaluatedProblem], *, level: float, resamples: int) -> list[dict[str, Any]]:
    """Agreement of two judges and length bias, where scores say more than verdicts; see ``evaluation.judging``."""
    several = [problem for problem in problems if problem.judged]
    if not several and not any(problem.scores for problem in problems):
        return []
    rows = [problem.judgements() for problem in several or problems]
    return judging_rows(rows, level=level, resamples=resamples)


def metric_rows(metrics: dict[str, Metric], *, level: float, resamples: int) -> list[dict[str, Any]]:
    """The metrics as plain rows with a problem-level bootstrap interval each."""
    rows = []
    for metric in metrics.values():
        share = metric.name not in NO_SHARES
        interval = bootstrap_mean(metric.per_problem, level=level, resamples=resamples, share=share)
        fields = {name: getattr(metric, name) for name in ("k", "n", "value", "numerator", "denominator")}
        bounds = {"low": interval.low, "high": interval.high}
        rows.append({"metric": metric.name, **fields, **bounds, "problems": len(metric.per_problem)})
    return rows
