"""Methods as data: the terms on which a rollout trains, and the size of an advantage, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stepalign.config import find_recipe, load_config
from stepalign.config.schema import ObjectiveSection
from stepalign.feedback.designs import find_condition, make_contexts, make_group
from stepalign.objectives.policy_gradient import sized_advantages
from stepalign.records import Attempt, Grade, Problem
from stepalign.rollouts.credit import HYBRIDS, Facts, check_terms

REFSOL = find_condition("refsol")


def weights(hybrid: str, verdict: str, *, context: bool = True, solved: bool = True) -> tuple[float, float, float]:
    facts = Facts(verdict=verdict, has_context=context, first_error=None, step=0, group_solved=solved)  # type: ignore[arg-type]
    found = HYBRIDS[hybrid].weigh(REFSOL, facts, ObjectiveSection())  # type: ignore[index]
    return found.distillation_weight, found.policy_weight, found.magnitude_mixing


@pytest.mark.parametrize(
    ("verdict", "context", "solved", "expected"),
    [
        ("incorrect", True, False, (1.0, 0.0, 0.0)),
        ("undecided", True, False, (1.0, 0.0, 0.0)),
        ("incorrect", True, True, (0.0, 1.0, 0.0)),
        ("correct", True, True, (0.0, 1.0, 0.0)),
        ("incorrect", False, False, (0.0, 1.0, 0.0)),
    ],
)
def test_on_a_cliff_the_self_teacher_takes_over(verdict, context, solved, expected) -> None:
    assert weights("cliff", verdict, context=context, solved=solved) == expected


@pytest.mark.parametrize(
    ("verdict", "context", "expected"),
    [
        ("correct", True, (0.0, 1.0, -1.0)),
        ("correct", False, (0.0, 1.0, 0.0)),
        ("incorrect", True, (0.0, 1.0, 0.0)),
        ("undecided", True, (0.0, 1.0, 0.0)),
    ],
)
def test_a_rebellious_student_turns_the_signal_around_on_correct_rollouts(verdict, context, expected) -> None:
    assert weights("rebellious", verdict, context=context) == expected


@pytest.mark.parametrize("advantage", [1.5, -0.5])
@pytest.mark.parametrize("log_ratio", [-3.0, -0.1, 0.0, 0.05, 2.0])
def test_the_turned_size_is_the_ratio_of_student_to_teacher(advantage: float, log_ratio: float) -> None:
    """RLRT: A (p_S / p_T)^sign(A), here clipped to [0.8, 1.2]; written with powers, not with logarithms."""
    ratio = 1.0 / math.exp(log_ratio)
    power = ratio if advantage > 0 else 1.0 / ratio
    expected = advantage * min(max(power, 0.8), 1.2)
    found = sized_advantages(torch.tensor([advantage]), torch.tensor([log_ratio]), mixing=torch.tensor([-1.0]))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_shortest_right_attempt_teaches_the_longest_wrong_one() -> None:
    problem = Problem(problem_id="p", question="q", answer="1")
    texts = [("aaa", 0.0), ("bbbbb", 1.0), ("cccccc", 0.0), ("dd", 1.0), ("eeeeee", 0.0)]
    attempts = [Attempt(rollout_id=text, problem=problem, text=text, grade=Grade(score)) for text, score in texts]
    shown = make_contexts("shortest_sibling", make_group(attempts, {}))
    assert [one.text for one in shown] == [None, None, "dd", None, None]
    assert shown[4].masked == "not the longest wrong attempt of its group"
    wrong = make_contexts("shortest_sibling", make_group(attempts[:1], {}))
    assert wrong[0].masked == "no correct sibling"


@pytest.mark.parametrize("arm", load_config(find_recipe("methods")).compare.arms, ids=lambda arm: arm.name)
def test_every_row_of_the_methods_has_a_signal(arm) -> None:
    config = load_config(find_recipe("methods"), arm.set)
    condition = check_terms(config.condition, config.sampling, config.training, config.objective)
    example = Facts(verdict="incorrect", has_context=True, first_error=0, step=0)
    found = HYBRIDS[config.objective.hybrid].weigh(condition, example, config.objective)
    assert found.distillation_weight or found.policy_weight
