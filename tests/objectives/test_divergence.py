"""Divergences against closed forms, torch and scipy, enumeration, numerical gradients and properties."""

from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepalign.config import load_config
from stepalign.objectives.divergences import DIVERGENCES, Divergence, forward_kl, jensen_shannon, reverse_kl
from stepalign.objectives.fused import fused_linear_divergence
from stepalign.objectives.tokens import (
    entropy,
    log_ratio,
    renormalised,
    restrict_to_top_k,
    sampled_token_loss,
    take_tokens,
    with_tail_bucket,
)

torch.set_num_threads(1)

FORMULAS = {name: divergence for name, divergence in DIVERGENCES.items() if divergence.formula}

logit_rows = hnp.arrays(np.float64, (3, 7), elements=st.floats(-30, 30))


def random_log_probs(*shape: int, seed: int, requires_grad: bool = False) -> Tensor:
    logits = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    return logits.log_softmax(-1).requires_grad_(requires_grad)


def logit_gradient(loss_of_log_probs, logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss_of_log_probs(logits.log_softmax(-1)).sum(), logits)[0]


def test_two_token_closed_forms():
    teacher, student = torch.tensor([0.75, 0.25]).double().log(), torch.tensor([0.5, 0.5]).double().log()
    # 3/4 log(3/2) + 1/4 log(1/2), and 1/2 log(2/3) + 1/2 log 2
    assert forward_kl(teacher, student).item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))
    assert reverse_kl(teacher, student).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    # m = 0.25 * (0.5, 0.5) + 0.75 * (0.75, 0.25) = (0.6875, 0.3125)
    expected = 0.75 * (0.75 * math.log(0.75 / 0.6875) + 0.25 * math.log(0.25 / 0.3125))
    expected += 0.25 * (0.5 * math.log(0.5 / 0.6875) + 0.5 * math.log(0.5 / 0.3125))
    assert jensen_shannon(0.75)(teacher, student).item() == pytest.approx(expected)


def test_kl_directions_against_torch():
    teacher, student = random_log_probs(5, 11, seed=0), random_log_probs(5, 11, seed=1)
    kl_div = torch.nn.functional.kl_div  # kl_div(input, target) is KL(target || input)
    torch.testing.assert_close(
        forward_kl(teacher, student), kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    )
    torch.testing.assert_close(
        reverse_kl(teacher, student), kl_div(teacher, student, log_target=True, reduction="none").sum(-1)
    )


def test_entropy_and_jensen_shannon_against_scipy():
    teacher, student = random_log_probs(5, 11, seed=0), random_log_probs(5, 11, seed=1)
    p, q = teacher.exp().numpy(), student.exp().numpy()
    np.testing.assert_allclose(entropy(teacher), scipy.stats.entropy(p, axis=-1))
    for weight in (0.5, 0.1):
        mixture = (1 - weight) * q + weight * p
        expected = weight * scipy.special.rel_entr(p, mixture) + (1 - weight) * scipy.special.rel_entr(q, mixture)
        np.testing.assert_allclose(jensen_shannon(weight)(teacher, student), expected.sum(-1))


@given(logit_rows, logit_rows)
@settings(deadline=None, max_examples=50)
def test_never_negative_and_zero_only_for_equals(teacher_logits, student_logits):
    teacher = torch.from_numpy(teacher_logits).log_softmax(-1)
    student = torch.from_numpy(student_logits).log_softmax(-1)
    for divergence in FORMULAS.values():
        value = divergence(teacher, student)
        assert (value >= -1e-12).all()
        assert (divergence(teacher, teacher) == 0).all()
        apart = (teacher.exp() - student.exp()).abs().amax(-1)
        assert (value[apart > 1e-3] > 0).all()  # Pinsker: both KL are at least 2 (apart / 2)^2


def test_gradients_with_respect_to_student_logits():
    teacher = random_log_probs(4, 9, seed=0)
    logits = random_log_probs(4, 9, seed=1)
    p_T, p_S = teacher.exp(), logits.exp()
    torch.testing.assert_close(logit_gradient(lambda s: forward_kl(teacher, s), logits), p_S - p_T)
    kl = reverse_kl(teacher, logits).unsqueeze(-1)
    torch.testing.assert_close(logit_gradient(lambda s: reverse_kl(teacher, s), logits), p_S * (logits - teacher - kl))


