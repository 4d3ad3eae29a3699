"""Free text: rubrics that a program reads, a judge behind a server, and what an evaluation makes of scores."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from stepalign.config import ServerSection, load_config
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.table import find_domain, load_sets, make_grader
from stepalign.domains.text.domain import running_totals
from stepalign.domains.text.judge import JudgedGrader, read_judgement
from stepalign.domains.text.rubric import grade
from stepalign.errors import ConfigError
from stepalign.evaluation.evaluate import EvaluatedProblem, metrics_of
from stepalign.evaluation.metrics import win_rate
from stepalign.records import Critique

RUBRIC = json.dumps(
    [
        {"has": r"\bDover\b", "name": "the place", "weight": 2},
        {"says": "at NINE  o'clock"},
        {"lacks": "(?i)lorem"},
        {"max_words": 8},
        {"min_words": 2},
    ]
)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("We meet in Dover at nine o'clock.", 1.0),
        ("We meet at nine\no'clock.", 4 / 6),
        ("Dover", 4 / 6),
        ("Lorem ipsum", 2 / 6),
        ("Lorem ipsum dolor sit amet consectetur adipiscing elit sed", 1 / 6),
        ("one two three four five six seven eight nine", 2 / 6),
        ("", 0.0),
        ("<think>Dover at nine o'clock</think>", 0.0),
        ("<think>no</think>Dover at nine o'clock", 1.0),
        ("Doverton at nine o'clock", 4 / 6),
    ],
)
def test_the_score_is_the_share_of_the_weights_that_is_met(text: str, score: float) -> None:
    found = grade(text, RUBRIC)
    assert found.score == pytest.approx(score)
    assert (found.verdict == "correct") == (score == 1.0)
    assert (
        ("Not met: the place" in found.detail) == ("Dover" not in text.split("</think>")[-1].split())
        if text.split("</think>")[-1].strip()
        else True
    )


@pytest.mark.parametrize(
    "rubric",
    [
        *("Is it polite?", "[]", "{}", '[{"has": "("}]', '[{"max_words": "3"}]', '[{"has": "a", "lacks": "b"}]', "[1]"),
        *('[{"says": "a", "weight": 0}]', '[{"says": "a", "points": 3}]', '[{"max_words": true}]'),
    ],
)
def test_a_rubric_that_no_program_can_read_leaves_the_text_undecided(rubric: str) -> None:
    assert math.isnan(grade("text", rubric).score)


def test_the_embedded_task_is_met_by_every_right_telling_and_no_other() -> None:
    """Tellings by hand in other words; one fault each costs its own item."""
    problem = running_totals(make_problem(parse_question("17 + 6 - 5"), rho=0.0))
    right = "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 18 ; <answer> 18"
    assert grade(right, problem.answer).score == 1.0
    assert grade("<step_1> 17 plus 6 gives 3 . <step_2> 3 minus 5 is 18 , <answer> 18", problem.answer).score == 1.0
    assert grade(problem.reference or "", problem.answer).score == 1.0
    for wrong, share in {
        right.replace("= 3", "= 4"): 4 / 5,
        right.replace("<answer> 18", "<answer> 8"): 3 / 5,
        right.replace("<answer> 18", ""): 3 / 5,
        f"<step_1> 1 + 1 = 2 ; {right}": 4 / 5,
        right.replace("17 + 6 = 3", "117 + 6 = 3"): 4 / 5,
    }.items():
        assert grade(wrong, problem.answer).score == pytest.approx(share), wrong


def test_the_recipe_has_disjoint_sets_with_a_rubric_each() -> None:
    config = load_config("text")
    assert find_domain(config.data).name == "text"
    sets = load_sets(config.data)
    assert [len(found.problems) for found in sets.values()] == [282, 100, 200]
    with make_grader(config.data) as grader:
        problem = sets["test"].problems[0]
        assert grader.grade(problem.reference or "", problem.answer).score == 1.0
        assert grader.grade_many(["<answer> 1"], [problem.answer])[0].score < 0.5


def test_rows_with_a_rubric_are_problems(tmp_path: Path) -> None:
    rows = [
        {"question": "Write a haiku.", "rubric": "Three lines; nature."},
        {"question": "Say hello.", "rubric": [{"says": "hello"}]},
        {"question": "Nothing asked of it.", "rubric": ""},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = load_sets(load_config(None, {"data.train": str(file), "data.columns": "text"}).data)["train"]
    assert [problem.answer for problem in found.problems] == ["Three lines; nature.", '[{"says": "hello"}]']
    assert sum(found.skipped.values()) == 1


def test_a_judge_reads_prose_once_and_a_program_reads_lists(serve, tmp_path: Path) -> None:
    replies = {
        "a good text": 'say {"reasons": "polite", "score": 7}',
        "no score": 'say {"reasons": "polite"}',
        "too much": 'say {"score": 11}',
        "words": "say I would give it a seven.",
    }
    server = serve(lambda text, number: next((r for key, r in replies.items() if key in text), "null"))
    section = ServerSection(base_urls=(server.url,), model="judge", cache=str(tmp_path / "judge.sqlite"))
    for _ in range(2):
        with JudgedGrader(section) as grader:
            texts = ["a good text", "<think>too much</think>a good text", "no score", "too much", "words", "say hello"]
            grades = grader.grade_many(texts, ["Is it polite?"] * 5 + ['[{"says": "hello"}]'])
        assert [one.score for one in grades[:2]] == [0.7, 0.7]
        assert grades[0].detail == "polite"
        assert all(math.isnan(one.score) for one in grades[2:5])
        assert grades[5].score == 1.0
    assert len(server.bodies) == 4
    assert "Is it polite?" in json.dumps(server.bodies)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (f'{{"score": {"9" * 400}}}', None),
        (f'{{"score": -{"9" * 400}}}', None),
        ('{"score": 1e400}', None),
        ('{"score": NaN}', None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ('{"score": [7]}', None),
        ("\x00", None),
        ('{"score": ' * 2000, None),
        ('```json\n{"score": 5, "reasons": ["a"]}\n```', 0.5),
        ('{"score": 3} or rather {"score": 9}', 0.9),
    ],
)
def test_a_judge_that_answers_nonsense_leaves_the_text_undecided(reply: str, score: float | None) -> None:
    found = read_judgement(Critique(rollout_id="a", critic="j", status="ok", text=reply, raw=reply, form="comment"))
    assert found.score == score if score is not None else math.isnan(found.score)


def test_an_evaluation_has_the_mean_score_where_scores_say_more_than_verdicts() -> None:
    def problem(name: str, verdicts: tuple[str, ...], scores: tuple[float, ...] = ()) -> EvaluatedProblem:
        columns = {"answers": (None,) * 2, "lengths": (1, 1), "finish_reasons": ("stop",) * 2, "texts": ("a", "b")}
        return EvaluatedProblem(problem_id=name, verdicts=verdicts, scores=scores, **columns)  # type: ignore[arg-type]

    plain = [problem("a", ("correct", "incorrect"))]
    assert "mean_score" not in metrics_of(plain, (1,))
    mixed = [*plain, problem("b", ("incorrect", "undecided"), (0.25, math.nan))]
    found = metrics_of(mixed, (1,))["mean_score"]
    assert found.per_problem.tolist() == [0.5, 0.25]
    assert found.value == pytest.approx(0.375)


def test_the_win_rate_counts_pairs_and_ties_half() -> None:
    mine, theirs = [[1.0, 0.5], [math.nan]], [[0.5, 0.0, math.nan], [1.0]]
    pairs = [(a, b) for a, b in itertools.product(mine[0], theirs[0]) if not math.isnan(b)]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    found = win_rate(mine, theirs)
    assert found.per_problem[0] == expected == 0.875
    assert math.isnan(found.per_problem[1])


def test_two_judges_give_their_mean_and_both_scores(serve) -> None:
    def reply(score: float):
        judgement = json.dumps({"reasons": f"says {score}", "score": score})
        return lambda text, number: f"say {judgement if 'good' in text else 'nothing'}"

    first, second = serve(reply(7)), serve(reply(4))
    sections = [ServerSection(base_urls=(one.url,), model="judge") for one in (first, second)]
    with JudgedGrader(*sections) as grader:
        good, bad = grader.grade_many(["a good text", "another"], ["Is it polite?"] * 2)
    assert good.score == pytest.approx(0.55)
    assert good.judged == (0.7, 0.4)
    assert good.detail == "says 7\nsays 4"
    assert math.isnan(bad.score)
    assert bad.judged == ()
    alone = {"data.train": "x.jsonl", "data.columns": "text", "data.second_judge.base_urls": [first.url]}
    data = load_config(None, alone).data
    with pytest.raises(ConfigError, match="needs a first"):
        make_grader(data)


@pytest.mark.parametrize("name", ["judge", "second_judge"])
@pytest.mark.parametrize("other", [{"data.columns": "stepalign"}, {"data.columns": "text", "data.grader": "own:one"}])
def test_a_judge_that_would_read_nothing_is_refused(name: str, other: dict[str, str]) -> None:
    judge = {f"data.{name}.base_urls": ["http://127.0.0.1:9/v1"], f"data.{name}.model": "judge"}
    data = load_config(None, {"data.train": "x.jsonl", **judge, **other}).data
    with pytest.raises(ConfigError, match="read nothing") as caught:
        make_grader(data)
    assert caught.value.where == f"data.{name}"
