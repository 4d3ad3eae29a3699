"""Programs with several kinds of tests: stdin cases, hidden tests, several files, in the layouts that are in use."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepalign.domains.python import grading, sandbox
from stepalign.domains.python.grading import extract_code, extract_files, grade_code, same_output
from stepalign.domains.python.sandbox.values import seconds_waited
from stepalign.feedback.steps import split_steps
from stepalign.problems.loading import load_problems, load_selection, save_problems
from stepalign.problems.programs import prepare_program
from stepalign.storage.fingerprint import sha256

UNAVAILABLE = sandbox.why_unavailable()
needs_sandbox = pytest.mark.skipif(bool(UNAVAILABLE), reason=f"no sandbox here: {UNAVAILABLE}")

APPS_STDIN = {
    "problem_id": 0,
    "question": "Print the sum of two numbers.\n",
    "solutions": json.dumps(["a, b = map(int, input().split())\nprint(a + b)\n"]),
    "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", "x"]}).replace('"x"', '["7"]'),
    "difficulty": "interview",
    "url": "https://example.org/0",
    "starter_code": "",
}
APPS_STDIN["input_output"] = APPS_STDIN["input_output"].replace('["3", "4"]', '"3 4\\n"')  # type: ignore[attr-defined]
APPS_CALL = {
    **APPS_STDIN,
    "question": "Return the two sums.",
    "solutions": json.dumps(["class Solution:\n    def sums(self, xs, y):\n        return (xs[0] + y, xs[1] + y)\n"]),
    "input_output": json.dumps(
        {"fn_name": "sums", "inputs": [[[1, 2], 3], [[0, 0], 1]], "outputs": [[4, 5], [[1, 1]]]}
    ),
    "starter_code": "class Solution:\n    def sums(self, xs: List[int], y: int) -> List[int]:\n        ",
}


def packed(cases: list[dict]) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


LCB = {
    "question_title": "A. Sum",
    "question_content": "Print the sum of all numbers.",
    "platform": "atcoder",
    "question_id": "abc000_a",
    "contest_id": "abc000",
    "contest_date": "2024-01-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": packed([{"input": "70 7\n", "output": "77\n", "testtype": "stdin"}]),
    "metadata": "{}",
}
LCB_CALL = {
    **LCB,
    "question_content": "Count the letters.",
    "platform": "leetcode",
    "starter_code": "class Solution:\n    def count(self, s: str, t: List[str]) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": '"ab"\n["c"]', "output": "3", "testtype": "functional"}]),
    "private_test_cases": packed([{"input": '"hidden!"\n[]', "output": "7", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "count"}),
}
OWN = {
    "question": "Two files.",
    "tests": "import tools\nfrom tools import half\nassert main(4) == 2 and half(4) == tools.half(4)",
    "hidden_tests": "assert main(9) == 4",
    "files": {"given/rates.py": "RATE = 2", "given/__init__.py": "", "table.txt": "4 2\n"},
}


def load(tmp_path: Path, *rows: dict):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_problems(file, "python")


def test_apps_and_livecodebench_are_read_as_they_are(tmp_path: Path) -> None:
    stdin, call, lcb, lcb_call = load(tmp_path, APPS_STDIN, APPS_CALL, LCB, LCB_CALL).problems
    assert json.loads(stdin.answer) == {"cases": [["1 2\n", "3\n"], ["3 4\n", "7"]]}
    assert stdin.question.endswith("standard output.")
    assert stdin.reference == "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert "assert same(Solution().sums([1, 2], 3), [4, 5])" in call.answer
    assert "assert same(Solution().sums([0, 0], 1), [1, 1], [[1, 1]])" in call.answer
    assert "class Solution" in call.question
    assert json.loads(lcb.answer) == {"cases": [["1 2\n", "3\n"]], "hidden_cases": [["70 7\n", "77\n"]]}
    assert lcb.shown_answer == "Input:\n1 2\n\nExpected output:\n3\n\n\nFurther tests are hidden."
    assert "assert same(Solution().count('hidden!', []), 7)" in json.loads(lcb_call.answer)["hidden_tests"]
    assert "hidden!" not in lcb_call.shown_answer
    assert lcb_call.shown_answer.startswith("assert same(Solution().count('ab', ['c']), 3)")


def test_rows_whose_tests_cannot_be_read_are_counted(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return print, ("unpickled",)

    bomb = base64.b64encode(zlib.compress(b"0" * (80 << 20))).decode()
    private = (base64.b64encode(zlib.compress(pickle.dumps(Hostile()))).decode(), "not base 64", bomb)
    rows = [{**LCB, "question_content": f"Q{n}", "private_test_cases": text} for n, text in enumerate(private)]
    rows += [{**APPS_STDIN, "question": "none", "input_output": ""}, {**APPS_STDIN, "input_output": "{"}]
    found = load(tmp_path, APPS_STDIN, *rows)
    assert len(found.problems) == 1
    assert found.skipped["no tests"] == 1
    assert sum(found.skipped.values()) == 5


@pytest.mark.parametrize(
    ("column", "limit"),
    [
        *(("time_limit", limit) for limit in (60, -1, float("nan"))),
        *(("memory_limit", limit) for limit in (0.5, 256 << 20, float("nan"))),
    ],
)
def test_a_limit_that_no_program_can_have_is_a_reason_to_skip_a_row(column: str, limit: float) -> None:
    found = prepare_program({"question": "q", "tests": "assert f() == 1", column: limit})
    assert isinstance(found, str)
    assert f"the {column.replace('_', ' ')} is not" in found


def test_frozen_programs_come_back_as_they_were(tmp_path: Path) -> None:
    problems = load(tmp_path, APPS_STDIN, APPS_CALL, LCB, LCB_CALL, OWN).problems
    checksum = save_problems(problems, tmp_path / "train.jsonl")
    assert load_problems(tmp_path / "train.jsonl", "python").problems == problems
    entry = {"files": {"train": {"file": "train.jsonl", "sha256": checksum}}}
    (tmp_path / "manifest.json").write_text(json.dumps(entry))
    assert load_selection(str(tmp_path), "train").problems == problems
    assert sha256((tmp_path / "train.jsonl").read_bytes()) == checksum


@needs_sandbox
def test_the_references_pass_and_faults_are_told(tmp_path: Path) -> None:
    stdin, call, lcb, lcb_call = load(tmp_path, APPS_STDIN, APPS_CALL, LCB, LCB_CALL).problems
    for problem in (stdin, call):
        assert grade_code(problem.reference or "", problem.answer).verdict == "correct"

    def told(problem, code: str) -> tuple[str | None, str]:
        grade = grade_code(f"```python\n{code}\n```", problem.answer)
        assert grade.verdict == "incorrect"
        return grade.reason, grade.detail

    reason, detail = told(stdin, "print(3)")
    assert reason == "wrong output"
    assert detail == "Wrong output.\nInput:\n3 4\nExpected output:\n7\nThe program printed:\n3"
    reason, detail = told(stdin, "a, b = map(int, input().split())\nrest = [a]\nprint(rest[b])")
    assert reason == "the program fails"
    assert detail.startswith('The program fails.\nInput:\n1 2\n  File "program.py", line 3, in <module>\n')
    assert "    where rest = [1], b = 2\nIndexError: list index out of range" in detail
    hidden = "numbers = list(map(int, input().split()))\nif max(numbers) > 9:\n    raise ValueError(numbers)\nprint(3)"
    assert told(lcb, hidden) == (
        "the program fails in a hidden test",
        "The program fails in a hidden test.\nValueError in line 3",
    )
    body = "class Solution:\n    def count(self, s, t):\n        return 3"
    assert told(lcb_call, body) == ("a hidden test fails", "A hidden test fails.")
    assert told(call, "def sums(xs, y): return [0, 0]")[1].endswith("NameError: name 'Solution' is not defined")


@needs_sandbox
def test_limits_of_time_and_memory_are_told_with_the_line(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, {**OWN, "tests": "assert f(1) == 1", "time_limit": 1, "memory_limit": 128}).problems
    slow = grade_code("```python\ndef f(n):\n    while n:\n        n += 1\n```", problem.answer)
    assert slow.reason == "timed out"
    assert "The time limit is 1 s of CPU time." in slow.detail
    large = grade_code("```python\ndef f(n):\n    return 'x' * (n * 10**9)\n```", problem.answer)
    assert "line 2, in f" in large.detail
    assert large.detail.endswith("MemoryError\nThe memory limit is 128 MiB.")


@needs_sandbox
def test_a_solution_of_several_files_is_tested_with_those_of_the_problem(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, OWN).problems
    tools = "Helpers:\n\n**tools.py**\n```python\nfrom given.rates import RATE\ndef half(x): return x // RATE\n```\n"
    reads = "    assert open('table.txt').read() == '4 2\\n'\n"
    main = f"```python\nimport tools\ndef main(x):\n{reads}    return tools.half(x)\n```"
    assert grade_code(f"{tools}The code:\n{main}", problem.answer).verdict == "correct"
    assert "No module named 'tools'" in grade_code(main, problem.answer).detail
    # A file with the name of a module of the standard library replaces it for the solution and not for the tests.
    fake = "# math.py\n```python\ndef factorial(n): return main_value\nmain_value = 1\n```\n"
    code = "```python\ndef f(n): return 1\n```"
    assert grade_code(fake + code, "import math\nassert f(3) == math.factorial(3)").verdict == "incorrect"


@pytest.mark.parametrize(
    ("completion", "names"),
    [
        ("```python tools.py\nx = 1\n```\n```python\nimport tools\n```", {"tools.py", ""}),
        ('```python title="pkg/tools.py"\nx = 1\n```', {"pkg/tools.py"}),
        ("```python\n# file: tools.py\nx = 1\n```\n`main.py`:\n```python\nimport tools\n```", {"tools.py", "main.py"}),
        ("### data/rows.csv\n```csv\n1,2\n```\n```\nx = 1\n```", {"data/rows.csv", ""}),
        ("```python\n# a comment, not a name.\nx = 1\n```", {""}),
        ("```python /etc/passwd.py\nx = 1\n```\n```python ../up.py\nx\n```", {""}),
        ("<think>```python a.py\n1\n```</think>", set()),
        ("`two_sum.py`:\n```python\nx = 1\n```", {"two_sum.py"}),
        ("a.py\n```python\nx = 1\n```\nb.py\n```python\nx = 2\n```", {"a.py", "b.py"}),
        ("```python\n# heapq.merge\nx = 1\n```", {""}),
    ],
)
def test_the_files_of_a_completion(completion: str, names: set[str]) -> None:
    assert set(extract_files(completion)) == names
    assert (extract_code(completion) is not None) == (bool(names & {"", "main.py"}) or len(names) == 1)


@needs_sandbox
def test_the_only_python_file_is_the_program_whatever_its_name() -> None:
    block = "Save it as\n\n`double.py`:\n```python\ndef f(x): return 2 * x\nif __name__ == '__main__':\n"
    completion = f"{block}    print(f(int(input())))\n```"
    assert grade_code(completion, "assert f(2) == 4").verdict == "correct"
    assert grade_code(completion, "from double import f\nassert f(2) == 4").verdict == "correct"
    assert grade_code(completion, json.dumps({"cases": [["2", "4"]]})).verdict == "correct"
    assert grade_code(completion, json.dumps({"cases": [["2", "5"]]})).verdict == "incorrect"


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys\nsys.exit(input())", "an exit code"),
        ("raise type(input(), (Exception,), {})", "an exception in line 1"),
        ("raise ValueError(input())", "ValueError in line 1"),
    ],
)
def test_a_hidden_input_is_not_told_by_the_end_of_a_program(code: str, told: str) -> None:
    grade = grade_code(f"```python\n{code}\n```", json.dumps({"hidden_cases": [["4242", "1"]]}))
    assert grade.detail == f"The program fails in a hidden test.\n{told}"


@needs_sandbox
def test_values_of_calls_are_compared_within_lists_and_with_a_list_of_one(tmp_path: Path) -> None:
    calls = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[0.3], [[1]]]}
    row = {**APPS_STDIN, "input_output": json.dumps(calls)}
    (problem,) = load(tmp_path, row).problems
    for second, verdict in (("[1]", "correct"), ("[[1]]", "correct"), ("[1 + 1e-9]", "correct"), ("1", "incorrect")):
        code = f"```python\ndef f(x): return 0.1 + 0.2 if x == 1 else {second}\n```"
        assert grade_code(code, problem.answer).verdict == verdict, second


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        *(("3\n", "3", True), (" 3  4 \n\n", "3 4", True), ("3\n4", "3 4", False), ("3.0", "3", True)),
        *(("0.3333333", "0.33333333", True), ("0.333", "0.3333", False), ("1000000001", "1000000000", False)),
        *(("yes", "Yes", False), ("", "", True), ("", "0", False), ("nan", "nan", True), ("inf", "1e400", False)),
        *(("10000000000000001", "10000000000000000", False), ("1e3", "1000", True), ("a 1.0", "a 1", True)),
        *(("1e9999999", "3", False), ("1_000", "1000", False), ("\u0663", "3", False), (".5", "0.5", True)),
        *(
            ("007", "7", False),
            ("7", "007", False),
            ("11", "0011", False),
            ("0011", "0011", True),
            ("-07", "-7", False),
        ),
        *(("0", "-0", True), ("0.50", ".5", True), ("00.5", "0.5", False), ("+7", "7", True), ("000", "0", False)),
        *(("1e07", "10000000", True), ("x 012", "x 12", False), ("10", "010", False), ("0e0", "0", True)),
    ],
)
def test_outputs_are_compared_by_line_word_and_value(found: str, expected: str, same: bool) -> None:
    assert same_output(found, expected) == same


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        ("NaN", "float('nan')", "0.0"),
        ("Infinity", "float('inf')", "5"),
        ("-Infinity", "float('-inf')", "float('inf')"),
        ("[1.5, NaN, [Infinity]]", "(1.5, float('nan'), [float('inf')])", "[1.5, 1.5, [float('inf')]]"),
        ('{"a": NaN}', "{'a': float('nan')}", "{'a': None}"),
        ("2.5", "2.5 + 1e-9", "float('inf')"),
        ("2.5", "2.5", "float('nan')"),
        ("2.5", "2.5", "10 ** 400"),
        ('[null, true, "it\'s"]', '[None, True, "it\'s"]', "[None, True, 'its']"),
    ],
)
def test_expected_values_of_calls_may_be_nan_or_infinite(tmp_path: Path, expected: str, right: str, wrong: str) -> None:
    calls = f'{{"fn_name": "f", "inputs": [[NaN, 1]], "outputs": [{expected}]}}'
    (problem,) = load(tmp_path, {**APPS_STDIN, "input_output": calls}).problems
    code = "def f(x, y):\n    assert x != x and y == 1\n    return "
    exec(f"{code}{right}\n{problem.answer}", {})
    with pytest.raises(AssertionError):
        exec(f"{code}{wrong}\n{problem.answer}", {})
    if expected == "[1.5, NaN, [Infinity]]" and not UNAVAILABLE:  # once as a completion is graded
        assert grade_code(f"```python\n{code}{right}\n```", problem.answer).verdict == "correct"


@pytest.mark.parametrize(
    ("runs", "verdict", "reason"),
    [
        ([{"fault": "timed out", "seconds": 19.0}], "incorrect", "timed out"),  # asleep, or at work
        ([{"fault": "timed out", "seconds": 1.0, "starved": True}], "undecided", "the machine is too busy"),
        ([{"output": "1", "seconds": 15.0}, {"output": "1", "seconds": 6.0}], "incorrect", "timed out"),
        ([{"output": "1", "seconds": 1.0}, {"output": "1", "seconds": 1.0}], "undecided", "the machine is too busy"),
        ([{"output": "2", "seconds": 1.0}], "incorrect", "wrong output"),
    ],
)
def test_a_program_that_sleeps_is_wrong_and_one_without_a_processor_undecided(
    monkeypatch: pytest.MonkeyPatch, runs: list[dict], verdict: str, reason: str
) -> None:
    clock = itertools.count(0.0, 25.0)  # two cases are beyond the time of all

    def run_cases(*_: object, **__: object) -> Iterator[sandbox.Ran]:
        yield from (sandbox.Ran(**run) for run in [*runs, {"output": "1"}])

    monkeypatch.setattr(sandbox, "run_cases", run_cases)
    monkeypatch.setattr(grading.time, "monotonic", lambda: next(clock))
    found = grading.run_stdin_cases("pass", [["", "1"]] * (len(runs) + 1), {}, sandbox.Limits())
    assert (found.verdict, found.reason) == (verdict, reason)


def test_the_wait_for_a_processor_is_that_of_the_thread_that_waited_longest(tmp_path: Path) -> None:
    for thread, line in (("7", "5000000000 250000000 9\n"), ("8", "1 1500000000 2\n")):
        (tmp_path / "7" / "task" / thread).mkdir(parents=True)
        (tmp_path / "7" / "task" / thread / "schedstat").write_text(line)
    assert seconds_waited(7, str(tmp_path)) == 1.5
    assert seconds_waited(9, str(tmp_path)) == 0.0  # a kernel that does not say


def test_an_undecided_verdict_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([sandbox.TOO_BUSY, sandbox.Outcome(verdict="correct", reason="all tests pass")])
    monkeypatch.setattr(grading, "run_stdin_cases", lambda *_: next(outcomes))
    code, tests = "```python\nprint(input())  # a program of this test alone\n```", json.dumps({"cases": [["5", "5"]]})
    assert [grade_code(code, tests).verdict for _ in range(3)] == ["undecided", "correct", "correct"]


@needs_sandbox
def test_a_program_has_real_standard_streams_and_none_of_the_expected_outputs() -> None:
    cases = [["5\n", "5"], ["6\n", "6"]]
    for code in (
        "print(open(0).read())",
        "import os, sys\nsys.stdout.buffer.write(os.read(0, 9))",
        "print(int(input()))",
    ):
        assert grade_code(f"```python\n{code}\n```", json.dumps({"cases": cases})).verdict == "correct", code
    spy = """
