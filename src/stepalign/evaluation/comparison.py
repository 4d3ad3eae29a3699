"""The numbers of a comparison, from the files of its runs: metrics with intervals, paired differences, curves.

Every number names its metric, k, n, set, step and checkpoint rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from stepalign.config import CheckpointRule, EvaluationSection
from stepalign.errors import ConfigError
from stepalign.evaluation.evaluate import metrics_of, read_samples
from stepalign.evaluation.metrics import NO_SHARES, Metric, mean_score, win_rate
from stepalign.evaluation.statistics import hierarchical_bootstrap, minimum_detectable_difference, paired_difference
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.sums import damaged_since, short_of_checkpoint

RULES = get_args(CheckpointRule)
"""The step whose test numbers count: the last one; the one with the highest avg@n on the validation problems; for every
metric the one that is best on the test problems themselves, as the paper reports, which flatters every arm."""
SMALLER_IS_BETTER = ("mean_length", "truncated_share", "unparsed_share", "undecided_share", "repetitive_share")
UNRANKED = ("hedge_words", "distinct_answers")
"""Neither more nor less is better: no step is picked by these."""

Arms = Mapping[str, Mapping[int, Path]]
"""Name of an arm -> seed -> run folder. The untrained solver is the arm "base" with a single folder."""


_POINT = {"step", "set", "rollouts", "seconds"}


def _reason(error: ConfigError | OSError, file: Path) -> str:
    return f"{error.where}: {error.what}" if isinstance(error, ConfigError) else f"{file}: {error.strerror}"


class Evaluations:
    """The metrics of one run, by (step, set); files are read once.

    A run with a damaged file has no test metrics: another step's would replace them.
    """

    def __init__(self, folder: Path, ks: Sequence[int]) -> None:
        self.metrics: dict[tuple[int, str], dict[str, Metric]] = {}
        self.scores: dict[tuple[int, str], list[tuple[float, ...]]] = {}
        """Of the completions of each problem."""
        self.damage: list[str] = []
        self.points, self.steps_trained = (
            self._records(folder / name) for name in ("evaluations.jsonl", "metrics.jsonl")
        )
        for number, point in enumerate(self.points, 1):
            if not isinstance(point.get("metrics"), list) or not point.keys() >= _POINT:
                self.damage.append(f"{folder / 'evaluations.jsonl'}:{number}: this line is no evaluation")
                self.points = []
                break
        sizes = {(p["step"], p["set"]): [row.get("problems") for row in p["metrics"]] for p in self.points}
        files = {
            (int(name[1]), name[2]): file
            for file in (folder / "samples").glob("step-*.jsonl")
            if (name := re.fullmatch(r"step-(\d+)-(\w+)", file.stem))
        }
        for step, name in sorted(sizes.keys() | files.keys()):
            file = files.get((step, name)) or folder / "samples" / f"step-{step:05d}-{name}.jsonl"
            try:
                samples = read_samples(file)
            except (ConfigError, OSError) as error:
                self.damage.append(_reason(error, file))
                continue
            for size in sizes.get((step, name), [])[:1]:
                if size is not None and size != len(samples):
                    state = f"holds {len(samples)} of {size} problems" if file.exists() else "is missing"
                    self.damage.append(f"{file} {state}")
            self.metrics[step, name] = metrics_of(samples, ks)
            self.scores[step, name] = [problem.all_scores() for problem in samples]
        try:
            changed = damaged_since(folder, "summary.json", "evaluations.jsonl", "metrics.jsonl", "samples")
            changed += short_of_checkpoint(folder, "evaluations.jsonl", "metrics.jsonl", "samples")
            named = "\n".join(self.damage)
            self.damage += [f"{folder / name} {what}" for name, what in changed if str(folder / name) not in named]
        except ConfigError as error:
            self.damage.append(_reason(error, folder))
        if self.damage:
            self.metrics.clear()

    def _records(self, file: Path) -> list[dict[str, Any]]:
        try:
            return list(read_json_lines(file))
        except (ConfigError, OSError) as error:
            self.damage.append(_reason(error, file))
            return []

    def steps(self, name: str) -> list[int]:
        return sorted(step for step, found in self.metrics if found == name)

    def step_by_rule(self, rule: str, metric: str, n: int) -> int | None:
        """The step that a rule picks on the test set, or None where the run has not been evaluated for it."""
        tested = self.steps("test")
        if not tested:
            return None
        if rule == "last":
            return tested[-1]
        if rule == "best_per_metric_on_test" and metric in UNRANKED:
            return None
        where, name = ("validation", f"avg@{n}") if rule == "best_on_validation" else ("test", metric)
        if len(tested) < 2 or set(self.steps(where)) - {0} != set(tested) - {0}:
            return None  # tested at the end only: nothing to choose from
        candidates = [step for step in self.steps(where) if step in tested]
        sign = -1 if name in SMALLER_IS_BETTER else 1
        return max(candidates, key=lambda step: (sign * self.metrics[step, where][name].value, -step))


def comparison_numbers(arms: Arms, section: EvaluationSection, ks: Sequence[int]) -> dict[str, Any]:
    """The parts of results.json (docs/formats.md) that follow from the runs: settings of the evaluation, "metrics",
    "paired", "curves", "training" and "damage"."""
    found = {arm: {seed: Evaluations(folder, ks) for seed, folder in runs.items()} for arm, runs in arms.items()}
    _score_all([run for runs in found.values() for run in runs.values()])
    n, level, resamples = section.num_samples, section.confidence, section.bootstrap_samples
    return {
        "num_samples": n,
        "temperature": section.temperature,
        "confidence": level,
        "checkpoint_rule": section.checkpoint_rule,
        "metrics": list(_metric_rows(found, n, level, resamples)),
        "paired": list(_paired_rows(found, n, level, resamples)),
        "curves": list(_curves(found, n)),
        "training": [_training(arm, seed, run) for arm, runs in found.items() for seed, run in runs.items()],
        "damage": [
            {"arm": arm, "seed": seed, "reason": reason}
            for arm, runs in found.items()
            for seed, run in runs.items()
            for reason in run.damage
        ],
    }


Found = Mapping[str, Mapping[int, Evaluations]]


def _score_all(runs: Sequence[Evaluations]) -> None:
    """Where scores say more than verdicts anywhere, those that happen to be 0 and 1 are scores as well."""
    tables = [(table, run.scores[key]) for run in runs for key, table in run.metrics.items()]
    if any("mean_score" in table for table, _ in tables):
        for table, scores in tables:
            table.setdefault("mean_score", mean_score(scores))


def _metric_rows(found: Found, n: int, level: float, resamples: int) -> Iterable[dict[str, Any]]:
    """Per arm, rule and metric: one row per seed, then one of all seeds pooled (``seed`` None)."""
    for arm, runs in found.items():
        names = dict.fromkeys(m for run in runs.values() for table in run.metrics.values() for m in table)
        for rule, name in product(RULES if arm != "base" else ("last",), names):
            steps = {seed: run.step_by_rule(rule, name, n) for seed, run in runs.items()}
            chosen = {seed: (s, runs[seed].metrics[s, "test"][name]) for seed, s in steps.items() if s is not None}
            rows: dict[int | None, list[tuple[int, Metric]]] = {}
            if arm != "base":
                rows |= {seed: [picked] for seed, picked in chosen.items()}
            if chosen and len({metric.num_problems for _, metric in chosen.values()}) == 1:
                rows[None] = list(chosen.values())
            for seed, picked in rows.items():
                metrics = [metric for _, metric in picked]
                interval = hierarchical_bootstrap(
                    np.stack([metric.per_problem for metric in metrics]),
                    level=level,
                    resamples=resamples,
                    bounds=None if name in NO_SHARES else (0.0, 1.0),
                )
                step = picked[0][0] if len({step for step, _ in picked}) == 1 else None
                yield {
                    "arm": arm,
                    "set": "test",
                    "metric": name,
                    "checkpoint_rule": rule,
                    "seed": seed,
                    "step": step,
                    "k": metrics[0].k,
                    "n": metrics[0].n,
                    "value": interval.value,
                    "numerator": sum(m.numerator for m in metrics),
                    "denominator": sum(m.denominator for m in metrics),
                    "low": interval.low,
                    "high": interval.high,
                    "problems": metrics[0].num_problems,
                    "seeds": len(metrics),
                }


def _paired_rows(found: Found, n: int, level: float, resamples: int) -> Iterable[dict[str, Any]]:
    """Every pair of arms on the same problems and seeds, under every checkpoint rule."""
    names = list(found)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    scored = any(
        "mean_score" in table for runs in found.values() for run in runs.values() for table in run.metrics.values()
    )
    metrics = (f"avg@{n}", f"maj@{n}", f"pass@{n}", *(("mean_score",) if scored else ()))
    for rule, (a, b), metric in product(RULES, pairs, metrics):
        shared = sorted(found[a].keys() & found[b].keys()) if b != "base" else sorted(found[a])
        both = {s: (_picked(found[a], s, rule, metric, n), _picked(found[b], s, rule, metric, n)) for s in shared}
        known = {s: (x, y) for s, (x, y) in both.items() if x is not None and y is not None}
        if len({metric.num_problems for pair in known.values() for metric in pair}) != 1:
            continue
        first = np.stack([x.per_problem for x, _ in known.values()])
        second = np.stack([y.per_problem for _, y in known.values()])
        result = paired_difference(first, second, level=level, resamples=resamples, share=True)
        yield {
            "a": a,
            "b": b,
            "set": "test",
            "metric": metric,
            "checkpoint_rule": rule,
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
            "p_value": result.p_value,
            "seed_differences": list(result.seed_differences),
            "seeds": list(known),
            "problems": result.num_problems,
        }
        if metric == "mean_score":
            yield from _wins(found, (a, b), rule, known, n, level, resamples)


def _wins(
    found: Found, arms: tuple[str, str], rule: str, known: Mapping[int, Any], n: int, level: float, resamples: int
) -> Iterable[dict[str, Any]]:
    """Net wins of one arm over another: the share of pairs of completions that it wins without that which it loses."""
    scores = [[_picked_scores(found[arm], seed, rule, n) for seed in known] for arm in arms]
    pairs = list(zip(*scores, strict=True))
    if any(one is None or other is None for one, other in pairs):
        return
    nets = np.stack([2.0 * win_rate(one, other).per_problem - 1.0 for one, other in pairs])
    interval = hierarchical_bootstrap(nets, level=level, resamples=resamples, bounds=(-1.0, 1.0))
    yield {
        "a": arms[0],
        "b": arms[1],
        "set": "test",
        "metric": "net_wins",
        "checkpoint_rule": rule,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p_value": None,
        "win_rate": (1.0 + interval.value) / 2.0,
        "seed_differences": nets.mean(axis=1).tolist(),
        "seeds": list(known),
        "problems": nets.shape[1],
    }


def _picked_scores(runs: Mapping[int, Evaluations], seed: int, rule: str, n: int) -> list[tuple[float, ...]] | None:
    run = runs.get(seed) or next(iter(runs.values()))
    step = run.step_by_rule("last" if run.steps("test") == [0] else rule, "mean_score", n)
    return None if step is None else run.scores.get((step, "test"))


def _picked(runs: Mapping[int, Evaluations], seed: int, rule: str, metric: str, n: int) -> Metric | None:
    """A metric of the step that a rule picks in the run of a seed; the untrained solver's one step serves them all."""
    run = runs.get(seed) or next(iter(runs.values()))
    step = run.step_by_rule("last" if run.steps("test") == [0] else rule, metric, n)
    return None if step is None else run.metrics[step, "test"].get(metric)


