"""A critic as faulty as one asks: each fault does what it says, as often as it says, and our own linter finds it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from corpus import draw_chains
from stepalign.build import make_critic
from stepalign.config import load_config
from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import MODULUS, Trace, make_problem, parse_trace, write_solution
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError
from stepalign.feedback.findings import policies
from stepalign.records import Attempt, Critique
from stepalign.rollouts.review import Rules, review
from stepalign.waiting import wait_for


def requests(count: int, *, seed: int = 0) -> list[Attempt]:
    """Attempts of all kinds: right, with one wrong step carried on, without an answer, and hopeless."""
    rng = random.Random(seed)
    made = []
    for number, chain in zip(range(count), draw_chains(seed, "train", (2, 8)), strict=False):
        trace = write_solution(rng, chain, rng.choice(("L", "R")), "solver")
        kind = rng.choice(("right", "wrong", "wrong", "short", "hopeless"))
        if kind == "wrong":
            trace = with_wrong_step(trace, rng.randrange(len(trace.steps)), rng.randrange(1, MODULUS))
        elif kind == "short":
            trace = Trace(trace.steps[: rng.randint(1, len(trace.steps))], None)
        text = trace.text if kind != "hopeless" else f"<answer> {(chain.answer + 1) % MODULUS}"
        right = trace.answer == chain.answer and kind != "hopeless"
        attempt = Attempt(
            rollout_id=f"s00000-p{number:04d}-g00",
            problem=make_problem(chain, rho=0.5),
            text=text,
            grade=Grade(score=float(right), answer=None),
        )
        made.append(attempt)
    return made


def with_wrong_step(trace: Trace, place: int, shift: int) -> Trace:
    steps, value = list(trace.steps[:place]), trace.steps[place].value
    for index, step in enumerate(trace.steps[place:]):
        result = (value + step.signed_operand + (shift if index == 0 else 0)) % MODULUS
        steps.append(replace(step, value=value, result=result))
        value = result
    return Trace(tuple(steps), value)


REQUESTS = requests(400)
FAITHFUL = [ArithmeticCritic().write(request) for request in REQUESTS]
WRONG = [i for i, critique in enumerate(FAITHFUL) if critique.case == "D"]


def critiques(**faults: float) -> list[Critique]:
    critic = ArithmeticCritic(faults=Faults(**faults))
    return [critic.write(request) for request in REQUESTS]


def test_a_critic_without_faults_is_the_faithful_one() -> None:
    assert critiques() == FAITHFUL
    assert {c.case for c in FAITHFUL} == set("ACDF")
    assert len(WRONG) > 100


def test_an_error_that_is_missed() -> None:
    for i, (found, request) in enumerate(zip(critiques(misses=1.0), REQUESTS, strict=True)):
        if i in WRONG:
            assert (found.text, found.case, found.first_error) == (request.text, "A", "")
        else:
            assert replace(found, critic=FAITHFUL[i].critic, truth=True) == FAITHFUL[i]


def test_an_error_that_is_invented() -> None:
    invented = 0
    for i, (found, request) in enumerate(zip(critiques(invents=1.0), REQUESTS, strict=True)):
        own, told = parse_trace(request.text), parse_trace(found.text)
        truth = FAITHFUL[i].first_error
        right = int(truth) - 1 if truth.isdigit() else len(own.steps)
        if FAITHFUL[i].case == "F" or not right:
            assert found.text == FAITHFUL[i].text
            continue
        place = int(found.first_error) - 1
        invented += 1
        assert place < right  # a step that was right
        assert told.steps[:place] == own.steps[:place]
        results = [(s.value + s.signed_operand - s.result) % MODULUS for s in told.steps]
        assert [bool(r) for r in results] == [index == place for index in range(len(results))]  # one lie, carried on
        assert told.answer == told.steps[-1].result
        assert str(told.answer) != request.problem.answer
    assert invented > 200


def test_a_wrong_step_that_is_quoted() -> None:
    quoted = 0
    for i, (found, request) in enumerate(zip(critiques(quotes_wrong=1.0), REQUESTS, strict=True)):
        first = FAITHFUL[i].first_error
        if i in WRONG and first.isdigit():
            step = parse_trace(request.text).steps[int(first) - 1].text
            assert step not in FAITHFUL[i].text
            assert step in found.text
            assert found.text.replace(f"{step} ", "", 1) == FAITHFUL[i].text
            quoted += 1
        else:
            assert found.text == FAITHFUL[i].text
    assert quoted > 100


def test_a_style_that_is_not_the_solvers() -> None:
    changed = 0
    for found, own in zip(critiques(wrong_style=1.0), FAITHFUL, strict=True):
        told, meant = parse_trace(found.text), parse_trace(own.text)
        assert told.answer == meant.answer
        assert [(s.value, s.signed_operand, s.result) for s in told.steps] == [
            (s.value, s.signed_operand, s.result) for s in meant.steps
        ]
        changed += found.text != own.text
    assert changed > 300


def test_faults_are_drawn_as_often_as_asked_and_apart_from_each_other() -> None:
    some, other = critiques(misses=0.3, wrong_style=0.5), critiques(misses=0.3, wrong_style=0.0)
    missed = [i for i in WRONG if other[i].case == "A"]
    assert binomtest(len(missed), len(WRONG), 0.3).pvalue > 1e-3
    assert missed == [i for i in WRONG if some[i].case == "A"]  # one more fault leaves the others where they are


def test_a_worse_critic_has_the_same_faults_and_more() -> None:
    def missed(share: float) -> set[int]:
        return {i for i, found in enumerate(critiques(misses=share)) if i in WRONG and found.case == "A"}

    levels = [missed(share) for share in (0.0, 0.1, 0.4, 1.0)]
    assert levels[0] == set()
    assert levels[0] < levels[1] < levels[2] < levels[3] == set(WRONG)


def test_the_draws_depend_on_seed_and_rollout_alone() -> None:
    half = Faults(misses=0.5, invents=0.5, quotes_wrong=0.5, wrong_style=0.5)
    forwards = [ArithmeticCritic(faults=half, seed=3).write(r) for r in REQUESTS]
    critic = ArithmeticCritic(faults=half, seed=3)
    backwards = [critic.write(r) for r in reversed(REQUESTS)][::-1]
    assert forwards == backwards
    assert forwards != [ArithmeticCritic(faults=half, seed=4).write(r) for r in REQUESTS]


def test_our_own_linter_finds_each_fault() -> None:
    """The alignment knows nothing of how the faults were made."""

    def found(**faults: float) -> list[tuple[str, ...]]:
        rules = Rules(policies=policies({}, served=True))
        return [review(r, c, rules).critique.findings for r, c in zip(REQUESTS, critiques(**faults), strict=True)]

    def share(name: str, findings: list[tuple[str, ...]], among: list[int]) -> float:
        return sum(name in findings[i] for i in among) / len(among)

    steps = [i for i in WRONG if FAITHFUL[i].first_error.isdigit()]
    right = [i for i, r in enumerate(REQUESTS) if r.verdict == "correct"]
    clean = found()
    for name in ("quotes_wrong_step", "misses_error", "wrong_answer"):
        assert share(name, clean, list(range(len(REQUESTS)))) == 0.0
    # A quarter of the quotes is taken for a step of its own, where the trace behind it changes as well.
    assert share("quotes_wrong_step", found(quotes_wrong=1.0), steps) > 0.7
    assert share("misses_error", found(misses=1.0), WRONG) > 0.95
    assert share("invents_error", found(invents=1.0), right) > 0.95
    assert share("wrong_answer", found(invents=1.0), right) > 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Other forms of the same opinion


def test_a_hint_names_the_first_error_and_nothing_else() -> None:
    for own, request in zip(FAITHFUL, REQUESTS, strict=True):
        hint = ArithmeticCritic(form="hint").write(request)
        assert (hint.case, hint.first_error, hint.form) == (own.case, own.first_error, "hint")
        label = {"A": ""}.get(own.case, own.first_error or "answer")
        tag = f"<step_{label}>" if label.isdigit() else f"<{label}>"
        assert hint.text == ("right" if not label else f"{tag} wrong")


def test_a_comment_names_and_corrects_the_error_alone() -> None:
    for own, request in zip(FAITHFUL, REQUESTS, strict=True):
        comment = ArithmeticCritic(form="comment").write(request)
        if own.case == "A":
            assert comment.text == "right"
        elif own.case == "F":
            assert comment.text == f"wrong : {request.problem.reference}"
        else:
            assert comment.text.endswith(f"<answer> {request.problem.answer}")
            assert comment.text.count("<step_") <= 1
            kept = own.text.split("<step_2>")[0].strip()
            assert own.first_error == "1" or kept not in comment.text


def test_a_faulty_hint_is_the_hint_of_the_faulty_critique() -> None:
    faults = Faults(misses=0.5, invents=0.5)
    for request in REQUESTS:
        trace, hint = (ArithmeticCritic(form=form, faults=faults).write(request) for form in ("trace", "hint"))
        assert (trace.case, trace.first_error) == (hint.case, hint.first_error)


# ---------------------------------------------------------------------------------------------------------------------
# From a recipe


def test_the_recipe_sets_the_quality() -> None:
    config = load_config("arithmetic", ["critic.quality.misses=1.0", "training.seed=5"])
    critic = make_critic(config, None, ["step_aligned"])
    assert critic is not None
    request = REQUESTS[WRONG[0]]
    assert wait_for(critic.critique(request)).text == request.text
    assert critic.name == "faulty:arithmetic"  # what it says of first errors is no truth
    faithful = make_critic(load_config("arithmetic"), None, ["step_aligned"])
    assert faithful is not None
    assert faithful.name == "programmatic:arithmetic"
    for wrong in ("critic.quality.misses=1.5", "critic.quality.mises=0.1"):
        with pytest.raises(ConfigError, match=r"critic\.quality"):
            load_config("arithmetic", [wrong])
