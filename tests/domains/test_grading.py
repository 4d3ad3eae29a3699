"""Grading: hand-judged pairs, real labelled attempts, hostile text, and the child processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from grading_pairs import EQUAL, UNEQUAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepalign.domains.math.answers import normal_form
from stepalign.domains.math.extraction import find_answer
from stepalign.domains.math.grade import GraderError
from stepalign.domains.math.grading import Grader, GraderConfig, canonical_answer, extract_answer
from stepalign.domains.math.notation import parse_number
from stepalign.errors import ConfigError

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    # Generous: these tests are about verdicts, and the machine may be busy.
    with Grader(GraderConfig(seconds=20)) as shared:
        yield shared


def gsm8k(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (GSM8K / name).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Extraction

EXTRACTIONS: list[tuple[str, str | None]] = [
    ("so \\boxed{7}", "7"),
    ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
    ("\\boxed{3} is no good, hence \\boxed{4}", "4"),
    ("\\fbox{7}", "7"),
    ("\\boxed{\\boxed{7}}", "7"),
    ("\\boxed{ \\{1, 2\\} }", "\\{1, 2\\}"),
    ("\\boxed 7$", "7"),
    ("\\boxed{7", None),
    ("\\boxed{\\boxed{7}", "7"),
    ("\\boxed{}", None),
    ("\\boxed{} The answer is 7.", None),
    ("\\\\boxed{7}", "7"),
    ("\\begin{aligned} x &= 7 \\\\\\boxed{7}\\end{aligned}", "7"),
    ("<think>\\boxed{3}</think>\\boxed{4}", "4"),
    ("a guess: \\boxed{3}</think>\\boxed{4}", "4"),
    ("<think>\\boxed{3}", None),
    ("<think>\\boxed{3}</think>", None),
    ("\\boxed{4} <think> or \\boxed{5}?", "4"),
    ("<think>a</think>\\boxed{3}<think>b</think>\\boxed{4}", "4"),
    ("<step_1> 3 + 4 = 7 ; <answer> 7", "7"),
    ("<step_1> 3 + 4 = 7 ; <answer> 7 \n", "7"),
    ("<answer>7</answer>", "7"),
    ("<ANSWER> 7 </ANSWER> done", "7"),
    ("<answer>\n\\boxed{8}\n</answer>", "8"),
    ("<answer> The answer is 8. </answer>", "8"),
    ("<answer>3</answer><answer>4</answer>", "4"),
    ("<answer>3</answer> but \\boxed{4}", "4"),
    ("\\boxed{3} but <answer>4", "4"),
    ("<answer></answer>", None),
    ("</answer>", None),
    ("48 + 24 = 72\n#### 72", "72"),
    ("#### Step 1\nfour\n#### 4", "4"),
    ("#### Step 1\nso \\boxed{4}\n#### Done", "4"),
    ("##### 7", None),
    ("#### ", None),
    ("A: 26", "26"),
    ("first\nA: 26", "26"),
    ("a: 26", "26"),
    ("DNA: 26", None),
    ("The answer is 7.", "7"),
    ("The answer is 7.5. Or so.", "7.5"),
    ("the final answer is: $7$", "$7$"),
    ("**Answer:** 42", "42"),
    ("**Answer**: 42", "42"),
    ("Answer = 42", "42"),
    ("Answer:\n\n42", "42"),
    ("The answer is 3. No: the answer is 4.", "4"),
    ("The answer is not 7", "not 7"),
    ("So the answer is 7. Is the answer is 8? No.", "7"),
    ("Is the answer is 8? No.", None),
    ("I think it is 7", None),
    ("7", None),
    ("", None),
    ("   \n", None),
]


@pytest.mark.parametrize(("text", "answer"), EXTRACTIONS)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_intermediate_boxes_of_earlier_steps_are_no_rivals() -> None:
    steps = "<step_1> \\boxed{3} <step_2> \\boxed{4} "
    assert find_answer(steps + "<answer> 7").rivals == ()
    assert find_answer(steps + "<answer> \\boxed{7}").rivals == ()
    assert find_answer(steps + "\\boxed{7}").rivals == ("4", "7")
    assert find_answer("\\boxed{0.5} and again \\boxed{\\frac12}").rivals == ()


@given(st.text(alphabet='{}\\abox1 <>/answer#:\n"$,.%', max_size=200) | st.text(max_size=100))
def test_no_text_breaks_the_scanners(text: str) -> None:
    found = find_answer(text)
    for answer in (text, found.answer or "", f"\\boxed{{{text}}}"):
        assert canonical_answer(answer) == canonical_answer(answer)
    assert found.answer is None or len(found.answer) <= 513


@given(
    st.text(alphabet="ab{}1 ", max_size=60).filter(lambda text: text.count("{") == 0 == text.count("}")),
    st.text(max_size=20),
)
def test_a_box_is_read_back(content: str, after: str) -> None:
    suffix = after.replace("\\", "").replace("<", "")
    assert find_answer(f"so \\boxed{{{content}}} {suffix}").answer == content.strip()
    assert find_answer(f"so \\boxed{{{{{content}}}}} {suffix}").answer == "{" + content + "}"


# ---------------------------------------------------------------------------------------------------------------------
# Normal forms


@pytest.mark.parametrize(
    "spellings",
    [
        ("0.5", ".50", "1/2", "\\frac12", "$\\dfrac{1}{2}$", "50/100"),
        ("1000", "1,000", "1{,}000", "1000.0", "$1,000", "1000 dollars"),
        ("(1,2)", "( 1, 2.0 )", "\\left(1,2\\right)"),
        ("1,2", "2, 1", "\\{1,2\\}", "1 and 2"),
        ("evelyn", "\\text{Evelyn}", "Evelyn."),
        ("b", "(B)", "B.", "\\text{B}"),
        ("\\sqrt{3}", "\\sqrt3", "sqrt(3)", "√3"),
    ],
)
def test_spellings_of_one_answer_vote_together(spellings: tuple[str, ...]) -> None:
    assert {canonical_answer(spelling) for spelling in spellings} == {canonical_answer(spellings[0])}


@pytest.mark.parametrize(
    "pair", [("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("1,2", "(1,2)"), ("5", "-5"), ("x", "y"), ("2x", "x^2")]
)
def test_different_answers_do_not_vote_together(pair: tuple[str, str]) -> None:
    assert canonical_answer(pair[0]) != canonical_answer(pair[1])


@given(st.fractions(max_denominator=10**6))
def test_numbers_are_read_exactly(value: object) -> None:
    from fractions import Fraction

    assert isinstance(value, Fraction)
    spellings = [str(value), f"\\frac{{{value.numerator}}}{{{value.denominator}}}", f"$ {value} $"]
    assert {normal_form(spelling).number for spelling in spellings} == {value}
    assert canonical_answer(str(value)) == str(value)


@pytest.mark.parametrize(
    "text", ["1/0", "\\frac{1}{0}", "1e9999", "1_000", "٣", "--5", "", "/", ".", "1/", "0.\\overline{}", "nan", "inf"]
)
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


@pytest.mark.parametrize("kind", EQUAL)
def test_equal_pairs(grader: Grader, kind: str) -> None:
    grades = {pair: grader.compare(pair[1], pair[0]) for pair in EQUAL[kind]}
    assert {pair: grade for pair, grade in grades.items() if grade.verdict != "correct"} == {}


@pytest.mark.parametrize("kind", UNEQUAL)
def test_unequal_pairs(grader: Grader, kind: str) -> None:
    grades = {pair: grader.compare(pair[1], pair[0]) for pair in UNEQUAL[kind]}
    assert {pair: grade for pair, grade in grades.items() if grade.verdict != "incorrect"} == {}


@pytest.mark.slow
def test_hand_judged_pairs() -> None:
    """Written against this grader: units, choices, inequalities, prime marks, bases, complex numbers and the like."""
    lines = (Path(__file__).parent / "judged_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    texts = [f"so \\boxed{{{pair['answer']}}}." for pair in pairs]
    with Grader(GraderConfig(seconds=20)) as patient:  # a busy machine makes nothing undecided
        grades = patient.grade_many(texts, [pair["expected"] for pair in pairs])
    wrong = [
        (pair, grade.verdict, grade.reason)
        for pair, grade in zip(pairs, grades, strict=True)
        if grade.verdict != ("correct" if pair["equal"] else "incorrect")
    ]
    assert wrong == []


def test_the_tables_are_as_large_as_promised() -> None:
    assert sum(map(len, EQUAL.values())) + sum(map(len, UNEQUAL.values())) >= 200


@pytest.mark.parametrize(
    ("text", "expected", "verdict", "reason"),
    [
        ("\\boxed{7}", "7", "correct", "equal number"),
        ("\\boxed{8}", "7", "incorrect", "different number"),
        ("it is 7", "7", "incorrect", "no answer"),
        ("", "7", "incorrect", "no answer"),
        ("", "", "undecided", "no expected answer"),
        ("\\boxed{}", "", "undecided", "no expected answer"),
        ("\\boxed{}", "7", "incorrect", "empty answer"),
        ("\\boxed{ }", "7", "incorrect", "empty answer"),
        ("\\boxed{$$}", "7", "incorrect", "empty answer"),
        ("\\boxed{\\text{}}", "7", "incorrect", "empty answer"),
        ("<answer>", "7", "incorrect", "empty answer"),
        ("\\boxed{6}\\boxed{7}", "7", "incorrect", "several different answers"),
        (" ".join(f"\\boxed{{{i}}}" for i in range(1_000)), "999", "incorrect", "several different answers"),
        (" ".join(f"<answer>{i}</answer>" for i in range(1_000)), "999", "incorrect", "several different answers"),
        ("\n".join(f"#### {i}" for i in range(1_000)), "999", "incorrect", "several different answers"),
        ("\\boxed{7} and \\boxed{7.0}", "7", "correct", "equal number"),
        ("\\boxed{2} and \\boxed{3}", "3, 2", "correct", "equal elements"),
        ("\\boxed{2} and \\boxed{3} and \\boxed{4}", "3, 2", "incorrect", "several different answers"),
        ("\\boxed{2} and \\boxed{3}", "(2, 3)", "incorrect", "several different answers"),
        ("The correct answer is 7. \\boxed{8}", "7", "incorrect", "different number"),
        ("7 7 7 \\boxed{8} 7", "7", "incorrect", "different number"),
        ("<think>\\boxed{7}</think> \\boxed{8}", "7", "incorrect", "different number"),
        ("<think>\\boxed{7}", "7", "incorrect", "no answer"),
        ("\\boxed{7\x00}", "7", "incorrect", "control characters"),
        ("\\boxed{\u202e7}", "7", "incorrect", "control characters"),
        ("\\boxed{7\u200b}", "7", "incorrect", "control characters"),
        ("\\boxed{" + "7" * 1_000_000 + "}", "7", "incorrect", "answer too long"),
        ("\\boxed{" + "{" * 10_000 + "7" + "}" * 10_000 + "}", "7", "incorrect", "answer too long"),
        ("\\boxed{" + "(" * 100 + "7" + ")" * 100 + "}", "7", "incorrect", "nested too deeply"),
        ("\\boxed{7\\}}", "7", "incorrect", "unreadable answer"),
        ("A: 26", "She makes 9 * 2 = $<<9*2=18>>18.\nA: 26", "correct", "equal number"),
        ("#### 26", "so \\boxed{26}", "correct", "equal number"),
        ("#### 26", "x" * 1_000, "undecided", "expected answer too long"),
    ],
)  # fmt: skip
def test_verdicts_and_reasons(grader: Grader, text: str, expected: str, verdict: str, reason: str) -> None:
    grade = grader.grade(text, expected)
    assert (grade.verdict, grade.reason) == (verdict, reason)


@needs_gsm8k
def test_all_gsm8k_reference_answers_are_extracted() -> None:
    rows = [row for name in ("train.jsonl", "test.jsonl") for row in gsm8k(name)]
    assert len(rows) == 8_792
    for row in rows:
        answer = extract_answer(row["answer"])
        assert answer == row["answer"].rsplit("####", 1)[1].strip()
        assert normal_form(answer).number is not None


@needs_gsm8k
def test_labelled_gsm8k_attempts_agree_and_need_no_child() -> None:
    rows = gsm8k("model_solutions.jsonl")
    with Grader() as grader:
        grades = grader.grade_many((row["solution"] for row in rows), (row["reference"] for row in rows))
        assert grader.num_children == 0
    disagreements = [
        row for row, grade in zip(rows, grades, strict=True) if (grade.verdict == "correct") != row["is_correct"]
    ]
    assert len(rows) == 2_638
    assert disagreements == []
    assert Counter(grade.verdict for grade in grades) == {"correct": 801, "incorrect": 1_837}


# ---------------------------------------------------------------------------------------------------------------------
# Hostile answers

BURNERS = [
    "7^{10^8}",
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    "(10^9)!",
    "((((9!)!)!)!)!",
    "\\sum_{k=1}^{10^9} \\frac{1}{k}",
    "\\prod_{k=1}^{10^9} k",
    "2^{2^{2^{2^{2^{2^{2}}}}}}",
    "\\binom{10^9}{5\\cdot 10^8}",
    "\\int_0^1 x^{x^{x^{x}}} dx",
]  # fmt: skip


@pytest.mark.slow
def test_burners_are_bounded_and_never_correct() -> None:
    with Grader(GraderConfig(seconds=0.3)) as grader:
        grades = [grader.grade(f"\\boxed{{{answer}}}", "7") for answer in BURNERS]
        assert all(grade.verdict != "correct" for grade in grades)
        assert "timed out" in {grade.reason for grade in grades}
        # Many slow elements cost no more than one.
        assert grader.compare(",".join([BURNERS[1]] * 10), "1,2,3,4,5,6,7,8,9,10").verdict != "correct"
        assert grader.compare(f"({BURNERS[1]}, {BURNERS[2]})", "(1,2)").verdict != "correct"


@pytest.mark.slow
def test_the_grader_still_works_after_it_was_attacked(grader: Grader) -> None:
    with Grader(GraderConfig(seconds=0.5, num_workers=1)) as small:
        assert small.compare(BURNERS[1], "7").verdict == "undecided"
        small.compare("\\sqrt[3]{54}", "3\\sqrt[3]{2}")  # the new child may be slow at its first answer; it must answer
        assert small.num_children == 1
    assert grader.compare("\\sqrt[3]{54}", "3\\sqrt[3]{2}").verdict == "correct"


PIECES = [
    *(
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "^",
        "_",
        "\\sqrt",
        ",",
        "=",
        "+",
        "-",
        "!",
        "\\text{",
        "x",
        "pi",
        "1",
        "0",
    ),
    *(" ", "\\\\", "&", "\\begin{pmatrix}", "\\end{pmatrix}", "\\le", "\\cup", "%", "\\pm", "\\infty", "or", "$"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_random_latex_is_never_an_answer_that_it_cannot_mean(grader: Grader, pieces: list[str]) -> None:
    # Made of 0 and 1 without division by 7, none of these can mean this number.
    grade = grader.compare("".join(pieces), "918273645/7")
    assert grade.verdict != "correct"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80).filter(lambda text: "</think>" not in text), st.integers(0, 10**6))
def test_gold_text_outside_the_box_never_counts(text: str, gold: int) -> None:
    with Grader() as grader:
        for marked in (f"{gold} {text} \\boxed{{{gold + 1}}}", f"\\boxed{{{gold + 1}}} {gold}"):
            assert grader.grade(marked, str(gold)).verdict != "correct"


# ---------------------------------------------------------------------------------------------------------------------
# Child processes


def test_no_child_is_started_before_one_is_needed() -> None:
    with Grader() as grader:
        assert grader.grade("<step_1> 3 + 4 = 7 ; <answer> 7", "7").verdict == "correct"
        assert grader.num_children == 0
        assert grader.compare("\\sqrt[3]{54}", "3\\sqrt[3]{2}").reason in {"equal expression", "timed out"}
        assert grader.num_children == 2
    assert grader.num_children == 0


def test_math_verify_never_enters_this_process(grader: Grader) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from stepalign.domains.math.grading import Grader\n"
        "with Grader() as g: g.compare('\\\\sqrt[3]{8}+x', '2+x'); assert g.num_children\n"
        "assert not {'math_verify', 'sympy', 'torch'} & set(sys.modules), 'loaded in the parent'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_a_closed_grader_starts_again() -> None:
    grader = Grader(GraderConfig(seconds=20, num_workers=1))
    for _ in range(2):
        assert grader.compare("\\sqrt[3]{54}", "3\\sqrt[3]{2}").verdict == "correct"
        grader.close()
    grader.close()


def test_a_killed_child_is_replaced() -> None:
    with Grader(GraderConfig(function="user_graders:everything", seconds=20, num_workers=1)) as grader:
        first = int(grader.grade("pid", "").reason)
        os.kill(first, signal.SIGKILL)
        assert grader.grade("pid", "").reason in {"grader crashed"}
        assert int(grader.grade("pid", "").reason) != first


def test_children_are_reused_and_shared_by_threads() -> None:
    with Grader(GraderConfig(function="user_graders:everything", seconds=20)) as grader:
        pids: list[str] = []
        threads = [threading.Thread(target=lambda: pids.append(grader.grade("pid", "").reason)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pids) == 12
        assert len(set(pids)) <= 2


def test_batches_keep_their_order(grader: Grader) -> None:
    texts = [f"\\boxed{{\\sqrt[3]{{{i**3}}}}}" for i in range(20)]
    grades = grader.grade_many(texts, [str(i if i % 3 else i + 1) for i in range(20)])
    assert [grade.verdict == "correct" for grade in grades] == [i % 3 != 0 for i in range(20)]
    assert grader.grade_many([], []) == []
    with pytest.raises(ValueError, match=r"shorter|longer"):
        grader.grade_many(["a"], [])


def test_graders_and_configurations_are_picklable() -> None:
    config = GraderConfig(seconds=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(Grader(config))).config == config


# ---------------------------------------------------------------------------------------------------------------------
# A user's own grader


def test_own_grader_by_import_path() -> None:
    with Grader(GraderConfig(function="user_graders:last_word", seconds=20)) as grader:
        assert grader.grade("it must be 7", "7").verdict == "correct"
        grade = grader.grade("\\boxed{8} but not 7 ?", "7")
        assert (grade.verdict, grade.answer) == ("incorrect", "8")


@pytest.mark.parametrize(
    ("text", "verdict", "reason"),
    [
        ("verdict", "undecided", "user_graders:everything"),
        ("reason", "correct", "because"),
        ("none", "undecided", "user_graders:everything"),
        ("score", "incorrect", "user_graders:everything"),
        ("number", "undecided", "the grader raised ValueError: a score is in [0, 1] or NaN, got 2.0"),
        (
            "list",
            "undecided",
            "the grader raised TypeError: returned [1]; expected a Grade, a bool, a score, a verdict",
        ),
        ("raise", "undecided", "the grader raised KeyError: 'no such row'"),
        ("memory", "undecided", "out of memory"),
        ("exit", "undecided", "grader crashed"),
        ("print", "incorrect", "user_graders:everything"),
    ],
)
def test_whatever_an_own_grader_does(text: str, verdict: str, reason: str) -> None:
    with Grader(GraderConfig(function="user_graders:everything", seconds=20, num_workers=1)) as grader:
        grade = grader.grade(text, "7")
        assert (grade.verdict, grade.reason.removesuffix(" or None")) == (verdict, reason)
        assert grade.score == 0.5 or text != "score"
        assert grader.grade("7", "7").verdict == "correct"


def test_an_own_grader_that_never_ends() -> None:
    with Grader(GraderConfig(function="user_graders:everything", seconds=0.3)) as grader:
        assert (grader.grade("spin", "7").verdict, grader.grade("spin", "7").reason) == ("undecided", "timed out")


def test_a_recipe_names_its_grader_and_how_long_it_may_take() -> None:
    from stepalign.config import load_config
    from stepalign.domains.table import make_grader

    with make_grader(
        load_config(None, ["data.grader=user_graders:last_word", "data.grader_seconds=20"]).data
    ) as grader:
        assert grader.grade("it must be 7", "7").verdict == "correct"
        assert grader.config.seconds == 20
    with make_grader(load_config(None).data) as grader:
        assert grader.grade("it must be 7", "7").reason == "no answer"
    with pytest.raises(ConfigError, match="No module named"):
        make_grader(load_config(None, ["data.grader=nowhere:grade"]).data)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("user_graders", "module:function"),
        ("no_such_module:grade", "No module named"),
        ("user_graders:grade", "no attribute 'grade'"),
        ("user_graders:not_a_function", "not callable"),
    ],
)
def test_a_wrong_import_path_is_an_error_at_once(path: str, message: str) -> None:
    with pytest.raises(GraderError, match=message):
        Grader(GraderConfig(function=path))