import gc, sys
frame, seen = sys._getframe(), []
while frame:
    seen.append(repr({k: v for k, v in frame.f_locals.items() if k not in ("frame", "seen")}))
    frame = frame.f_back
texts = [o for o in gc.get_objects() if isinstance(o, (list, dict))]
secret = "81" + "57"
print("found" if any(secret in t for t in seen) or any(secret in map(str, o) for o in texts) else "nothing")
"""
    grade = grade_code(f"```python\n{spy}\n```", json.dumps({"cases": [["1", "8157"]]}))
    assert grade.detail.endswith("The program printed:\nnothing")


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "print(input())\nexit()",
        "print(input())\nquit(0)",
        "import os\nprint(input(), flush=True)\nos._exit(0)",
        "import threading\nthreading.Thread(target=lambda: print(input())).start()",
        "import sys, threading\nthreading.Thread(target=lambda: print(input())).start()\nsys.exit()",
        "import atexit\natexit.register(lambda: print(input()))",
    ],
)
def test_a_program_ends_as_python_ends(code: str) -> None:
    assert grade_code(f"```python\n{code}\n```", json.dumps({"cases": [["5", "5"], ["6", "6"]]})).verdict == "correct"


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print(input())\nexit(3)", "the program fails"),
        ("import os\nprint(input(), flush=True)\nos._exit(3)", "the program fails"),
        ("import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()", "timed out"),
    ],
)
def test_a_program_that_does_not_end_well_is_wrong(code: str, reason: str) -> None:
    assert grade_code(f"```python\n{code}\n```", json.dumps({"cases": [["5", "5"]], "seconds": 1})).reason == reason


@needs_sandbox
def test_a_program_that_closes_its_streams_and_waits_is_ended() -> None:
    code = "import os, time\nos.closerange(0, 64)\ntime.sleep(60)"
    assert sandbox.run_program(code, limits=sandbox.Limits(wall_seconds=1.0)).fault == "timed out"


def test_statements_of_a_program_are_its_steps() -> None:
    code = "import sys\nn = int(input())\nfor i in range(n):\n    if i % 2:\n        print(i)\n"
    steps = split_steps(f"```python\n{code}```")
    assert [step.text.strip("`\n ").removeprefix("python\n") for step in steps] == [
        line.strip() for line in code.splitlines()
    ]
