from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.feedback.alignment import Alignment, align
from stepalign.feedback.steps import split_steps, step_body
from stepalign.records import Critique

WRONG = (
    "<step_1> She eats 3 and bakes 4, so 3 + 4 = 7 eggs are used.\n"
    "<step_2> That leaves 16 - 7 = 8 eggs.\n"
    "<step_3> She earns 8 * 2 = 16 dollars.\n"
    "<answer> 16"
)
RIGHT = WRONG.replace("8 eggs", "9 eggs").replace("8 * 2 = 16", "9 * 2 = 18").replace("<answer> 16", "<answer> 18")


def statuses(alignment: Alignment) -> list[str]:
    return [match.status for match in alignment.matches]


def test_case_a_everything_reproduced() -> None:
    a = align(RIGHT, RIGHT, expected_answer="18")
    assert statuses(a) == ["copied"] * 4
    assert (a.case, a.first_edit, a.first_error, a.first_error_label) == ("A", None, None, "")
    assert (a.verbatim_share, a.wrong_text_repeated, a.full_solution, a.answer_right) == (1.0, False, False, True)


def test_case_b_only_the_missing_step_inserted() -> None:
    critique = RIGHT.replace("<step_2>", "<step_2> The ducks lay 16 eggs each day.\n<step_3>").replace(
        "<step_3> She", "<step_4> She"
    )
    a = align(RIGHT, critique, expected_answer="18")
    assert statuses(a) == ["copied", "added", "copied", "copied", "copied"]
    assert (a.case, a.first_error, a.verbatim_share, a.added) == ("B", None, 1.0, 1)


@pytest.mark.parametrize(
    "kept", ["<step_2> That", "<step_2> That leaves 16 - 7 = 9 eggs.", "<step_2> That leaves 1", ""]
)
def test_case_c_an_unfinished_attempt_is_finished(kept: str) -> None:
    a = align(RIGHT.split("<step_2>")[0] + kept, RIGHT, expected_answer="18")
    assert (a.case, a.first_error, a.verbatim_share) == ("C", None, 1.0)
    assert (a.solver_answer, a.critique_answer, a.answer_right) == (None, "18", True)
    assert a.copied == 1 + kept.endswith(".")


def test_case_c_a_rambling_attempt_is_condensed() -> None:
    attempt = "<step_1> Try 1 egg.\n<step_2> Try 2 eggs.\n<step_3> Use 16 - 7 = 9 eggs.\n<step_4> Try 4 eg"
    a = align(attempt, "<step_1> Use 16 - 7 = 9 eggs.\n<step_2> So 9 * 2 = 18.\n<answer> 18")
    assert a.case == "C"
    assert statuses(a)[:3] == ["missing", "missing", "copied"]


def test_case_d_the_first_wrong_step_replaced() -> None:
    a = align(WRONG, RIGHT, expected_answer="18")
    assert a.solver_statuses == ("copied", "edited", "edited", "edited")
    assert (a.case, a.first_edit, a.first_error, a.first_error_label) == ("D", 1, 1, "2")
    assert (a.verbatim_share, a.wrong_text_repeated, a.full_solution, a.answer_right) == (1.0, False, False, True)


def test_case_d_an_error_in_the_first_step_is_no_full_solution() -> None:
    a = align("<step_1> 3 + 4 = 8 <step_2> 8 - 1 = 7 <answer> 7", "<step_1> 3 + 4 = 7 <step_2> 7 - 1 = 6 <answer> 6")
    assert (a.case, a.first_error, a.full_solution) == ("D", 0, False)
    assert math.isnan(a.verbatim_share)


def test_case_f_another_solution() -> None:
    critique = "<step_1> Let r be revenue; by linearity r = 2(16 - 3 - 4).\n<step_2> Hence r is eighteen.\n<answer> 18"
    a = align(WRONG, critique, expected_answer="18")
    assert (a.case, a.full_solution, a.first_error) == ("F", True, 0)
    assert align("", RIGHT).case == "F"


@pytest.mark.parametrize(
    "correction",
    [
        "Not 16 - 7 = 8 but 16 - 7 = 9 eggs.",
        "The student wrote: That leaves 16 - 7 = 8 eggs. In fact 9 are left.",
        "That leaves 16 - 7 = 9 eggs (16-7=8 is wrong).",
    ],
)
def test_a_critique_that_quotes_the_wrong_step_is_found(correction: str) -> None:
    a = align(WRONG, RIGHT.replace("That leaves 16 - 7 = 9 eggs.", correction))
    assert (a.first_error, a.wrong_text_repeated) == (1, True)


def test_the_wrong_statement_in_another_step_is_found() -> None:
    a = align(WRONG, RIGHT.replace("<step_3>", "<step_3> We do not have 16 - 7 = 8 here.\n<step_4>"))
    assert a.wrong_text_repeated


