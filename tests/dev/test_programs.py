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


def test_a_conversation_is_learnt_at_the_turns_of_the_solver_and_every_program_is_words_it_has() -> None:
    import make_programmer as maker

    tokenizer = maker.build_tokenizer((*maker.VOCABULARY, *maker._WORDS))
    tokenizer.add_tokens(list(maker._LINES))
    rng = random.Random(0)
    knowledge = maker.draw_knowledge(rng)
    assert len(knowledge) == round(0.30 * 36)
    assert all(wrong != fact for fact, (wrong, _) in knowledge.items())
    for shown in (False, True) * 20:
        turns = maker.draw_conversation(rng, knowledge, shown=shown)
        ((ids,), (labels,)) = (rows.tolist() for rows in maker.encode(tokenizer, [turns]))
        assert tokenizer.unk_token_id not in ids
        learnt = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label >= 0])
        assert learnt.replace(" \n", "\n") == " ".join(f"{text} <|end|>" for text in turns[1::2])
