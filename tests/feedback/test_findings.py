from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import replace

import pytest

from stepalign.config import PoliciesSection
from stepalign.domains.math.grade import Grade
from stepalign.errors import BudgetSpentError
from stepalign.feedback import critique as reasons
from stepalign.feedback.findings import FINDINGS, decide, policies
from stepalign.feedback.statements import holds
from stepalign.records import Attempt, Critique, Problem
from stepalign.rollouts.review import Review, Rules, ask, ask_all, review
from stepalign.waiting import wait_for

WRONG = "<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 6 <step_3> 6 * 2 = 12 <answer> 12"
RIGHT = "<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 7 <step_3> 7 * 2 = 14 <answer> 14"
CUT = "<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 7 <step_3> 7 *"

SERVED = policies({}, served=True)


def request(attempt: str = WRONG, *, verdict: str = "incorrect", reference: str | None = RIGHT) -> Attempt:
    problem = Problem(problem_id="p", question="2 * (8 + 4 - 5)", answer="14", reference=reference)
    grade = Grade.of(verdict)
    return Attempt(rollout_id="r", problem=problem, text=attempt, grade=grade)


def critique(text: str = "", status: str = "ok", reason: str = "") -> Critique:
    return Critique(rollout_id="r", critic="m", status=status, text=text, reason=reason)  # type: ignore[arg-type]


def found(text: str, attempt: str = WRONG, verdict: str = "incorrect", **kind: str) -> dict[str, str]:
    return dict(review(request(attempt, verdict=verdict), critique(text, **kind), Rules(policies=SERVED)).details)


@pytest.mark.parametrize(
    ("text", "attempt", "verdict", "expected"),
    [
        (RIGHT, WRONG, "incorrect", {}),
        (RIGHT, RIGHT, "correct", {}),
        # an attempt that ran out of tokens may be condensed and finished
        ("<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 7, times 2 is 14 <answer> 14", CUT, "incorrect", {}),
        (RIGHT, CUT, "incorrect", {}),
        (
            "<step_1> 8 + 4 = 12 <step_2> not 12 - 5 = 6 but 12 - 5 = 7 <step_3> 7 * 2 = 14 <answer> 14",
            WRONG,
            "incorrect",
            {"quotes_wrong_step": "step 2"},
        ),
        (
            "<step_1> 8 + 4 = 12 <step_2> 12 - 5 = 7 <step_3> 7 * 2 = 15 <answer> 15",
            WRONG,
            "incorrect",
            {"wrong_answer": "15"},
        ),
        (WRONG, WRONG, "incorrect", {"wrong_answer": "12", "misses_error": ""}),
        (
            "<step_1> 8 + 4 = 12 <step_2> 12 - 6 + 1 = 7 <step_3> 7 * 2 = 14 <answer> 14",
            RIGHT,
            "correct",
            {"invents_error": "step 2"},
        ),
        (
            "<step_1> Let the bracket be b. <step_2> Then b is seven, and two of them make the answer. <answer> 14",
            WRONG,
            "incorrect",
            {"full_solution": ""},
        ),
        (
            "<step_1> Adding 8 + 4 = 12 <step_2> 12 - 5 = 7 <step_3> 7 * 2 = 14 <answer> 14",
            WRONG,
            "incorrect",
            {"not_verbatim": "step 1"},
        ),
        ("<step_1> 12 - 5 = 7 <step_2> 7 * 2 = 14 <answer> 14", RIGHT, "correct", {"missing_steps": "step 1"}),
    ],
)
def test_each_finding_by_hand(text: str, attempt: str, verdict: str, expected: dict[str, str]) -> None:
    assert found(text, attempt, verdict) == expected


TWO_LINES = "Paris is the capital of Italy.\n\nSo the train goes to Paris."


