"""Critics around critics: two that must agree, one that remembers, one that writes edit scripts, a frozen solver."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_server import FaultServer

from stepalign.build import OWN_FORMS, make_critic, open_session
from stepalign.config import changed, load_config
from stepalign.critics.variants import Agreeing, EditScripts, Remembering, TurnByTurn
from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError
from stepalign.events import Event, silent
from stepalign.feedback.designs import critique_forms
from stepalign.records import Attempt, Critique, Turn
from stepalign.rollouts.own_critic import SecondTurn
from stepalign.stopping import Interrupted, StopRequest
from stepalign.verbs.checks import critic_keys
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.signal.collect import more_critiques
from stepalign.verbs.train import train_config
from stepalign.waiting import wait_for

PROBLEM = make_problem(parse_question("17 + 6 - 5 + 4"), rho=0.0)
WRONG = "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 17 ; <step_3> 17 + 4 = 1 ; <answer> 1"
RIGHT = "<step_1> 17 + 6 = 3 ; <step_2> 3 - 5 = 18 ; <step_3> 18 + 4 = 2 ; <answer> 2"


def attempt(text: str = WRONG, name: str = "s00000-p0000-g00") -> Attempt:
    return Attempt(rollout_id=name, problem=PROBLEM, text=text, grade=Grade.of("incorrect"))


class Writes:
    """A critic that writes one text."""

    def __init__(self, text: str, status: str = "ok", reason: str = "") -> None:
        self.name, self.text, self.status, self.reason = f"writes {text[:6]}", text, status, reason
        self.questions: list[str] = []

    async def critique(self, attempt: Attempt, **_: Any) -> Critique:
        self.questions.append(attempt.problem.question)
        await asyncio.sleep(0)
        return Critique(
            rollout_id=attempt.rollout_id, critic=self.name, status=self.status, text=self.text, reason=self.reason,  # type: ignore[arg-type]
            prompt_tokens=10, completion_tokens=5, attempts=1, seconds=2.0,
        )  # fmt: skip

    def close(self) -> None: ...


# ---------------------------------------------------------------------------------------------------------------------
# Two that must agree

EARLIER = "<step_1> 17 + 6 = 4 ; <step_2> 4 - 5 = 19 ; <step_3> 19 + 4 = 3 ; <answer> 2"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Writes(RIGHT), ""),
        (Writes(RIGHT.replace("<answer> 2", "<answer> 2.0")), ""),
        (Writes(RIGHT.replace(" ;", "")), ""),  # in other words
        (Writes(WRONG), "two critics disagree on the answer"),
        (Writes(RIGHT.replace("<answer> 2", "<answer> 3")), "two critics disagree on the answer"),
        (Writes(EARLIER), "two critics disagree on the first wrong step"),
        (Writes("", "malformed", "no step-tagged trace"), "writes : no step-tagged trace"),
        (Writes("", "failed", "timeout"), "writes : timeout"),
    ],
)
def test_a_critique_is_used_where_both_find_the_same(other: Writes, reason: str) -> None:
    found = wait_for(Agreeing(Writes(RIGHT), other).critique(attempt()))
    assert (found.status, found.reason) == ("failed" if reason else "ok", reason)
    assert found.text == ("" if reason else RIGHT)
    assert (found.prompt_tokens, found.completion_tokens, found.attempts, found.seconds) == (20, 10, 2, 2.0)


def test_overlooked_errors_of_one_critic_are_masked_and_no_others() -> None:
    """Against the faults as they are drawn: the faithful second critic disagrees exactly where the first overlooks."""
    first = ArithmeticCritic(faults=Faults(misses=0.3), seed=4)
    both = Agreeing(first, ArithmeticCritic())
    every = [replace(attempt(), rollout_id=str(at)) for at in range(200)]
    overlooked = {one.rollout_id for one in every if first.write(one).text != RIGHT}
    assert 40 < len(overlooked) < 80
    found = [wait_for(both.critique(one)) for one in every]
    assert {one.rollout_id for one in found if one.status == "failed"} == overlooked
    assert {one.reason for one in found} == {"", "two critics disagree on the answer"}


# ---------------------------------------------------------------------------------------------------------------------
# Edit scripts


def test_a_served_editor_is_shown_numbers_and_its_script_is_applied(serve: Callable[..., FaultServer]) -> None:
    edits = [{"step": 2, "replacement": "3 - 5 = 18 ;"}, {"step": 3, "replacement": "18 + 4 = 2 ;"}]
    script = json.dumps({"edits": edits, "answer": "2"})
    server = serve(lambda text, asked: f"say {script}")
    for structured in (False, True):
        config = changed(load_config("arithmetic"), {
            "critic.kind": "endpoint", "critic.base_urls": [server.url], "critic.model": "critic",
            "critic.writes": "edits", "critic.structured": structured,
        })  # fmt: skip
        critic = make_critic(config, None, ["step_aligned"])
        assert isinstance(critic, EditScripts)
        try:
            found = wait_for(critic.critique(attempt()))
        finally:
            critic.close()
        assert (found.status, found.text, found.form, found.raw) == ("ok", RIGHT, "trace", script)
        body = server.bodies[-1]
        assert "[1] 17 + 6 = 3 ;\n[2] 3 - 5 = 17 ;\n[3] 17 + 4 = 1 ;\n[answer] 1" in body["messages"][-1]["content"]
        assert ("response_format" in body) == structured
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["edits", "answer"]


def test_a_critic_that_is_asked_again_is_shown_what_it_said_and_not_what_was_made_of_it(
    serve: Callable[..., FaultServer],
) -> None:
    script = json.dumps({"edits": [{"step": 2, "replacement": "3 - 5 = 18 ;"}], "answer": "2"})
    server = serve(lambda text, asked: f"say {script}")
    settings = {"critic.kind": "endpoint", "critic.base_urls": [server.url], "critic.model": "critic"}
    config = changed(load_config("arithmetic"), {**settings, "critic.writes": "edits"})
    critic = make_critic(config, None, ["step_aligned"])
    assert critic is not None
    try:
        first = wait_for(critic.critique(attempt()))
        assert first.text != first.raw == script
        wait_for(critic.critique(attempt(), earlier=first, complaint="It is short."))
    finally:
        critic.close()
    assert [message["content"] for message in server.bodies[-1]["messages"][-2:-1]] == [script]


def test_a_complaint_is_about_the_turns_without_a_critique() -> None:
    asked = list[tuple[str, str]]()

    class Fails:
        name = "fails"

        async def critique(self, attempt: Attempt, *, earlier: Any = None, complaint: str = "") -> Critique:
            asked.append((attempt.text, complaint))
            fine = attempt.text == "one" or bool(complaint)
            return Critique(
                rollout_id=attempt.rollout_id, critic="c", status="ok" if fine else "malformed", text="x" * fine
            )

        def close(self) -> None: ...

    turns = [Turn(role="solver", text=text, start=0, end=1) for text in ("one", "two")]
    critic, two = TurnByTurn(Fails(), reads_questions=False), replace(attempt(), turns=tuple(turns))
    first = wait_for(critic.critique(two))
    assert first.turns == ("x", "")
    assert wait_for(critic.critique(two, earlier=first, complaint="Again.")).turns == ("x", "x")
    assert asked == [("one", ""), ("two", ""), ("one", ""), ("two", "Again.")]


def test_a_second_attempt_is_not_what_the_critic_said() -> None:
    seen = list[str]()

    class Notes(Writes):
        async def critique(self, attempt: Attempt, *, earlier: Any = None, complaint: str = "") -> Critique:
            seen.append(earlier.text if earlier else "")
            return Critique(rollout_id="r", critic="c", status="malformed", text="")

    tries: Any = None
    critic = SecondTurn(Notes("x"), tries)
    earlier = Critique(rollout_id="r", critic="c", status="ok", text="trace\nsecond attempt", raw="trace")
    wait_for(critic.critique(attempt(), earlier=earlier, complaint="Again."))
    assert seen == ["trace"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("the second step is wrong", "not the JSON that was asked for"),
        ('{"edits": [{"step": 9, "replacement": "x"}]}', "the script edits a step that is not there"),
    ],
)
def test_a_script_that_cannot_be_applied_masks(serve: Callable[..., FaultServer], reply: str, reason: str) -> None:
    server = serve(lambda text, asked: f"say {reply}")
    settings = {"critic.kind": "endpoint", "critic.base_urls": [server.url], "critic.model": "critic"}
    critic = make_critic(
        changed(load_config("arithmetic"), {**settings, "critic.writes": "edits"}), None, ["step_aligned"]
    )
    assert critic is not None
    try:
        found = wait_for(critic.critique(attempt()))
    finally:
        critic.close()
    assert (found.status, found.text, found.reason) == ("malformed", "", reason)


@pytest.mark.parametrize(
    ("settings", "design", "where"),
    [
        ({"critic.writes": "edits"}, "hint", "critic.writes"),
        ({"critic.writes": "edits", "critic.kind": "calculation"}, "step_aligned", "critic.writes"),
        ({"critic.second.kind": "programmatic"}, "free_critique", "critic.second.kind"),
        ({"critic.second.kind": "programmatic"}, "self_critique", "critic.second.kind"),
        ({"critic.remembers": 2}, "step_aligned", "critic.remembers"),
        ({"critic.second.model": "larger"}, "step_aligned", "critic.second"),
        ({"critic.writes": "edits"}, "paraphrase", "critic.writes"),
        ({"critic.solver_weights": "initial"}, "step_aligned", "critic.solver_weights"),
        ({"critic.solver_weights": "initial"}, "turn_critique", "critic.solver_weights"),
    ],
)
def test_keys_that_mean_nothing_to_the_critic_are_refused(settings: dict[str, Any], design: str, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_critic(changed(load_config("arithmetic"), settings), None, [design])
    assert raised.value.where == where
    assert raised.value.hint
    config = changed(load_config("arithmetic"), {**settings, "condition": design, "training.problems_per_step": 2})
    with pytest.raises(ConfigError) as raised:  # by the checks of a run, an arm of a comparison among them
        critic_keys(Inputs(config))
    assert raised.value.where == where


@pytest.mark.parametrize(
    ("settings", "design", "other"),
    [
        ({"critic.writes": "edits"}, "step_aligned", "hint"),
        ({"critic.second.kind": "programmatic"}, "paraphrase", "free_critique"),
        ({"critic.solver_weights": "initial"}, "second_turn", "no_repeat"),
    ],
)
def test_a_key_of_one_design_does_not_stop_the_others_that_are_looked_at(
    settings: dict[str, Any], design: str, other: str
) -> None:
    config = changed(load_config("arithmetic"), {**settings, "condition": design})
    rollout: Any = SimpleNamespace(attempt=attempt())
    contexts = [other, design]
    found = more_critiques(config, None, [(rollout, None)], contexts)
    asked = {form for form in critique_forms(contexts) if form not in OWN_FORMS}
    assert {(one.form, one.status) for one in found} == {(form, "ok") for form in asked}
    if design != "second_turn":
        plain = changed(load_config("arithmetic"), {"condition": other})
        (alone,) = more_critiques(plain, None, [(rollout, None)], [other])
        assert alone in found  # as if the key were not there


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_a_critic_is_shown_the_last_usable_critiques_of_earlier_steps(tmp_path: Path) -> None:
    other = replace(PROBLEM, problem_id="other")
    inner = Writes(RIGHT)
    critic = Remembering(inner, 2, tmp_path)

    def record(step: int, index: int, text: str, problem: str = PROBLEM.problem_id, status: str = "ok") -> None:
        name = f"s{step:05d}-p0000-g{index:02d}-{problem}"
        for file, row in (
            ("rollouts", {"rollout_id": name, "problem_id": problem, "step": step}),
            ("critiques", {"rollout_id": name, "status": status, "text": text}),
        ):
            with (tmp_path / f"{file}.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")

    def shown(step: int, problem: Any = PROBLEM) -> list[str]:
        wait_for(critic.critique(replace(attempt(name=f"s{step:05d}-p0000-g00"), problem=problem)))
        assert inner.questions[-1].startswith(PROBLEM.question)
        return re.findall(r"^\[\d\]\n(.*)$", inner.questions[-1], re.M)

    assert shown(0) == []
    record(0, 0, "first")
    record(0, 1, "second")
    record(0, 2, "", status="malformed")
    record(0, 0, "elsewhere", "other")
    assert shown(0) == []  # of its own step there is nothing yet
    assert shown(1) == ["first", "second"]
    assert shown(1, other) == ["elsewhere"]
    record(1, 0, "third")
    assert shown(1) == ["first", "second"]
    assert shown(2) == ["second", "third"]
    again = Remembering(inner, 2, tmp_path)  # another process
    wait_for(again.critique(attempt(name="s00002-p0000-g00")))
    assert inner.questions[-1] == inner.questions[-2]
    late = Remembering(inner, 2, tmp_path, ahead=1)
    wait_for(late.critique(attempt(name="s00002-p0000-g00")))
    assert re.findall(r"^\[\d\]\n(.*)$", inner.questions[-1], re.M) == ["first", "second"]

    steps = itertools.count(50)

    class Meanwhile(Remembering):
        """A step is written between its looks at the two files."""

        def _new(self, name: str) -> list[dict[str, Any]]:
            found = super()._new(name)
            record(next(steps), 0, f"after {name}")
            return found

    overtaken = Meanwhile(inner, 1, tmp_path)
    for _ in range(2):
        wait_for(overtaken.critique(attempt(name="s00099-p0000-g00")))
    assert inner.questions[-1].endswith("after rollouts")


def test_a_resumed_run_shows_its_critic_what_an_uninterrupted_one_does(
    serve: Callable[..., FaultServer], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Two problems, seen every step. The server numbers its replies by how often a prompt was asked."""

    def script(text: str, asked: int) -> str:
        return f"say <step_1> {len(text)} <answer> {text.count('[')}"

    def run(out: Path, *, stop_after: int = 0, resume: bool = False) -> list[str]:
        server = serve(script)
        words = [
            "condition=stepalign", "prompts.critic='{{ question }} | {{ attempt }}'", "critic.kind=endpoint",
            f'critic.base_urls=["{server.url}"]', "critic.model=critic", "critic.remembers=2", "training.max_steps=4",
            "training.problems_per_step=2", "data.max_train=2", "training.save_steps=1", "evaluation.at_start=false",
            "critic.policies.wrong_answer=use",
        ]  # fmt: skip
        stop = StopRequest()

        def listener(event: Event) -> None:
            if stop_after and event.kind == "step" and event.done == stop_after:
                stop.asked = True

        try:
            train_config(load_config(str(write_recipe()), words), out, resume=resume, listener=listener, stop=stop)
        except Interrupted:
            assert stop_after
        asked = (body["messages"][-1]["content"] for body in server.bodies)
        return [text for text in asked if not text.startswith("2 + 3 |")]  # but for the request before a run

    whole = run(tmp_path / "whole")
    parts = run(tmp_path / "parts", stop_after=2)
    parts += run(tmp_path / "parts", resume=True)
    assert Counter(parts) == Counter(whole)
    assert sum("latest last" in text for text in whole) >= 4
    for name in ("critiques", "contexts"):
        rows = [
            [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "cached", "attempts")} for line in file]
            for file in ((tmp_path / folder / f"{name}.jsonl").open(encoding="utf-8") for folder in ("whole", "parts"))
        ]
        assert rows[0] == rows[1]


# ---------------------------------------------------------------------------------------------------------------------
# The solver as its own critic


@pytest.mark.parametrize(("weights", "moves"), [("live", True), ("initial", False)])
def test_the_solver_as_its_own_critic_is_live_or_frozen(weights: str, moves: bool) -> None:
    import torch

    config = changed(load_config("arithmetic"), {
        "critic.solver_weights": weights, "sampling.temperature": 0.01, "sampling.max_completion_length": 24,
    })  # fmt: skip
    session = open_session(config, silent)
    critic = make_critic(config, None, ["self_critique"], session=session)
    assert critic is not None
    before = wait_for(critic.critique(attempt())).raw
    assert wait_for(critic.critique(attempt())).raw == before
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in session.solver.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    wait_for(session.sampler.publish(dict(session.solver.model.named_parameters()), 1))
    assert (wait_for(critic.critique(attempt())).raw != before) == moves
    session.close()
