"""docs/designs.md shows what the designs show: every block on the page is rendered again here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign.critics.variants import TurnByTurn
from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grade import Grade
from stepalign.domains.python.grading import grade_code
from stepalign.domains.python.sandbox import why_unavailable
from stepalign.feedback.designs import DESIGNS, Group, find_design, make_contexts
from stepalign.feedback.designs.custom import TEMPLATE_NEEDS
from stepalign.feedback.designs.design import joined
from stepalign.feedback.prompts import load_template
from stepalign.problems.loading import load_problems
from stepalign.records import Attempt, Problem, Turn
from stepalign.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "designs.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.M | re.S)
    assert found, f"no section {heading}"
    return found[2]


def block(heading: str, number: int = 0) -> str:
    return re.findall(r"^```\w*\n(.*?)^```", section(heading), re.M | re.S)[number].rstrip("\n")


def attempt_at(problem: Problem, name: str, text: str, verdict: str) -> Attempt:
    return Attempt(rollout_id=name, problem=problem, text=text, grade=Grade.of(verdict))


def arithmetic_group(form: str) -> Group:
    question, attempt, right, wrong = block("The attempt").splitlines()
    problem, other = (make_problem(parse_question(text), rho=1.0) for text in (question, "8 - 3 + 9"))
    texts = {"a": (attempt, "incorrect"), "b": (right, "correct"), "c": (wrong, "incorrect")}
    attempts = [attempt_at(problem, name, *texts[name]) for name in texts]
    if form == "majority":
        texts["d"] = texts["b"]
        attempts = [attempt_at(problem, name, *texts[name]) for name in texts]
        answers = (one.text.split()[-1] for one in attempts)
        attempts = [replace(one, grade=replace(one.grade, answer=next(answers))) for one in attempts]
    stranger = attempt_at(other, "x", "<step_1> 8 - 3 = 4 ;", "incorrect")
    critic = ArithmeticCritic(form="trace" if form in ("own", "second_turn", "majority") else form)  # type: ignore[arg-type]
    critiques = [critic.write(one) for one in attempts]
    if form == "second_turn":
        critiques = [replace(one, text=joined(one.text, right)) for one in critiques]
    return Group(
        problem=problem,
        attempts=attempts,
        critiques=critiques,
        elsewhere=[critic.write(stranger)],
        other_problems=[problem, other],
    )


def conversation_group(form: str) -> Group:
    """The conversation of the page, as a wrong attempt and as a right one."""
    question, *_ = block("The attempt").splitlines()
    problem = make_problem(parse_question(question), rho=1.0)
    parts = re.findall(r"^\[(\w+)\]\n(.*?)(?=\n\n\[|\Z)", block("A conversation"), re.M | re.S)
    turns = tuple(Turn(role=role, text=text, start=at, end=at + 1) for at, (role, text) in enumerate(parts))  # type: ignore[arg-type]
    attempts = [
        replace(attempt_at(problem, name, parts[0][1], verdict), turns=turns)
        for name, verdict in (("a", "incorrect"), ("b", "correct"))
    ]
    critic = ArithmeticCritic(form="trace" if form == "turns" else form)  # type: ignore[arg-type]
    asked = TurnByTurn(critic, reads_questions=False) if form == "turns" else critic
    return Group(problem=problem, attempts=attempts, critiques=[wait_for(asked.critique(one)) for one in attempts])


def python_group() -> Group:
    (problem, *_) = load_problems(ROOT / "recipes" / "data" / "python_problems.jsonl", "python").problems
    text = "```python\n" + block("`execution_trace`") + "\n```"
    attempt = replace(attempt_at(problem, "a", text, "incorrect"), grade=grade_code(text, problem.answer))
    return Group(problem=problem, attempts=[attempt], critiques=[None])


@pytest.mark.parametrize("name", DESIGNS)
def test_the_page_shows_what_the_design_shows(name: str) -> None:
    design = DESIGNS[name]
    text = section(f"`{name}`")
    if not design.has_context:
        return
    if name == "execution_trace":
        if why_unavailable():
            pytest.skip(f"no sandbox here: {why_unavailable()}")
        assert block(f"`{name}`", 1) == make_contexts(name, python_group())[0].text
    elif name in ("hindsight", "tool_error", "turn_critique", "episode_critique", "sibling_episode"):
        contexts = make_contexts(name, conversation_group(design.form))
        assert block(f"`{name}`") == next(one.text for one in contexts if one.text)
    else:
        assert (
            block(f"`{name}`")
            == make_contexts(name, arithmetic_group("majority" if name == "majority" else design.form))[0].text
        )
    assert f"> {design.introduction}" in text
    named = re.search(r"^Needs: (.*)\.$", text, re.M)
    assert (named[1].split(", ") if named else []) == list(design.needs)


def test_the_example_of_a_function_works(tmp_path: Path) -> None:
    file = tmp_path / "designs.py"
    file.write_text(block("A function"), encoding="utf-8")
    (context, *_) = make_contexts(f"{file}:last_right_step", arithmetic_group("trace"))
    assert context.text == block("A function", 1)
    assert find_design(f"{file}:last_right_step").needs == ("critic",)


def test_the_example_of_a_template_works(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(block("A template"), encoding="utf-8")
    (context, *_) = make_contexts(str(file), arithmetic_group("trace"))
    assert context.text == block("A template", 1)
    for variable in TEMPLATE_NEEDS:
        assert f"| `{variable}` |" in section("A template")


def test_the_prompt_on_the_page_is_the_prompt() -> None:
    group = arithmetic_group("trace")
    (context, *_) = make_contexts("step_aligned", group)
    shown = load_template("self_teacher").render(
        question=group.problem.question, introduction=context.introduction, feedback=context.text
    )
    assert block("The text that the self-teacher reads") == shown
    assert isinstance(group.problem, Problem)