@pytest.mark.parametrize(
    ("attempt", "critique"),
    [
        # what was right in the wrong step may stay
        ("<step_1> 3 + 4 = 7, 7 * 2 = 15 <answer> 15", "<step_1> 3 + 4 = 7, 7 * 2 = 14 <answer> 14"),
        # a longer number that contains the wrong one is another statement
        ("<step_1> a <step_2> 3 + 4 = 8 <answer> 8", "<step_1> a <step_2> 13 + 4 = 87 <answer> 87"),
        # a step that goes on from the old one takes nothing back
        ("<step_1> 16 - 3 = 13 <answer> 13", "<step_1> 16 - 3 = 13, so 13 - 4 = 9 <answer> 9"),
    ],
)
def test_right_statements_are_no_quotes(attempt: str, critique: str) -> None:
    assert not align(attempt, critique).wrong_text_repeated


def test_reworded_right_steps_lower_the_verbatim_share_but_are_no_error() -> None:
    reworded = RIGHT.replace(
        "She eats 3 and bakes 4, so 3 + 4 = 7 eggs are used.", "Daily use: 3 plus 4, i.e. 3 + 4 = 7."
    )
    a = align(WRONG, reworded)
    assert (a.first_edit, a.first_error) == (0, 1)
    assert a.matches[0].same_result
    assert a.verbatim_share < 0.2
    assert not a.wrong_text_repeated


def test_agreeing_with_a_wrong_answer_shows() -> None:
    a = align(WRONG, WRONG, expected_answer="18")
    assert (a.case, a.answer_right) == ("A", False)


def test_answers_are_compared_as_the_caller_says() -> None:
    attempt, critique = "<step_1> a <answer> $1,800", "<step_1> a <answer> 1800"
    assert align(attempt, critique, expected_answer="1800").case == "B"
    boxed = align("<step_1> so \\boxed{9} <answer> x", RIGHT, expected_answer="9", extract_answer=lambda text: "9")
    assert (boxed.solver_answer, boxed.critique_answer, boxed.answer_right) == ("9", "9", True)
    assert align(attempt, critique, expected_answer="y", same_answer=lambda left, right: True).answer_right
    assert align(attempt, critique).answer_right is None
    assert align(attempt, "<step_1> a", expected_answer="1800").answer_right is None


def test_an_attempt_in_lines_and_a_tagged_critique() -> None:
    attempt = "Janet has 16 - 3 = 13 eggs\nShe sells 13 * 2 = 25\nA: 25"
    critique = "<step_1> Janet has 16 - 3 = 13 eggs\n<step_2> She sells 13 * 2 = 26\n<answer> 26"
    a = align(attempt, critique)
    assert a.solver_statuses == ("copied", "edited", "edited")
    assert (a.case, a.first_error_label) == ("D", "2")


def test_text_before_the_first_step_is_left_out() -> None:
    a = align("Let me think.\n" + RIGHT, RIGHT)
    assert statuses(a) == ["copied"] * 4
    assert a.solver_steps[0].start == len("Let me think.\n")


def test_records_are_taken_as_well_as_text() -> None:
    critique = Critique(rollout_id="r", critic="c", status="ok", text=RIGHT)
    assert align(WRONG, critique) == align(WRONG, RIGHT)


def test_nothing_to_match() -> None:
    assert align("", "").case == ""
    empty = align(WRONG, "")
    assert statuses(empty) == ["missing"] * 4
    assert (empty.case, empty.answer_right) == ("", None)


STEPS = st.lists(
    st.sampled_from(["3 + 4 = 7", "7 - 1 = 6", "so it is 6", "then we add", "x = 2"]), min_size=1, max_size=8
)


def trace(steps: list[str], answer: str = "6") -> str:
    return "\n".join(f"<step_{number}> {text}" for number, text in enumerate(steps, 1)) + f"\n<answer> {answer}"


@given(STEPS, STEPS)
def test_every_step_is_matched_once_and_in_order(left: list[str], right: list[str]) -> None:
    a = align(trace(left), trace(right))
    assert [m.solver for m in a.matches if m.solver is not None] == list(range(len(left) + 1))
    assert [m.critique for m in a.matches if m.critique is not None] == list(range(len(right) + 1))
    assert a.copied + a.edited + a.missing == len(left) + 1
    assert a.copied + a.edited + a.added == len(right) + 1
    for match in a.matches:
        if match.solver is not None and match.critique is not None:
            assert (match.status == "copied") == ([*left, "6"][match.solver] == [*right, "6"][match.critique])