def _curves(found: Found, n: int) -> Iterable[dict[str, Any]]:
    """Held-out metrics while training. Every curve starts at the untrained solver."""
    base = next(iter(found["base"].values())).points if "base" in found else []
    for arm, runs in found.items():
        if arm == "base":
            continue
        for seed, run in runs.items():
            for name in ("validation", "test"):
                points = [p for p in (*base, *run.points) if p["set"] == name]
                for metric in (f"avg@{n}", f"maj@{n}", f"pass@{n}", "mean_length"):
                    yield {
                        "arm": arm,
                        "seed": seed,
                        "set": name,
                        "metric": metric,
                        "points": [
                            {k: p[k] for k in ("step", "rollouts", "seconds")}
                            | {k: row[k] for k in ("value", "low", "high")}
                            for p in points
                            for row in p["metrics"]
                            if row["metric"] == metric
                        ],
                    }


_TRAINING = {
    "step": "step",
    "rollouts": "total_rollouts",
    **{name: name for name in ("seconds", "reward", "divergence", "student_entropy", "teacher_entropy")},
    "right_value_probability": "right_value_probability",
    "completion_length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "repetitive": "completions/repetitive_ratio",
    **{name: f"completions/{name}" for name in ("hedge_words", "distinct_answers")},
    **{name: name for name in ("trained_tokens", "grad_norm")},
}
"""Names in results.json -> names in metrics.jsonl."""


def _training(arm: str, seed: int, run: Evaluations) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "points": [{ours: row.get(theirs) for ours, theirs in _TRAINING.items()} for row in run.steps_trained],
    }


def detectable_difference(num_problems: int, num_samples: int, num_seeds: int) -> str:
    """One sentence, printed before a comparison starts: how small a gap the test set can show."""
    smallest = minimum_detectable_difference(num_problems, num_samples, num_seeds=num_seeds)
    gaps = f"gaps in avg@{num_samples} below about {100 * smallest:.1f} points will not show"
    if smallest >= 1:
        gaps = f"no gap in avg@{num_samples} can show"
    return (
        f"{num_problems} test problems x {num_samples} completions x {num_seeds} "
        f"seed{'s' if num_seeds > 1 else ''}: {gaps} (80 % power, 95 % level)"
    )
