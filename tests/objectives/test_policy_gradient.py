"""Policy-gradient losses against a GRPO written independently over padded rows, and hand-made numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepalign.objectives.fused import fused_linear_log_probs
from stepalign.objectives.policy_gradient import (
    LOSS_TYPES,
    StepCounts,
    clipped_policy_loss,
    group_advantages,
    kl_to_reference,
    sized_advantages,
    truncated_importance_weights,
)

torch.set_num_threads(1)
NAN = math.nan


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    # mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / (0.5 + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), expected)
    torch.testing.assert_close(group_advantages(rewards, scale="none"), expected * (0.5 + 1e-4))


def test_batch_scale_divides_every_group_by_one_deviation():
    rewards = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    expected = torch.tensor([[0.5, -0.5], [1.0, -1.0]]) / (rewards.flatten().std() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale="batch"), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_undecided_rewards_take_no_part(scale):
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.0], [NAN, NAN, NAN, NAN], [1.0, NAN, NAN, NAN]])
    advantages = group_advantages(rewards, scale=scale)
    assert not advantages.isnan().any()
    assert (advantages[rewards.isnan()] == 0).all()
    assert (advantages[1:] == 0).all()
    if scale != "batch":
        torch.testing.assert_close(
            advantages[:1, [0, 2, 3]], group_advantages(torch.tensor([[1.0, 0.0, 0.0]]), scale=scale)
        )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_teach_nothing(scale):
    rewards = torch.tensor([[0.1] * 7, [0.0] * 7, [1.0] * 7])
    assert (group_advantages(rewards, scale=scale) == 0).all()


def test_clipped_policy_loss_in_its_four_corners():
    ratio = torch.tensor([2.0, 2.0, 0.5, 0.5])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    log_probs = ratio.log().requires_grad_()
    loss, clipped = clipped_policy_loss(log_probs, torch.zeros(4), advantages, epsilon=0.2, epsilon_high=0.3)
    # min(2, 1.3), min(-2, -1.3), min(0.5, 0.8), min(-0.5, -0.8)
    torch.testing.assert_close(loss, -torch.tensor([1.3, -2.0, 0.5, -0.8]))
    assert clipped.tolist() == [True, False, False, True]
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert ((gradient == 0) == clipped).all()


@pytest.mark.parametrize("difference", [-300.0, -90.0, -5.0, 0.1, 79.0, 87.0, 89.0, 120.0, 2000.0])
@pytest.mark.parametrize("advantage", [1.0, -0.5, 0.0])
def test_a_large_log_ratio_makes_nothing_infinite_that_clipping_bounds(difference: float, advantage: float):
    """Where float64 can still say it, the values are its own; a clipped token has gradient 0."""
    log_probs = torch.tensor([-0.1], requires_grad=True)
    sampled = torch.tensor([-0.1 - difference])
    loss, clipped = clipped_policy_loss(log_probs, sampled, torch.tensor([advantage]))
    kl = kl_to_reference(log_probs.detach() + difference, log_probs)
    for value in (loss, kl):
        (gradient,) = torch.autograd.grad(value.sum(), log_probs)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if value is loss and clipped:
            assert gradient == 0
        if value is loss and advantage < 0 and difference > -0.2:
            assert gradient > 0, "no clip bounds it: the token is made less likely"
        if value is kl:
            assert (gradient < 0) == (difference > 0)
    if abs(difference) < 80:
        ratio = math.exp(difference)
        expected = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        torch.testing.assert_close(loss.double(), torch.tensor([expected], dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_on_policy_gradient_is_reinforce():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, clipped = clipped_policy_loss(log_probs, log_probs.detach(), torch.tensor([0.5, -1.5]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.tensor([-0.5, 1.5]))
    assert not clipped.any()


def test_kl_to_reference_is_unbiased_and_never_negative():
    """Enumeration: its average under the policy is KL(policy || reference)."""
    policy = torch.tensor([0.5, 0.3, 0.2]).double()
    reference = torch.tensor([0.2, 0.2, 0.6]).double()
    estimate = kl_to_reference(reference.log(), policy.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((policy * estimate).sum(), (policy * (policy / reference).log()).sum())


def padded_grpo(
    logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor, old_BT: Tensor, ref_BT: Tensor, advantages_B: Tensor, **kw
) -> Tensor:
    """GRPO as in the papers: padded rows, nested Python sums, no code shared with the package."""
    total, per_sequence, tokens = torch.zeros((), dtype=torch.float64), [], 0
    for b in range(ids_BT.shape[0]):
        row = torch.zeros((), dtype=torch.float64)
        for t in range(ids_BT.shape[1]):
            if not mask_BT[b, t]:
                continue
            log_prob = logits_BTV[b, t][ids_BT[b, t]] - torch.logsumexp(logits_BTV[b, t], 0)
            rho = torch.exp(log_prob - old_BT[b, t])
            low, high = 1 - kw["epsilon"], 1 + kw["epsilon_high"]
            surrogate = min(rho * advantages_B[b], torch.clip(rho, low, high) * advantages_B[b])
            k3 = torch.exp(ref_BT[b, t] - log_prob) - (ref_BT[b, t] - log_prob) - 1
            row = row - surrogate + kw["beta"] * k3
            tokens += 1
        total = total + row
        per_sequence.append(row / mask_BT[b].sum())
    return {
        "grpo": torch.stack(per_sequence).mean(),
        "bnpo": total / tokens,
        "dapo": total / tokens,
        "dr_grpo": total / (ids_BT.shape[0] * kw["max_completion_length"]),
    }[kw["loss_type"]]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_packed_loss_and_gradient_equal_padded_grpo(loss_type):
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 2, 7, 1]
    num_rows, longest, hidden, vocabulary = len(lengths), max(lengths), 4, 11
    hidden_BTH = torch.randn(num_rows, longest, hidden, generator=generator, dtype=torch.float64, requires_grad=True)
    head_VH = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64, requires_grad=True)
    ids_BT = torch.randint(vocabulary, (num_rows, longest), generator=generator)
    mask_BT = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        now = (hidden_BTH @ head_VH.t()).log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
        old_BT = now + 0.3 * torch.randn(now.shape, generator=generator, dtype=torch.float64)
        ref_BT = now + 0.5 * torch.randn(now.shape, generator=generator, dtype=torch.float64)
    advantages_B = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).flatten().double()
    expected = padded_grpo(
        hidden_BTH @ head_VH.t(),
        ids_BT,
        mask_BT,
        old_BT,
        ref_BT,
        advantages_B,
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.04,
        loss_type=loss_type,
        max_completion_length=9,
    )

    log_probs_N = fused_linear_log_probs(hidden_BTH[mask_BT], head_VH, ids_BT[mask_BT], chunk_tokens=4).log_probs
    rows_N = torch.arange(num_rows)[:, None].expand_as(ids_BT)[mask_BT]
    loss_N, clipped_N = clipped_policy_loss(
        log_probs_N, old_BT[mask_BT], advantages_B[rows_N], epsilon=0.2, epsilon_high=0.28
    )
    loss_N = loss_N + 0.04 * kl_to_reference(ref_BT[mask_BT], log_probs_N)
    counts = StepCounts(completions=num_rows, tokens=sum(lengths), max_completion_length=9)
    weights_N = LOSS_TYPES[loss_type](torch.tensor(lengths)[rows_N], counts)
    loss = (weights_N * loss_N).sum()

    assert 0 < clipped_N.sum() < len(clipped_N)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)  # the weights are float32
    torch.testing.assert_close(
        torch.autograd.grad(loss, (hidden_BTH, head_VH)),
        torch.autograd.grad(expected, (hidden_BTH, head_VH)),
        rtol=1e-6,
        atol=1e-8,
    )


TRL = json.loads((Path(__file__).parent / "trl_grpo.json").read_text(encoding="utf-8"))
"""The numbers of TRL's GRPOTrainer on four padded completions; the file says how it was made."""


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_packed_loss_and_gradient_are_those_of_trl(loss_type):
    def padded(name: str) -> Tensor:
        return torch.tensor(TRL[name], dtype=torch.float64)

    lengths_B, settings = torch.tensor(TRL["lengths"]), TRL["settings"]
    log_probs_BT = padded("log_probs").requires_grad_()
    mask_BT = torch.arange(log_probs_BT.shape[1])[None] < lengths_B[:, None]
    rows_N = torch.arange(len(lengths_B))[:, None].expand_as(mask_BT)[mask_BT]
    log_probs_N = log_probs_BT[mask_BT]
    loss_N, _ = clipped_policy_loss(
        log_probs_N,
        padded("old_log_probs")[mask_BT],
        padded("advantages")[rows_N],
        epsilon=settings["epsilon"],
        epsilon_high=settings["epsilon_high"],
    )
    loss_N = loss_N + settings["beta"] * kl_to_reference(padded("reference_log_probs")[mask_BT], log_probs_N)
    counts = StepCounts(
        completions=4, tokens=int(lengths_B.sum()), max_completion_length=settings["max_completion_length"]
    )
    loss = (LOSS_TYPES[loss_type](lengths_B[rows_N], counts) * loss_N).sum()
    (gradient,) = torch.autograd.grad(loss, log_probs_BT)
    peer = TRL[loss_type]
    assert loss.item() == pytest.approx(peer["loss"], rel=2e-7)  # the weights are float32
    torch.testing.assert_close(gradient, torch.tensor(peer["gradient"], dtype=torch.float64), rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_weights_do_not_depend_on_how_the_step_is_cut(loss_type):
    lengths_N = torch.tensor([3, 3, 3, 1, 2, 2])
    counts = StepCounts(completions=3, tokens=6, max_completion_length=4)
    weigh = LOSS_TYPES[loss_type]
    torch.testing.assert_close(
        torch.cat([weigh(part, counts) for part in lengths_N.split(4)]), weigh(lengths_N, counts)
    )


def test_dr_grpo_needs_the_sampling_budget():
    with pytest.raises(ValueError, match="max_completion_length"):
        LOSS_TYPES["dr_grpo"](torch.tensor([1]), StepCounts(completions=1, tokens=1))


def test_truncated_importance_weights():
    log_probs = torch.tensor([0.0, -1.0, -500.0], requires_grad=True)
    weights = truncated_importance_weights(log_probs, torch.tensor([0.0, -3.0, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, math.exp(-20)]))
    assert not weights.requires_grad


def test_rlsd_keeps_the_verifiers_direction():
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0, 0.0])
    ratio = torch.tensor([5.0, -5.0, 5.0, -5.0, 1.0])
    # magnitudes clipped to 1.2, 0.8, 0.8, 1.2 and mixed half and half with 1
    torch.testing.assert_close(sized_advantages(advantages, ratio), torch.tensor([2.2, 1.8, -1.8, -2.2, 0.0]))
    torch.testing.assert_close(sized_advantages(advantages, ratio, mixing=0.0), advantages)
