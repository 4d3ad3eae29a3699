"""Word problems: solved again from their sentences, kept apart, and worded as the shares say."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from stepalign.config import load_config
from stepalign.domains.math import grade
from stepalign.domains.table import find_domain, load_sets
from stepalign.domains.words.domain import find_truth
from stepalign.domains.words.stories import KINDS, Story
from stepalign.domains.words.task import SIZES, SOURCE, Options, draw_stories, make_problem, parse_source
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet
from stepalign.problems.sets import find_overlaps
from stepalign.records import Attempt, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GAINS, LOSSES = r"finds|gets|buys|wins|adds", r"loses|gives|sells|breaks|cuts"


def stories(kind: str, count: int, **options: object) -> list[Story]:
    return list(islice(draw_stories(Options(kinds=(kind,), **options), "train"), count))  # type: ignore[arg-type]


def _changes(text: str, start: int) -> int:
    for sentence in text.split(". "):
        number = re.search(r"\d+", sentence)
        if number and re.search(rf"\b({GAINS})\b", sentence):
            start += int(number.group())
        elif number and re.search(rf"\b({LOSSES})\b", sentence):
            start -= int(number.group())
    return start


def _solve_changes(text: str) -> int:
    begin = re.search(r"(?:has|are) (\d+) \w+(?: in the box of \w+)?\.", text)
    assert begin
    return _changes(text.replace(begin.group(), "", 1), int(begin[1]))


def _solve_units(text: str) -> int:
    begin = re.search(r"(?:has|of) (\d+) (meters|hours|feet)", text)
    assert begin
    return _changes(text, int(begin[1]) * {"meters": 100, "hours": 60, "feet": 12}[begin[2]])


def _solve_comparison(text: str) -> int:
    first = re.match(r"(\w+) has (\d+)", text)
    assert first
    owned = {first[1]: int(first[2])}
    for name, amount, sign, other in re.findall(r"(\w+) has (\d+) (more|fewer|less) than (\w+)", text):
        owned[name] = owned[other] + int(amount) * (1 if sign == "more" else -1)
    if "the three" in text:
        return sum(owned.values())
    if pair := re.search(r"does? (\w+) and (\w+) have|do (\w+) and (\w+) have", text):
        return sum(owned[name] for name in pair.groups() if name)
    asked = re.search(r"does (\w+) have\?", text)
    assert asked
    return owned[asked[1]]


def _solve_money(text: str) -> int:
    bought = re.search(r"buys (\d+) \w+ at (\d+) dollars", text) or re.search(
        r"costs (\d+) dollars, and \w+ buys (\d+)", text
    )
    other = re.search(r"(?:also buys|takes) a \w+ for (\d+) dollars", text)
    assert bought
    assert other
    cost = int(bought[1]) * int(bought[2]) + int(other[1])
    paid = re.search(r"(?:pays with|has) (\d+) dollars\.", text)
    gift = re.search(r"gets (\d+) dollars", text)
    return cost if paid is None else int(paid[1]) - cost + int(gift[1] if gift else 0)


def _solve_times(text: str) -> int:
    monday = re.search(r"(\d+) minutes on Monday", text)
    more = re.search(r"(\d+) minutes (?:longer|more)", text)
    rest = re.search(r"Wednesday it is (\d+)|(\d+) minutes on Wednesday", text)
    assert monday
    assert more
    total = 2 * int(monday[1]) + int(more[1])
    if "twice" in text:
        return total + 2 * int(monday[1])
    return total + (int(rest[1] or rest[2]) if rest else 0)


def _solve_groups(text: str) -> int:
    groups = re.search(r"(\d+) (?:boxes|bags) (?:with|are) (\d+)", text)
    change = re.search(r"(finds|gives away) (\d+)", text)
    assert groups
    assert change
    total = int(groups[1]) * int(groups[2]) + int(change[2]) * (1 if change[1] == "finds" else -1)
    children = re.search(r"by (\d+) children", text)
    more = re.search(r"already has (\d+)", text)
    return total // int(children[1] if children else 1) + int(more[1] if more else 0)


SOLVERS = {
    "changes": _solve_changes, "money": _solve_money, "times": _solve_times,
    "comparison": _solve_comparison, "groups": _solve_groups, "units": _solve_units,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_story_has_the_answer_that_its_sentences_lead_to(kind: str) -> None:
    for story in stories(kind, 150):
        assert SOLVERS[kind](story.question) == story.answer, story
        assert story.other[-1].result == story.answer
        for step in (*story.route, *story.other):
            assert eval(f"{step.left} {step.operator} {step.right}") == step.result >= 0


def test_a_story_has_as_many_calculations_as_asked_and_a_distraction_as_often() -> None:
    assert {len(s.route) for kind in KINDS for s in stories(kind, 60)} == {2, 3, 4}
    assert all(len(s.route) == 3 for kind in KINDS for s in stories(kind, 30, steps=(3, 3)))
    for share in (0.0, 0.5, 1.0):
        found = stories("changes", 200, distractors=share)
        extra = sum(len(s.sentences) - 2 - len(s.route) for s in found)
        assert abs(extra / 200 - share) < 0.12


def test_sets_are_apart_in_their_calculations_too() -> None:
    calculations = {
        name: {tuple(sorted(step.text for step in story.route)) for story in islice(draw_stories(Options(), name), 300)}
        for name in SIZES
    }
    for name, others in calculations.items():
        for other in calculations.keys() - {name}:
            assert not others & calculations[other]
    config = load_config(None, {"data.train": SOURCE, "data.validation": SOURCE, "data.test": SOURCE})
    sets = load_sets(config.data)
    assert [len(found.problems) for found in sets.values()] == [600, 200, 400]
    assert not find_overlaps({name: found.problems for name, found in sets.items()})


def test_references_follow_the_shares_and_keep_theirs_when_a_share_grows() -> None:
    drawn = list(islice(draw_stories(Options(), "train"), 300))
    for share in (0.0, 0.3, 0.7, 1.0):
        problems = [make_problem(story, rho=share, reworded=share) for story in drawn]
        other = [p.metadata["reference_route"] == "other" for p in problems]
        worded = [not (p.reference or "").startswith("<step_1>") for p in problems]
        assert abs(sum(other) / 300 - share) < 0.1
        assert abs(sum(worded) / 300 - share) < 0.1
        larger = [make_problem(story, rho=min(1.0, share + 0.2), reworded=share) for story in drawn]
        assert all(p.metadata["reference_route"] == "other" for p, known in zip(larger, other, strict=True) if known)


def test_solutions_and_references_are_right_by_the_grader_and_state_every_result() -> None:
    for story in islice(draw_stories(Options(), "test"), 60):
        for rho, reworded in ((0.0, 0.0), (1.0, 1.0)):
            problem = make_problem(story, rho=rho, reworded=reworded)
            assert grade(problem.metadata["solution"], problem.answer).verdict == "correct"
            assert problem.reference
            assert grade(problem.reference, problem.answer).verdict == "correct"
            numbers = re.findall(r"\d+", problem.reference)
            assert {str(step.result) for step in (story.other if rho else story.route)} <= set(numbers)


@pytest.mark.parametrize(
    "source",
    [
        "embedded:wordss",
        *(
            f"{SOURCE}?{query}"
            for query in ("kinds=chnages", "kinds=", "kind=units", "steps=1", "steps=2-5", "steps=4-3")
        ),
        *(f"{SOURCE}?{query}" for query in ("numbers=five", "numbers=3", "distractors=2")),
    ],
)
def test_a_source_that_cannot_be_drawn_is_refused_with_an_example(source: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_source(source)
    assert "kinds=changes+money&steps=2-4" in (found.value.hint or "")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("kinds=monye", "called monye; did you mean money?"),
        ("kinds=Money", "did you mean money?"),
        ("step=3", "no key 'step'; did you mean steps?"),
        ("numbers=20&numbers=40", "given twice"),
        ("kinds=,", "no kind of word problem is named"),
    ],
)
def test_what_is_wrong_in_a_source_is_named(query: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_source(f"{SOURCE}?{query}")


def test_a_set_that_is_too_small_is_an_error_and_no_endless_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepalign.domains.words.task.MAX_IDLE", 2_000)
    with pytest.raises(ConfigError, match="no more than 0 different word problems in the set train"):
        next(draw_stories(Options(kinds=("times",), steps=(2, 2), numbers=6), "train"))
    with pytest.raises(ConfigError, match=r"no more than \d+ different"):
        list(draw_stories(Options(kinds=("times",), steps=(2, 2), numbers=6, distractors=0.0), "test"))


def test_a_recipe_finds_the_domain_by_its_source() -> None:
    config = load_config(None, {"data.train": f"{SOURCE}?kinds=units&steps=2", "data.max_train": 5})
    domain = find_domain(config.data)
    assert domain.name == "words"
    found = domain.load(config.data.train, config.data, "train", 5)
    assert isinstance(found, ProblemSet)
    assert {p.metadata["kind"] for p in found.problems} == {"units"}
    again = domain.load(config.data.train, config.data, "train", 5)
    assert [p.question for p in again.problems] == [p.question for p in found.problems]


def test_the_truth_names_the_first_wrong_token_and_the_result_of_a_step(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    problem = Problem(
        problem_id="p",
        question="Mia has 80 stamps. Mia finds 48 more. Mia loses 31. How many stamps does Mia have now?",
        answer="97",
        metadata={"calculations": ["80 + 48 = 128", "128 - 31 = 97"]},
    )
    truth = find_truth(byte_tokenizer)
    for text, right in (
        ("<step_1> 80 + 48 = 118\n<step_2> 118 - 31 = 87\n<answer> 87", "<step_1> 80 + 48 = 12"),
        ("<step_1> 80 + 48 = 128\n<step_2> 128 + 31 = 159\n<answer> 159", "<step_1> 80 + 48 = 128\n<step_2> 128 -"),
        ("<step_1> 80 + 48 = 128\n<step_2> 128 - 31 = 97\n<answer> 97", ""),
        ("<step_1> 80 + 48 = 128\n<step_2> 128", ""),
    ):
        ids = byte_tokenizer.encode(text, add_special_tokens=False)
        found = truth.wrong_result(Attempt(rollout_id="r", problem=problem, text=text), ids)
        assert (found is None) == (not right)
        if found is not None:
            shown = byte_tokenizer.decode([*ids[: found[0]], found[1]])  # a token may hold the blank in front of a sign
            assert shown in (right, right[:-1])
            assert ids[found[0]] != found[1]
    step = byte_tokenizer.encode("<step_1> 80 + 48 = 128\n", add_special_tokens=False)
    place = truth.result_of(step)
    assert place is not None
    assert str(byte_tokenizer.decode(step[place:])).startswith("128")
    assert truth.result_of(byte_tokenizer.encode("<answer> 128", add_special_tokens=False)) is None
