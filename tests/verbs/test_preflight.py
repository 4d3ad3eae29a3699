"""``stepalign preflight`` on the embedded solver: the files, the exit code, and the parts of its numbers one by one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stepalign
from stepalign import Problem
from stepalign.errors import ConfigError
from stepalign.evaluation.canaries import mentions_feedback
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.divergences import find_divergence
from stepalign.records import Completion, Sample
from stepalign.report.payload import what_ifs
from stepalign.rollouts.collect import RolloutMaker
from stepalign.token_signal.counterfactual import Spike, agreement, resample, suppressed
from stepalign.token_signal.evidence import (
    gain,
    gives_away,
    holds_answer,
    share,
    token_numbers,
)
from stepalign.token_signal.table import NULL, SERIES, SHUFFLED, MarkedStep, ScoredCompletion, TokenTable
from stepalign.training.first_step import gradient_sizes
from stepalign.training.loss import Objective
from stepalign.verbs.preflight import PreflightError, refuse_no

SMALL = {"data.max_train": 40, "signal.num_shown": 2, "signal.top_k": 2}


@pytest.mark.slow
def test_a_look_has_a_verdict_for_every_design(tmp_path: Path) -> None:
    names = ("step_aligned", "full_repeat", "fixed_negative")
    found = stepalign.preflight(
        "arithmetic", SMALL, out=tmp_path / "look", designs=names, num=12, listener=stepalign.silent
    )
    assert found == json.loads((tmp_path / "look" / "preflight.json").read_text(encoding="utf-8"))
    assert list(found["designs"]) == list(names)
    assert found["condition"] == "step_aligned"
    for row in found["designs"].values():
        assert row["verdict"] in ("go", "doubtful", "no")
        assert len(row["reasons"]) == len(row["details"])
        for number in row["numbers"].values():
            assert number["low"] is None or number["low"] <= number["value"] <= number["high"]
    good, bad, control = (found["designs"][name] for name in names)
    assert good["numbers"]["wrong_token"]["high"] < 0
    assert good["numbers"]["gain_where_wrong"]["low"] > 0
    assert bad["verdict"] == "no"
    assert bad["details"][0]["rule"] == "teaches_the_error"
    assert bad["details"][0]["loud"]
    assert [detail["rule"] for detail in control["details"]] == ["no_teacher"]
    assert "strength_null" in good["numbers"]
    for place in ("right", "wrong_step", "style", "first", "last", "forks"):
        assert 0 <= good["numbers"][place]["value"] <= 1
    assert good["counterfactual"]["rows"]
    page = (tmp_path / "look" / "index.html").read_text(encoding="utf-8")
    for row in found["designs"].values():
        assert row["label"] in page
    assert found["expected"]["rollouts"] == 62 * 32
    refuse_no(found, tmp_path)
    with pytest.raises(PreflightError, match="raises the wrong tokens") as caught:
        refuse_no({**found, "condition": "full_repeat"}, tmp_path)
    assert caught.value.exit_code == 6


def test_an_unknown_design_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown condition step_alined") as caught:
        stepalign.preflight("arithmetic", out=tmp_path / "x", designs=["step_alined"], listener=stepalign.silent)
    assert caught.value.where == "--designs"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [["condition=gkd"], ["condition=stepalign"]])
@pytest.mark.parametrize("key", ['model="embedded:arithmetic"', 'base_urls=["http://127.0.0.1:1/v1"]'])
def test_another_model_as_the_teacher_is_not_measured_by_the_solver(tmp_path: Path, words: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match="the solver as its own teacher") as caught:
        stepalign.preflight(
            "arithmetic", [*words, f"objective.teacher.{key}"], out=tmp_path / "x", listener=stepalign.silent
        )
    assert caught.value.where == "objective.teacher"
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The update of a first step


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_the_size_of_an_update_is_that_of_the_gradient_by_hand(tiny_solver: Any, name: str) -> None:
    completion, student, teacher = (5, 6, 7, 8), (1, 9), (1, 9, 10, 11)
    sample = Sample(
        rollout_id="r",
        student_prompt_ids=student,
        teacher_prompt_ids=teacher,
        completion_ids=completion,
        sampler_log_probs=(0.0,) * 4,
        loss_mask=(True, True, False, True),
        advantage=0.0,
        distillation_weight=1.0,
        policy_weight=0.0,
    )
    idle = replace(sample, rollout_id="idle", teacher_prompt_ids=None, distillation_weight=0.0)
    divergence = find_divergence(name)
    found, nothing = gradient_sizes(
        tiny_solver, [sample, idle], Objective(temperature=1.3, divergence=divergence), max_tokens=64
    )
    assert not nothing.any()
    with torch.no_grad():
        sides = [completion_hidden(tiny_solver, [(prompt, completion)]).double() for prompt in (student, teacher)]
    head = tiny_solver.head_VH.detach().double()
    hidden = sides[0].clone().requires_grad_(True)
    logs = [(side @ head.T / 1.3).log_softmax(-1) for side in (hidden, sides[1])]
    kl = (logs[1].exp() * (logs[1] - logs[0])) if name == "forward_kl" else (logs[0].exp() * (logs[0] - logs[1]))
    (kl.sum(-1) * torch.tensor([1.0, 1.0, 0.0, 1.0]) / 6).sum().backward()  # six trained tokens in all
    assert hidden.grad is not None
    np.testing.assert_allclose(found, hidden.grad.norm(dim=-1).numpy(), rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What if


def test_suppressed_tokens_are_those_that_the_self_teacher_would_replace() -> None:
    log_ratio = np.array([-1.0, -5.0, 2.0, -3.0, -0.5])
    ids, likeliest = [1, 2, 3, 4, 5], np.array([9, 2, 9, 8, 7])  # the second is the self-teacher's own, if lower
    assert suppressed(log_ratio, ids, likeliest, 2) == [3, 0]
    assert suppressed(log_ratio, ids, likeliest, 9) == [3, 0, 4]
    assert suppressed(np.zeros(5), ids, likeliest, 9) == []


@dataclass
class World:
    """Words by id: a completion is right when it ends in "yes", and "good" leads there more often than "bad"."""

    words = ("<end>", "good", "bad", "yes", "no", "start")

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(self.words[i] for i in ids if i)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.words[token]


class Drawn:
    """After "good" three of four continuations are right, after "bad" one."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []

    async def sample(self, prompts: Any, *, num_samples: int, max_tokens: int, on_finished: Any, **_: Any) -> None:
        for row, prompt in enumerate(prompts):
            self.asked.append((tuple(prompt), max_tokens))
            for index in range(num_samples):
                is_right = index < (3 if prompt[-1] == 1 else 1)
                ids = (3 if is_right else 4, 0)
                on_finished(
                    row, index, Completion(ids=ids, log_probs=(0.0, 0.0), finish_reason="stop", policy_version=0)
                )


