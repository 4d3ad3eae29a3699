"""The embedded task against Python's own arithmetic, and the diagnosis against attempts written by hand."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus import draw_chain, draw_chains, split_of
from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.domains.arithmetic.task import (
    MODULUS,
    VOCABULARY,
    Author,
    Chain,
    Order,
    diagnose,
    make_problem,
    parse_question,
    parse_trace,
    reworded,
    write_solution,
)
from stepalign.domains.math.grade import Grade
from stepalign.feedback.steps import split_steps
from stepalign.records import Attempt, Problem
from stepalign.waiting import wait_for

operands = st.integers(-9, 9).filter(bool)
chains = st.builds(Chain, st.integers(0, 19), st.lists(operands, min_size=1, max_size=8).map(tuple))
randoms = st.integers(0, 2**32).map(random.Random)
orders: st.SearchStrategy[Order] = st.sampled_from(("L", "R"))
authors: st.SearchStrategy[Author] = st.sampled_from(("solver", "reference"))

STEP = re.compile(r"<step_(\d)> (\d+) (\+|-|plus|minus) (\d) (?:=|gives|is) (\d+) [;.,]")


# ---------------------------------------------------------------------------------------------------------------------
# Chains and solutions


@given(chain=chains)
def test_the_answer_is_that_of_python(chain: Chain) -> None:
    assert chain.answer == eval(chain.question) % 20
    assert parse_question(chain.question) == chain


@given(chain=chains, order=orders, author=authors, rng=randoms)
def test_every_step_of_a_solution_is_true_and_hangs_together(chain, order, author, rng) -> None:
    trace = write_solution(rng, chain, order, author)
    body, answer = trace.text.split(" <answer> ")
    found = STEP.findall(body)
    assert STEP.sub("", body).strip() == ""  # nothing but steps
    assert [int(number) for number, *_ in found] == list(range(1, len(chain.operands) + 1))
    value, used = chain.start, []
    for _, stated, sign, operand, result in found:
        assert int(stated) == value
        signed = int(operand) if sign in ("+", "plus") else -int(operand)
        value = (value + signed) % 20
        assert int(result) == value
        used.append(signed)
    assert int(answer) == value == chain.answer
    assert used == list(chain.operands if order == "L" else reversed(chain.operands))
    assert set(trace.text.split()) <= set(VOCABULARY)


@given(chain=chains, order=orders, author=authors, rng=randoms)
def test_a_written_trace_is_parsed_back(chain, order, author, rng) -> None:
    trace = write_solution(rng, chain, order, author)
    assert parse_trace(trace.text) == trace
    other = reworded(rng, trace, "reference")
    assert parse_trace(other.text) == other
    assert [(s.value, s.signed_operand, s.result) for s in other.steps] == [
        (s.value, s.signed_operand, s.result) for s in trace.steps
    ]


@given(chain=chains, order=orders, rng=randoms, data=st.data())
def test_a_cut_trace_keeps_its_whole_steps_and_no_answer(chain, order, rng, data) -> None:
    trace = write_solution(rng, chain, order, "solver")
    words = trace.text.split()
    kept = data.draw(st.integers(0, len(words) - 1))
    found = parse_trace(" ".join(words[:kept]))
    assert found.steps == trace.steps[: kept // 7]
    assert found.answer is None


@pytest.mark.parametrize(
    ("text", "num_steps", "answer"),
    [
        ("", 0, None),
        ("<answer> 5", 0, 5),
        ("<answer> 20", 0, None),  # no such hour
        ("<answer> -1", 0, None),
        ("<answer> ٥", 0, None),  # a digit, but not one of ours
        ("<answer> 5 5", 0, None),
        ("<answer> 5 <answer> 6", 0, None),
        ("<step_1> 1 + 2 = 3 ; <answer> 3", 1, 3),
        ("<step_1> 1 + 2 = 3 ; <answer>", 1, None),
        ("<step_1> 1 + 2 = 3 <answer> 3", 0, None),  # no end
        ("<step_2> 1 + 2 = 3 ; <answer> 3", 0, None),  # starts at two
        ("<step_1> 1 + 2 = 3 ; <step_1> 3 + 2 = 5 ; <answer> 5", 1, None),
        ("<step_1> 1 + 2 = 3 ; <step_3> 3 + 2 = 5 ; <answer> 5", 1, None),
        ("<step_1> 1 * 2 = 2 ; <answer> 2", 0, None),
        ("<step_1> 1 + 2 = 23 ; <answer> 3", 0, None),
        ("  <step_1>\n1 plus 2 gives 3 .\t<answer> 3 ", 1, 3),
        ("words <step_1> 1 + 2 = 3 ; <answer> 3", 0, None),
        (" ".join(f"<step_{n}> 1 + 1 = 2 ;" for n in range(1, 9)) + " <answer> 2", 8, 2),
        (" ".join(f"<step_{n}> 1 + 1 = 2 ;" for n in range(1, 10)) + " <answer> 2", 8, None),
    ],
)
def test_what_is_a_trace(text: str, num_steps: int, answer: int | None) -> None:
    found = parse_trace(text)
    assert (len(found.steps), found.answer) == (num_steps, answer)


@given(st.lists(st.sampled_from([*VOCABULARY, "x", "-3", "²", "99"]), max_size=40))
def test_no_text_breaks_the_parser(words: list[str]) -> None:
    trace = parse_trace(" ".join(words))
    assert parse_trace(trace.text) == trace


@pytest.mark.parametrize("question", ["", "5", "5 +", "5 + x", "5 * 3", "+ 5 3", "5 + 3 -", "five + 3"])
def test_what_is_not_a_chain(question: str) -> None:
    with pytest.raises(ValueError, match=r"chain|invalid literal"):
        parse_question(question)


# ---------------------------------------------------------------------------------------------------------------------
# Splits and references


def test_splits_are_disjoint_and_streams_repeat_nothing() -> None:
    drawn = {
        (split, seed): [c.question for c in itertools.islice(draw_chains(seed, split, (2, 3)), 150)]
        for split in ("train", "validation", "test", "warmstart")
        for seed in (0, 1)
    }
    for questions in drawn.values():
        assert len(set(questions)) == len(questions)
    for (one, _), (other, _) in itertools.combinations(drawn, 2):
        if one != other:
            for a, b in itertools.product((0, 1), repeat=2):
                assert not set(drawn[one, a]) & set(drawn[other, b])
    assert drawn["train", 0] != drawn["train", 1]
    assert drawn["train", 0] == [c.question for c in itertools.islice(draw_chains(0, "train", (2, 3)), 150)]


def test_an_eighth_of_all_questions_belongs_to_each_small_split() -> None:
    rng = random.Random(0)
    found = [split_of(draw_chain(rng, (5, 7)).question) for _ in range(8000)]
    for split in ("train", "validation", "test"):
        assert abs(found.count(split) - 1000) < 5 * (8000 * 7 / 64) ** 0.5  # five standard deviations
    assert set(found) == {"train", "validation", "test", "warmstart"}


@given(chain=chains, rho=st.floats(0, 1))
def test_a_reference_is_right_and_depends_on_the_question_alone(chain: Chain, rho: float) -> None:
    problem = make_problem(chain, rho=rho)
    assert problem.answer == str(eval(chain.question) % 20)
    trace = parse_trace(problem.reference or "")
    assert trace.answer == chain.answer
    order = problem.metadata["reference_order"]
    assert [s.signed_operand for s in trace.steps] == list(chain.in_order(order))
    assert make_problem(chain, rho=rho) == problem
    if order == "R":  # a larger rho only adds right-to-left references
        assert make_problem(chain, rho=min(1.0, rho + 0.1)) == problem
    assert make_problem(chain, rho=0.0).metadata["reference_order"] == "L"
    assert make_problem(chain, rho=1.0).metadata["reference_order"] == "R"


def test_rho_is_the_share_of_references_from_the_right() -> None:
    chains = list(itertools.islice(draw_chains(3, "train", (5, 7)), 600))
    share = sum(make_problem(c, rho=0.3).metadata["reference_order"] == "R" for c in chains) / 600
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 600) ** 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Diagnosis: attempts at 3 + 4 - 2 (= 5), each with what a teacher would write in the margin

QUESTION = "3 + 4 - 2"
ATTEMPTS = {
    "right, from the left": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5",
        ("L", 2, "", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "right, from the right": (
        "<step_1> 3 - 2 = 1 ; <step_2> 1 + 4 = 5 ; <answer> 5",
        ("R", 2, "", True, "<step_1> 3 - 2 = 1 ; <step_2> 1 + 4 = 5 ; <answer> 5"),
    ),
    "right, in the other author's words": (
        "<step_1> 3 plus 4 gives 7 . <step_2> 7 minus 2 is 5 , <answer> 5",
        ("L", 2, "", True, "<step_1> 3 plus 4 gives 7 . <step_2> 7 minus 2 is 5 , <answer> 5"),
    ),
    "first result wrong, carried on": (
        "<step_1> 3 + 4 = 8 ; <step_2> 8 - 2 = 6 ; <answer> 6",
        ("L", 0, "1", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "second result wrong, words kept": (
        "<step_1> 3 plus 4 gives 7 . <step_2> 7 minus 2 is 4 , <answer> 4",
        ("L", 1, "2", True, "<step_1> 3 plus 4 gives 7 . <step_2> 7 minus 2 is 5 , <answer> 5"),
    ),
    "from the right, second wrong": (
        "<step_1> 3 - 2 = 1 ; <step_2> 1 + 4 = 6 ; <answer> 6",
        ("R", 1, "2", True, "<step_1> 3 - 2 = 1 ; <step_2> 1 + 4 = 5 ; <answer> 5"),
    ),
    "two errors that cancel": (
        "<step_1> 3 + 4 = 8 ; <step_2> 8 - 2 = 5 ; <answer> 5",
        ("L", 0, "1", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "a value taken over wrongly": (
        "<step_1> 3 + 4 = 7 ; <step_2> 9 - 2 = 7 ; <answer> 7",
        ("L", 1, "2", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "an operand misread": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 - 3 = 4 ; <answer> 4",
        ("L", 1, "2", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "a sign misread": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 plus 2 = 9 ; <answer> 9",
        ("L", 1, "2", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 minus 2 = 5 ; <answer> 5"),
    ),
    "wrong answer after right steps": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 7",
        ("L", 2, "answer", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "answered too early": (
        "<step_1> 3 + 4 = 7 ; <answer> 7",
        ("L", 1, "answer", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "answered too early, and right by a leap": (
        "<step_1> 3 + 4 = 7 ; <answer> 5",
        ("L", 1, "answer", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "a step too many": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <step_3> 5 - 2 = 3 ; <answer> 3",
        ("L", 2, "3", True, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "cut off, right so far": (
        "<step_1> 3 + 4 = 7 ; <step_2> 7 -",
        ("L", 1, "", False, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "cut off, wrong already": (
        "<step_1> 3 + 4 = 9 ; <step_2> 9",
        ("L", 0, "1", False, "<step_1> 3 + 4 = 7 ; <step_2> 7 - 2 = 5 ; <answer> 5"),
    ),
    "wrong start value": ("<step_1> 5 + 4 = 9 ; <step_2> 9 - 2 = 7 ; <answer> 7", (None, 0, "1", True, None)),
    "an operand that is not there": ("<step_1> 3 + 9 = 12 ; <answer> 12", (None, 0, "1", True, None)),
    "the answer alone": ("<answer> 5", (None, 0, "", True, None)),
    "nothing": ("", (None, 0, "", False, None)),
    "chatter": ("I think it is 5", (None, 0, "", False, None)),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_diagnosis_of_attempts_written_by_hand(name: str) -> None:
    text, (order, num_right, first_error, complete, correction) = ATTEMPTS[name]
    found = diagnose(QUESTION, text)
    assert (found.order, found.num_right, found.first_error, found.complete) == (
        order,
        num_right,
        first_error,
        complete,
    )
    assert (found.correction.text if found.correction else None) == correction


def test_either_order_counts_as_from_the_left_when_both_fit() -> None:
    assert diagnose("1 + 2 + 3 + 2", "<step_1> 1 + 2 = 3 ;").order == "L"
    assert diagnose("1 + 2 + 3 + 4 + 2", "<step_1> 1 + 2 = 3 ; <step_2> 3 + 4 = 7 ;").order == "R"


@st.composite
def spoilt_attempts(draw: st.DrawFn) -> tuple[Chain, Order, str]:
    """A derivation in some order and wording with a few results, operands or answers spoilt, perhaps cut."""
    chain, order, rng = draw(chains), draw(orders), draw(randoms)
    words = write_solution(rng, chain, order, draw(authors)).text.split()
    steps = len(chain.operands)
    for place in draw(st.lists(st.integers(0, steps - 1), max_size=2)):
        slot = draw(st.sampled_from((1, 3, 5)))
        words[7 * place + slot] = str(draw(st.integers(1, 9) if slot == 3 else st.integers(0, 19)))
    if draw(st.booleans()):
        words[-1] = str(draw(st.integers(0, 19)))
    return chain, order, " ".join(words[: draw(st.one_of(st.just(len(words)), st.integers(0, len(words))))])


@given(attempt=spoilt_attempts())
def test_a_correction_is_right_keeps_what_was_right_and_never_repeats_the_error(attempt) -> None:
    chain, _, text = attempt
    found = diagnose(chain.question, text)
    if found.correction is None:
        return
    corrected = found.correction.text
    assert parse_trace(corrected) == found.correction
    assert found.correction.answer == eval(chain.question) % MODULUS
    again = diagnose(chain.question, corrected)
    assert (again.first_error, again.num_right, again.complete) == ("", len(chain.operands), True)
    # right steps stand verbatim at the beginning, spaces and words included
    blocks = [text[step.start : step.end].strip() for step in split_steps(text)]
    assert corrected.startswith(" ".join(blocks[: found.num_right]))
    if found.first_error:
        wrong = next(text[s.start : s.end].strip() for s in split_steps(text) if s.label == found.first_error)
        kept = [corrected[s.start : s.end].strip() for s in split_steps(corrected)]
        # An answer too early may be the right one; every other wrong step is gone.
        assert wrong not in kept or (found.first_error == "answer" and wrong == f"<answer> {chain.answer}")
    # the steps before the first error are true, and the first error is false: Python's own view
    value = chain.start
    for step in found.attempt.steps[: found.num_right]:
        assert step.value == value
        assert step.result == (value + step.signed_operand) % MODULUS
        value = step.result


@given(chain=chains, order=orders, author=authors, rng=randoms)
def test_right_attempts_are_left_exactly_as_they_are(chain, order, author, rng) -> None:
    text = write_solution(rng, chain, order, author).text
    found = diagnose(chain.question, text)
    assert (found.first_error, found.complete) == ("", True)
    assert found.correction is not None
    assert found.correction.text == text


@given(attempt=spoilt_attempts())
def test_the_correction_follows_the_attempts_own_order(attempt) -> None:
    chain, order, text = attempt
    found = diagnose(chain.question, text)
    if found.num_right >= 1 and chain.operands[0] != chain.operands[-1]:
        assert found.order == order
        assert found.correction is not None
        assert [s.signed_operand for s in found.correction.steps] == list(chain.in_order(order))


# ---------------------------------------------------------------------------------------------------------------------
# The critic that stands on it


def request(text: str, *, reference: str | None = "<step_1> 3 - 2 = 1 ; ...") -> Attempt:
    problem = Problem(problem_id="p", question=QUESTION, answer="5", reference=reference)
    return Attempt(rollout_id="r1", problem=problem, text=text, grade=Grade(score=0.0))


CASES = {
    "right, from the right": "A",
    "cut off, right so far": "C",
    "second result wrong, words kept": "D",
    "wrong answer after right steps": "D",
    "cut off, wrong already": "D",
    "wrong start value": "F",
    "nothing": "F",
}


@pytest.mark.parametrize("name", CASES)
def test_the_critic_names_the_case_and_writes_the_correction(name: str) -> None:
    text, (_, _, first_error, _, correction) = ATTEMPTS[name]
    critique = wait_for(ArithmeticCritic().critique(request(text)))
    assert critique == ArithmeticCritic().write(request(text))
    assert (critique.rollout_id, critique.status, critique.attempts) == ("r1", "ok", 0)
    assert (critique.case, critique.first_error) == (CASES[name], first_error)
    assert critique.text == (correction or "<step_1> 3 - 2 = 1 ; ...")


def test_the_critic_fails_where_it_has_nothing_to_fall_back_to() -> None:
    critique = ArithmeticCritic().write(request("", reference=None))
    assert (critique.status, critique.text) == ("failed", "")
    assert "reference" in critique.reason


def test_the_other_style_tells_the_same_steps_in_other_words() -> None:
    text = ATTEMPTS["first result wrong, carried on"][0]
    own = ArithmeticCritic().write(request(text))
    told = [ArithmeticCritic(form="paraphrase").write(request(text)) for _ in range(2)]
    assert told[0] == told[1]
    assert told[0].form != own.form
    trace, other = parse_trace(own.text), parse_trace(told[0].text)
    assert [(s.value, s.signed_operand, s.result) for s in other.steps] == [
        (s.value, s.signed_operand, s.result) for s in trace.steps
    ]
    assert other.answer == trace.answer
