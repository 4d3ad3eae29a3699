"""Breaks on made-up numbers and recorded runs: what wrecks a policy is seen within steps, health is left in peace."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from scipy.stats import chi2_contingency, combine_pvalues, norm

from stepalign.config import GuardsSection
from stepalign.training.breaks import BREAKS, LATEST, Broke, find_break, independent
from stepalign.training.health import Guards

NAN = math.nan
HEALTHY = {
    "reward": 0.5,
    "student_entropy": 0.3,
    "grad_norm": 1.0,
    "num_problems": 32.0,
    "active_samples": 20.0,
    "loss": 0.2,
    "divergence": 0.2,
    "completions/answered_ratio": 0.95,
    "completions/repetitive_ratio": 0.01,
    "completions/clipped_ratio": 0.02,
}
DATA = Path(__file__).parents[1] / "data" / "guards"


def first(rows: Sequence[Mapping[str, float]], **keys: str) -> tuple[int, Broke] | None:
    """The first step (from 1) with a break, and the break."""
    section = GuardsSection.model_validate(keys)
    found = ((end, find_break(rows[:end], section)) for end in range(1, len(rows) + 1))
    return next(((end, broke) for end, broke in found if broke is not None), None)


@pytest.mark.parametrize(
    ("guard", "after", "step"),
    [
        ("gradient", {"grad_norm": NAN}, 13),
        ("gradient", {"grad_norm": math.inf}, 13),
        ("scale", {"divergence": 5.0}, 12),
        ("scale", {"loss": -30.0}, 12),
        ("scale", {"loss": 1e7}, 11),
        ("entropy", {"student_entropy": 0.9}, 12),
        ("entropy", {"student_entropy": 0.001}, 12),
        ("pass_rate", {"reward": 0.02}, 12),
        ("pass_rate", {"reward": 0.2}, 13),
        ("answers", {"completions/answered_ratio": 0.3}, 12),
        ("repetition", {"completions/repetitive_ratio": 0.9}, 12),
        ("cut", {"completions/clipped_ratio": 0.6}, 12),
        ("nothing", {"active_samples": 0.0}, 20),
        ("nothing", {"grad_norm": 0.0}, 20),
    ],
)
def test_a_break_is_seen_within_its_steps(guard: str, after: dict[str, float], step: int) -> None:
    rows = [HEALTHY] * 10 + [{**HEALTHY, **after}] * 10
    found = first(rows)
    assert found is not None
    assert (found[0], found[1].guard, found[1].policy) == (step, guard, "stop")
    assert found[1].length == step - 10
    for policy in ("warn", "roll_back"):
        own = first(rows, **{guard: policy})
        assert own is not None
        assert own[1].policy == ("stop" if (guard, policy) == ("nothing", "roll_back") else policy)


@pytest.mark.parametrize(
    "after",
    [
        {"reward": 0.45}, {"reward": 1.0}, {"student_entropy": 0.15}, {"student_entropy": 0.5}, {"divergence": 0.9},
        {"loss": 1.5}, {"grad_norm": 500.0}, {"completions/answered_ratio": 0.8}, {"active_samples": 1.0},
        {"active_samples": 0.0, "reward": 1.0}, dict.fromkeys(HEALTHY, NAN) | {"grad_norm": 1.0}, {"num_problems": 1.0},
        {"completions/clipped_ratio": 0.15}, {"completions/clipped_ratio": 0.6, "reward": 0.55},
    ],
)  # fmt: skip
def test_a_change_that_is_no_break_is_left_in_peace(after: dict[str, float]) -> None:
    assert first([HEALTHY] * 10 + [{**HEALTHY, **after}] * 20) is None


@pytest.mark.parametrize(
    "name", ["reward", "completions/answered_ratio", "student_entropy", "divergence", "grad_norm", "active_samples"]
)
def test_one_bad_step_is_no_break(name: str) -> None:
    for bad in (0.0, 30.0, NAN):
        if name in ("reward", "completions/answered_ratio") and bad > 1:
            continue
        assert first(([HEALTHY] * 10 + [{**HEALTHY, name: bad}]) * 3) is None


def test_a_solver_that_answers_at_once_and_rambles_on_is_seen_before_its_pass_rate_can_tell() -> None:
    """Recorded: a pretrained model of 135 M parameters, 16 problems a step; one in six was right, at step 17 none."""
    right = (3, 3, 2, 1, 4, 2, 0, 0, 4, 5, 3, 3, 5, 4, 3, 2, 0, 2, 0, 0, 1, 0, 0, 0)
    cut = (0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 2, 2, 4, 7, 10, 11, 14, 12)
    row = HEALTHY | {"num_problems": 16.0, "completions/answered_ratio": 1.0}
    rows = [row | {"reward": r / 16, "completions/clipped_ratio": c / 16} for r, c in zip(right, cut, strict=True)]
    found = first(rows)
    assert found is not None
    assert (found[0], found[1].guard) == (20, "cut")
    assert first([one | {"completions/clipped_ratio": NAN} for one in rows]) is None


def test_the_length_of_a_break_reaches_back_to_its_first_step() -> None:
    """A slow fall: by the time that chance is ruled out, the weights of several steps are bad."""
    rates = [0.5] * 10 + [0.24, 0.24, 0.2, 0.1, 0.0]
    found = first([{**HEALTHY, "reward": rate, "num_problems": 16.0} for rate in rates])
    assert found is not None
    assert found[0] - found[1].length == 10


def test_a_fall_by_chance_is_no_break_and_the_bound_is_that_of_the_likelihood_ratio_test() -> None:
    rng = random.Random(0)
    for _ in range(60):
        rate = rng.uniform(0.05, 0.95)
        rewards = [sum(rng.random() < rate for _ in range(32)) / 32 for _ in range(62)]
        assert first([{**HEALTHY, "reward": reward} for reward in rewards]) is None
    for right in range(0, 160):
        table = [[160, 160], [right, 160 - right]]  # ten steps of 16 of 32 right, then five steps
        statistic = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        rows = [HEALTHY] * 10 + [{**HEALTHY, "reward": right / 160}] * 5
        lengths = [2, 3, 4, 5]  # shorter falls are looked at first: none of them may decide
        earlier = [
            chi2_contingency(
                [[160 + right / 5 * (5 - n), 160 + (32 - right / 5) * (5 - n)], [right / 5 * n, (32 - right / 5) * n]],
                correction=False, lambda_="log-likelihood",
            ).statistic
            for n in lengths[:-1]
        ]  # fmt: skip
        large = 0.5 - right / 160 > 0.15
        assert (find_break(rows, GuardsSection()) is not None) == (large and max(statistic, *earlier) >= 25)


def test_a_restless_entropy_makes_no_break_of_chance() -> None:
    rng = random.Random(1)
    for _ in range(20):
        rate, rows = rng.uniform(0.05, 0.95), list[dict[str, float]]()
        for _ in range(62):
            reward, entropy = sum(rng.random() < rate for _ in range(32)) / 32, 0.3 * math.exp(0.1 * rng.gauss(0, 1))
            rows.append({**HEALTHY, "reward": reward, "student_entropy": entropy})
        assert first(rows) is None


def test_a_fall_and_a_policy_that_heats_up_bear_witness_together() -> None:
    """The bound is Stouffer's for both signs, each of two standard errors at least: neither alone is a break."""
    entropies = [0.3 * math.exp(0.05 * way) for way in (-2, 1, 3, -3, 0, 2, -1, 0, 3, -3)]
    seen = 0
    for right in range(0, 64, 2):
        for grown in (1.0, 1.1, 1.15, 1.2, 1.25, 1.3, 1.5):
            rows = [{**HEALTHY, "student_entropy": value} for value in entropies]
            rows += [{**HEALTHY, "student_entropy": 0.3 * grown, "reward": right / 64}] * 2
            table = [[160, 160], [right, 64 - right]]
            fall = math.sqrt(chi2_contingency(table, correction=False, lambda_="log-likelihood")[0])
            logs = [math.log(value) for value in entropies]
            spread = max(0.1, statistics.stdev(logs))
            growth = (math.log(0.3 * grown) - statistics.mean(logs)) / (spread * math.sqrt(1 / 10 + 1 / 2))
            both = combine_pvalues([norm.sf(fall), norm.sf(growth)], method="stouffer")[0]
            found = find_break(rows, GuardsSection())
            large = 0.5 - right / 64 > 0.15
            assert (found is not None) == (large and (fall >= 5 or (min(fall, growth) >= 2 and both >= 5)))
            if found is not None:
                assert ("entropy grew" in found.sentence) == (fall < 5)
                seen += fall < 5
    assert seen > 5