class Plain:
    async def reply(self, *_: Any) -> None:
        return None

    async def grade(self, *_: Any) -> None:
        return None


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Any:
    from stepalign.models import prompts
    from stepalign.rollouts import collect

    class Graded:
        def grade_many(self, texts: list[str], answers: list[str]) -> list[Any]:
            return [stepalign.Grade(score=float(t.endswith(a)), answer=a) for t, a in zip(texts, answers, strict=True)]

    for module in (collect, prompts):
        monkeypatch.setattr(module, "decode", lambda world, ids: world.decode(list(ids)))
    monkeypatch.setattr(collect, "opened_by", lambda *_: "")
    return RolloutMaker(tokenizer=World(), sampler=Drawn(), environment=Plain(), grader=Graded())  # type: ignore[arg-type]


def spike(token: int, replacement: int, *, before: tuple[int, ...] = (5,), log_ratio: float = -2.0) -> Spike:
    problem = Problem(problem_id="p", question="q", answer="yes")
    return Spike(
        rollout_id="r",
        context="c",
        problem=problem,
        prompt_ids=(7,),
        before=before,
        token=token,
        replacement=replacement,
        log_ratio=log_ratio,
    )


def test_continuations_of_both_tokens_are_drawn_once_each_and_graded_as_a_whole(maker: Any) -> None:
    spikes = [spike(2, 1), spike(2, 1), spike(1, 2), spike(2, 0, before=(5, 3))]
    rows = resample(maker, spikes, num_samples=4, temperature=1.0, max_tokens=10, seed=0, end_ids=(0,))
    assert [prompt for prompt, _ in maker.sampler.asked] == [(7, 5, 2), (7, 5, 1), (7, 5, 3, 2)]
    assert {room for _, room in maker.sampler.asked} == {8}
    values = [(row["as_written"]["value"], row["replaced"]["value"]) for row in rows]
    assert values == [(0.25, 0.75), (0.25, 0.75), (0.75, 0.25), (0.25, 1.0)]  # the end token leaves "start yes": right
    assert (rows[0]["token"], rows[0]["replacement"], rows[0]["position"]) == ("bad", "good", 1)
    assert all(row["as_written"]["low"] <= row["as_written"]["value"] <= row["as_written"]["high"] for row in rows)


