"""The table of context designs: what each shows of one group, word for word, and what each may never show."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.domains.math.grade import Grade
from stepalign.domains.python.grading import grade_code
from stepalign.domains.python.sandbox import why_unavailable
from stepalign.errors import ConfigError
from stepalign.feedback.designs import (
    CONDITIONS,
    DESIGNS,
    Group,
    check_condition,
    find_condition,
    find_design,
    make_contexts,
)
from stepalign.feedback.designs.builtin import content_free
from stepalign.records import Attempt, Critique, Problem

REFERENCE = "<step_1> 1 + 2 = 3 ; <answer> 3"
PROBLEM = Problem(problem_id="p", question="1 + 2", answer="3", reference=REFERENCE)
ATTEMPTS = {
    "right": ("<step_1> 2 + 1 = 3 ; <answer> 3", "correct"),
    "wrong": ("<step_1> 2 + 1 = 4 ; <answer> 4", "incorrect"),
    "late": ("<step_1> 2 + 0 = 2 ; <step_2> 2 + 1 = 9 ; <answer> 9", "incorrect"),
    "unclear": ("words", "undecided"),
}


def attempt_of(name: str) -> Attempt:
    text, verdict = ATTEMPTS[name]
    return Attempt(rollout_id=name, problem=PROBLEM, text=text, grade=Grade.of(verdict))


def critique(name: str, text: str = "", *, first_error: str = "", status: str = "ok", reason: str = "") -> Critique:
    return Critique(
        rollout_id=name,
        critic="c",
        status=status,  # type: ignore[arg-type]
        text=text,
        reason=reason,
        first_error=first_error,
    )


CRITIQUES = {
    "right": critique("right", "<step_1> 2 + 1 = 3 ; <answer> 3"),
    "wrong": critique("wrong", "<step_1> 2 + 1 = 3 ; <answer> 3", first_error="1"),
    "late": critique("late", "<step_1> 2 + 0 = 2 ; <step_2> 2 + 1 = 3 ; <answer> 3", first_error="2"),
    "unclear": critique("unclear", status="malformed", reason="no steps"),
}
ELSEWHERE = (critique("x1", "one stranger"), critique("x2", "another stranger"))


def group(*names: str, problem: Problem = PROBLEM, elsewhere: tuple[Critique, ...] = ELSEWHERE) -> Group:
    return Group(
        problem=problem,
        attempts=[attempt_of(name) for name in names],
        critiques=[CRITIQUES[name] for name in names],
        elsewhere=elsewhere,
        other_problems=(PROBLEM, OTHER),
    )


OTHER = Problem(problem_id="o", question="4 - 3", answer="1", reference="<step_1> 4 - 3 = 1 ; <answer> 1")


ALL = ("right", "wrong", "late", "unclear")
SHOWN = {
    "none": [None, None, None, None],
    "verdict": ["right", "wrong", "wrong", None],
    "answer": ["<answer> 3"] * 4,
    "reference": [REFERENCE] * 4,
    "step_aligned": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "full_repeat": [
        "<step_1> 2 + 1 = 3 ; <answer> 3 right",
        "<step_1> 2 + 1 = 4 ; <answer> 4 wrong",
        "<step_1> 2 + 0 = 2 ; <step_2> 2 + 1 = 9 ; <answer> 9 wrong",
        None,
    ],
    "marked_correction": [
        "<step_1> 2 + 1 = 3 ; <answer> 3",
        "<step_1> 2 + 1 = 4 ; wrong <step_1> 2 + 1 = 3 ; <answer> 3",
        "<step_1> 2 + 0 = 2 ; <step_2> 2 + 1 = 9 ; wrong <step_2> 2 + 1 = 3 ; <answer> 3",
        None,
    ],
    "paraphrase": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "hint": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "free_critique": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "edit": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "null": [
        "<step_1> ; ; ; ; ; ; <answer> ;",
        "<step_1> ; ; ; ; ; ; <answer> ;",
        "<step_1> ; ; ; ; ; ; <step_2> ; ; ; ; ; ; <answer> ;",
        ";",
    ],
    "self_critique": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "second_turn": [CRITIQUES["right"].text, CRITIQUES["wrong"].text, CRITIQUES["late"].text, None],
    "fixed_negative": [None] * 4,
    "majority": [None] * 4,
    "no_repeat": ["<step_1> right <answer> right", "<step_1> wrong", "<step_1> right <step_2> wrong", None],
    "contrast": [
        None,
        f"{ATTEMPTS['late'][0]} wrong\n\n{ATTEMPTS['right'][0]} right",
        f"{ATTEMPTS['wrong'][0]} wrong\n\n{ATTEMPTS['right'][0]} right",
        f"{ATTEMPTS['wrong'][0]} wrong\n\n{ATTEMPTS['right'][0]} right",
    ],
    "worked_example": ["4 - 3\n\n<step_1> 4 - 3 = 1 ; <answer> 1"] * 4,
    "peer_demonstration": [None, ATTEMPTS["right"][0], ATTEMPTS["right"][0], ATTEMPTS["right"][0]],
}


@pytest.mark.parametrize("design", SHOWN)
def test_what_each_design_shows(design: str) -> None:
    assert [c.text for c in make_contexts(design, group(*ALL))] == SHOWN[design]


def test_every_design_is_tested_here() -> None:
    turns = {
        "shortest_sibling",
        "hindsight",
        "tool_error",
        "turn_critique",
        "episode_critique",
        "sibling_episode",
    }  # test_turn_designs.py
    assert SHOWN.keys() | {"shuffled", "execution_trace", "shortest_sibling"} | turns == DESIGNS.keys()


@pytest.mark.parametrize("design", DESIGNS)
def test_one_context_a_rollout_and_a_reason_where_there_is_none(design: str) -> None:
    found = make_contexts(design, group(*ALL, elsewhere=()))
    assert [c.rollout_id for c in found] == list(ALL)
    assert {c.design for c in found} == {design}
    for context in found:
        assert (context.text is None) == bool(context.masked) or not DESIGNS[design].has_context
        assert context.text is None or context.text.strip() == context.text != ""


def test_the_reasons_are_fit_to_be_counted() -> None:
    def reasons(design: str, made: Group) -> list[str]:
        return [c.masked for c in make_contexts(design, made)]

    assert reasons("step_aligned", group(*ALL))[3] == "critique malformed: no steps"
    assert reasons("verdict", group("unclear")) == ["the verdict is undecided"]
    assert reasons("reference", group("right", problem=replace(PROBLEM, reference=None))) == [
        "the problem has no reference solution"
    ]
    assert reasons("peer_demonstration", group("wrong", "late")) == ["no correct sibling"] * 2
    assert reasons("peer_demonstration", group("right")) == ["no correct sibling"]  # not its own
    assert reasons("contrast", group("right", "wrong")) == ["no correct sibling", "no incorrect sibling"]
    assert reasons("worked_example", replace(group("right"), other_problems=[PROBLEM])) == [
        "no other problem with a reference solution in the batch"
    ]
    unlocated = replace(group("wrong"), critiques=[replace(CRITIQUES["wrong"], first_error="")])
    assert reasons("no_repeat", unlocated) == ["the first wrong step is not known"]
    assert reasons("shuffled", group("right", elsewhere=())) == ["no other critique in the batch"]
    assert reasons("none", group(*ALL)) == reasons("fixed_negative", group(*ALL)) == [""] * 4


@pytest.mark.skipif(bool(why_unavailable()), reason=f"no sandbox here: {why_unavailable()}")
def test_the_execution_trace_shows_what_the_code_did() -> None:
    tests = "assert double(2) == 4\nassert double(3) == 6"
    python = Problem(problem_id="py", question="Double a number.", answer=tests)

    def shown(code: str) -> tuple[str | None, str]:
        text = f"So:\n```python\n{code}\n```"
        attempt = replace(attempt_of("wrong"), text=text, grade=grade_code(text, tests))
        (context,) = make_contexts("execution_trace", Group(problem=python, attempts=[attempt], critiques=[None]))
        return context.text, context.masked

    assert shown("def double(x):\n    return x * 2") == ("All tests pass.", "")
    assert shown("def double(x):\n    return x * x") == (
        "A test fails.\nassert double(3) == 6\ndouble(3) gave 9",
        "",
    )
    text, _ = shown("def double(x):\n    return x.double")
    assert text is not None
    assert text.endswith("AttributeError: 'int' object has no attribute 'double'")
    assert shown("")[0] == "No code block.\nThe attempt has no complete code block."
    assert make_contexts("execution_trace", group("wrong"))[0].masked == "the problem has no Python tests"
    broken = replace(python, answer="import missing_module\nassert double(2) == 4\nassert double(lambda: 1)")
    assert shown("def double(x): return 4")[0] != ""
    text = "```\ndef double(x): pass\n```"
    attempt = replace(attempt_of("wrong"), text=text, grade=grade_code(text, broken.answer))
    made = Group(problem=broken, attempts=[attempt], critiques=[None])
    assert "No module named" in (make_contexts("execution_trace", made)[0].text or "")


def test_the_stranger_is_always_the_same_one_and_comes_from_elsewhere() -> None:
    first = [c.text for c in make_contexts("shuffled", group(*ALL))]
    assert first == [c.text for c in make_contexts("shuffled", group(*ALL))]
    assert {*first} == {c.text for c in ELSEWHERE}
    assert make_contexts("shuffled", group("late"))[0].text == first[2]  # whatever its neighbours are


def test_the_designs_that_need_a_critic_are_those_that_use_critiques() -> None:
    """Without critiques they mask every rollout, the others none; other critiques change what they show."""
    bare = replace(group("right", "wrong"), critiques=[None, None], elsewhere=())
    for name, design in DESIGNS.items():
        masked = {c.masked for c in make_contexts(name, bare)}
        assert (masked <= {"no critique", "no other critique in the batch"} and masked != {""}) == design.needs_critic
        with_other_words = replace(
            group(*ALL),
            critiques=[
                replace(c, text="other words", first_error="answer", case="D") if c.text else c
                for c in CRITIQUES.values()
            ],
            elsewhere=[critique("x", "other words")],
        )
        changes = [c.text for c in make_contexts(name, group(*ALL))] != [
            c.text for c in make_contexts(name, with_other_words)
        ]
        assert changes == design.needs_critic, name


@given(
    attempt=st.text(max_size=30), correction=st.text(min_size=1, max_size=30), label=st.sampled_from(("1", "answer"))
)
def test_no_text_of_a_model_breaks_a_design(attempt: str, correction: str, label: str) -> None:
    made = Group(
        problem=PROBLEM,
        attempts=[replace(attempt_of("wrong"), text=attempt)],
        critiques=[critique("wrong", correction, first_error=label)],
        elsewhere=[critique("x", correction)],
    )
    for design in DESIGNS:
        (context,) = make_contexts(design, made)
        assert context.text is None or isinstance(context.text, str)


@pytest.mark.parametrize("design", [name for name, entry in DESIGNS.items() if entry.needs])
def test_the_needs_in_the_table_are_those_of_the_functions(design: str) -> None:
    """Whatever a design needs, taking it away leaves it nothing to show; what it does not name it can do without."""
    missing = {
        "critic": {"critiques": [None] * 4, "elsewhere": ()},
        "reference": {"problem": replace(PROBLEM, reference=None)},
        "other problems": {"other_problems": (), "elsewhere": ()},
    }
    if design == "execution_trace":
        assert {c.masked for c in make_contexts(design, group(*ALL))} == {"the problem has no Python tests"}
        return
    if design == "majority":
        assert {c.masked for c in make_contexts(design, group(*ALL))} == {
            "no two attempts of the group agree on an answer"
        }
        return
    whole = [c.text for c in make_contexts(design, group(*ALL))]
    for need, taken in missing.items():
        left = [c.text for c in make_contexts(design, replace(group(*ALL), **taken))]
        assert left == ([None] * 4 if need in DESIGNS[design].needs else whole), need
    alone = [make_contexts(design, group(name))[0].text for name in ALL]
    assert alone == ([None] * 4 if "siblings" in DESIGNS[design].needs else whole)


def voters(*votes: tuple[str, str | None]) -> Group:
    attempts = [
        Attempt(rollout_id=str(at), problem=PROBLEM, text=text, grade=replace(Grade.of("incorrect"), answer=answer))
        for at, (text, answer) in enumerate(votes)
    ]
    return Group(problem=PROBLEM, attempts=attempts, critiques=[None] * len(votes))


@pytest.mark.parametrize(
    ("votes", "shown"),
    [
        ([("a long one", "4"), ("short", "4"), ("b", "5")], ["short", "a long one", "short"]),  # never its own
        ([("aa", "1/2"), ("b", "0.5"), ("ccc", "7")], ["b", "aa", "b"]),  # equal answers in two spellings
        ([("a", "4"), ("b", "5")], [None, None]),  # one vote is no majority
        ([("a", None), ("b", None), ("c", "5")], [None, None, None]),  # nothing has no vote
        ([("aa", "5"), ("b", "4"), ("c", "4"), ("dd", "5")], ["dd", "aa", "aa", "aa"]),  # a tie: the first one
        ([("a", None), ("b", "3"), ("cc", "3")], ["b", "cc", "b"]),
        ([], []),
    ],
)
def test_the_majority_is_the_shortest_other_attempt_with_the_most_frequent_answer(
    votes: list[tuple[str, str | None]], shown: list[str | None]
) -> None:
    assert [c.text for c in make_contexts("majority", voters(*votes))] == shown


@given(text=st.text(max_size=60))
def test_content_free_text_keeps_the_layout_and_the_tags(text: str) -> None:
    found = content_free(text)
    assert all(word == ";" or (word[0] == "<" and word[-1] == ">") for word in found.split())
    assert len(found.split()) == len(text.split()) or not text.strip()
    assert "".join(c for c in found if c.isspace()) == "".join(c for c in text if c.isspace()) or not text.strip()


def test_every_context_comes_with_a_sentence_that_says_what_it_is() -> None:
    for name, design in DESIGNS.items():
        for context in make_contexts(name, group(*ALL)):
            assert context.introduction == (design.introduction if context.text is not None else "")
            assert context.text is None or context.introduction


def test_a_marked_correction_without_places_to_mark_is_the_critique() -> None:
    """The label names a step that one of the two texts does not have."""
    made = replace(group("wrong"), critiques=[critique("wrong", "<step_1> 2 + 1 = 3 ;", first_error="7")])
    assert make_contexts("marked_correction", made)[0].text == "<step_1> 2 + 1 = 3 ;"


# ---------------------------------------------------------------------------------------------------------------------
# Conditions


def test_the_papers_three_conditions() -> None:
    def of(name: str) -> tuple[str, float, float]:
        found = find_condition(name)
        return found.design, found.distillation_weight, found.policy_weight

    assert of("grpo") == ("none", 0.0, 1.0)
    assert of("refsol") == ("reference", 1.0, 0.0)
    assert of("stepalign") == ("step_aligned", 1.0, 0.0)
    assert of("fixed_negative") == ("fixed_negative", 0.0, 1.0)
    assert DESIGNS.keys() < CONDITIONS.keys()
    assert all(find_design(c.design) for c in CONDITIONS.values())


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown condition stepalgn") as caught:
        find_condition("stepalgn")
    assert (caught.value.hint or "").startswith("did you mean stepalign? known: grpo, refsol")
    with pytest.raises(ConfigError, match="unknown context design zzz") as caught:
        find_design("zzz")
    assert "step_aligned" in (caught.value.hint or "")
    with pytest.raises(ConfigError):
        make_contexts("refsol", group("right"))  # a condition, not a design


def test_a_condition_without_siblings_to_show_is_refused_at_once() -> None:
    for name in ("peer_demonstration", "contrast"):
        with pytest.raises(ConfigError, match="shows siblings") as caught:
            check_condition(name, 1)
        assert caught.value.where == "sampling.num_generations = 1"
        assert check_condition(name, 2).design == name
    assert check_condition("stepalign", 1, 1).design == "step_aligned"


def test_a_condition_without_another_problem_to_show_is_refused_at_once() -> None:
    for name in ("worked_example", "shuffled"):
        with pytest.raises(ConfigError, match="another problem of the step") as caught:
            check_condition(name, 8, 1)
        assert caught.value.where == "training.problems_per_step = 1"
        assert check_condition(name, 1, 2).design == name


# ---------------------------------------------------------------------------------------------------------------------
# Designs of one's own

OWN = """
from stepalign.feedback.designs import Design, NothingToShow