def test_expected_sampled_token_gradient_is_the_reverse_kl_gradient():
    """Full enumeration over a vocabulary of three: the average over y ~ p_S of one-sample gradients."""
    teacher, logits = random_log_probs(3, seed=0), random_log_probs(3, seed=1)
    expected = torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        ids = torch.tensor(token)
        one_sample = logit_gradient(
            lambda s, ids=ids: sampled_token_loss(take_tokens(teacher, ids), take_tokens(s, ids)), logits
        )
        expected += logits[token].exp() * one_sample
    torch.testing.assert_close(expected, logit_gradient(lambda s: reverse_kl(teacher, s), logits))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("entry_clip", [None, 0.05])
def test_numerical_gradients_in_both_arguments(name, entry_clip):
    teacher = random_log_probs(2, 5, seed=0, requires_grad=True)
    student = random_log_probs(2, 5, seed=1, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, s: FORMULAS[name](t, s, entry_clip=entry_clip), (teacher, student))


def test_jensen_shannon_vanishes_at_the_ends_of_its_weight_instead_of_becoming_a_kl():
    teacher, student = random_log_probs(1, 9, seed=0), random_log_probs(1, 9, seed=1)
    near_end = jensen_shannon(1e-9)(teacher, student).item()
    assert near_end < 1e-6 < forward_kl(teacher, student).item()
    # Only divided by the weight does it approach KL(self-teacher || student).
    assert near_end / 1e-9 == pytest.approx(forward_kl(teacher, student).item(), rel=1e-4)
    for weight in (0.0, 1.0):
        with pytest.raises(ValueError, match="strictly between"):
            jensen_shannon(weight)(teacher, student)


@pytest.mark.parametrize("name", FORMULAS)
def test_masked_vocabulary_equals_the_smaller_vocabulary(name):
    kept = [0, 2, 3, 6]
    logits = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.full((7,), -math.inf, dtype=torch.float64)
    mask[kept] = 0.0
    full = logits[1].clone().requires_grad_()
    small = logits[1][:, kept].clone().requires_grad_()
    value = FORMULAS[name]((logits[0] + mask).log_softmax(-1), (full + mask).log_softmax(-1))
    expected = FORMULAS[name](logits[0][:, kept].log_softmax(-1), small.log_softmax(-1))
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), full)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), small)
    torch.testing.assert_close(gradient[:, kept], expected_gradient)
    assert (gradient[:, [1, 4, 5]] == 0).all()


def test_support_mismatch_is_infinite_only_where_it_should_be():
    teacher = torch.tensor([0.5, 0.5, 0.0]).log()
    student = torch.tensor([0.5, 0.0, 0.5]).log()
    assert forward_kl(teacher, student) == math.inf
    assert reverse_kl(teacher, student) == math.inf
    assert jensen_shannon()(teacher, student).item() == pytest.approx(0.5 * math.log(2))
    assert entropy(teacher).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", FORMULAS)