def test_undecided_continuations_are_counted_and_are_no_failures(maker: Any) -> None:
    class Grades:
        """Decides only on texts that end in yes or no."""

        def grade_many(self, texts: list[str], answers: list[str]) -> list[Any]:
            known = [text.endswith(("yes", "no")) and "bad" not in text for text in texts]
            rows = zip(texts, answers, known, strict=True)
            return [stepalign.Grade(score=float(t.endswith(a)) if sure else math.nan, answer=a) for t, a, sure in rows]

    options = {"num_samples": 4, "temperature": 1.0, "max_tokens": 10, "seed": 0, "end_ids": (0,)}
    rows = resample(replace(maker, grader=Grades()), [spike(2, 1), spike(1, 1)], **options)
    bad, good = rows[0]["as_written"], rows[0]["replaced"]
    assert math.isnan(bad["value"])
    assert (bad["undecided"], good["undecided"], good["value"]) == (4, 0, 0.75)
    found = agreement(rows)
    assert (found["spikes"], found["undecided"], found["change"]["value"]) == (1, 1, 0.0)
    shown = what_ifs({"c": {"rows": json.loads(json.dumps(rows[:1]).replace("NaN", "null"))}})
    assert "undefined, 4 undecided as written, 75.0 % [" in shown["r c 1"]
    nothing = agreement(rows[:1])
    assert (nothing["spikes"], nothing["undecided"], nothing["change"]) == (0, 1, None)


def test_the_agreement_is_the_rank_correlation_of_suppression_with_the_change() -> None:
    def row(log_ratio: float, written: float, replaced: float) -> dict[str, Any]:
        return {"log_ratio": log_ratio, "as_written": {"value": written}, "replaced": {"value": replaced}}

    found = agreement([row(-4, 0.0, 1.0), row(-3, 0.2, 0.8), row(-2, 0.3, 0.5), row(-1, 0.5, 0.5)])
    assert found["correlation"]["value"] == pytest.approx(1.0)
    assert found["change"]["value"] == pytest.approx((1.0 + 0.6 + 0.2 + 0.0) / 4)
    assert agreement([])["change"] is None
    assert math.isnan(agreement([])["correlation"]["value"])


# ---------------------------------------------------------------------------------------------------------------------
# Evidence


def test_gains_are_paired_by_problem_and_problems_weigh_the_same() -> None:
    student = {"a": 0.5, "b": 0.0, "c": 1.0}
    found = gain(student, [("a", 1.0), ("a", 0.0), ("a", 0.5), ("b", 1.0)])
    assert found.value == pytest.approx((0.0 + 1.0) / 2)
    assert math.isnan(gain(student, []).value)
    assert share([True, False, False, False], ["a", "b", "b", "b"]).value == 0.5
    assert math.isnan(share([]).value)


@pytest.mark.parametrize(
    ("context", "answer", "held"),
    [
        ("the answer is 12.", "12", True),
        ("so 120 apples", "12", False),
        ("it costs 12.5", "12", False),
        ("it costs 1,12", "12", False),
        ("<answer> 12", "12", True),
        ("x = -12", "12", True),
        ("step 3 is wrong", "", False),
        ("\\frac{1}{2} it is", "\\frac{1}{2}", True),
    ],
)
def test_a_context_holds_the_answer_as_a_word_of_its_own(context: str, answer: str, held: bool) -> None:
    assert holds_answer(context, answer) == held


