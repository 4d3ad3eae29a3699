"""A new domain is one folder: a value with its own problems, grader and prompts, in a run like any other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from stepalign.config import load_config
from stepalign.domains.table import DOMAINS, find_domain, load_sets
from stepalign.events import silent
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.train import train_config

DIGITS = '''
from stepalign.domains.domain import Domain, open_grader
from stepalign.domains.math import Grade
from stepalign.problems.loading import ProblemSet
from stepalign.records import Problem

def load(source, data, name, limit):
    """Repeat a digit: the training and the test set have different ones."""
    digits = range(0, 5) if name == "train" else range(5, 8)
    problems = [Problem(problem_id=f"d{n}", question=str(n), answer=str(n)) for n in digits[:limit]]
    return ProblemSet(problems=tuple(problems))

def grade(text, expected):
    """The share of words that are the digit."""
    words = text.split()
    share = words.count(expected) / len(words) if words else 0.0
    return Grade(share, answer=words[-1] if words else None, detail=f"{len(words)} words", reason="counted")

DOMAIN = Domain(
    name="digits",
    source="digits:",
    load=load,
    grade=lambda data: open_grader("digits:grade", seconds=data.grader_seconds),
    has_details=True,
    prompts={"student": "{{ question }} {{ question }}", "self_teacher": "{{ question }} Feedback : {{ feedback }}"},
)
'''


def test_a_domain_of_ones_own_trains(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "__init__.py").write_text(DIGITS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DOMAINS, "digits", importlib.import_module("digits").DOMAIN)
    recipe = write_recipe(
        condition="execution_trace",
        data={"train": "digits:0-4", "test": "digits:5-7", "grader_seconds": 20},
        prompts={"student": "student", "self_teacher": "self_teacher"},
        sampling={"max_completion_length": 6, "num_generations": 2},
        evaluation={"num_samples": 1, "at_start": False},
    )
    config = load_config(str(recipe))
    assert find_domain(config.data).name == "digits"
    assert [len(found.problems) for found in load_sets(config.data).values()] == [5, 0, 3]
    done = train_config(config, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    assert done.step == 2
    rollouts, contexts = (list(read_json_lines(tmp_path / "run" / f"{n}.jsonl")) for n in ("rollouts", "contexts"))
    assert len(rollouts) == len(contexts) == 8
    for row, context in zip(rollouts, contexts, strict=True):
        words = row["text"].split()
        digit = row["problem_id"].removeprefix("d")
        assert row["reward"] == (sum(word == digit for word in words) / len(words) if words else 0.0)
        assert row["verdict"] == ("correct" if words and set(words) == {digit} else "incorrect")
        assert row["answer"] == (words[-1] if words else None)
        assert context["text"] == f"{len(words)} words"
