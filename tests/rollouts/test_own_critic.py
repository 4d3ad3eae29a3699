"""The solver as its own critic, and its second attempt: asked in batches, without the answer, never taken for truth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.domains.arithmetic.task import VOCABULARY, make_problem, parse_question
from stepalign.domains.math.grade import Grade
from stepalign.feedback.designs import make_contexts, make_group
from stepalign.feedback.prompts import load_template
from stepalign.models.prompts import PromptBuilder
from stepalign.models.sampling import OnFinished
from stepalign.records import Attempt, Completion, critique_from_json, to_json
from stepalign.rollouts.own_critic import OwnCritic, SecondTries, SecondTurn
from stepalign.waiting import wait_for

PROBLEM = make_problem(parse_question("17 + 6 - 5"), rho=0.0)
WRONG = "<step_1> 17 + 6 = 4 ; <step_2> 4 - 5 = 19 ; <answer> 19"
RIGHT = "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 18 ; <answer> 18"


class Scripted:
    """A sampler that replies with one text and remembers what it was asked."""

    def __init__(self, tokenizer: Any, reply: str) -> None:
        self.tokenizer, self.reply = tokenizer, reply
        self.batches: list[list[str]] = []

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        self.batches.append([self.tokenizer.decode(list(prompt)) for prompt in prompts])
        await asyncio.sleep(0.001)
        if self.reply == "broken":
            raise OSError("the server is gone")
        ids = tuple(self.tokenizer.encode(self.reply, add_special_tokens=False))
        done = Completion(ids=ids, log_probs=(0.0,) * len(ids), finish_reason="stop", policy_version=0)
        return [[done] for _ in prompts]

    async def publish(self, weights: Any, version: int) -> None: ...

    def close(self) -> None: ...


def tries(reply: str, room: int | None = 512) -> tuple[SecondTries, Scripted]:
    tokenizer = build_tokenizer(VOCABULARY)
    prompts = PromptBuilder(
        tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} Feedback : {{ feedback }}"),
    )
    sampler = Scripted(tokenizer, reply)
    made = SecondTries(
        tokenizer=tokenizer, sampler=sampler, prompts=prompts, temperature=1.0, max_tokens=64, seed=0, room=room
    )
    return made, sampler


def attempts(count: int) -> list[Attempt]:
    grade = Grade.of("incorrect")
    return [Attempt(rollout_id=f"r{at}", problem=PROBLEM, text=WRONG, grade=grade) for at in range(count)]


def own(reply: str, room: int | None = 512) -> tuple[OwnCritic, Scripted]:
    made, sampler = tries(reply, room)
    return OwnCritic(made, load_template("{{ question }} Feedback : {{ attempt }}"), "own:solver"), sampler


def ask(critic: Any, count: int) -> list[Any]:
    async def every() -> list[Any]:
        return await asyncio.gather(*(critic.critique(one) for one in attempts(count)))

    return wait_for(every())


def test_prompts_that_come_while_others_are_drawn_go_together() -> None:
    critic, sampler = own(RIGHT)
    found = ask(critic, 9)
    assert [len(batch) for batch in sampler.batches] == [9]  # all came before the first was drawn
    assert [one.text for one in found] == [RIGHT] * 9
    assert ask(critic, 2)[1].text == RIGHT  # and again, in another event loop

    async def later() -> None:
        first = asyncio.create_task(critic.critique(attempts(1)[0]))
        await asyncio.sleep(0.0005)
        await asyncio.gather(first, *(critic.critique(one) for one in attempts(5)))

    sampler.batches.clear()
    wait_for(later())
    assert [len(batch) for batch in sampler.batches] == [1, 5]


def test_the_solver_as_critic_sees_question_and_attempt_and_locates_nothing() -> None:
    critic, sampler = own(RIGHT)
    (found,) = ask(critic, 1)
    assert sampler.batches == [[f"<|user|> 17 + 6 - 5 Feedback : {WRONG} <|assistant|>"]]
    assert (found.status, found.form, found.truth, found.first_error) == ("ok", "own", False, "")
    again = critique_from_json(to_json(found))
    assert again == found  # truth is not in the file: the name says it
    made = make_group(attempts(1), {"r0": found})
    assert make_contexts("self_critique", made)[0].text == RIGHT


@pytest.mark.parametrize(
    ("reply", "room", "status", "reason"),
    [
        ("right wrong right", 512, "malformed", "no step-tagged trace"),
        ("<step_2> 17 + 6 = 3 ; <answer> 3", 512, "malformed", "the trace does not start at its first step"),
        (RIGHT, 20, "failed", "the attempt leaves no room for a critique"),
    ],
)
def test_a_reply_of_the_solver_that_cannot_be_used_is_a_status(reply: str, room: int, status: str, reason: str) -> None:
    critic, sampler = own(reply, room)
    (found,) = ask(critic, 1)
    assert (found.status, found.reason, found.text) == (status, reason, "")
    assert len(sampler.batches) == (room > 20)


def test_the_second_turn_is_the_critique_and_an_attempt_made_with_it() -> None:
    made, sampler = tries(WRONG)
    (found,) = ask(SecondTurn(ArithmeticCritic(), made), 1)
    assert sampler.batches == [[f"<|user|> 17 + 6 - 5 Feedback : {RIGHT} <|assistant|>"]]
    assert found.text == f"{RIGHT} {WRONG}"
    assert (found.form, found.truth, found.first_error, found.case) == ("second_turn", True, "1", "D")
    context = make_contexts("second_turn", make_group(attempts(1), {"r0": found}))[0]
    assert context.text == found.text


def test_a_second_turn_without_a_critique_or_an_attempt_is_masked() -> None:
    class Silent(ArithmeticCritic):
        async def critique(self, attempt: Attempt, **_: Any) -> Any:
            return replace(self.write(attempt), status="failed", text="", reason="timeout")

    made, sampler = tries(RIGHT)
    (found,) = ask(SecondTurn(Silent(), made), 1)
    assert (found.status, found.reason, sampler.batches) == ("failed", "timeout", [])
    made, _ = tries(RIGHT, room=30)
    (found,) = ask(SecondTurn(ArithmeticCritic(), made), 1)
    assert (found.status, found.text, found.reason) == ("failed", "", "no second attempt")


def test_a_sampler_that_fails_fails_the_step() -> None:
    critic, _ = own("broken")
    with pytest.raises(OSError, match="the server is gone"):
        ask(critic, 3)
