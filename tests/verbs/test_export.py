"""``stepalign export``: the columns that TRL, verl and ms-swift read, and a plain file that we read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepalign.config import changed, load_config, to_toml
from stepalign.errors import ConfigError
from stepalign.problems.rows import read_rows
from stepalign.verbs.attempts import read_attempts
from stepalign.verbs.export import export
from stepalign.verbs.signal.rows import check_file

QUESTION, CONTEXT = "1 + 2 + 3", "<step_1> 1 + 2 = 3 <answer> 6"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training leaves it: two rollouts, of which one has a context."""
    folder = tmp_path / "run"
    folder.mkdir()
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"question": QUESTION, "answer": "6", "reference": "3 + 3 = 6"}) + "\n")
    keys = {"data.train": str(problems), "data.columns": {"question": "question", "answer": "answer"}}
    keys |= {"prompts.student": "Solve {{ question }}", "prompts.system": "Be brief."}
    keys |= {"prompts.self_teacher": "Solve {{ question }}\n{{ introduction }}\n{{ feedback }}"}
    (folder / "config.toml").write_text(to_toml(changed(load_config(None), keys, "test")))
    from stepalign.problems.sets import problem_id

    def rollout(name: str) -> dict[str, Any]:
        completion = {"ids": [1, 2], "log_probs": [-1.0, -1.0], "finish_reason": "stop", "policy_version": 0}
        own = {"rollout_id": name, "problem_id": problem_id(QUESTION), "step": 0, "group_index": 0, "text": "so 7"}
        return {**own, "completion": completion, "answer": "7", "verdict": "incorrect", "reward": 0.0}

    def context(name: str, text: str | None) -> dict[str, Any]:
        return {"rollout_id": name, "design": "hint", "text": text, "masked": "", "introduction": "Here is a hint."}

    for file, rows in {
        "rollouts": [rollout("a"), rollout("b")],
        "contexts": [context("a", CONTEXT), context("b", None)],
    }.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Solve {QUESTION}"}]
TEACHER = f"Solve {QUESTION}\nHere is a hint.\n{CONTEXT}"


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("trl", {"prompt": PROMPT, "privileged_context": CONTEXT, "solution": "6"}),
        ("swift", {"messages": PROMPT, "teacher_prompt": TEACHER, "solution": "6"}),
        ("verl", {"prompt": PROMPT, "reward_model": {"style": "rule", "ground_truth": "6"}}),
        ("jsonl", {"question": QUESTION, "completion": "so 7", "contexts": {"hint": CONTEXT}, "messages": PROMPT}),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_leaves_in_the_columns_of_others(
    to: str, expected: dict[str, Any], suffix: str, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"out{suffix}"
    assert export(run, to, file) == 1  # the masked one has nothing to show
    ((_, row),) = read_rows(str(file))
    assert isinstance(row, dict)
    assert {key: row[key] for key in expected} == expected
    if to == "verl":
        more = row["extra_info"]
        assert (more["privileged_context"], more["teacher_prompt"][-1]["content"]) == (CONTEXT, TEACHER)


def test_a_plain_export_is_read_again(run: Path, tmp_path: Path) -> None:
    export(run, "jsonl", tmp_path / "out.jsonl")
    assert check_file(tmp_path / "out.jsonl", (), None).contexts == ("hint",)
    (attempt,) = read_attempts(tmp_path / "out.jsonl").attempts
    assert (attempt.problem.question, attempt.text, attempt.problem.answer) == (QUESTION, "so 7", "6")


def test_critiques_of_a_dump_leave_for_another_trainer(tmp_path: Path) -> None:
    dump, folder = tmp_path / "d.jsonl", tmp_path / "critiques"
    dump.write_text(json.dumps({"input": "user\nQ?\nassistant\n", "output": "A", "score": 0.0, "gts": "6"}) + "\n")
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(load_config(None)))
    attempts = read_attempts(dump)
    source = {"source": str(dump), "sha256": attempts.sha256, "attempts": 1, "skipped": {}}
    (folder / "source.json").write_text(json.dumps(source))
    line = {"rollout_id": "line-000001", "status": "ok", "policy": "use", "form": "trace", "text": CONTEXT}
    lines = [line, {**line, "policy": "mask"}, {**line, "status": "failed"}]
    (folder / "critiques.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert export(folder, "trl", tmp_path / "out.jsonl") == 1
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["privileged_context"], row["solution"], row["design"]) == (CONTEXT, "6", "step_aligned")
    assert "Q?" in row["prompt"][-1]["content"]
    dump.write_text(dump.read_text() + "\n\n" + dump.read_text())
    with pytest.raises(ConfigError, match="changed since"):
        export(folder, "trl", tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("to", "name", "what"),
    [("verl2", "x.jsonl", "unknown target"), ("trl", "x.csv", "must end"), ("trl", "x.jsonl", "no run")],
)
def test_mistakes_are_named(to: str, name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=what):
        export(tmp_path, to, tmp_path / name)