def test_an_answer_is_given_away_where_the_way_to_it_is_missing() -> None:
    attempt = "one two three four five six seven eight"
    assert gives_away("<answer> 12", "12", attempt)
    assert not gives_away("one two three four 12", "12", attempt)
    assert not gives_away("step 2", "12", attempt)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("As the feedback says, step 2 is wrong.", True),
        ("According to the reference solution we add.", True),
        ("In my previous attempt I added.", True),
        ("The hint tells us to divide.", True),
        ("We add 3 and 4. The first step is wrong-footed.", False),
        ("A positive feedback loop has gain 3.", False),
    ],
)
def test_completions_that_speak_of_their_context(text: str, says: bool) -> None:
    assert mentions_feedback(text) == says


def test_numbers_of_tokens_are_ratios_of_sums_over_attempts() -> None:
    """One attempt with a right and a wrong step, one without an error, by hand."""

    def scored(name: str, tables: dict[str, list[float]], statuses: list[str], wrong: list[int]) -> ScoredCompletion:
        step = np.array([0, 0, 1, 1])
        marked = [MarkedStep(label=str(i + 1), start=5 * i, end=5 * i + 5, status=s) for i, s in enumerate(statuses)]  # type: ignore[arg-type]
        made = {
            context: TokenTable(
                context=context,
                text="",
                tokens=["12", " ;", " 3", " 4"],
                step=step,
                log_ratio=np.array(values),
                student_entropy=np.array([0.1, 0.2, 0.9, 0.3]),
                **{column: np.zeros(4) for column in SERIES if column not in ("log_ratio", "student_entropy")},
            )
            for context, values in tables.items()
        }
        return ScoredCompletion(
            rollout_id=name,
            question="q",
            text="12 ; 3 4  ",
            token_ids=[1, 2, 3, 4],
            tokens=["12", " ;", " 3", " 4"],
            spans=[(0, 2), (2, 4), (4, 6), (6, 8)],
            special=[],
            steps=marked,
            step=step,
            wrong_tokens=wrong,
            tables=made,
        )

    first = scored(
        "a",
        {"c": [0.5, 0.0, -4.0, 0.5], f"c{NULL}": [0.1, 0.1, -0.1, 0.1], f"c{SHUFFLED}": [-1.0, 0.0, 1.0, 0.0]},
        ["right", "wrong"],
        [2],
    )
    second = scored("b", {"c": [1.0, 0.0, 1.0, 1.0]}, ["right", "right"], [])
    found = token_numbers([first, second], "c", {"a": np.array([1.0, 0.0, 3.0, 0.0]), "b": np.array([2.0, 0, 0, 0])})

    def value(name: str) -> Any:
        return pytest.approx(found[name].value)

    assert value("strength") == (5.0 + 3.0) / 8
    assert value("strength_null") == 0.4 / 4
    assert value("strength_shuffled") == 2.0 / 4
    assert value("wrong_token") == -4.0
    assert value("wrong_token_over_null") == -3.9
    assert value("wrong_token_shuffled") == 1.0
    assert value("raised") == 0.0
    assert value("wrong_step") == 4.5 / 5.0  # of wrong attempts alone
    assert value("wrong_step_tokens") == 2 / 4
    assert value("gradient_wrong_step") == 3.0 / 4.0
    assert value("right") == (0.5 + 3.0) / 8.0
    assert value("gradient_right") == (1.0 + 2.0) / 6.0
    assert value("style") == 0.0  # the sign alone is style
    assert value("style_tokens") == 2 / 8
    assert value("forks") == (4.0 + 1.0) / 8.0  # the least certain of four tokens
    assert value("first") == (0.5 + 1.0) / 8.0
    assert math.isnan(found["wrong_token"].low)  # one wrong attempt has no interval
    assert found["strength"].low <= 1.0 <= found["strength"].high
    assert token_numbers([second], "d", {}) == {}
    assert math.isnan(token_numbers([second], "c", {})["wrong_token"].value)
