"""The warm-start corpus: fallible in the places it says, consistent everywhere, and never about a held-out question."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus import (
    Knowledge,
    Mixture,
    draw_example,
    draw_knowledge,
    follow,
    marked_draft,
    other_result,
    own_solution,
    perturb,
    split_of,
    with_feedback,
)
from stepalign.domains.arithmetic.task import MODULUS, VOCABULARY, Chain, parse_question, parse_trace, write_solution

randoms = st.integers(0, 2**32).map(random.Random)
operands = st.integers(-9, 9).filter(bool)
chains = st.builds(Chain, st.integers(0, 19), st.lists(operands, min_size=2, max_size=8).map(tuple))

NO_KNOWLEDGE_MISSING = Knowledge({})


def carried_on(text: str, start: int) -> bool:
    """Whether every step takes up the result of the one before, and the answer that of the last."""
    trace, value = parse_trace(text), start
    for step in trace.steps:
        if step.value != value:
            return False
        value = step.result
    return trace.answer == value


def test_the_weak_facts_are_a_fixed_share_and_wrong_by_one_or_two() -> None:
    knowledge = draw_knowledge(0)
    assert len(knowledge.weak) == round(0.3 * 20 * 18)
    for (value, operand), (wrong, rate) in knowledge.weak.items():
        assert 0 <= value < 20
        assert 1 <= abs(operand) <= 9
        assert (wrong - value - operand) % MODULUS in (1, 2, 18, 19)
        assert 0.40 <= rate <= 0.95
    assert draw_knowledge(0) == knowledge
    assert draw_knowledge(1) != knowledge


def test_a_fact_comes_out_wrong_as_often_as_it_says() -> None:
    rng = random.Random(0)
    knowledge = Knowledge({(3, 4): (9, 0.7)})
    found = Counter(knowledge.result(rng, 3, 4) for _ in range(4000))
    assert found.keys() == {7, 9}
    assert abs(found[9] / 4000 - 0.7) < 5 * (0.21 / 4000) ** 0.5
    assert {knowledge.result(rng, 4, 3) for _ in range(50)} == {7}  # 4 + 3 is another fact
    assert {knowledge.result(rng, 19, 9) for _ in range(50)} == {8}


@given(chain=chains, rng=randoms, order=st.sampled_from(("L", "R")))
def test_own_solutions_err_only_in_weak_facts_and_carry_on(chain, rng, order) -> None:
    knowledge = draw_knowledge(1)
    trace = own_solution(rng, chain, order, "solver", knowledge)
    assert carried_on(trace.text, chain.start)
    assert [s.signed_operand for s in trace.steps] == list(chain.in_order(order))
    for step in trace.steps:
        if step.result != (step.value + step.signed_operand) % MODULUS:
            assert step.result == knowledge.weak[step.value, step.signed_operand][0]
    sure = own_solution(rng, chain, order, "solver", NO_KNOWLEDGE_MISSING)
    assert sure.answer == chain.answer


@given(rng=randoms, true=st.integers(0, 19), uniform=st.sampled_from((0.0, 0.5, 1.0)))
def test_another_result_is_never_the_true_one(rng, true, uniform) -> None:
    other = other_result(rng, true, uniform)
    assert 0 <= other < 20
    assert other != true
    if uniform == 0.0:
        assert (other - true) % 20 in (1, 2, 18, 19)


@given(chain=chains, rng=randoms, data=st.data())
def test_a_perturbed_guide_is_wrong_exactly_where_it_should_be(chain, rng, data) -> None:
    guide = write_solution(rng, chain, "L", "reference")
    places = data.draw(st.sets(st.integers(0, len(guide.steps) - 1)))
    spoilt = perturb(rng, guide, places, uniform=0.5)
    assert carried_on(spoilt.text, chain.start)
    wrong = {i for i, s in enumerate(spoilt.steps) if s.result != (s.value + s.signed_operand) % MODULUS}
    assert wrong == places
    assert perturb(rng, guide, set(), uniform=0.5) == guide


@given(chain=chains, rng=randoms, places=st.sets(st.integers(0, 1)))
def test_a_response_that_reads_says_what_the_guide_says_true_or_false(chain, rng, places) -> None:
    guide = perturb(rng, write_solution(rng, chain, "R", "solver"), places, uniform=1.0)
    response = follow(rng, chain, guide, draw_knowledge(0), Mixture(slip=0.0, copy_word=1.0))
    assert response == guide  # word for word
    slips = follow(rng, chain, guide, NO_KNOWLEDGE_MISSING, Mixture(slip=1.0))
    assert carried_on(slips.text, chain.start)
    first = slips.steps[0]
    assert first.result != guide.steps[0].result
    # Off the guide's track, it counts for itself.
    for one, said in zip(slips.steps[1:], guide.steps[1:], strict=True):
        if one.value != said.value:
            assert one.result == (one.value + one.signed_operand) % MODULUS


@given(chain=chains, rng=randoms, data=st.data())
def test_a_marked_draft_shows_right_steps_then_the_wrong_one_then_its_correction(chain, rng, data) -> None:
    guide = write_solution(rng, chain, "L", "solver")
    place = data.draw(st.integers(0, len(guide.steps) - 1))
    wrong = replace(guide.steps[place], result=other_result(rng, guide.steps[place].result, 0.5))
    before, after = marked_draft(guide, wrong).split(" wrong ")
    assert before == " ".join([*(s.text for s in guide.steps[:place]), wrong.text])
    assert after == " ".join([*(s.text for s in guide.steps[place:]), f"<answer> {chain.answer}"])


@pytest.mark.parametrize("in_context", [False, True])
def test_examples_hold_no_unknown_word_and_no_held_out_question(in_context: bool) -> None:
    rng, knowledge = random.Random(5), draw_knowledge(0)
    for _ in range(400):
        example = draw_example(rng, knowledge, Mixture(), in_context=in_context)
        question, mark, _ = example.prompt.partition(" Feedback : ")
        assert bool(mark) == in_context
        assert split_of(question) == "warmstart"
        assert set(f"{example.prompt} {example.response}".split()) <= set(VOCABULARY)
        assert carried_on(example.response, parse_question(question).start)


def test_the_mixture_is_what_it_says() -> None:
    """Shares of contexts that are verdicts, drafts, or spoilt, counted over many examples."""
    rng, mixture, count = random.Random(2), Mixture(perturbed=0.4), 3000
    kinds: Counter[str] = Counter()
    for _ in range(count):
        prompt = draw_example(rng, NO_KNOWLEDGE_MISSING, mixture, in_context=True).prompt
        shown = prompt.partition(" Feedback : ")[2]
        kinds["verdict"] += shown in ("right", "wrong")
        kinds["draft"] += " wrong " in shown
        if shown not in ("right", "wrong"):
            steps = () if " wrong " in shown else parse_trace(shown).steps
            kinds["plain"] += bool(steps)
            kinds["spoilt"] += any(s.result != (s.value + s.signed_operand) % MODULUS for s in steps)
    for name, share in (("verdict", mixture.verdict_only), ("draft", mixture.drafts)):
        assert abs(kinds[name] / count - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert abs(kinds["spoilt"] / kinds["plain"] - 0.4) < 5 * (0.24 / kinds["plain"]) ** 0.5


def test_the_user_turn_is_that_of_the_recipe() -> None:
    """The weights were trained on the very words that the shipped recipe shows to the self-teacher."""
    from stepalign.config import load_config
    from stepalign.feedback.prompts import load_template

    config = load_config("arithmetic")
    template = load_template(config.prompts.self_teacher)
    assert template.render(question="1 + 2", feedback="right") == with_feedback("1 + 2", "right")
    assert load_template(config.prompts.student).render(question="1 + 2") == "1 + 2"
