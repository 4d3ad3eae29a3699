"""What if? Continuations from just before a strong token, as written and with the self-teacher's token in its place.

A_t says what training would do to a token; the success of both continuations says whether that would be right. The
student continues, without the context. No training is involved ("Unmasking OPD", arXiv 2605.10889, has the idea).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stepalign.evaluation.statistics import bootstrap_mean, paired_difference, rank_correlation
from stepalign.models.prompts import token_text
from stepalign.records import Attempt, Completion, Problem, Rollout
from stepalign.waiting import wait_for

if TYPE_CHECKING:
    from stepalign.rollouts.collect import RolloutMaker


SPIKES = 24
"""Strong tokens of a context that are resampled: the strongest of each rollout, and of these the strongest."""


VERSIONS = ("replaced", "as_written")
"""Of a token; the fields of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spike:
    """A token that a context suppresses, and the self-teacher's likeliest token in its place."""

    rollout_id: str
    context: str
    problem: Problem
    prompt_ids: tuple[int, ...]
    """The student's prompt."""
    before: tuple[int, ...]
    """The completion up to the token."""
    token: int
    replacement: int
    log_ratio: float

    def start_with(self, token: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """(problem, prompt, completion up to a token in this place, itself included)."""
        return self.problem.problem_id, self.prompt_ids, (*self.before, token)


def suppressed(log_ratio: np.ndarray, ids: Sequence[int], likeliest: np.ndarray, count: int) -> list[int]:
    """Positions of the most suppressed tokens for which the self-teacher would write another one, strongest first.

    Args:
        likeliest: [T], the self-teacher's likeliest token at each position.
    """
    values = np.where((np.asarray(ids) != likeliest) & (log_ratio < 0), log_ratio, 0.0)
    return [int(at) for at in np.argsort(values, kind="stable")[:count] if values[at] < 0]


def strongest(
    rollout: Rollout, context: str, prompt_ids: tuple[int, ...], log_ratio: np.ndarray, likeliest: np.ndarray
) -> list[Spike]:
    """The most suppressed token of a rollout under a context, if it has one. Arguments as ``suppressed``."""
    ids = rollout.completion.ids
    return [
        spike_at(at, rollout.attempt, context, prompt_ids, ids, log_ratio, likeliest)
        for at in suppressed(log_ratio, ids, likeliest, 1)
    ]


def spike_at(
    at: int,
    attempt: Attempt,
    context: str,
    prompt_ids: tuple[int, ...],
    ids: Sequence[int],
    log_ratio: np.ndarray,
    likeliest: np.ndarray,
) -> Spike:
    """A token of an attempt by its position. Arguments as ``suppressed``."""
    return Spike(
        rollout_id=attempt.rollout_id,
        context=context,
        problem=attempt.problem,
        prompt_ids=prompt_ids,
        before=tuple(ids[:at]),
        token=ids[at],
        replacement=int(likeliest[at]),
        log_ratio=float(log_ratio[at]),
    )


def resample(
    maker: RolloutMaker,
    spikes: Sequence[Spike],
    *,
    num_samples: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    end_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Success of ``num_samples`` continuations of both tokens of every spike; JSON-ready rows (docs/formats.md).

    Undecided continuations are counted and left out of the success, which is NaN where all of them are.
    """
    starts = {s.start_with(token): s.problem for s in spikes for token in (s.token, s.replacement)}
    open_starts = {key: problem for key, problem in starts.items() if key[2][-1] not in end_ids}
    room = max_tokens - min((len(written) for _, _, written in open_starts), default=0)
    drawn = []
    if open_starts:
        prompts = [(*prompt, *written) for _, prompt, written in open_starts]
        options = {"num_samples": num_samples, "temperature": temperature, "max_tokens": max(1, room), "seed": seed}
        drawn = wait_for(maker.complete(list(open_starts.values()), prompts, **options))
    rates: dict[Any, dict[str, float]] = {}
    ends = dict(zip(open_starts, drawn, strict=True))
    for key, problem in starts.items():
        completions = ends.get(key, [None])
        texts = [maker.written(key[1], _whole(key[2], completion)) for completion in completions]
        grades = maker.grader.grade_many(texts, [problem.answer] * len(texts))
        decided = [float(grade.verdict == "correct") for grade in grades if grade.verdict != "undecided"]
        rate = asdict(bootstrap_mean(decided, share=True, resamples=500))
        rates[key] = {**rate, "undecided": len(grades) - len(decided)}
    return [
        {
            "rollout_id": spike.rollout_id,
            "context": spike.context,
            "position": len(spike.before),
            "token": token_text(maker.tokenizer, spike.token),
            "replacement": token_text(maker.tokenizer, spike.replacement),
            "log_ratio": round(spike.log_ratio, 6),
            "num_samples": num_samples,
            "as_written": rates[spike.start_with(spike.token)],
            "replaced": rates[spike.start_with(spike.replacement)],
        }
        for spike in spikes
    ]


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one context's rows: the change of success, and its rank correlation with how strongly the token is
    suppressed. A row without a decided continuation on one side is left out, and counted."""
    everything, rows = rows, [row for row in rows if not any(math.isnan(row[name]["value"]) for name in VERSIONS)]
    change = [row["replaced"]["value"] - row["as_written"]["value"] for row in rows]
    found = rank_correlation([-row["log_ratio"] for row in rows], change, resamples=2000)
    versions = ([row[name]["value"] for row in rows] for name in VERSIONS)
    mean = paired_difference(*versions, resamples=2000) if rows else None
    return {
        "spikes": len(rows),
        "undecided": len(everything) - len(rows),
        "change": {"value": mean.difference, "low": mean.low, "high": mean.high} if mean else None,
        "correlation": {"value": found.value, "low": found.low, "high": found.high},
    }


def _whole(written: tuple[int, ...], more: Completion | None) -> Completion:
    """The completion so far with its continuation; None where its last token ends it."""
    tail = more.ids if more else ()
    mask = (True,) * len(written) + (more.sampled_mask if more else ())
    return Completion(
        ids=(*written, *tail),
        log_probs=(float("nan"),) * (len(written) + len(tail)),
        finish_reason=more.finish_reason if more else "stop",
        policy_version=0,
        sampled_mask=mask,
    )