def test_finite_at_huge_logits(name):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]])
    student = logits[1].clone().requires_grad_()
    value = FORMULAS[name](logits[0].log_softmax(-1), student.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_entry_clip_bounds_every_term_before_the_sum():
    teacher, student = random_log_probs(4, 9, seed=0), random_log_probs(4, 9, seed=1)
    terms = teacher.exp() * (teacher - student)
    torch.testing.assert_close(forward_kl(teacher, student, entry_clip=0.1), terms.clamp(max=0.1).sum(-1))
    assert (forward_kl(teacher, student, entry_clip=1e-6) < 0).any()  # as documented: the clipped sum can be negative


def test_log_ratio_of_the_taken_token():
    teacher, student = random_log_probs(4, 9, seed=0), random_log_probs(4, 9, seed=1)
    ids = torch.tensor([0, 8, 3, 3])
    expected = [(teacher[n, i] - student[n, i]).item() for n, i in enumerate(ids)]
    assert log_ratio(teacher, student, token_ids=ids).tolist() == expected
    assert (log_ratio(teacher, teacher, token_ids=ids) == 0).all()


@pytest.mark.parametrize(
    ("support", "remainder"), list(itertools.product(["student", "teacher"], ["tail", "renormalise"]))
)
def test_top_k_by_hand(support, remainder):
    teacher = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
    student = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    ids = [3, 2] if support == "student" else [0, 1]
    p, q = teacher[ids], student[ids]
    if remainder == "tail":
        p, q = torch.cat([p, 1 - p.sum(0, keepdim=True)]), torch.cat([q, 1 - q.sum(0, keepdim=True)])
    else:
        p, q = p / p.sum(), q / q.sum()
    restricted = restrict_to_top_k(teacher.log(), student.log(), k=2, support=support, remainder=remainder)
    torch.testing.assert_close(restricted, (p.log(), q.log()))
    assert forward_kl(*restricted).item() == pytest.approx((p * (p / q).log()).sum().item())


def test_coarser_support_never_sees_more_than_the_full_divergence():
    """Merging the tail into one bucket is a channel, so the divergence cannot grow (data processing inequality)."""
    teacher, student = random_log_probs(20, 50, seed=0), random_log_probs(20, 50, seed=1)
    for k in (1, 5, 20):
        assert (forward_kl(*restrict_to_top_k(teacher, student, k=k)) <= forward_kl(teacher, student) + 1e-12).all()


def test_top_k_of_everything_is_the_full_divergence():
    teacher, student = random_log_probs(3, 6, seed=0), random_log_probs(3, 6, seed=1)
    full = forward_kl(teacher, student)
    both = restrict_to_top_k(teacher, student, k=6, remainder="renormalise")
    torch.testing.assert_close(forward_kl(*both), full)
    torch.testing.assert_close(forward_kl(*restrict_to_top_k(teacher, student, k=6)), full, atol=1e-6, rtol=0)


def test_tail_bucket_has_finite_gradients_when_the_support_holds_all_mass():
    log_probs = torch.tensor([[0.0, -40.0]], requires_grad=True)
    with_tail_bucket(log_probs).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    torch.testing.assert_close(renormalised(log_probs).logsumexp(-1), torch.zeros(1))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon()])
def test_other_vocabularies_and_clips_that_are_not_positive_are_refused(divergence):
    teacher = torch.randn(2, 5).log_softmax(-1)
    for student in (torch.zeros(2, 1), torch.randn(2, 6).log_softmax(-1)):
        with pytest.raises(ValueError, match="vocabularies differ"):
            divergence(teacher, student)
    with pytest.raises(ValueError, match="entry_clip must be positive"):
        divergence(teacher, teacher, entry_clip=0.0)


def test_leading_axes_broadcast():
    many, one = torch.randn(3, 2, 5).log_softmax(-1), torch.randn(5).log_softmax(-1)
    ids = torch.randint(5, (3, 2))
    for divergence in (forward_kl, reverse_kl, jensen_shannon()):
        torch.testing.assert_close(divergence(one, many), divergence(one.expand_as(many), many))
    torch.testing.assert_close(log_ratio(one, many, ids), log_ratio(one.expand_as(many), many, ids))
    torch.testing.assert_close(log_ratio(many, one, torch.tensor(3)), many[..., 3] - one[3])


def _squared(factor: float = 1.0) -> Divergence:
    """factor * E_{y ~ p_S} (log p_T - log p_S)^2: as a user writes one, a formula and its terms."""

    def formula(teacher: Tensor, student: Tensor) -> Tensor:
        return factor * student.exp() * (teacher - student) ** 2

    def terms(student: Tensor, _teacher: Tensor, ratio: Tensor, _: object) -> tuple[Tensor, Tensor]:
        return factor * student * ratio**2, factor * student * (ratio**2 - 2 * ratio)

    return Divergence(name="squared", terms=terms, formula=formula, family=_squared)


def test_a_divergence_with_a_parameter_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a recipe may name it, and the fused objective has its value and its gradient."""
    monkeypatch.setitem(DIVERGENCES, "squared", _squared())
    assert load_config(None, ["objective.divergence=squared(0.3)"]).objective.divergence == "squared(0.3)"
    generator = torch.Generator().manual_seed(0)
    student, teacher, head = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 4, 11))
    student.requires_grad_()
    sides = [(hidden @ head.t()).log_softmax(-1) for hidden in (teacher, student)]
    expected = (0.3 * (sides[1].exp() * (sides[0] - sides[1]) ** 2).sum(-1)).sum()
    fused = fused_linear_divergence(
        student, head, teacher, head, weights=torch.ones(4, dtype=torch.float64), divergence="squared(0.3)"
    )
    torch.testing.assert_close(fused.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(fused.loss, student), torch.autograd.grad(expected, student))