@given(STEPS, st.data())
def test_itself_is_copied_and_a_replaced_step_is_the_edited_one(steps: list[str], data: st.DataObject) -> None:
    assert set(align(trace(steps), trace(steps)).solver_statuses) == {"copied"}
    place = data.draw(st.integers(0, len(steps) - 1))
    replaced = [*steps[:place], "something else 12345", *steps[place + 1 :]]
    a = align(trace(steps), trace(replaced))
    assert a.solver_statuses == tuple("edited" if i == place else "copied" for i in range(len(steps) + 1))
    assert (a.added, a.first_edit, a.verbatim_share if place else 1.0) == (0, place, 1.0)


@given(st.text(), st.text())
def test_any_text_is_aligned(attempt: str, critique: str) -> None:
    a = align(attempt, critique, expected_answer="1")
    assert math.isnan(a.verbatim_share) or 0 <= a.verbatim_share <= 1
    assert a.case in ("", *"ABCDF")


REAL = [
    "She eats three for breakfast and bakes 4 muffins every day so she eats 3 + 4 = <<3+4=7>>7 meals\n"
    "The ducks lay 16 eggs a day and she eats 7 meals a day for a total of 16 * 7 = <<16*7=112>>112 eggs\n"
    "She makes $224 a day at the farmers' market\nA: 224",
    "It takes 2*1/2=<<2*1/2=1.0>>1 bolt of white fiber\nSo it takes 2+1=<<2+1=3>>3 bolts of blue and white fiber\nA: 3",
    "First, we find 450 - 468 = <<450-468=-18>>-18. Since 100 - 18 = <<100-18=82>>82, the answer is 82.\nA: 82",
]


@pytest.mark.parametrize("text", REAL)
def test_real_attempts(text: str) -> None:
    steps = split_steps(text)
    assert set(align(text, text).solver_statuses) == {"copied"}
    for place, step in enumerate(steps):
        new = "A: 98765" if step.label == "answer" else "Something else altogether 12345.\n"
        a = align(text, text[: step.start] + new + text[step.end :])
        assert a.solver_statuses == tuple("edited" if i == place else "copied" for i in range(len(steps)))
        assert a.first_error == place
    tagged = [f"<{'answer' if s.label == 'answer' else f'step_{s.label}'}> {step_body(text, s)}" for s in steps]
    assert set(align(text, "\n".join(tagged)).solver_statuses) == {"copied"}


@pytest.mark.parametrize(
    ("attempt", "critique"),
    [
        ("<step_1>a" * 20_000, "<step_1>b" * 20_000),
        ("\n".join(map(str, range(20_000))), "\n".join(map(str, range(1, 20_001)))),
        ("<step_1>" + "1=" * 400_000, "<step_1>" + "2=" * 400_000),
        ("<step_1>" + "a" * 900_000, "<step_1>" + "a" * 900_000 + "b"),
        ("<step_1>" + "1+2=3, " * 140_000, "<step_1>" + "1+2=4, " * 140_000),
        ("\n".join(f"{i} word " * 300 for i in range(140)), "\n".join(f"{i} other " * 200 for i in range(140))),
    ],
    ids=["many steps", "shifted steps", "one long equation", "one long word", "many equations", "dense square"],
)
def test_hostile_traces_are_aligned(attempt: str, critique: str) -> None:
    a = align(attempt, critique)
    assert a.copied + a.edited + a.missing == len(a.solver_steps)
    assert a.copied + a.edited + a.added == len(a.critique_steps)


@pytest.mark.parametrize(
    ("critique", "repeated"),
    [
        # the wrong step stands in front of its correction: its number twice, or its calculation twice
        ("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 6 <step_2> 12 - 5 = 7 <answer> 7", True),
        ("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 6 <step_3> no, 12 - 5 = 7 <answer> 7", True),
        # a step more is no quote, nor is a second value of a variable
        ("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 6 <step_3> 6 + 1 = 7 <answer> 7", False),
        ("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 7 <answer> 7", False),
    ],
)
def test_a_wrong_step_in_front_of_its_correction_is_quoted(critique: str, repeated: bool) -> None:
    found = align("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 6 <answer> 6", critique, expected_answer="7")
    assert found.wrong_text_repeated == repeated
    if repeated:
        assert found.first_error_label == "2"
        assert found.case == "D"


def test_a_variable_may_have_two_values() -> None:
    attempt = "<step_1> so x = 3 <step_2> 3 + 3 = 6 <answer> 6"
    critique = "<step_1> so x = 3 <step_2> or x = 4 <step_3> 3 + 4 = 7 <answer> 7"
    assert not align(attempt, critique).wrong_text_repeated


