"""The tiny language of a solver that writes Python, against Python."""

from __future__ import annotations

import contextlib
import io
import random

import pytest

import programs


def _printed(text: str, given: str = "") -> str:
    code = text.removeprefix("```python\n").removesuffix("\n```")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {"input": lambda: given})
    return out.getvalue().strip()


@pytest.mark.parametrize("author", [0, 1])
def test_python_prints_what_a_program_is_said_to_print(author: int) -> None:
    rng = random.Random(0)
    for _ in range(50):
        called, asked = (programs.draw_program(rng, (4, 6), reads=reads) for reads in (False, True))
        assert _printed(called.write(author)) == str(called.output())
        assert _printed(asked.write(author), "17") == str(asked.output(17))
        assert programs.parse_question(asked.question) == asked


def test_a_correction_keeps_the_words_of_the_attempt() -> None:
    question = "7 + 6 * 5 from 9"
    solver = "```python\nx = 7 ; x = x + 6 ; x = x * 5 ; x = 9 - x ; print(x%20)\n```"
    other = "```python\ny = 7 ; y += 6 ; y *= 5 ; y = 9 - y ; print(y%20)\n```"
    assert programs.corrected(question, solver.replace("+ 6", "- 6")) == solver
    assert programs.corrected(question, other.replace("+= 6", "-= 6")) == other
    assert programs.corrected(question, "<answer> 4") == solver
