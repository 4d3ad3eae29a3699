"""The signal as a notebook sees it: the numbers of the command, findings, the viewer in a frame."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError
from stepalign.models.load import Solver, load_solver
from stepalign.records import Attempt, Problem
from stepalign.verbs.configs import config_for_file
from stepalign.verbs.signal.from_jsonl import analyse_file
from stepalign.verbs.signal.notebook import Signal, signal

QUESTION = "3 + 4 - 2"
COMPLETION = "<step_1> 3 + 4 = 8 ; <step_2> 8 - 2 = 6 ; <answer> 6"
CONTEXTS = {
    "step_aligned": "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5",
    "quoting": "<step_1> 3 + 4 = 8 ; <step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5",
    "verdict": "wrong",
}


@pytest.fixture(scope="module")
def solver() -> Solver:
    return load_solver("embedded:arithmetic")


@pytest.fixture(scope="module")
def found(solver: Solver) -> Signal:
    return signal(solver, QUESTION, COMPLETION, CONTEXTS, answer="5")


def test_the_numbers_are_those_of_the_command(found: Signal, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    row = {"question": QUESTION, "completion": COMPLETION, "contexts": CONTEXTS, "answer": "5"}
    source.write_text(json.dumps(row) + "\n", encoding="utf-8")
    config, prompts_from = config_for_file("embedded:arithmetic", "", None)
    analyse_file(source, tmp_path / "out", config, prompts_from=prompts_from)
    rows = [json.loads(line) for line in (tmp_path / "out" / "signal.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["context"] for row in rows] == found.contexts
    for row in rows:
        table = found.table(row["context"])
        assert table.tokens == row["tokens"]
        assert table.step.tolist() == row["step"]
        for column in ("log_ratio", "student_log_prob", "teacher_log_prob", "forward_kl", "student_entropy"):
            values = getattr(table, column)
            assert isinstance(values, np.ndarray)
            assert values.tolist() == row[column], column
        sums = [step["sum"] for step in row["steps"]]
        for index, total in enumerate(sums):
            assert table.log_ratio[table.step == index].sum() == pytest.approx(total, abs=1e-9)
        assert [step.status for step in found.steps] == [step["status"] for step in row["steps"]]


def test_contexts_that_read_the_same_teach_the_same_and_none_teaches_nothing(solver: Solver) -> None:
    one = signal(solver, QUESTION, COMPLETION, {"a": "wrong", "b": "wrong"})
    assert (one.table("a").log_ratio == one.table("b").log_ratio).all()
    blind = signal(solver, QUESTION, COMPLETION, {"a": "wrong"}, settings=["prompts.self_teacher={{ question }}"])
    same = signal(solver, QUESTION, COMPLETION, {"a": "wrong"}, settings={"prompts.self_teacher": "{{ question }}"})
    assert (same.table("a").log_ratio == 0).all()
    assert (blind.table("a").log_ratio == 0).all()
    assert (blind.table("a").forward_kl == 0).all()


def test_the_strongest_tokens_and_the_findings(found: Signal) -> None:
    top = found.top(5)
    assert [abs(token.log_ratio) for token in top] == sorted((abs(t.log_ratio) for t in top), reverse=True)
    every = np.concatenate([np.abs(found.table(name).log_ratio) for name in found.contexts])
    assert [abs(token.log_ratio) for token in top] == np.sort(every)[::-1][:5].tolist()
    first = found.top(1, "step_aligned")[0]
    assert (first.token.strip(), first.step) == ("8", "1")  # the wrong result
    assert first.log_ratio < -1
    assert set(found.findings) == {"step_aligned", "quoting"}  # a bare verdict is no critique
    assert found.findings["step_aligned"] == {}
    assert found.findings["quoting"] == {"quotes_wrong_step": "step 1"}
    assert found.alignment("verdict") is None
    with pytest.raises(ConfigError, match="no context 'hint'"):
        found.table("hint")


def test_an_attempt_brings_its_problem_and_verdict(solver: Solver) -> None:
    problem = Problem(problem_id="p", question=QUESTION, answer="5", reference="3 + 4 = 7")
    attempt = Attempt(rollout_id="r", problem=problem, text=COMPLETION, grade=Grade(0.0, "6"))
    found = signal(solver, QUESTION, attempt, {"same": COMPLETION})
    assert found.scored.verdict == "incorrect"
    assert found.scored.reference == "3 + 4 = 7"
    assert "misses_error" in found.findings["same"]


def test_what_cannot_be_scored_is_refused(solver: Solver) -> None:
    with pytest.raises(ConfigError, match="no completion"):
        signal(solver, QUESTION, "", CONTEXTS)
    with pytest.raises(ConfigError, match="no context has a text"):
        signal(solver, QUESTION, COMPLETION, {"a": ""})
    with pytest.raises(ConfigError, match="contexts must be names with their texts"):
        signal(solver, QUESTION, COMPLETION, ["wrong"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a Solver, not str"):
        signal("embedded:arithmetic", QUESTION, COMPLETION, CONTEXTS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no step '9'"):
        signal(solver, QUESTION, COMPLETION, CONTEXTS, wrong_step="9")


def test_text_for_a_terminal(found: Signal) -> None:
    assert "step_aligned: sum -" in repr(found)
    console = Console(file=io.StringIO(), width=100)
    console.print(found)
    assert "first wrong step" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_page_and_a_frame_show_the_viewer(found: Signal, chromium: Any, tmp_path: Path) -> None:
    page = found.to_html(tmp_path / "page.html")
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8><body>{found._repr_html_()}</body>", encoding="utf-8")
    shown = chromium.new_context(viewport={"width": 1000, "height": 900}).new_page()
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.goto(page.absolute().as_uri())
    shown.locator(".viewer.ready").wait_for()
    labels = shown.locator(".t").evaluate_all("cells => cells.map((cell) => cell.ariaLabel)")
    shown.goto(notebook.absolute().as_uri())
    frame = shown.frame_locator("iframe")
    frame.locator(".viewer.ready").wait_for()
    assert frame.locator(".t").evaluate_all("cells => cells.map((cell) => cell.ariaLabel)") == labels
    frame.locator(".t").nth(3).click()
    assert len(labels) == 2 * len(found.scored.tokens)  # the first two contexts
    assert complaints == []


def test_the_public_function_is_no_module_whatever_was_imported_before() -> None:
    import stepalign
    import stepalign.token_signal.table
    from stepalign.verbs.signal import folder

    assert folder.__name__ == "stepalign.verbs.signal.folder"
    assert stepalign.signal is signal
