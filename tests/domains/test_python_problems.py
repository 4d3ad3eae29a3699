"""Python problems: rows in, code out of completions, verdicts through the real grader and a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stepalign.config import load_config
from stepalign.domains.math.grading import Grader
from stepalign.domains.python import sandbox
from stepalign.domains.python.grading import extract_code
from stepalign.errors import ConfigError
from stepalign.problems.loading import load_problems, save_problems
from stepalign.problems.programs import is_test_program

UNAVAILABLE = sandbox.why_unavailable()
needs_sandbox = pytest.mark.skipif(bool(UNAVAILABLE), reason=f"no sandbox here: {UNAVAILABLE}")
SHIPPED = Path(__file__).parents[2] / "recipes" / "data" / "python_problems.jsonl"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("So:\n```python\ndef f(): pass\n```\n", "def f(): pass\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nclass A:\n    pass\n```\nIt is used so:\n```python\nA()\n```", "class A:\n    pass\n"),
        ("```python\ndef f(): return 1\n```\nBetter:\n```python\ndef f(): return 2\n```", "def f(): return 2\n"),
        ("<think>```python\ndef f(): pass\n```</think>No.", None),
        ("<think>a</think>```python\nx = 2\n```", "x = 2\n"),
        ("<step_1> think\n<answer>\n```python\ndef f(): pass\n```", "def f(): pass\n"),
        ("```python\ndef cut_at_the_limit():", None),
        ("```bash\nls\n```", None),
        ("def f(): pass", None),
        ("", None),
    ],
)
def test_the_code_of_a_completion(completion: str, code: str | None) -> None:
    assert extract_code(completion) == code


def test_a_megabyte_of_fences_takes_no_time() -> None:
    for text in ("```python\n" * 100_000, "```" * 300_000, "```python\nx" + " \n" * 400_000, "\n" * 10**6):
        extract_code(text)  # the test's own time limit is the opinion


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_layouts_in_use(tmp_path: Path) -> None:
    own = {"question": "Add.", "tests": "assert add(1, 2) == 3", "reference": "def add(a, b):\n    return a + b"}
    human_eval = {
        "task_id": "X/1",
        "prompt": "def add(a, b):\n    '''Add.'''\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
    }
    mbpp = {"text": "Add two numbers.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]}
    found = [
        load_problems(write(tmp_path / f"{i}.jsonl", row), "python") for i, row in enumerate((own, human_eval, mbpp))
    ]
    (first,), (second,), (third,) = (f.problems for f in found)
    assert first.answer == "assert add(1, 2) == 3"
    assert first.reference == "```python\ndef add(a, b):\n    return a + b\n```"
    assert second.answer.endswith("check(add)")
    assert second.reference == "```python\ndef add(a, b):\n    '''Add.'''\n    return a + b\n```"
    assert third.answer == "assert add(1, 2) == 3"


def test_programs_are_not_searched_for_answers_and_may_be_long(tmp_path: Path) -> None:
    tests = "assert f() == '\\\\boxed{3} #### 4'\n" * 200
    reference = "```python\ndef f(x):\n    return x << 2 | x >> 3 << 1 >> 1 # <<1+1=2>>\n```"
    file = write(tmp_path / "p.jsonl", {"question": "Q", "tests": tests, "reference": reference})
    (problem,) = load_problems(file, "python").problems
    assert (problem.answer, problem.reference) == (tests.strip(), reference)
    save_problems([problem], tmp_path / "frozen.jsonl")
    assert load_problems(tmp_path / "frozen.jsonl", "python").problems == (problem,)


def test_rows_without_tests_are_counted(tmp_path: Path) -> None:
    good = {"question": "Q", "tests": "assert f() == 1"}
    rows = [
        good,
        {"question": "R", "tests": ""},
        {"question": "S", "tests": "f()"},
        {"question": "T", "tests": "assert f("},
    ]
    found = load_problems(write(tmp_path / "p.jsonl", *rows), "python")
    assert len(found.problems) == 1
    assert found.skipped == {"the tests are no Python with an assert": 2, "no tests": 1}
    assert not is_test_program("x" * 10 + "(" * 10000)


@pytest.mark.slow
@needs_sandbox
def test_the_shipped_problems_are_right() -> None:
    """Every reference passes its tests, and no other problem's reference does."""
    problems = load_problems(SHIPPED, "python").problems
    assert len(problems) == 8
    from stepalign.domains.table import make_grader

    with make_grader(load_config("python").data) as grader:
        assert isinstance(grader, Grader)
        for index, problem in enumerate(problems):
            assert grader.grade(problem.reference or "", problem.answer).verdict == "correct", problem.question
            other = problems[index - 1].reference or ""
            assert grader.grade(other, problem.answer).verdict == "incorrect"
        assert grader.grade("no code", problems[0].answer).reason == "no code block"


def test_a_machine_without_a_sandbox_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepalign.domains.table import make_grader

    monkeypatch.setattr(sandbox, "why_unavailable", lambda: "it is a toaster")
    with pytest.raises(ConfigError, match="it is a toaster"):
        make_grader(load_config("python").data)


@pytest.mark.slow
@needs_sandbox
def test_a_run_on_python_problems(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    """The whole way with a solver that writes no code: graded, masked or shown, trained, and never undecided."""
    from stepalign.stopping import StopRequest
    from stepalign.storage.jsonl import read_json_lines
    from stepalign.verbs.progress import Display
    from stepalign.verbs.train import train_config

    recipe = write_recipe(
        condition="execution_trace",
        data={"train": str(SHIPPED), "columns": "python"},
        training={"max_steps": 1, "problems_per_step": 2},
        evaluation={"num_samples": 1, "at_start": False},
    )
    train_config(
        load_config(str(recipe)),
        tmp_path / "run",
        resume=False,
        listener=Display("run"),
        stop=StopRequest(),
    )
    rollouts, contexts = (list(read_json_lines(tmp_path / "run" / f"{n}.jsonl")) for n in ("rollouts", "contexts"))
    assert [row["verdict"] for row in rollouts] == ["incorrect"] * 2
    assert [row["text"] for row in contexts] == ["No code block.\nThe attempt has no complete code block."] * 2
    # A run that kept no details has its rollouts graded again where a context shows them.
    from stepalign.verbs.signal.from_run import analyse_run

    file = tmp_path / "run" / "rollouts.jsonl"
    file.write_text("".join(json.dumps({**row, "detail": ""}) + "\n" for row in rollouts))
    (tmp_path / "run" / "sums.json").unlink()  # neither had it checksums
    analyse_run(tmp_path / "run", tmp_path / "signal", contexts=("execution_trace",), model="")
    shown = [row["context_text"] for row in read_json_lines(tmp_path / "signal" / "signal.jsonl")]
    assert shown == ["No code block.\nThe attempt has no complete code block."] * 2


def test_code_behind_another_question_is_not_the_attempts() -> None:
    first, second = "```python\ndef f():\n    return 1\n```", "```python\ndef g():\n    return 2\n```"
    assert extract_code(f"{first}\n\nProblem 2: write g.\n{second}") == "def f():\n    return 1\n"
    assert extract_code(f"{first}<|im_end|>\n<|im_start|>user\ng?\n{second}") == "def f():\n    return 1\n"
    assert extract_code(f"A helper:\n{first}\nExample:\n{second}") == "def g():\n    return 2\n"
