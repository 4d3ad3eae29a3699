"""Methods as data: the terms on which a rollout trains, and the size of an advantage, by hand."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

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


METHODS = load_config(find_recipe("methods"))
ARMS = pytest.mark.parametrize("arm", METHODS.compare.arms, ids=lambda arm: arm.name)


@ARMS
def test_every_row_of_the_methods_has_a_signal(arm) -> None:
    config = load_config(find_recipe("methods"), arm.set)
    condition = check_terms(config.condition, config.sampling, config.training, config.objective)
    example = Facts(verdict="incorrect", has_context=True, first_error=0, step=0)
    found = HYBRIDS[config.objective.hybrid].weigh(condition, example, config.objective)
    assert found.distillation_weight or found.policy_weight


# ---------------------------------------------------------------------------------------------------------------------
# Recipe, page and a computation by hand for every row

LOSS = "training/test_learner.py: test_the_loss_of_each_method_is_its_formula"
WEIGHTS = "training/test_teacher.py: test_ema_is_the_geometric_sum"
SHOWN = "feedback/test_designs.py: test_what_each_design_shows"
SIZED = "rollouts/test_rollouts.py: test_rlsd_keeps_the_advantage_and_lets_the_teacher_size_it_ever_less"
CONTRAST = "rollouts/test_rollouts.py: test_cepo_and_a_calibrated_signal_have_a_second_prompt_in_the_same_words"
OTHER_MODEL = "training/test_other_teacher.py: test_the_loss_is_the_divergence_from_the_other_model"
SKIPPED = "rollouts/test_rollouts.py: test_skipping_gives_the_gradient_of_the_other_groups_alone"
NORM = "training/test_learner.py: test_the_step_is_that_of_adamw_on_the_clipped_gradient"
SCALED = "objectives/test_policy_gradient.py: test_group_advantages_by_hand"
BY_HAND = {
    "condition = stepalign": "feedback/test_designs.py: test_the_papers_three_conditions",
    "condition = refsol": "feedback/test_designs.py: test_the_papers_three_conditions",
    "condition = grpo": "objectives/test_policy_gradient.py: test_group_advantages_by_hand",
    "condition = peer_demonstration": SHOWN,
    "condition = answer": SHOWN,
    "condition = shortest_sibling": (
        "rollouts/test_methods.py: test_the_shortest_right_attempt_teaches_the_longest_wrong_one"
    ),
    "condition = majority": (
        "feedback/test_designs.py: test_the_majority_is_the_shortest_other_attempt_with_the_most_frequent_answer"
    ),
    "condition = second_turn": (
        "rollouts/test_own_critic.py: test_the_second_turn_is_the_critique_and_an_attempt_made_with_it"
    ),
    "condition = self_critique": (
        "rollouts/test_own_critic.py: test_the_solver_as_critic_sees_question_and_attempt_and_locates_nothing"
    ),
    "critic.solver_weights = initial": (
        "critics/test_variants.py: test_the_solver_as_its_own_critic_is_live_or_frozen"
    ),
    "condition = fixed_negative": (
        "rollouts/test_stream.py: "
        "test_the_fixed_negative_control_punishes_unlikely_tokens_of_wrong_rollouts_and_nothing_else"
    ),
    "condition = gkd": OTHER_MODEL,
    "objective.teacher.model": OTHER_MODEL,
    "objective.hybrid = weighted_sum": "rollouts/test_rollouts.py: test_a_weighted_sum_trains_every_rollout_on_both",
    "objective.hybrid = rlsd": SIZED,
    "objective.rlsd_mixing": SIZED,
    "objective.rlsd_decay_steps": SIZED,
    "objective.hybrid = srpo": (
        "rollouts/test_rollouts.py: test_srpo_sends_wrong_rollouts_to_the_teacher_and_the_others_to_the_verdict"
    ),
    "objective.hybrid = rosd": "rollouts/test_rollouts.py: test_rosd_trains_from_the_first_wrong_step_on",
    "objective.hybrid = rebellious": (
        "rollouts/test_methods.py: test_the_turned_size_is_the_ratio_of_student_to_teacher"
    ),
    "objective.hybrid = cliff": "rollouts/test_methods.py: test_on_a_cliff_the_self_teacher_takes_over",
    "objective.hybrid = cepo": CONTRAST,
    "objective.hybrid = calibrated": CONTRAST,
    "objective.teacher.weights = ema": WEIGHTS,
    "objective.teacher.ema_decay": WEIGHTS,
    "objective.teacher.weights = trust_region": LOSS,
    "objective.teacher.live_share": LOSS,
    "objective.scale_rewards": SCALED,
    "sampling.skip_zero_std_groups": SKIPPED,
    "training.max_grad_norm": NORM,
    **dict.fromkeys(
        (
            "objective.divergence", "objective.top_k", "objective.importance_clip", "objective.entry_clip",
            "objective.epsilon_high", "objective.beta", "objective.loss_type", "objective.discrepancy_weight",
            "objective.position_weight",
        ),
        LOSS,
    ),
}  # fmt: skip
"""A setting of a method, with or without its value -> file and test that computes it by hand."""


@ARMS
def test_every_row_of_the_methods_is_on_the_page_and_computed_by_hand(arm) -> None:
    settings = {"condition": METHODS.condition, **arm.set}
    page = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if re.match(rf"\|[^|]*\| `{arm.name}`[ |]", line)]
    used = []
    for key, value in settings.items():
        used += [name for name in (f"{key} = {value}", key) if name in BY_HAND][:1] or [f"{key} = {value}: by no test"]
        assert f"{key.removeprefix('objective.')}=" in row.replace("`", ""), f"{key} is not on the page"
    for setting in used:
        file, _, test = BY_HAND[setting].partition(": ")
        tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, setting