def loud(group, index):
    'The attempt, loudly.'
    if group.rollouts[index].verdict == "undecided":
        raise NothingToShow("unclear")
    return group.rollouts[index].text.upper()

def careless(group, index):
    return 1 // 0

def numeric(group, index):
    return 3

def silent(group, index):
    return None

def alone(group):
    return ""

def reverse(group, index):
    return group.critiques[index].text[::-1]

with_critic = Design(reverse, "backwards", needs=("critic",), form="hint")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    return str(file)


def test_a_function_of_ones_own(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_contexts(f"{own}:loud", group(*ALL))
    assert [c.text for c in found] == [ATTEMPTS[n][0].upper() for n in ALL[:3]] + [None]
    assert found[3].masked == "unclear"
    assert found[0].design == f"{own}:loud"
    assert find_design(f"{own}:loud").label == "The attempt, loudly"
    assert find_condition(f"{own}:loud").distillation_weight == 1.0
    assert make_contexts(f"{own}:silent", group("right"))[0].masked == "the design shows nothing"

    backwards = find_design(f"{own}:with_critic")
    assert (backwards.needs_critic, backwards.form, backwards.label) == (True, "hint", "backwards")
    assert make_contexts(f"{own}:with_critic", group("right"))[0].text == CRITIQUES["right"].text[::-1].strip()

    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "designs.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # modules are found from the working directory
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find_design("package_of_mine.designs:loud").label == "The attempt, loudly"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "my_own.jinja"
    file.write_text("{{ attempt }} / {{ critique }} / {{ first_error }}", encoding="utf-8")
    found = make_contexts(str(file), group(*ALL))
    assert found[1].text == f"{ATTEMPTS['wrong'][0]} / {CRITIQUES['wrong'].text} / 1"
    assert found[3].masked == "critique malformed: no steps"
    assert (find_design(str(file)).needs, find_design(str(file)).label) == (("critic",), "my own")

    file = tmp_path / "siblings.jinja"
    file.write_text("{{ correct_sibling }}|{{ wrong_sibling }}|{{ reference }}{{ verdict }}{{ answer }}{{ question }}")
    assert set(find_design(str(file)).needs) == {"siblings", "reference"}
    shown = make_contexts(str(file), group(*ALL))
    assert shown[1].text == f"{ATTEMPTS['right'][0]}|{ATTEMPTS['late'][0]}|{REFERENCE}incorrect31 + 2"
    assert shown[0].masked == "no correct sibling"


def test_text_in_a_template_is_data(tmp_path: Path) -> None:
    file = tmp_path / "data.jinja"
    file.write_text("{{ attempt }}", encoding="utf-8")
    hostile = replace(attempt_of("wrong"), text="{{ 7 * 7 }}{% include 'scribe.jinja' %}")
    made = replace(group("wrong"), attempts=[hostile])
    assert make_contexts(str(file), made)[0].text == hostile.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{own}:careless", "raises ZeroDivisionError"),
        ("{own}:numeric", "returns int"),
        ("{own}:alone", "does not take"),
        ("{own}:absent", "has no function absent"),
        ("{own}.txt.py:loud", "cannot be imported: FileNotFoundError"),
        ("no_such_module_here:loud", "cannot be imported: ModuleNotFoundError"),
        ("{folder}/absent.jinja", "no prompt template"),
        ("{folder}/typo.jinja", "asks for 'atempt'"),
        ("{folder}/broken.jinja", "does not parse"),
        ("{folder}/escape.jinja", "the template fails"),
    ],
)
def test_faults_of_a_users_design_are_named(name: str, message: str, own: str, tmp_path: Path) -> None:
    (tmp_path / "typo.jinja").write_text("{{ atempt }}")
    (tmp_path / "broken.jinja").write_text("{% if %}")
    (tmp_path / "escape.jinja").write_text("{{ attempt.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ConfigError, match=message) as caught:
        make_contexts(name.format(own=own, folder=tmp_path), group("wrong"))
    assert caught.value.where
    if "careless" in name:
        assert caught.value.where == f"{own}:11"


def test_a_verdict_on_an_attempt_of_several_lines_has_a_line_of_its_own() -> None:
    def with_lines(name: str) -> Group:
        one = group(name)
        several = [replace(r, text=r.text.replace(" ; ", "\n")) for r in one.rollouts]
        found = [None if c is None else replace(c, text=c.text.replace(" ; ", "\n")) for c in one.critiques]
        return replace(one, attempts=several, critiques=found)

    assert make_contexts("full_repeat", with_lines("wrong"))[0].text == "<step_1> 2 + 1 = 4\n<answer> 4\nwrong"
    assert make_contexts("marked_correction", with_lines("late"))[0].text == (
        "<step_1> 2 + 0 = 2\n<step_2> 2 + 1 = 9 wrong\n<step_2> 2 + 1 = 3\n<answer> 3"
    )


def test_a_problem_without_an_answer_shows_none() -> None:
    found = make_contexts("answer", group("wrong", problem=replace(PROBLEM, answer="")))
    assert [c.masked for c in found] == ["the problem has no answer"]