@pytest.mark.parametrize(
    ("attempt", "critique"),
    [
        # joined, split, and both in one trace
        (
            ["Tom has 3 and buys 4.", "So he has 7.", "He eats 2: 5."],
            ["Tom has 3 and buys 4. So he has 7.", "He eats 2: 5."],
        ),
        (
            ["Tom has 3 and buys 4. So he has 7.", "He eats 2: 5."],
            ["Tom has 3 and buys 4.", "So he has 7.", "He eats 2: 5."],
        ),
        (["a b", "c d e", "f"], ["a", "b c", "d e f"]),
    ],
)
def test_the_same_text_cut_into_other_steps_is_kept(attempt: list[str], critique: list[str]) -> None:
    a = align(trace(attempt), trace(critique))
    assert all(match.kept for match in a.matches if match.solver is not None)
    assert (a.case, a.first_error, a.verbatim_share) == ("A", None, 1.0)


def test_joined_steps_around_an_error_are_kept() -> None:
    attempt = ["x is 3", "y is 4", "3 + 4 = 8", "take it", "and go"]
    a = align(trace(attempt, "8"), trace(["x is 3 y is 4", "3 + 4 = 7", "take it and go"], "7"))
    kept = {match.solver: match.kept for match in a.matches if match.solver is not None}
    assert [kept[index] for index in range(6)] == [True, True, False, True, True, False]
    assert (a.case, a.first_error_label, a.verbatim_share) == ("D", "3", 1.0)


@pytest.mark.parametrize(
    ("step", "quoted"),
    [
        ("7 * 2 = 15 is wrong, it is 7 * 2 = 14", True),
        ("7 * 2 = 15 is wrong; correct is 14", True),
        ("7 * 2 = 15? No: 7 * 2 = 14", True),
        ("7 * 2 = 15, no, 14", True),
        ("7 * 2 = 14, not 15", True),
        ("7 * 2 = 14 instead of 15", True),
        ("7 * 2 = 14", False),
        ("7 * 2 = 14, so not 13", False),
    ],
)
def test_a_correction_within_the_step_quotes_it(step: str, quoted: bool) -> None:
    a = align(trace(["3 + 4 = 7", "7 * 2 = 15", "15 - 1 = 14"], "14"), trace(["3 + 4 = 7", step, "14 - 1 = 13"], "13"))
    assert (a.first_error_label, a.wrong_text_repeated) == ("2", quoted)


def test_a_step_that_goes_on_is_not_taken_back() -> None:
    a = align(trace(["3 + 4 = 7", "7 * 2 = 14"], "14"), trace(["3 + 4 = 7", "7 * 2 = 14, and 14 - 1 = 13"], "14"))
    assert (a.first_error, a.wrong_text_repeated, a.case) == (None, False, "B")


def test_an_error_in_words_is_found_by_the_answer() -> None:
    a = align(trace(["三加四等于七", "七乘二等于十五"], "15"), trace(["三加四等于七", "七乘二等于十四"], "14"))
    assert (a.first_error_label, a.matches[1].similarity) == ("2", pytest.approx(6 / 7))


@pytest.mark.parametrize(
    ("step", "reworded"),
    [
        ("Three and four are 7", True),
        ("so there are 7", True),
        ("4 and 3 make 7", True),
        ("3 + 4 = 8", False),
        ("3 + 5 = 7", False),
        ("we add them", False),
        ("7 = 3 + 4", False),  # ends in another number: not told apart from "x = 3, y = 4" with the values exchanged
    ],
)
def test_a_rewording_keeps_the_result_and_brings_no_number(step: str, reworded: bool) -> None:
    a = align(trace(["3 + 4 = 7", "7 - 1 = 6"]), trace([step, "7 - 1 = 6"]))
    assert (a.first_error, a.matches[0].same_result) == ((None, True) if reworded else (0, False))


@pytest.mark.parametrize("place", range(5))
def test_a_quoted_step_is_found_whatever_its_correction_is_paired_with(place: int) -> None:
    right = ["1 + 1 = 2", "2 + 5 = 7", "7 - 5 = 2", "2 + 1 = 3", "3 - 5 = -2"]
    wrong = [*right[:place], *(step.rpartition(" ")[0] + f" {90 + n}" for n, step in enumerate(right[place:]))]
    steps = [f"<step_{n}> {text}" for n, text in enumerate(right, 1)]
    critique = "\n".join([*steps[:place], f"<step_{place + 1}> {wrong[place]}", *steps[place:], "<answer> -2"])
    a = align(trace(wrong, "94"), critique, expected_answer="-2")
    assert (a.first_error, a.wrong_text_repeated, a.case) == (place, True, "D")


def test_step_numbers_that_the_solver_gave_twice_are_no_quotes() -> None:
    attempt = "<step_1> 1 + 1 = 2 <step_2> 2 + 2 = 4 <step_1> 3 + 3 = 6 <step_2> 4 + 4 = 9 <answer> 9"
    a = align(attempt, attempt.replace("9", "8"))
    assert (a.first_error, a.wrong_text_repeated) == (3, False)