@pytest.mark.parametrize("form", ["hint", "comment"])
@pytest.mark.parametrize(
    ("text", "attempt", "place"),
    [
        ("Step 2 is wrong: 12 - 5 = 6.", WRONG, "step 2"),
        ("Step 2: 12−5 is not 6.", WRONG, "step 2"),
        ("In step 2 you wrote 6 for 12 - 5.", WRONG, "step 2"),
        ("The difference 12 - 5 is 7, not 6.", WRONG, "step 2"),
        ("The answer 12 is wrong.", WRONG, "answer"),
        ("It is wrong that Paris is the capital of Italy.", TWO_LINES, "step 1"),
        ("Step 2 is wrong, look at the subtraction.", WRONG, None),
        ("8 + 4 = 12 is right; the next step is not.", WRONG, None),
        ("The step behind 8 + 4 = 12 is wrong.", WRONG, None),  # arithmetic finds it right
        ("12 - 5 = 7, so that 7 - 1 = 6 comes next.", WRONG, None),
        ("Step 12 is wrong, and so is the answer.", WRONG, None),
        ("Look at 112 - 5 = 6.", WRONG, None),
        ("<step_2> wrong : 12 - 5 gives 7 . <answer> 14", WRONG, None),
        ("<step_6> wrong : 12 - 5 = 7", WRONG, None),  # the number of a step is no result
        ("Step 3 gives 12 . <answer> 14", WRONG, None),
        ("12 is not the answer.", WRONG, "answer"),
        ("12 apples, and the answer should be 14.", WRONG, None),
        ("The first sentence confuses two countries.", TWO_LINES, None),
    ],
)
def test_words_of_its_own_that_state_the_wrong_step_again(
    text: str, attempt: str, place: str | None, form: str
) -> None:
    reply = replace(critique(text), form=form)
    seen = review(request(attempt), reply, Rules(policies=SERVED))
    assert seen.details.get("quotes_wrong_step") == place
    assert (seen.critique.policy == "mask") == (place is not None)
    right = review(request(attempt, verdict="correct"), reply, Rules(policies=SERVED))
    assert "quotes_wrong_step" not in right.details


@pytest.mark.parametrize(
    ("calculation", "expected"),
    [
        (("3*4", "12"), True),
        (("3×4", "13"), False),
        (("1,000+5", "$1005"), True),
        (("2/3", "0.67"), True),
        (("2/3", "0.66"), False),
        (("(3+4)*2", "14=2*7"), True),
        (("2*-3", "-6"), True),
        (("-(3+4)", "7"), False),
        (("20%*50", "10"), True),
        (("20%*50", "12"), False),
        (("x+1", "5"), None),
        (("2**9**9**9", "5"), None),
        (("1/0", "5"), None),
        (("(" * 9000 + "1", "1"), None),
    ],
)
def test_a_calculation_holds_fails_or_is_not_understood(calculation: tuple[str, str], expected: bool | None) -> None:
    assert holds(calculation) is expected


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (reasons.CUT, "truncated"),
        (reasons.NO_TRACE, "no_steps"),
        (reasons.EMPTY, "empty"),
        (reasons.ONLY_THINKING, "empty"),
        *((reason, "malformed") for reason in (reasons.WRONG_START, reasons.EMPTY_STEP, reasons.NO_ANSWER)),
        *((reason, "malformed") for reason in (reasons.NOT_JSON, reasons.FILTERED)),
    ],
)
def test_every_malformed_reply_has_exactly_one_finding(reason: str, name: str) -> None:
    assert found("", status="malformed", reason=reason) == {name: reason}


def test_a_failed_critique_is_no_verdict_on_the_attempt() -> None:
    assert found("", status="failed", reason="HTTP 500") == {"failed": "HTTP 500"}


def test_the_recipe_has_one_key_for_every_finding() -> None:
    assert list(PoliciesSection.model_fields) == list(FINDINGS)
    for name, finding in FINDINGS.items():
        allowed = str(PoliciesSection.model_fields[name].annotation)
        assert ("UnusablePolicy" in allowed or "'use'" not in allowed) == (not finding.usable)


# --- policies ---