def test_rollouts_of_one_problem_count_as_far_as_they_differ() -> None:
    """Against the variance of the mean of many drawn steps: each problem has a rate of its own."""
    rng = random.Random(0)
    for shape in (0.2, 1.0, 50.0):  # nearly all groups alike; in between; nearly independent
        rows, size, groups = [], 32, 4
        for _ in range(600):
            rates = [rng.betavariate(shape, 2 * shape) for _ in range(groups)]
            drawn = [[float(rng.random() < rate) for _ in range(size)] for rate in rates]
            mean = statistics.mean(map(statistics.mean, drawn))
            spread = statistics.mean(map(statistics.stdev, drawn))
            rows.append({"reward": mean, "reward_std": spread, "num_problems": groups, "num_rollouts": groups * size})
        rate, spread = (f([row["reward"] for row in rows]) for f in (statistics.mean, statistics.variance))
        (count,) = set(independent(rows))
        assert groups <= count <= groups * size
        assert 0.5 * rate * (1 - rate) / spread < count < 1.2 * rate * (1 - rate) / spread  # never far too many
    assert independent([{**HEALTHY}]) == [32.0]
    assert independent([{"reward": 0.3, "num_problems": 4.0, "num_rollouts": 32.0}]) == [4.0]


def test_the_policy_that_asks_for_most_decides() -> None:
    wreck = {**HEALTHY, "reward": 0.0, "completions/answered_ratio": 0.0, "student_entropy": 3.0}
    rows = [HEALTHY] * 10 + [wreck] * 2
    for keys, expected in (
        ({"policy": "warn"}, "warn"),
        ({"policy": "roll_back"}, "roll_back"),
        ({"policy": "roll_back", "answers": "stop"}, "stop"),
        ({"policy": "warn", "entropy": "roll_back"}, "roll_back"),
    ):
        broke = find_break(rows, GuardsSection.model_validate(keys))
        assert broke is not None
        assert broke.policy == expected


