"""Steps of programs, tool calls and tables. Python's own parser says where statements begin."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise

import pytest

from stepalign.feedback import align, split_steps
from stepalign.feedback import steps as module
from stepalign.feedback.code import statement_starts
from stepalign.feedback.steps import detect_style

FIZZBUZZ = """```python
def fizzbuzz(n):
    def word(i):
        if i % 3 = 0:
            return "FizzBuzz" if i % 5 == 0 else "Fizz"
        if i % 5 == 0:
            return "Buzz"
        return str(i)
    return [word(i) for i in range(1, n + 1)]
```"""


def lines_of_statements(code: str) -> set[int]:
    """First lines of the statements of valid Python, decorators included, as its parser sees them."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt):
            decorators = getattr(node, "decorator_list", [])
            found.add(min([node.lineno, *(one.lineno for one in decorators)]))
    return found


def lines_of_steps(code: str) -> set[int]:
    """The first line of each step that is no comment and no blank."""
    lines = code.split("\n")
    found = set()
    for start in statement_starts(code):
        line = code.count("\n", 0, start)
        while not lines[line].strip() or lines[line].strip().startswith("#"):
            line += 1
        found.add(line + 1)
    return found


@pytest.mark.parametrize("source", [module, ast, inspect, textwrap], ids=lambda module: module.__name__)
def test_statements_of_python_begin_where_its_parser_says(source: object) -> None:
    code = inspect.getsource(source)  # type: ignore[arg-type]
    # Branches are no statements to the parser, and a line of a program may hold two.
    branches = {
        n
        for n, line in enumerate(code.split("\n"), 1)
        if line.strip().startswith(("else", "elif", "except", "finally"))
    }
    expected, found = lines_of_statements(code) | branches, lines_of_steps(code)
    assert len(expected ^ found) <= 0.01 * len(expected)


def test_the_wrong_line_of_a_program_is_the_first_wrong_step() -> None:
    steps = split_steps(FIZZBUZZ)
    assert [step.text.strip("\n") for step in steps[1:-1]] == FIZZBUZZ.split("\n")[2:-2]
    found = align(FIZZBUZZ, FIZZBUZZ.replace("% 3 = 0", "% 3 == 0"))
    assert (found.first_error_label, found.case) == ("3", "D")
    assert found.solver_statuses == ("copied", "copied", "edited", *["copied"] * 5)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("    return a - b", "    return a + b"),
        ("    for i in range(n):", "    for i in range(1, n + 1):"),
        ("    if a < b:", "    if a <= b:"),
        ("    total += x", "    total += x * x"),
        ("    return max(xs)", "    return max(xs)[0]"),
        ("    x = y", "    x = y.copy()"),
    ],
)
@pytest.mark.parametrize("fence", ["```python\n{}\n```", "{}", "Here it is.\n\n```py\n{}\n```\n\nIt runs in O(n)."])
def test_every_sign_of_code_counts(wrong: str, right: str, fence: str) -> None:
    program = "def f(a, b, n, xs):\n    total, y = 0, []\n{}\n    print(total)\n    return a"
    found = align(fence.format(program.format(wrong)), fence.format(program.format(right)))
    assert found.first_error is not None
    assert found.solver_steps[found.first_error].text.strip("\n") == wrong
    assert found.edited == 1


def test_blanks_and_fences_are_no_errors() -> None:
    code = "def f(x):\n    return x+1\nprint( f(1))"
    found = align(f"```python\n{code}\n```", code.replace("x+1", "x + 1"))
    assert found.first_error is None
    assert (found.copied, found.edited) == (2, 1)


@pytest.mark.parametrize(
    ("text", "style", "expected"),
    [
        (FIZZBUZZ, "code", "1 2 3 4 5 6 7 8"),
        ("<think>\na = 1\n</think>\n```python\na = 1\nb = 2\n```", "code", " 1 2"),
        ("```js\nconst a = {\n  b: 1,\n};\nsetTimeout(() => {\n  f(1);\n}, 1000);\n```", "code", "1 2 3"),
        ("#include <a.h>\nint main()\n{\n  /* a\n b */\n  int x = 1;\n  return 0;\n}\n", "code", "1 2 3 4"),
        ("~~~sql\nSELECT a\nFROM t\nWHERE b = 1;\n~~~", "code", "1 2 3"),
        ("```bash\n#!/bin/sh\nfor f in *; do\n  echo $f\ndone\nls /*\n```", "code", "1 2 3 4"),
        ("fn main() {\n    let v = vec![\n        1,\n    ];\n    println!(\"{}\", v[0]);\n}", "code", "1 2 3"),
        ("func f(a int,\n\tb int) int {\n\tif a > b {\n\t\tb = a\n\t} else {\n\t\ta = b\n\t}\n}", "code", "1 2 3 4 5"),
        ("    r = 0\n    for i in range(n):\n        r += i\n    return r\n", "code", "1 2 3 4"),  # a body that goes on
        ("def f(x:\n    y = 1\n    return y\nprint(f(1)\nprint(2)", "code", "1 2 3 4 5"),  # brackets left open
        ("# Step 1: add\nx = f(1)\n# Step 2: print\nprint(x)", "code", "1 2"),
        ("```python\na = 1\nb = ", "code", "1 2"),  # cut
        ("A loop.\n\n```python\nfor i in x:\n    print(i)\n```\n\nThe answer is 10", "paragraphs", "1 2 3 answer"),
        ("## Plan\nLoop.\n## Code\n```py\nx = 1\ny = 2\n```\nDone.\n## End\nFine.", "headings", "1 2 2.1 2.2 2.3 3"),
        ("1. Read:\n```py\nx = 1\ny = 2\n```\n2. End\n3. Stop", "numbered", "1 1.1 1.2 2 3"),
        ("Step 1: Code\n```c\nint x = 1;\nint y = 2;\n```\nStep 2: End", "step_words", "1 1.1 1.2 2"),
        ("It is:\n```\nx = 1\nprint(x)\n```\nwhich prints\n```\n1\n2\n```\n", "lines", "1 2 3 4 5"),
        ('```json\n{"a": 1,\n "b": 2}\n```', "sentences", "1"),
        ("See.\n<tool_call>{}\n</tool_call>\n<tool_response>\n4\n</tool_response>\nAnswer: 4", "lines", "1 2 3 answer"),
        ("Look.\n\n<function=find>\n<parameter=a>\nb\n</parameter>\n</function>\n\nSo.", "paragraphs", "1 2 3"),
        ("We list.\n\n| n | s |\n|---|---|\n| 1 | 1. Yes. |\n\nSo 1.\n\n#### 1", "paragraphs", "1 2 3 answer"),
        ("We list.\n| n | s |\n|---|---|\n| 1 | 1 |\nSo 1.\n#### 1", "lines", "1 2 3 answer"),
        ("x + 3 = 7;\nx = 4;\n#### 4", "lines", "1 2 answer"),  # formulas are no program
        ("Let x = 1\nreturn to the start\nAnswer: 1", "lines", "1 2 answer"),
    ],
)  # fmt: skip
def test_forms(text: str, style: str, expected: str) -> None:
    assert detect_style(text) == style
    steps = split_steps(text)
    assert [step.label for step in steps] == expected.split(" ")
    assert "".join(step.text for step in steps) == text
    assert all(left.end == right.start for left, right in pairwise(steps))
