"""The table of context designs: what each shows of one group, word for word, and what each may never show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.errors import ConfigError
from stepalign.feedback.designs import (
    CONDITIONS,
    DESIGNS,
    Group,
    find_condition,
    find_design,
    make_contexts,
)
from stepalign.records import Completion, Critique, Problem, Rollout

REFERENCE = "<step_1> 1 + 2 = 3 ; <answer> 3"
PROBLEM = Problem(problem_id="p", question="1 + 2", answer="3", reference=REFERENCE)
ATTEMPTS = {
    "right": ("<step_1> 2 + 1 = 3 ; <answer> 3", "correct"),
    "wrong": ("<step_1> 2 + 1 = 4 ; <answer> 4", "incorrect"),
    "late": ("<step_1> 2 + 0 = 2 ; <step_2> 2 + 1 = 9 ; <answer> 9", "incorrect"),
    "unclear": ("words", "undecided"),
}


def rollout(name: str) -> Rollout:
    text, verdict = ATTEMPTS[name]
    return Rollout(
        rollout_id=name,
        problem_id="p",
        step=0,
        group_index=0,
        completion=Completion(ids=(), log_probs=(), finish_reason="stop", policy_version=0),
        text=text,
        answer=None,
        verdict=verdict,  # type: ignore[arg-type]
        reward={"correct": 1.0, "incorrect": 0.0, "undecided": float("nan")}[verdict],
    )


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
        rollouts=[rollout(name) for name in names],
        critiques=[CRITIQUES[name] for name in names],
        elsewhere=elsewhere,
    )


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
    "peer_demonstration": [None, ATTEMPTS["right"][0], ATTEMPTS["right"][0], ATTEMPTS["right"][0]],
}


@pytest.mark.parametrize("design", SHOWN)
def test_what_each_design_shows(design: str) -> None:
    assert [c.text for c in make_contexts(design, group(*ALL))] == SHOWN[design]


def test_every_design_is_tested_here() -> None:
    assert SHOWN.keys() | {"shuffled"} == DESIGNS.keys()


@pytest.mark.parametrize("design", DESIGNS)
def test_one_context_a_rollout_and_a_reason_where_there_is_none(design: str) -> None:
    found = make_contexts(design, group(*ALL, elsewhere=()))
    assert [c.rollout_id for c in found] == list(ALL)
    assert {c.design for c in found} == {design}
    for context in found:
        assert (context.text is None) == bool(context.masked) or design == "none"
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
    assert reasons("shuffled", group("right", elsewhere=())) == ["no other critique in the batch"]
    assert reasons("none", group(*ALL)) == [""] * 4


def test_the_stranger_is_always_the_same_one_and_comes_from_elsewhere() -> None:
    first = [c.text for c in make_contexts("shuffled", group(*ALL))]
    assert first == [c.text for c in make_contexts("shuffled", group(*ALL))]
    assert {*first} == {c.text for c in ELSEWHERE}
    assert make_contexts("shuffled", group("late"))[0].text == first[2]  # whatever its neighbours are


def test_the_designs_that_need_a_critic_are_those_that_use_critiques() -> None:
    """Without critiques the others still work; these have a mistake to report."""
    bare = replace(group("right", "wrong"), critiques=[None, None], elsewhere=())
    for name, design in DESIGNS.items():
        if name in ("step_aligned", "marked_correction"):
            with pytest.raises(ValueError, match="needs a critic"):
                make_contexts(name, bare)
        else:
            make_contexts(name, bare)
        with_other_words = replace(
            group(*ALL),
            critiques=[replace(c, text="other words") if c.text else c for c in CRITIQUES.values()],
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
        rollouts=[replace(rollout("wrong"), text=attempt)],
        critiques=[critique("wrong", correction, first_error=label)],
        elsewhere=[critique("x", correction)],
    )
    for design in DESIGNS:
        (context,) = make_contexts(design, made)
        assert context.text is None or isinstance(context.text, str)


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
    assert DESIGNS.keys() < CONDITIONS.keys()
    assert all(find_design(c.design) for c in CONDITIONS.values())


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown condition stepalgn") as caught:
        find_condition("stepalgn")
    assert caught.value.hint == "did you mean stepalign?"
    with pytest.raises(ConfigError, match="unknown context design zzz") as caught:
        find_design("zzz")
    assert "step_aligned" in (caught.value.hint or "")
    with pytest.raises(ConfigError):
        make_contexts("refsol", group("right"))  # a condition, not a design