def test_the_strictest_policy_wins_and_a_try_comes_first() -> None:
    mine = {**SERVED, "full_solution": "fall_back", "not_verbatim": "retry"}
    known = {"has_reference": True}
    assert decide([], mine, tries_left=1, **known) == ("use", "")
    assert decide(["invents_error"], mine, tries_left=1, **known) == ("use", "")
    assert decide(["full_solution"], mine, tries_left=0, **known) == ("fall_back", "full_solution")
    assert decide(["full_solution"], mine, tries_left=0, has_reference=False) == ("mask", "full_solution")
    assert decide(["full_solution", "wrong_answer"], mine, tries_left=0, **known) == ("mask", "wrong_answer")
    assert decide(["not_verbatim", "wrong_answer"], mine, tries_left=1, **known) == ("retry", "not_verbatim")
    assert decide(["not_verbatim"], mine, tries_left=0, **known) == ("use", "")  # its default
    assert decide(["failed"], {**SERVED, "failed": "retry"}, tries_left=0, **known) == ("mask", "failed")


def test_a_programs_critiques_are_used_unless_the_recipe_says_otherwise() -> None:
    assert {n for n, p in policies({}, served=False).items() if p != "use"} == {
        name for name, finding in FINDINGS.items() if not finding.usable
    }
    assert policies({"wrong_answer": "retry"}, served=False)["wrong_answer"] == "retry"


# --- following critiques as they come ---


class Scripted:
    """Answers in a given order, one reply per asking."""

    name = "scripted"

    def __init__(self, *replies: Critique) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, Critique | None]] = []

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        self.asked.append((complaint, earlier))
        return self.replies.pop(0)

    def close(self) -> None: ...


def followed(critic: Scripted, retries: int = 1, **chosen: str) -> Review:
    rules = Rules(policies=policies(chosen, served=True), retries=retries)  # type: ignore[arg-type]
    return wait_for(ask(critic, request(), rules))


def paid(text: str) -> Critique:
    return Critique(rollout_id="r", critic="m", status="ok", text=text, prompt_tokens=10, attempts=1)


def test_a_critique_is_asked_for_again_with_the_finding_named() -> None:
    critic = Scripted(paid(WRONG), paid(RIGHT))
    judged = followed(critic, misses_error="retry").critique
    assert (judged.text, judged.policy, judged.findings, judged.retries) == (RIGHT, "use", (), 1)
    assert (judged.prompt_tokens, judged.attempts) == (20, 2)  # both were paid for
    first, (complaint, earlier) = critic.asked
    assert first == ("", None)
    assert complaint == FINDINGS["misses_error"].request
    assert earlier is not None
    assert earlier.text == WRONG


def test_tries_are_bounded_and_then_the_default_holds() -> None:
    critic = Scripted(*[paid(WRONG)] * 4)
    judged = followed(critic, retries=3, misses_error="retry", wrong_answer="use").critique
    assert len(critic.asked) == 4
    assert (judged.policy, judged.decided_by, judged.retries) == ("mask", "misses_error", 3)


def test_a_spent_budget_stops_and_is_no_failed_critique() -> None:
    spent = replace(critique(status="failed", reason="the budget is spent: 45 of 45 tokens"), unpaid=True)
    with pytest.raises(BudgetSpentError, match="45 of 45"):
        followed(Scripted(spent))


def test_reviews_come_as_replies_do_and_no_more_than_asked_are_under_way() -> None:
    class Late(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.open: dict[str, asyncio.Future[Critique]] = {}
            self.most = 0

        async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
            future = asyncio.get_running_loop().create_future()
            self.open[attempt.rollout_id] = future
            self.most = max(self.most, len(self.open))
            if len(self.open) == 3:
                for name in sorted(self.open, reverse=True):
                    self.open.pop(name).set_result(Critique(rollout_id=name, critic="m", status="ok", text=RIGHT))
            return await future

    critic = Late()
    wanted = [dataclasses.replace(request(), rollout_id=str(n)) for n in range(9)]

    async def names_as_they_come() -> list[str]:
        return [seen.critique.rollout_id async for seen in ask_all(critic, wanted, None, ahead=3)]

    names = wait_for(names_as_they_come())
    assert sorted(names) == [str(n) for n in range(9)]
    assert names[:3] == ["2", "1", "0"]
    assert critic.most == 3
