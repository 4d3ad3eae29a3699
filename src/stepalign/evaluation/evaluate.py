"""Evaluate a solver on a set of problems: n completions each, exact metrics, problem-level intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stepalign.errors import LockedError
from stepalign.evaluation.metrics import NO_SHARES, GradedCompletion, Metric, compute_metrics
from stepalign.evaluation.statistics import bootstrap_mean
from stepalign.events import Listener, progress, silent
from stepalign.records import FinishReason, Problem, Rollout, Verdict
from stepalign.storage import jsonl

CHUNK = 256
"""Problems sampled in one call; a finished chunk survives an interruption."""


AttemptFunction = Callable[[Sequence[Problem], int, int], list[list[Rollout]]]
"""(problems, num_samples, seed) -> graded rollouts per problem."""


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
    file: Path | None = None,
    listener: Listener = silent,
) -> list[EvaluatedProblem]:
    """Sample and grade every problem; with a file, finished problems are kept there and not done again.

    Args:
        canonical: answer -> the string that it shares with all answers equal to it.
        file: JSON lines, one problem a line. Lines of the same problems in the same order are taken over.
        listener: receives the progress of the phase "evaluation", in problems.
    """
    done = read_samples(file)[: len(problems)] if file else []
    known = [p.problem_id for p in done]
    if known != [p.problem_id for p in problems[: len(done)]]:
        raise LockedError(
            "the stored completions are of other problems", where=str(file), hint="remove that file, or write elsewhere"
        )
    done = done[: len(done) // CHUNK * CHUNK] if len(done) < len(problems) else done
    if file is not None and len(done) < len(problems):
        jsonl.cut(file, sum(map(len, islice(jsonl.whole_lines(file), len(done)))))
    for start in range(len(done), len(problems), CHUNK):
        chunk = problems[start : start + CHUNK]
        new = [_evaluated(rollouts, canonical) for rollouts in attempt(chunk, num_samples, seed + start)]
        if file is not None:
            jsonl.append(file, map(asdict, new))
        done += new
        listener(progress("evaluation", len(done), len(problems)))
    return done


def _evaluated(rollouts: Sequence[Rollout], canonical: Callable[[str], str]) -> EvaluatedProblem:
    return EvaluatedProblem(
        problem_id=rollouts[0].problem_id,
        answers=tuple(None if rollout.answer is None else canonical(rollout.answer) for rollout in rollouts),
        verdicts=tuple(rollout.verdict for rollout in rollouts),
        lengths=tuple(sum(rollout.completion.sampled_mask) for rollout in rollouts),
        finish_reasons=tuple(rollout.completion.finish_reason for rollout in rollouts),
        texts=tuple(rollout.text for rollout in rollouts),
    )


def read_samples(file: Path) -> list[EvaluatedProblem]:
    """What ``sample_and_grade`` kept."""
    return [
        EvaluatedProblem(problem_id=row.pop("problem_id"), **{name: tuple(values) for name, values in row.items()})
        for row in jsonl.read_json_lines(file)
    ]


def metrics_of(problems: Sequence[EvaluatedProblem], ks: Sequence[int]) -> dict[str, Metric]:
    """Every metric by name, with its value per problem."""
    return compute_metrics([p.graded() for p in problems], ks)


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
