"""The numbers of a step's rollouts and critiques, under TRL's names where they mean the same. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from stepalign.evaluation import canaries, judging
from stepalign.feedback.findings import FINDINGS
from stepalign.records import Critique, Rollout


def rollout_numbers(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Metrics of a step's rollouts, in groups of equal size. Lengths count sampled tokens."""
    rollouts = [rollout for group in groups for rollout in group]
    rewards_PG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    lengths = [sum(rollout.completion.sampled_mask) for rollout in rollouts]
    decided = [rollout.reward for rollout in rollouts if rollout.verdict != "undecided"]
    num_problems, num_generations = rewards_PG.shape
    alike = torch.tensor([not has_two_rewards(row) for row in rewards_PG.tolist()])
    same = alike.float().mean() if num_generations > 1 else torch.nan
    texts = [rollout.text for rollout in rollouts]
    talks = [rollout.attempt.turns for rollout in rollouts if rollout.attempt.turns]
    turns = [sum(turn.role == "solver" for turn in talk) for talk in talks]
    messages = {
        "turns/mean": (sum(turns) + len(rollouts) - len(talks)) / len(rollouts),
        "turns/max": float(max(turns, default=1)),
        "turns/messages_cut": float(sum(turn.dropped_tokens > 0 for talk in talks for turn in talk)),
    }
    distinct = [canaries.distinct_answers([rollout.answer for rollout in group]) for group in groups]
    return {
        "reward": sum(decided) / len(decided) if decided else math.nan,
        "reward_std": _mean_spread(rewards_PG),
        "frac_reward_zero_std": float(same),
        "undecided": float(len(rollouts) - len(decided)),
        "completions/correct_ratio": sum(rollout.verdict == "correct" for rollout in rollouts) / len(rollouts),
        "completions/answered_ratio": sum(rollout.answer is not None for rollout in rollouts) / len(rollouts),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(rollout.attempt.truncated for rollout in rollouts) / len(rollouts),
        "completions/tail_compression": _mean_of_defined([canaries.tail_compression(text) for text in texts]),
        "completions/repetitive_ratio": sum(map(canaries.is_repetitive, texts)) / len(texts),
        "completions/hedge_words": sum(map(canaries.hedge_words, texts)) / len(texts),
        "completions/distinct_answers": _mean_of_defined(distinct),
        "completions/distinct_bigrams": _mean_of_defined(
            [canaries.distinct_ngrams([rollout.text for rollout in group]) for group in groups]
        ),
        "completions/mentions_feedback": sum(map(canaries.mentions_feedback, texts)) / len(texts),
        "num_problems": float(num_problems),
        "num_rollouts": float(len(rollouts)),
        "num_tokens": float(sum(lengths)),
        **(messages if talks else {}),
        **_judging(groups),
    }


def has_two_rewards(rewards: Sequence[float]) -> bool:
    """Whether a group holds two different rewards. An undecided one (NaN) is none."""
    return len({reward for reward in rewards if reward == reward}) > 1


def _judging(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """How far the scores of free text can be trusted: agreement of two judges, and their liking for length."""
    if not any(0 < rollout.reward < 1 for group in groups for rollout in group):
        return {}
    rows = [[(one.reward, float(sum(one.completion.sampled_mask))) for one in group] for group in groups]
    decided = [[row for row in group if not math.isnan(row[0])] for group in rows]
    pairs = [one.attempt.grade.judged for group in groups for one in group if len(one.attempt.grade.judged) == 2]
    first, second = (np.array(scores) for scores in zip(*pairs, strict=True)) if pairs else (np.array(()),) * 2
    agreement = {
        "judges/kappa": judging.weighted_kappa(first, second),
        "judges/correlation": judging.correlation(first, second),
    }
    return {"reward_length_correlation": judging.length_correlation(decided), **(agreement if pairs else {})}


def critique_numbers(critiques: Sequence[Critique]) -> dict[str, float]:
    """How many critiques of a step have each finding, and what was done about them."""
    found = Counter(name for critique in critiques for name in critique.findings)
    return {
        **{f"findings/{name}": float(found[name]) for name in FINDINGS},
        "critiques/fall_back": float(sum(critique.policy == "fall_back" for critique in critiques)),
        "critiques/retries": float(sum(critique.retries for critique in critiques)),
    }


def _mean_spread(rewards_PG: torch.Tensor) -> float:
    """Mean over groups of the rewards' standard deviation, NaN where no group has two decided rewards."""
    decided = [row[~row.isnan()] for row in rewards_PG]
    return _mean_of_defined([float(row.std()) for row in decided if len(row) > 1])


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