def test_a_break_that_only_warns_speaks_once() -> None:
    guards = Guards(GuardsSection(policy="warn"))
    texts = [t for row in [HEALTHY] * 10 + [{**HEALTHY, "loss": 99.0}] * 5 for t in guards.look(row)]
    assert len(texts) == 1
    assert "out of all scale" in texts[0]
    assert guards.broke is None


def recorded() -> dict[str, list[dict[str, float]]]:
    runs = json.loads((DATA / "breaks.json").read_text(encoding="utf-8"))
    return {
        name: [
            {key: NAN if values[step] is None else values[step] for key, values in columns.items()}
            for step in range(len(columns["reward"]))
        ]
        for name, columns in runs.items()
    }


def test_recorded_collapses_are_seen_and_recorded_health_is_left_in_peace() -> None:
    """benchmarks/guards.py records them and prints the same; docs/results/reliability.md has the table."""
    expected = json.loads((DATA / "breaks_seen.json").read_text(encoding="utf-8"))
    found = {name: first(rows) for name, rows in recorded().items()}
    assert {name: [one[0], one[1].guard] for name, one in found.items() if one is not None} == expected
    assert max(one[1].length for one in found.values() if one is not None and one[1].guard != "nothing") <= LATEST
    assert set(BREAKS) >= {guard for _, guard in expected.values()}
