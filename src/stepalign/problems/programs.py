"""Rows with a task for a program, in the layouts that are common, as a question with tests.

Tests that are nothing but Python statements are taken as they are. Tests of several kinds are one JSON object:
``tests`` and ``hidden_tests`` (Python with ``assert``), ``cases`` and ``hidden_cases`` (pairs of standard input and
expected output), ``files`` (path -> text, beside the program), ``seconds``, ``mebibytes``. Hidden ones decide, and are
shown to nobody: ``shown_answer`` is the rest, for a reader.
"""

from __future__ import annotations

import ast
import base64
import json
import math
import pickletools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from stepalign.problems.rows import Row

_MOST_BYTES = 64 << 20
"""Of packed test cases, unpacked."""
MOST_SECONDS = 20
"""Of CPU time; a program is ended after as many on the clock."""
LEAST_MEBIBYTES, MOST_MEBIBYTES = 64, 65536
"""Python itself takes some; a limit above is one in bytes."""
_MOST_SHOWN = 4000
"""Characters of the tests that a reader is shown."""
_STDIN = "The program reads from standard input and writes to standard output."
_SAME = """def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {str(key): plain(item) for key, item in value.items()} if isinstance(value, dict) else value

def alike(found, expected):
    if type(found) is type(expected) is list:
        return len(found) == len(expected) and all(map(alike, found, expected))
    if type(found) is type(expected) is dict:
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in found)
    if found == expected or found != found and expected != expected:
        return True
    if float not in (type(found), type(expected)) or not {type(found), type(expected)} <= {int, float}:
        return False
    try:
        return abs(found - expected) <= 1e-6 * max(1.0, abs(expected)) < float("inf")
    except OverflowError:
        return False

def same(found, *expected):
    return any(alike(plain(found), plain(one)) for one in expected)
"""


