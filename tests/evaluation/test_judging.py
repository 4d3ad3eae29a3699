"""Agreement of judges and length bias, against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from stepalign.config import Config, changed
from stepalign.errors import ConfigError
from stepalign.evaluation.evaluate import EvaluatedProblem, judging_of, read_samples, win_row
from stepalign.evaluation.judging import correlation, judging_rows, length_correlation, weighted_kappa
from stepalign.events import Event
from stepalign.problems.loading import load_problems
from stepalign.report.completions import score_facts, write_completions_page
from stepalign.verbs.evaluate import _key, _refuse_another_judge, evaluate


def test_kappa_is_cohens_with_quadratic_weights() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = rng.integers(0, 11, 60)
        second = np.clip(first + rng.integers(-3, 4, 60), 0, 10)
        expected = cohen_kappa_score(first, second, weights="quadratic", labels=range(11))
        assert weighted_kappa(first / 10, second / 10) == pytest.approx(expected)
    assert weighted_kappa(np.array([0.5, 1.0]), np.array([0.5, 1.0])) == 1.0
    assert math.isnan(weighted_kappa(np.array([0.5, 0.5]), np.array([0.5, 0.5])))
    assert math.isnan(weighted_kappa(np.array([]), np.array([])))


def test_the_partial_correlation_is_that_of_its_closed_form() -> None:
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(3, 200)) @ np.eye(200) + rng.normal(size=200)
    xy, xz, yz = (stats.pearsonr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    assert correlation(x, y) == pytest.approx(xy)
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert correlation(x, y, [z]) == pytest.approx(expected)
    assert math.isnan(correlation(x, np.ones(200)))
    assert math.isnan(correlation(x, 3 * z + 1, [z]))


def test_the_length_bias_is_one_within_problems() -> None:
    """Long problems that are scored higher are no bias; a judge that likes length is."""
    rng = np.random.default_rng(2)
    fair, biased = [], []
    for problem in range(40):
        lengths = 100 * problem + rng.integers(0, 50, 4)
        merit = rng.random(4)
        fair.append([(problem / 40 + m / 40, float(n), m) for m, n in zip(merit, lengths, strict=True)])
        biased.append([(m / 4 + (n % 100) / 100, float(n), m) for m, n in zip(merit, lengths, strict=True)])
    assert abs(length_correlation(fair)) < 0.3
    assert length_correlation(biased) > 0.8
    assert length_correlation(biased, given_second=True) > 0.99
    assert math.isnan(length_correlation([[(0.5, 3.0)]]))


def texts(name: str, judged: list[tuple[float, ...]], lengths: list[int]) -> EvaluatedProblem:
    scores = tuple(sum(one) / 2 if one else math.nan for one in judged)
    count = len(judged)
    return EvaluatedProblem(
        problem_id=name,
        answers=(None,) * count,
        verdicts=("incorrect",) * count,
        lengths=tuple(lengths),
        finish_reasons=("stop",) * count,
        texts=("a",) * count,
        scores=scores,
        judged=tuple(judged),
    )


def test_judged_texts_have_rows_with_intervals_and_undecided_ones_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    problems = []
    for number in range(30):
        first = np.round(rng.random(3), 1)
        second = np.clip(np.round(first + rng.normal(0, 0.1, 3), 1), 0, 1)
        pairs = [(float(a), float(b)) for a, b in zip(first, second, strict=True)]
        problems.append(texts(str(number), [*pairs, ()], [5, 9, 7, 6]))
    rows = {row["metric"]: row for row in judging_of(problems, level=0.95, resamples=200)}
    assert list(rows) == [
        *("score_length_correlation", "judges_kappa", "judges_correlation", "score_length_given_second")
    ]
    a, b = np.array([pair for p in problems for pair in p.judged if pair]).T
    assert rows["judges_correlation"]["value"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert rows["judges_kappa"]["low"] < rows["judges_kappa"]["value"] < rows["judges_kappa"]["high"]
    assert rows["judges_kappa"]["denominator"] == 90
    assert judging_of([], level=0.95, resamples=10) == []
    page = write_completions_page(problems, "texts", tmp_path / "page.html").read_text()
    assert "Cohen&#39;s kappa" in page
    words, shown = score_facts(rows.values())[0]
    assert words.endswith("kappa")
    assert shown.startswith(f"{rows['judges_kappa']['value']:.2f} (")


def test_the_win_rate_has_an_interval_over_the_same_problems() -> None:
    better = [texts(str(n), [(0.8, 0.8), (0.6, 0.6)], [1, 1]) for n in range(12)]
    worse = [texts(str(n), [(0.6, 0.6), (0.2 + 0.05 * n, 0.2 + 0.05 * n)], [1, 1]) for n in range(12)]
    row = win_row(better, worse[::-1], level=0.95, resamples=500)
    assert row["metric"] == "win_rate"
    expected = np.mean(
        [
            np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in one.scores for b in other.scores])
            for one, other in zip(better, worse, strict=True)
        ]
    )
    assert row["value"] == pytest.approx(expected)
    assert row["low"] <= row["value"] <= row["high"]
    with pytest.raises(ConfigError, match="other problems"):
        win_row(better, worse[1:], level=0.95, resamples=10)


def rows_of(folder: Path, problems: list[EvaluatedProblem], step: int = 3) -> None:
    """A run folder with one evaluation of the test set."""
    from stepalign.evaluation.evaluate import _row

    (folder / "samples").mkdir(parents=True)
    lines = "".join(json.dumps(_row(problem)) + "\n" for problem in problems)
    (folder / "samples" / f"step-{step:05d}-test.jsonl").write_text(lines.replace("NaN", "null"))
    metrics = [{"metric": "avg@2", "problems": len(problems), "value": 0.5, "low": 0.4, "high": 0.6}]
    point = {"step": step, "set": "test", "rollouts": 1, "seconds": 1, "metrics": metrics}
    (folder / "evaluations.jsonl").write_text(json.dumps(point) + "\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")


def test_an_arm_whose_scores_are_all_0_and_1_takes_part_in_scores_and_wins(tmp_path: Path) -> None:
    from stepalign.config import load_config
    from stepalign.evaluation.comparison import comparison_numbers

    best = [replace(texts(str(n), [(), ()], [1, 2]), verdicts=("correct",) * 2, scores=(), judged=()) for n in range(2)]
    mixed = [texts(str(n), [(0.5, 0.5), (0.75, 0.75)], [1, 2]) for n in range(2)]
    for name, problems in (("base", best), ("a/0", mixed), ("a/1", best), ("b/0", best), ("b/1", best)):
        rows_of(tmp_path / name, problems, 0 if name == "base" else 3)
    arms = {arm: {seed: tmp_path / arm / str(seed) for seed in (0, 1)} for arm in ("a", "b")}
    section = load_config(None, ["evaluation.num_samples=2", "evaluation.bootstrap_samples=100"]).evaluation
    found = comparison_numbers({"base": {0: tmp_path / "base"}, **arms}, section, (1, 2))
    pairs = {
        (r["a"], r["b"]): r for r in found["paired"] if r["metric"] == "mean_score" and r["checkpoint_rule"] == "last"
    }
    assert {pair: row["difference"] for pair, row in pairs.items()} == {
        ("a", "base"): pytest.approx((0.625 + 1) / 2 - 1), ("b", "base"): 0, ("b", "a"): pytest.approx(1 - 1.625 / 2)
    }  # fmt: skip
    wins = {(r["a"], r["b"]): r["difference"] for r in found["paired"] if r["metric"] == "net_wins"}
    assert wins == {("a", "base"): -0.5, ("b", "base"): 0, ("b", "a"): 0.5}
    binary = comparison_numbers({"b": arms["b"], "base": {0: tmp_path / "base"}}, section, (1, 2))
    assert {row["metric"] for row in binary["paired"]} == {"avg@2", "maj@2", "pass@2"}


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [0.5]},
        {"scores": [0.5, 0.5, 0.5]},
        {"judged": [[0.5, 0.7]]},
        {"scores": [0.5, 1.5]},
        {"scores": [0.5, -1]},
    ],
)
def test_scores_that_do_not_fit_the_completions_are_damage(tmp_path: Path, change: dict) -> None:
    from stepalign.evaluation.evaluate import _row

    whole = _row(texts("a", [(0.5, 0.7), (0.5, 0.5)], [3, 4]))
    (tmp_path / "s.jsonl").write_text(json.dumps(whole) + "\n")
    assert len(read_samples(tmp_path / "s.jsonl")) == 1
    (tmp_path / "s.jsonl").write_text(json.dumps({**whole, **change}) + "\n")
    with pytest.raises(ConfigError, match="no completions of a problem"):
        read_samples(tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        ({"grader": [None, 1.0], "judge": [{"model": "small"}]}, True),
        ({"grader": ["mine:grade", 1.0], "judge": [{"model": "large"}]}, True),
        ({"grader": [None, 9.0], "judge": [{"model": "large"}]}, False),
        ({"grader": [None, 1.0]}, False),
        (None, False),
    ],
)
def test_a_win_over_texts_that_another_judge_has_read_is_refused(
    tmp_path: Path, theirs: dict | None, refused: bool
) -> None:
    against, heard = tmp_path / "other.samples.jsonl", list[Event]()
    if theirs is not None:
        against.with_suffix(".json").write_text(json.dumps(theirs))
    ours = {"grader": [None, 1.0], "judge": [{"model": "large"}]}
    if refused:
        with pytest.raises(ConfigError, match="another judge"):
            _refuse_another_judge(against, ours, heard.append)
        return
    _refuse_another_judge(against, ours, heard.append)
    assert len(heard) == (theirs is None or "judge" not in theirs)


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"environment.kind": "python_tool"}, True),
        ({"environment.kind": "python_tool", "environment.max_turns": 2}, True),
        ({"environment.kind": "user", "environment.messages": ["Again."]}, True),
        ({"sampling.stop": ["Question:"]}, True),
        ({"data.judge": {"base_urls": ["http://127.0.0.1:1/v1"], "model": "m"}}, True),
        ({"environment.served.base_urls": ["http://127.0.0.1:2/v1"]}, False),
        ({"training.max_steps": 3}, False),
    ],
)
def test_completions_are_those_of_another_evaluation_where_what_they_depend_on_differs(
    settings: dict, other: bool
) -> None:
    usual = _key(Config(), "p.jsonl")
    assert not {"judge", "stop", "environment"} & usual.keys()  # as earlier versions wrote it
    assert (_key(changed(Config(), settings), "p.jsonl") != usual) == other


@pytest.mark.parametrize("content", ["", '{"problem_id": "x", "verdicts": [], "answers": [], "texts": []}\n'])
def test_completions_of_no_problems_are_refused_before_any_is_drawn(content: str, tmp_path: Path) -> None:
    rows, other = tmp_path / "rows.jsonl", tmp_path / "other.samples.jsonl"
    rows.write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    other.write_text(content)
    with pytest.raises(ConfigError, match=r"other problems|no completions of a problem"):
        evaluate("embedded:arithmetic", problems=rows, out=tmp_path / "out.json", against=other)
    assert not (tmp_path / "out.samples.jsonl").exists()


def test_a_win_rate_over_undecided_completions_is_said_to_be_undefined(tmp_path: Path) -> None:
    rows, heard = tmp_path / "rows.jsonl", list[Event]()
    rows.write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    (problem,) = load_problems(rows).problems
    one = {"answers": [None], "lengths": [3], "finish_reasons": ["stop"], "texts": ["?"], "verdicts": ["undecided"]}
    other = tmp_path / "other.samples.jsonl"
    other.write_text(json.dumps({"problem_id": problem.problem_id, **one}) + "\n")
    found = evaluate(
        "embedded:arithmetic",
        problems=rows,
        out=tmp_path / "out.json",
        overrides={"evaluation.num_samples": 1, "evaluation.max_completion_length": 4},
        against=other,
        listener=heard.append,
    )
    assert math.isnan(found["metrics"][-1]["value"])
    assert any(event.kind == "warning" and "win rate is undefined" in event.text for event in heard)


def test_scores_of_judges_are_kept_with_the_completions(tmp_path: Path) -> None:
    from stepalign.evaluation.evaluate import _row

    problem = texts("a", [(0.5, 0.7), ()], [3, 4])
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(_row(problem)).replace("NaN", "null") + "\n")
    assert read_samples(file)[0].judged == ((0.5, 0.7), ())
    assert judging_rows([problem.judgements()], level=0.95, resamples=10)[0]["denominator"] == 0


def test_a_comparison_of_texts_has_mean_scores_and_net_wins(tmp_path: Path) -> None:
    from stepalign.config import load_config
    from stepalign.evaluation.comparison import comparison_numbers
    from stepalign.evaluation.evaluate import _row

    scores = {"a": [(0.8, 0.6), (0.5, 0.5)], "b": [(0.6, 0.2), (0.5, 0.9)]}
    arms = {}
    for arm, pairs in scores.items():
        folder = tmp_path / arm
        (folder / "samples").mkdir(parents=True)
        problems = [texts(str(n), [(one, one) for one in pair], [1, 2]) for n, pair in enumerate(pairs)]
        rows = "".join(json.dumps(_row(problem)) + "\n" for problem in problems)
        (folder / "samples" / "step-00003-test.jsonl").write_text(rows)
        (folder / "evaluations.jsonl").write_text(
            json.dumps(
                {
                    "step": 3,
                    "set": "test",
                    "rollouts": 1,
                    "seconds": 1,
                    "metrics": [{"metric": "mean_score", "problems": 2, "value": 0.5, "low": 0.4, "high": 0.6}],
                }
            )
            + "\n"
        )
        (folder / "metrics.jsonl").write_text('{"step": 3}\n')
        arms[arm] = {0: folder}
    section = load_config(None, ["evaluation.num_samples=2", "evaluation.bootstrap_samples=200"]).evaluation
    found = comparison_numbers(arms, section, (1, 2))
    rows = {row["metric"]: row for row in found["paired"] if row["checkpoint_rule"] == "last"}
    assert rows["mean_score"]["difference"] == pytest.approx(((0.4 - 0.7) + (0.7 - 0.5)) / 2)
    wins = [(0.6, 0.8), (0.6, 0.6), (0.2, 0.8), (0.2, 0.6)], [(0.5, 0.5)] * 2 + [(0.9, 0.5)] * 2
    net = np.mean([np.mean([np.sign(b - a) for b, a in pairs]) for pairs in wins])
    assert rows["net_wins"]["difference"] == pytest.approx(net)
    assert rows["net_wins"]["win_rate"] == pytest.approx((1 + net) / 2)
    assert rows["net_wins"]["low"] <= net <= rows["net_wins"]["high"]
