"""The text of a served critic follows the design: its own prompt, its own reading, its own place in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from fault_server import FaultServer, reply_to
from hypothesis import given
from hypothesis import strategies as st

from stepalign.build import make_critic
from stepalign.config import CriticSection, load_config
from stepalign.critics import CRITIC_PROMPTS, critic_prompt
from stepalign.critics.endpoint import EndpointCritic
from stepalign.domains.math.grade import Grade
from stepalign.feedback import critique as reasons
from stepalign.feedback.critique import parse_comment, parse_critique
from stepalign.feedback.designs import critique_forms
from stepalign.feedback.edits import kept_verbatim
from stepalign.feedback.prompts import load_template
from stepalign.records import Attempt, Critique, CritiqueForm, Problem
from stepalign.waiting import wait_for

MADE_OF_TRACES = ("own", "second_turn", "turns", "edits")  # by the solver itself, or of several turns
FORMS = [form for form in get_args(CritiqueForm) if form not in MADE_OF_TRACES]
ATTEMPT = Attempt(
    rollout_id="r",
    problem=Problem(problem_id="p", question="1 + 1 + 1", answer="3", reference="two and one"),
    text="1 + 1 = 3",
    grade=Grade(score=0.0),
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.stop()


def ask(server: FaultServer, form: CritiqueForm, **options) -> Critique:
    structured = options.pop("structured", False)
    section = CriticSection(
        base_urls=(server.url,), model="critic", sees="nothing", temperature=0.6, structured=structured
    )
    critic = EndpointCritic(section, form=form, prompt=CRITIC_PROMPTS[form], **options)
    try:
        return wait_for(critic.critique(ATTEMPT))
    finally:
        critic.close()


def test_each_form_is_asked_for_and_paid_for_once(server: FaultServer, tmp_path: Path) -> None:
    found = {form: ask(server, form, cache_path=tmp_path / "cache.db") for form in FORMS}
    assert {form: critique.form for form, critique in found.items()} == {form: form for form in FORMS}
    systems = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(systems)) == len(FORMS)
    assert len({critique.prompt_hash for critique in found.values()}) == len(FORMS)
    assert all("1 + 1 = 3" in body["messages"][1]["content"] for body in server.bodies)
    again = {form: ask(server, form, cache_path=tmp_path / "cache.db") for form in FORMS}
    assert len(server.bodies) == len(FORMS)
    assert {form: c.text for form, c in again.items()} == {form: c.text for form, c in found.items()}


def test_a_trace_is_parsed_and_a_comment_is_taken_as_it_is(server: FaultServer) -> None:
    for form in ("trace", "paraphrase"):
        critique = ask(server, form)
        assert critique.text.startswith("<step_1> about")
        assert critique.case == "D"
    for form in ("hint", "comment"):
        critique = ask(server, form)
        assert critique.text == reply_to(server.bodies[-1]["messages"][-1]["content"]).removeprefix(
            "<think>hm</think>\n"
        )
        assert critique.case == ""


def test_only_traces_can_be_asked_for_as_json(server: FaultServer) -> None:
    for form in FORMS:
        ask(server, form, structured=True)
    assert len({body["messages"][0]["content"] for body in server.bodies}) == len(FORMS)
    for body in server.bodies:
        wants_words = body["messages"][0]["content"].startswith(("You help a student", "You review", "You edit"))
        assert ("response_format" in body) != wants_words


def test_no_prompt_shows_more_than_the_critic_may_see() -> None:
    for name in CRITIC_PROMPTS.values():
        given = {"question": "Q", "attempt": "A", "structured": False, "truncated": False}
        blind = load_template(name).messages(**given, sees="nothing")
        assert "right_answer" not in blind[1]["content"]
        seeing = load_template(name).messages(**given, sees="solution", answer="ANSWER", solution="SOLUTION")
        assert "ANSWER" in seeing[1]["content"]
        assert "SOLUTION" in seeing[1]["content"]


def test_what_makes_a_comment_unusable() -> None:
    assert parse_comment("Look at step 2.").text == "Look at step 2."
    assert parse_comment("<think>so</think> Look.").text == "Look."
    assert parse_comment("", "stop").reason == reasons.EMPTY
    assert parse_comment(None).reason == reasons.EMPTY
    assert parse_comment("<think>only this").reason == reasons.ONLY_THINKING
    assert parse_comment("Look at", "length").reason == reasons.CUT
    assert parse_comment("Look", "content_filter").reason == reasons.FILTERED


@given(reply=st.text(), finish=st.sampled_from(["stop", "length", "odd", None]))
def test_whatever_is_no_trace_may_still_be_a_comment(reply: str, finish: str | None) -> None:
    comment, trace = parse_comment(reply, finish), parse_critique(reply, finish)
    assert (comment.status == "ok") == bool(comment.text) == (not comment.reason)
    assert comment.text == comment.text.strip()
    assert trace.status != "ok" or comment.status == "ok"


# ---------------------------------------------------------------------------------------------------------------------
# From a recipe


def test_the_design_names_the_form_and_the_recipe_may_name_the_prompt() -> None:
    assert critique_forms(["hint", "step_aligned", "no_repeat", "verdict", "hint"]) == ["hint", "trace"]
    config = load_config("gsm8k")
    assert [critic_prompt(config.prompts.critic, form) for form in FORMS] == [
        "scribe",
        "paraphrase",
        "hint",
        "free_critique",
        "edit",
    ]
    own = load_config("gsm8k", ["prompts.critic=mine.jinja"])
    assert [critic_prompt(own.prompts.critic, form) for form in FORMS] == ["mine.jinja"] * len(FORMS)


def test_a_served_critic_writes_what_the_design_asks_for(server: FaultServer, tmp_path: Path) -> None:
    settings = [f"critic.base_urls=['{server.url}']", "critic.model=critic"]
    critic = make_critic(load_config("gsm8k", settings), tmp_path, ["verdict", "free_critique"])
    assert critic is not None
    try:
        critique = wait_for(critic.critique(ATTEMPT))
    finally:
        critic.close()
    assert critique.form == "comment"
    assert server.bodies[-1]["messages"][0]["content"].startswith("You review")


@pytest.mark.parametrize(
    ("text", "edited", "shown"),
    [
        (
            "The town lies on a river.  It has two\u2019 bridges. It is old.",
            "The town lies on a river. It has two' bridges. It was founded in 1200.",
            "The town lies on a river. It has two\u2019 bridges. It was founded in 1200.",
        ),
        ("One is right. Two is wrong.", "One is right.", "One is right."),
        ("Two is wrong.", "Two is right. And a third.", "Two is right. And a third."),
        ("A b.\n\nC d. E f.", "A  b. New. C d. E f.", "A b. New. C d. E f."),
        ("<step_1> 2 + 1 = 3 ; <answer> 4", "<step_1> 2 + 1 = 3 ; <answer> 3", "<step_1> 2 + 1 = 3 ; <answer> 3"),
        ("Repeat. Repeat. End.", "Repeat. End.", "Repeat. End."),
        ("", "Something.", "Something."),
    ],
)
def test_an_edit_keeps_right_sentences_to_the_character(text: str, edited: str, shown: str) -> None:
    assert kept_verbatim(text, edited) == shown