def is_test_program(text: str) -> bool:
    """Whether a text is Python that asserts something."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def prepare_program(row: Row) -> Row | str:
    """A row in our own columns, or the reason to skip it.

    Layouts: ours (``question``, ``tests``, ``hidden_tests``, ``cases``, ``hidden_cases``, ``files``, ``time_limit`` in
    seconds, ``memory_limit`` in MiB, ``entry_point``, ``reference``), HumanEval (``prompt``, ``test`` with a function
    ``check``, ``entry_point``, ``canonical_solution``), MBPP (``text`` or ``prompt``, ``test_list``, ``code``), APPS
    and TACO (``input_output``, ``solutions``, ``starter_code``), LiveCodeBench (``question_content``,
    ``public_test_cases``, ``private_test_cases``, ``starter_code``, ``metadata``).
    """
    try:
        if "input_output" in row:
            found = _of_apps(row)
        elif "public_test_cases" in row:
            found = _of_live_code_bench(row)
        else:
            found = _of_statements(row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error) as error:
        return f"the tests cannot be read: {type(error).__name__}"
    if isinstance(found, str):
        return found
    spec = {name: value for name, value in found.pop("spec").items() if value}
    if not 0 < spec.get("seconds", 1) <= MOST_SECONDS:
        return f"the time limit is not above 0 and up to {MOST_SECONDS} s"
    if not LEAST_MEBIBYTES <= spec.get("mebibytes", 512) <= MOST_MEBIBYTES:
        return f"the memory limit is not {LEAST_MEBIBYTES} to {MOST_MEBIBYTES} MiB"
    for name in ("tests", "hidden_tests"):
        if name in spec and not is_test_program(spec[name]):
            return "the tests are no Python with an assert"
    if not any(name in spec for name in ("tests", "hidden_tests", "cases", "hidden_cases")):
        return "no tests"
    reference = str(found.get("reference") or "").strip()
    if reference and "```" not in reference:  # as a completion would show it
        reference = f"```python\n{reference}\n```"
    if set(spec) == {"tests"}:
        return {**found, "tests": spec["tests"].strip(), "reference": reference}
    text = json.dumps(spec, ensure_ascii=False)
    return {**found, "tests": text, "reference": reference, "shown_answer": shown_tests(spec)}


def shown_tests(spec: Mapping[str, Any]) -> str:
    """The tests of a specification as a reader sees them: those that are hidden are counted only."""
    parts = [str(spec.get("tests", "")).replace(_SAME, "").strip()]
    parts += [f"Input:\n{given}\nExpected output:\n{expected}" for given, expected in spec.get("cases", ())]
    shown = "\n\n".join(part for part in parts if part)
    if len(shown) > _MOST_SHOWN:
        shown = f"{shown[:_MOST_SHOWN]}\n(and more)"
    hidden = any(name in spec for name in ("hidden_tests", "hidden_cases"))
    return f"{shown}\n\nFurther tests are hidden.".strip() if hidden else shown


def _of_statements(row: Row) -> dict[str, Any] | str:
    """Our own layout, HumanEval and MBPP."""
    question = row.get("question") or row.get("text") or row.get("prompt")
    answer = row.get("answer")
    if isinstance(answer, str) and answer.lstrip().startswith("{"):  # frozen
        return {"question": question, "spec": json.loads(answer), "reference": row.get("reference")}
    tests = row.get("tests") or row.get("test_list") or row.get("test") or answer
    if isinstance(tests, list):
        tests = "\n".join(map(str, [*(row.get("test_imports") or ()), row.get("test_setup_code") or "", *tests]))
    tests = tests if isinstance(tests, str) else ""
    entry_point = row.get("entry_point")
    if entry_point and re.search(r"^def check\(", tests, re.M) and not re.search(r"^check\(", tests, re.M):
        tests = f"{tests.rstrip()}\n\ncheck({entry_point})"
    reference = row.get("reference") or row.get("code") or ""
    if not reference and row.get("canonical_solution"):
        reference = f"{row.get('prompt', '')}{row['canonical_solution']}"
    hidden = row.get("hidden_tests")
    spec = {
        "tests": tests.strip(),
        "hidden_tests": "\n".join(map(str, hidden)) if isinstance(hidden, list) else str(hidden or "").strip(),
        "cases": [_pair(case) for case in row.get("cases") or ()],
        "hidden_cases": [_pair(case) for case in row.get("hidden_cases") or ()],
        "files": {str(name): str(text) for name, text in (row.get("files") or {}).items() if text is not None},
        "seconds": float(row.get("time_limit") or 0),
        "mebibytes": float(row.get("memory_limit") or 0),
    }
    return {"question": question, "spec": spec, "reference": reference}


def _of_apps(row: Row) -> dict[str, Any] | str:
    given = row["input_output"]
    given = json.loads(given) if isinstance(given, str) and given.strip() else given
    if not isinstance(given, Mapping):
        return "no tests"
    solutions = row.get("solutions")
    solutions = json.loads(solutions) if isinstance(solutions, str) and solutions.strip() else solutions
    name, starter = given.get("fn_name"), str(row.get("starter_code") or "")
    pairs = list(zip(given.get("inputs") or (), given.get("outputs") or (), strict=True))
    if name:
        # The value that a call gives may be in a list of its own, and nothing tells it from a list of one value.
        calls = [(_list(a), (e[0], e) if isinstance(e, list) and len(e) == 1 else (e,)) for a, e in pairs]
        spec = {"tests": _calls(str(name), starter, calls)}
    else:
        spec = {"cases": [_pair(pair) for pair in pairs]}
    return {
        "question": _asked(str(row.get("question") or ""), starter, str(name or "")),
        "spec": spec,
        "reference": solutions[0] if isinstance(solutions, Sequence) and solutions else "",
    }


def _of_live_code_bench(row: Row) -> dict[str, Any] | str:
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    starter, name = str(row.get("starter_code") or ""), str(metadata.get("func_name") or "")
    spec: dict[str, Any] = {}
    for prefix, column in (("", "public_test_cases"), ("hidden_", "private_test_cases")):
        cases = _unpacked(row.get(column) or "[]")
        if any(case["testtype"] == "functional" for case in cases):
            calls = [([json.loads(a) for a in c["input"].split("\n")], (json.loads(c["output"]),)) for c in cases]
            spec[f"{prefix}tests"] = _calls(name, starter, calls)
        else:
            spec[f"{prefix}cases"] = [_pair(case) for case in cases]
    return {"question": _asked(str(row.get("question_content") or ""), starter, name), "spec": spec}


def _unpacked(cases: Any) -> list[Any]:
    """LiveCodeBench's cases: JSON, or JSON that was pickled, compressed and written in base 64. Nothing is unpickled:
    the one string is read out of the pickle."""
    if not isinstance(cases, str):
        return list(cases)
    if not cases.lstrip().startswith("["):
        unzip = zlib.decompressobj()
        packed = unzip.decompress(base64.b64decode(cases), _MOST_BYTES)
        if unzip.unconsumed_tail:
            raise ValueError("too many test cases")
        (cases,) = [value for _, value, _ in pickletools.genops(packed) if isinstance(value, str)]
    return json.loads(cases)


def _asked(question: str, starter: str, name: str) -> str:
    """A question that says where the program begins and how it is called."""
    if starter.strip():
        return f"{question.strip()}\n\nBegin with this code:\n```python\n{starter.rstrip()}\n```"
    end = f"Write it as a function {name}." if name else _STDIN
    return f"{question.strip()}\n\n{end}" if question.strip() else ""


def _calls(name: str, starter: str, calls: Sequence[tuple[list[Any], tuple[Any, ...]]]) -> str:
    """Statements that call a function, or a method of LeetCode's class, and compare what comes back with one value or
    several of which one is meant."""
    if not calls or not name.isidentifier():
        return ""
    called = f"Solution().{name}" if re.search(r"^class Solution\b", starter, re.M) else name
    lines = [
        f"assert same({called}({', '.join(map(_literal, given))}), {', '.join(map(_literal, expected))})"
        for given, expected in calls
    ]
    return "\n".join([_SAME, *lines])


def _literal(value: Any) -> str:
    """A value of JSON as Python; NaN and infinities, which JSON files of tests have, are no literals of it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_literal(item)}' for key, item in value.items())}}}"
    return repr(value) if not isinstance(value, float) or math.isfinite(value) else f"float({str(value)!r})"


def _pair(case: Any) -> list[str]:
    """(standard input, expected output); lines may be a list."""
    given, expected = (case["input"], case["output"]) if isinstance(case, Mapping) else case
    return ["\n".join(map(str, part)) if isinstance(part, list) else str(part) for part in (given, expected)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
