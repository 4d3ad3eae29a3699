"""Designs for turns: the text that teaches each turn, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepalign.critics.variants import TurnByTurn
from stepalign.feedback import designs
from stepalign.records import Attempt, Critique, Grade, Problem, Turn, critique_from_json, to_json
from stepalign.waiting import wait_for

PROBLEM = Problem(problem_id="p", question="2 + 3?", answer="5")


def attempt(name: str, *turns: tuple[str, str], score: float = 0.0) -> Attempt:
    made = tuple(Turn(role=role, text=text, start=at, end=at + 1) for at, (role, text) in enumerate(turns))  # type: ignore[arg-type]
    return Attempt(rollout_id=name, problem=PROBLEM, text=" ".join(t for _, t in turns), grade=Grade(score), turns=made)


ASKED = attempt("a", ("solver", "4"), ("user", "Too small."), ("solver", "6"), ("user", "Too large."), ("solver", "5"))
RAN = attempt(
    "b",
    ("solver", "call 1"),
    ("tool", 'Traceback\n  File "x"\nZeroDivisionError: division by zero'),
    ("solver", "call 2"),
    ("tool", "5"),
    ("solver", "5"),
    score=1.0,
)
ALONE = Attempt(rollout_id="c", problem=PROBLEM, text="4", grade=Grade(0.0))


def shown(design: str, *attempts: Attempt, critiques: dict[str, Critique] | None = None) -> list[tuple]:
    group = designs.make_group(attempts, critiques or {})
    return [(one.rollout_id, one.turn, one.text, one.masked) for one in designs.make_contexts(design, group)]


def test_hindsight_is_the_next_message_of_the_user_for_each_turn() -> None:
    assert shown("hindsight", ASKED, ALONE) == [
        ("a", 0, "Too small.", ""),
        ("a", 2, "Too large.", ""),
        ("a", 4, None, "no user replied to the turn"),
        ("c", 0, None, "no user replied to the turn"),
    ]


@pytest.mark.parametrize(
    ("message", "fails"),
    [
        ("ValueError: x", True),
        ("1\n2\nKeyError: 'a'", True),
        ("timed out", True),
        ("exit code 3", True),
        ("json.decoder.JSONDecodeError: Expecting value", True),
        ("SyntaxError: invalid syntax", True),
        ("MemoryError", True),
        ("KeyboardInterrupt", True),
        ("StopIteration", True),
        ("the program ended early", True),
        ("5", False),
        ("(no output)", False),
        ("no ValueError here", False),
        ("it timed out of 3", False),
    ],
)
def test_the_output_of_a_failed_call_teaches_the_turn_that_made_it(message: str, fails: bool) -> None:
    one = attempt("d", ("solver", "call"), ("tool", message), ("solver", "5"))
    first, last = shown("tool_error", one)
    assert first == (("d", 0, message, "") if fails else ("d", 0, None, "the call of the turn did not fail"))
    assert last == ("d", 2, None, "no tool replied to the turn")


def test_a_solved_sibling_is_shown_turn_by_turn() -> None:
    first, second = shown("sibling_episode", ASKED, RAN)
    assert first[2].startswith("[solver]\ncall 1\n\n[tool]\nTraceback")
    assert second == ("b", None, None, "no correct sibling")


class Echo:
    """Repeats what it is shown, and cannot read a 6."""

    name = "echo"

    async def critique(self, attempt: Attempt, *, earlier=None, complaint: str = "") -> Critique:
        status = "malformed" if attempt.text == "6" else "ok"
        text = f"{attempt.problem.question!r} {attempt.text} {attempt.verdict}" if status == "ok" else ""
        return Critique(rollout_id=attempt.rollout_id, critic="echo", status=status, text=text, completion_tokens=7)

    def close(self) -> None: ...


def test_a_critic_is_asked_about_every_turn_with_the_conversation_before_it() -> None:
    found = wait_for(TurnByTurn(Echo(), reads_questions=True).critique(ASKED))
    assert found.status == "ok"
    assert found.completion_tokens == 21
    assert found.turns[0] == "'2 + 3?' 4 undecided"
    assert found.turns[1] == ""
    assert found.turns[2].endswith("[user]\\nToo large.' 5 incorrect")
    assert critique_from_json(to_json(found)) == found
    contexts = shown("turn_critique", ASKED, critiques={"a": found})
    assert [(turn, text) for _, turn, text, _ in contexts] == [(0, found.turns[0]), (2, None), (4, found.turns[2])]
    plain = wait_for(TurnByTurn(Echo(), reads_questions=False).critique(ASKED))
    assert plain.turns == ("'2 + 3?' 4 undecided", "", "'2 + 3?' 5 incorrect")
    alone = wait_for(TurnByTurn(Echo(), reads_questions=True).critique(ALONE))
    assert alone.turns == ("'2 + 3?' 4 incorrect",)
    assert shown("turn_critique", ALONE, critiques={"c": alone}) == [("c", 0, alone.turns[0], "")]


def test_records_without_turns_do_not_mention_them() -> None:
    group = designs.make_group([replace(ALONE)], {})
    (context,) = designs.make_contexts("verdict", group)
    assert "turn" not in to_json(context)
    assert "turns" not in to_json(Critique(rollout_id="c", critic="x", status="ok", text="t"))
