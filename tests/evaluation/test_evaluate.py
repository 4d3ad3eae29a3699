"""Evaluation keeps every finished problem, in whatever order they end, and goes on from any place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign.errors import LockedError
from stepalign.evaluation.evaluate import EvaluatedProblem, OnGraded, read_samples, sample_and_grade
from stepalign.events import Event
from stepalign.records import Attempt, Completion, Grade, Problem, Rollout

PROBLEMS = [Problem(problem_id=f"p{i}", question=f"{i} + 0", answer=str(i)) for i in range(9)]


class Stopped(Exception):  # noqa: N818
    """An interruption."""


def rollout(problem: Problem, number: int) -> Rollout:
    completion = Completion(ids=(1,), log_probs=(0.0,), finish_reason="stop", policy_version=0)
    attempt = Attempt(rollout_id="r", problem=problem, text=f"{problem.question} is {number}", grade=Grade(score=0.0))
    return Rollout(attempt=attempt, completion=completion, step=0, group_index=0)


class Drawing:
    """Completions that follow from the seed; problems end in an order of their own; stops after so many of them."""

    def __init__(self, order: int, stop_after: int | None = None, *, by_prompt: bool = False) -> None:
        self.order, self.stop_after, self.by_prompt, self.num_drawn = order, stop_after, by_prompt, 0

    def __call__(
        self, problems: Sequence[Problem], num_samples: int, seed: int, on_graded: OnGraded
    ) -> list[list[Rollout]]:
        self.num_drawn += len(problems)
        shared = random.Random(seed)
        numbers = {p.problem_id: random.Random(f"{seed} {p.question}") if self.by_prompt else shared for p in problems}
        drawn = [[rollout(p, numbers[p.problem_id].randrange(100)) for _ in range(num_samples)] for p in problems]
        for place, row in enumerate(random.Random(self.order).sample(range(len(drawn)), len(drawn))):
            if place == self.stop_after:
                raise Stopped
            on_graded(row, drawn[row])
        return drawn


def evaluated(file: Path | None, attempt: Drawing, heard: list[Event]) -> list[EvaluatedProblem]:
    options = {"num_samples": 2, "seed": 5, "canonical": str, "by_prompt": attempt.by_prompt}
    return sample_and_grade(PROBLEMS, attempt=attempt, file=file, listener=heard.append, **options)


@settings(max_examples=40, deadline=None)
@given(order=st.integers(0, 99), stops=st.lists(st.integers(0, 8), max_size=3), by_prompt=st.booleans())
def test_any_interruption_keeps_what_has_ended_and_changes_no_number(
    tmp_path_factory, order: int, stops: list[int], by_prompt: bool
) -> None:
    whole = evaluated(None, Drawing(0, by_prompt=by_prompt), [])
    file = tmp_path_factory.mktemp("evaluation") / "samples.jsonl"
    kept: set[str] = set()
    for index, stop in enumerate(stops):
        with suppress(Stopped):
            evaluated(file, Drawing(order + index, stop, by_prompt=by_prompt), [])
            assert len(read_samples(file)) == len(PROBLEMS)  # fewer were left to draw than it stops after
        now = {problem.problem_id for problem in read_samples(file)}
        assert kept <= now
        assert len(now) >= min(stop, len(PROBLEMS))
        kept = now
    heard: list[Event] = []
    last = Drawing(order, by_prompt=by_prompt)
    assert evaluated(file, last, heard) == whole == read_samples(file)
    if by_prompt:
        assert last.num_drawn == len(PROBLEMS) - len(kept)  # nothing is drawn twice
    assert [event.done for event in heard] == list(range(len(kept) + 1, len(PROBLEMS) + 1))
    assert all(event.text.endswith("completions right") for event in heard)
    before = file.read_bytes()
    assert evaluated(file, Drawing(order, 0, by_prompt=by_prompt), []) == whole  # nothing is drawn
    assert file.read_bytes() == before


def test_a_problem_is_on_disk_before_it_is_reported(tmp_path: Path) -> None:
    file, seen = tmp_path / "samples.jsonl", []

    def listener(event: Event) -> None:
        seen.append((event.done, len(read_samples(file))))

    sample_and_grade(PROBLEMS, num_samples=1, seed=0, attempt=Drawing(3), canonical=str, file=file, listener=listener)
    assert seen == [(done, done) for done in range(1, len(PROBLEMS) + 1)]


def test_completions_of_other_problems_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    evaluated(file, Drawing(0), [])
    before = file.read_bytes()
    others = [Problem(problem_id=f"q{i}", question="?", answer="1") for i in range(3)]
    with pytest.raises(LockedError, match="other problems"):
        sample_and_grade(others, num_samples=2, seed=5, attempt=Drawing(0), canonical=str, file=file)
    assert file.read_bytes() == before


def test_a_grader_that_fails_is_named_with_the_share_that_it_left_undecided(tmp_path: Path) -> None:
    from stepalign.verbs.evaluate import evaluate

    problems, heard = tmp_path / "p.jsonl", list[Event]()
    problems.write_text('{"question": "3 + 4", "answer": "7"}\n', encoding="utf-8")
    few = {"evaluation.num_samples": 2, "evaluation.ks": [1], "evaluation.max_completion_length": 4}
    overrides = {**few, "data.grader": "operator:sub"}  # takes no texts
    numbers = evaluate(
        "embedded:arithmetic", problems=problems, out=tmp_path / "e.json", overrides=overrides, listener=heard.append
    )
    assert {row["metric"]: row["value"] for row in numbers["metrics"]}["undecided_share"] == 1
    assert any("100.0 % of the completions are undecided" in str(event) for event in heard)
