"""The fused objective against the plain formulas, numerical gradients, subsets, and awkward inputs."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepalign.objectives import fused_kernel
from stepalign.objectives import head as head_products
from stepalign.objectives.divergences import DIVERGENCES, TopK, jensen_shannon
from stepalign.objectives.fused import FusedDivergence, fused_linear_divergence, fused_linear_log_probs
from stepalign.objectives.tokens import entropy, log_ratio, restrict_to_top_k, take_tokens

torch.set_num_threads(1)

NAMES = [name for name, divergence in DIVERGENCES.items() if divergence.formula]


class Case:
    """Random hidden states and heads; the heads are shared unless asked otherwise."""

    def __init__(
        self, tokens: int = 13, hidden: int = 6, vocabulary: int = 31, dtype=torch.float64, shared=True, gap=0.5, seed=0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        student, head = randn(tokens, hidden), randn(vocabulary, hidden)
        self.student_hidden = student.clone().to(dtype).requires_grad_()
        self.student_head = head.clone().to(dtype).requires_grad_()
        self.teacher_hidden = (student + gap * randn(tokens, hidden)).to(dtype)
        self.teacher_head = self.student_head if shared else (head + 0.2 * randn(vocabulary, hidden)).to(dtype)
        self.weights = torch.rand(tokens, generator=generator, dtype=torch.float64).to(dtype)
        self.token_ids = torch.randint(vocabulary, (tokens,), generator=generator)

    def fused(self, rows: slice = slice(None), **options) -> FusedDivergence:
        options = {"weights": self.weights[rows]} | options
        return fused_linear_divergence(
            self.student_hidden[rows], self.student_head, self.teacher_hidden[rows], self.teacher_head, **options
        )

    def log_probs(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        teacher = (self.teacher_hidden @ self.teacher_head.detach().t() / temperature).log_softmax(-1)
        return teacher, (self.student_hidden @ self.student_head.t() / temperature).log_softmax(-1)

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.student_hidden, self.student_head))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.7}, {"entry_clip": 0.05}, {"token_clip": 0.2}, {"chunk_tokens": 5}, {"chunk_tokens": 1}],
    ids=str,
)
def test_equals_the_plain_formula(name, shared, options):
    case = Case(shared=shared)
    teacher, student = case.log_probs(options.get("temperature", 1.0))
    expected = DIVERGENCES[name](teacher, student, entry_clip=options.get("entry_clip"))
    if "token_clip" in options:
        expected = expected.clamp(max=options["token_clip"])
        assert (expected == options["token_clip"]).any()
    expected_loss = (case.weights * expected).sum()

    fused = case.fused(divergence=name, token_ids=case.token_ids, **options)

    torch.testing.assert_close(fused.loss, expected_loss)
    torch.testing.assert_close(fused.per_token, expected.detach())
    torch.testing.assert_close(case.gradients(fused.loss), case.gradients(expected_loss))
    torch.testing.assert_close(fused.log_ratio, log_ratio(teacher, student, token_ids=case.token_ids).detach())
    torch.testing.assert_close(fused.student_log_probs, take_tokens(student, case.token_ids).detach())
    torch.testing.assert_close(fused.teacher_log_probs, take_tokens(teacher, case.token_ids))
    torch.testing.assert_close(fused.student_entropy, entropy(student).detach())
    torch.testing.assert_close(fused.teacher_entropy, entropy(teacher))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("support", ["student", "teacher"])
@pytest.mark.parametrize("remainder", ["tail", "renormalise"])
@pytest.mark.parametrize("gap", [0.01, 0.5, 30.0])
def test_top_k_equals_the_plain_formula(name, support, remainder, gap):
    case = Case(gap=gap)
    plain = restrict_to_top_k(*case.log_probs(), k=4, support=support, remainder=remainder)
    expected = DIVERGENCES[name](*plain)
    fused = case.fused(divergence=name, top_k=TopK(4, support, remainder), chunk_tokens=5, token_ids=case.token_ids)
    torch.testing.assert_close(fused.per_token, expected.detach(), rtol=1e-5, atol=1e-5)  # tails of 1e-7 at least
    plain_gradients = case.gradients((case.weights * expected).sum())
    torch.testing.assert_close(case.gradients(fused.loss), plain_gradients, rtol=1e-5, atol=1e-5)
    whole = case.fused(divergence=name, token_ids=case.token_ids)
    for field in ("log_ratio", "student_entropy", "teacher_entropy"):  # what is watched stays that of the vocabulary
        torch.testing.assert_close(getattr(fused, field), getattr(whole, field))


@pytest.mark.parametrize("remainder", ["tail", "renormalise"])
@pytest.mark.parametrize("sharpness", [1.0, 100.0])
def test_top_k_of_identical_sides_is_exactly_nothing(remainder, sharpness):
    case = Case(gap=0.0, dtype=torch.float32)
    with torch.no_grad():
        case.student_hidden *= sharpness
    case.teacher_hidden = case.student_hidden.detach()
    fused = case.fused(divergence="reverse_kl", top_k=TopK(4, "student", remainder))
    assert fused.loss == 0
    assert not any(gradient.any() for gradient in case.gradients(fused.loss))


def test_the_sampled_token_estimates_reverse_kl_and_its_gradient():
    """Full enumeration on a vocabulary of three: the average over y ~ p_S of the fused one-sample form."""
    case = Case(tokens=1, vocabulary=3, hidden=4, gap=1.0)
    probabilities = case.log_probs(1.3)[1].detach().exp()[0]
    total = case.fused(divergence="reverse_kl", temperature=1.3)
    expected = case.gradients(total.loss)
    values, found = torch.zeros(1, dtype=torch.float64), [torch.zeros_like(gradient) for gradient in expected]
    for token, probability in enumerate(probabilities):
        one = case.fused(divergence="sampled_token", token_ids=torch.tensor([token]), temperature=1.3)
        values += probability * one.per_token
        for sum_, gradient in zip(found, case.gradients(one.loss), strict=True):
            sum_ += probability * gradient
    torch.testing.assert_close(values, total.per_token)
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize(
    "options",
    [{"divergence": "sampled_token"}, {"top_k": TopK(32)}, {"top_k": TopK(1), "divergence": "sampled_token"}],
    ids=str,
)
def test_a_support_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"token_ids|top_k must lie"):
        Case().fused(**options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("support", ["student", "teacher"])
@pytest.mark.parametrize("remainder", ["tail", "renormalise"])
@pytest.mark.parametrize("entry_clip", [None, 0.05])
def test_top_k_of_sides_that_exclude_each_other(name, support, remainder, entry_clip):
    """Where one side is certain of what the other holds impossible: in float32 its probabilities are all 0."""
    case = Case(gap=2.0, dtype=torch.float32, shared=False)
    with torch.no_grad():
        case.student_hidden *= 60
    case.teacher_hidden *= -60
    exact = Case(shared=False)
    exact.student_hidden = case.student_hidden.detach().double().requires_grad_()
    exact.student_head = case.student_head.detach().double().requires_grad_()
    exact.teacher_hidden, exact.teacher_head = case.teacher_hidden.double(), case.teacher_head.double()
    restricted = restrict_to_top_k(*exact.log_probs(), k=4, support=support, remainder=remainder)
    expected = DIVERGENCES[name](*restricted, entry_clip=entry_clip)
    fused = case.fused(divergence=name, top_k=TopK(4, support, remainder), entry_clip=entry_clip)
    torch.testing.assert_close(fused.per_token.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    plain_gradients = exact.gradients((case.weights.double() * expected).sum())
    for gradient, plain in zip(case.gradients(fused.loss), plain_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()) + 1e-4)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 2, "support": "both"}, {"k": 2, "remainder": "rest"}], ids=str)
def test_a_top_k_that_means_nothing_is_refused(options):
    with pytest.raises(ValueError, match=r"at least 1|choose one of"):
        TopK(**options)
    with pytest.raises(ValueError, match=r"at least 1|choose one of"):
        restrict_to_top_k(torch.zeros(3), torch.zeros(3), **options)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"token_ids": torch.zeros(12, dtype=torch.long)}, ValueError, r"expected \(13,\) token ids"),
        ({"token_ids": torch.full((13,), -100)}, ValueError, "between 0 and 30, found -100"),
        ({"token_ids": torch.zeros(13)}, TypeError, "integers"),
        ({"excluded": torch.zeros(30, dtype=torch.bool)}, ValueError, r"\[31\] of bool"),
        ({"excluded": torch.zeros(31)}, ValueError, r"\[31\] of bool"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_the_vocabulary_are_refused(options, error, says):
    case = Case()
    with pytest.raises(error, match=says):
        case.fused(**options)
    with pytest.raises(error, match=says if "excluded" in options or "found" in says else r".*"):
        fused_linear_log_probs(case.student_hidden, case.student_head, **{"token_ids": case.token_ids} | options)


@given(weight=st.floats(0.05, 0.95), gap=st.floats(1e-3, 3.0), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_mixture_weight_of_jensen_shannon(weight, gap, seed):
    case = Case(gap=gap, seed=seed, tokens=4)
    teacher, student = case.log_probs()
    expected = (case.weights * jensen_shannon(weight)(teacher, student)).sum()
    fused = case.fused(divergence=jensen_shannon(weight))
    torch.testing.assert_close(fused.loss, expected)
    torch.testing.assert_close(case.gradients(fused.loss), case.gradients(expected))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_tokens", [64, 2])
def test_numerical_gradients(name, chunk_tokens):
    case = Case(tokens=5, hidden=3, vocabulary=7)
    teacher_head = case.student_head.detach().clone()  # gradcheck moves the student's head, so it cannot be shared

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return fused_linear_divergence(
            hidden,
            head,
            case.teacher_hidden,
            teacher_head,
            weights=case.weights,
            divergence=name,
            chunk_tokens=chunk_tokens,
        ).loss

    assert torch.autograd.gradcheck(loss, (case.student_hidden, case.student_head))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_contexts_give_exactly_zero(name, shared, dtype):
    case = Case(tokens=150, hidden=70, dtype=dtype, shared=shared, gap=0.0, vocabulary=2503)
    if not shared:
        case.teacher_head = case.student_head.detach().clone()
    fused = case.fused(divergence=name, token_ids=case.token_ids, temperature=1.1)
    assert fused.loss.item() == 0.0
    assert fused.log_ratio is not None
    assert (fused.log_ratio == 0).all()
    assert all((gradient.abs() < 1e-6).all() for gradient in case.gradients(fused.loss))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_walk_equals_the_plain_one():
    case = Case(dtype=torch.float32, vocabulary=1003)
    options = {"token_ids": case.token_ids, "temperature": 1.1, "chunk_tokens": 8}
    for name in NAMES:
        plain, compiled = (case.fused(divergence=name, compiled=choice, **options) for choice in (False, True))
        for field in ("loss", "per_token", "log_ratio", "student_log_probs", "student_entropy", "teacher_entropy"):
            torch.testing.assert_close(getattr(compiled, field), getattr(plain, field))
        torch.testing.assert_close(case.gradients(compiled.loss), case.gradients(plain.loss))
        case.teacher_hidden, kept = case.student_hidden.detach().clone(), case.teacher_hidden
        same = case.fused(divergence=name, compiled=True, **options)
        assert not any(same.per_token)
        assert not any(gradient.any() for gradient in case.gradients(same.loss))
        case.teacher_hidden = kept


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("gap", [0.5, 20.0], ids=["near", "far"])
def test_the_route_of_a_gpu(monkeypatch, shared, gap):
    """Against a stand-in for the product of a GPU: two matrices of one dtype, the result in a wider one if asked."""
    case = Case(tokens=20, vocabulary=67, dtype=torch.bfloat16, shared=shared, gap=gap)
    options = {"token_ids": case.token_ids, "chunk_tokens": 8}
    expected = case.fused(**options)
    expected_gradients = case.gradients(expected.loss)
    plain_mm, dtypes = torch.mm, []

    def wide_mm(first: Tensor, second: Tensor, out_dtype: torch.dtype | None = None, *, out: Tensor | None = None):
        assert first.dtype == second.dtype
        dtypes.append(out_dtype)
        if out_dtype is None:
            return plain_mm(first, second, out=out)
        assert out is not None
        assert (first.dtype, out.dtype) == (torch.bfloat16, out_dtype)
        return out.copy_(plain_mm(first.to(out_dtype), second.to(out_dtype)))

    monkeypatch.setattr(head_products, "_widens_products", lambda tensor: True)
    monkeypatch.setattr(head_products, "_has_onednn", lambda tensor: False)
    monkeypatch.setattr(torch, "mm", wide_mm)
    found = case.fused(**options)
    found_gradients = case.gradients(found.loss)
    assert torch.float32 in dtypes
    torch.testing.assert_close(found.per_token, expected.per_token, rtol=1e-5, atol=1e-5)
    for gradient, plain in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))


@pytest.mark.parametrize("vocabulary", [31, 700, 5000])
def test_a_far_self_teacher_is_noticed_by_a_few_entries(vocabulary):
    difference = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    difference[:, 0] = 0.0  # no single entry decides
    assert not fused_kernel.is_far(difference * 1.5, 1.0)
    assert fused_kernel.is_far(difference * 1.5, 2.0)
    assert fused_kernel.is_far(difference * 3.0, 1.0)


@pytest.mark.parametrize("chunk_tokens", [64, 5])
def test_autocast_around_it_changes_nothing(chunk_tokens):
    case = Case(dtype=torch.float32)
    expected, token = case.fused(chunk_tokens=chunk_tokens), {"chunk_tokens": chunk_tokens}
    scored = fused_linear_log_probs(case.student_hidden, case.student_head, case.token_ids, **token).log_probs
    wanted = case.gradients(expected.loss), case.gradients(scored.sum())
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.fused(chunk_tokens=chunk_tokens).loss
        again = fused_linear_log_probs(case.student_hidden, case.student_head, case.token_ids, **token).log_probs
        found = case.gradients(loss), case.gradients(again.sum())
    assert torch.equal(loss, expected.loss)
    assert all(torch.equal(*pair) for pairs in zip(found, wanted, strict=True) for pair in zip(*pairs, strict=True))


def test_token_ids_of_any_integer_type():
    case = Case()
    short = case.token_ids.to(torch.int32)
    for name in [*NAMES, "sampled_token"]:
        pair = [case.fused(divergence=name, token_ids=ids) for ids in (case.token_ids, short)]
        assert torch.equal(pair[0].loss, pair[1].loss)
    log_probs = fused_linear_log_probs(case.student_hidden, case.student_head, short).log_probs
    assert case.gradients(log_probs.sum())[0].any()


def test_masked_tokens_equal_the_subset():
    case = Case(tokens=20)
    mask = torch.rand(20, generator=torch.Generator().manual_seed(1)) < 0.5
    masked = case.fused(weights=case.weights * mask)
    subset = case.fused(rows=mask)
    torch.testing.assert_close(masked.loss, subset.loss)
    torch.testing.assert_close(case.gradients(masked.loss), case.gradients(subset.loss))


def test_accumulated_micro_batches_equal_one_batch():
    """The weights already hold the division by the global count, so parts of unequal size simply add up."""
    case = Case(tokens=20)
    case.weights = torch.full((20,), 1 / 20, dtype=torch.float64)
    whole = case.fused()
    parts = [case.fused(rows=rows) for rows in (slice(0, 3), slice(3, 15), slice(15, 20))]
    torch.testing.assert_close(torch.stack([part.loss for part in parts]).sum(), whole.loss)
    expected = case.gradients(whole.loss)
    for part in parts:
        part.loss.backward()
    torch.testing.assert_close((case.student_hidden.grad, case.student_head.grad), expected)


def test_upstream_factor_and_retained_graph():
    case = Case()
    loss = case.fused().loss
    plain = torch.autograd.grad(loss, (case.student_hidden, case.student_head), retain_graph=True)
    scaled = case.gradients(-2.5 * loss)
    torch.testing.assert_close(scaled, tuple(-2.5 * gradient for gradient in plain))


def test_no_gradient_for_teacher_and_frozen_head():
    case = Case(shared=False)
    case.teacher_hidden.requires_grad_()
    case.student_head.requires_grad_(False)
    case.fused().loss.backward()
    assert case.student_hidden.grad is not None
    assert case.teacher_hidden.grad is None
    assert case.student_head.grad is None


def test_scoring_without_gradient():
    case = Case()
    expected = case.fused(token_ids=case.token_ids)
    with torch.no_grad():
        scored = case.fused(token_ids=case.token_ids)
    assert not scored.loss.requires_grad
    torch.testing.assert_close(scored.per_token, expected.per_token)
    torch.testing.assert_close(scored.log_ratio, expected.log_ratio)


@pytest.mark.parametrize("name", NAMES)
def test_excluded_entries_equal_the_smaller_vocabulary(name):
    case = Case()
    excluded = torch.zeros(31, dtype=torch.bool)
    excluded[[3, 30]] = True
    case.token_ids = torch.zeros_like(case.token_ids)
    kept_head = case.student_head.detach()[~excluded].requires_grad_()
    full = case.fused(divergence=name, excluded=excluded, token_ids=case.token_ids)
    small = fused_linear_divergence(
        case.student_hidden,
        kept_head,
        case.teacher_hidden,
        kept_head,
        weights=case.weights,
        divergence=name,
        token_ids=case.token_ids,
    )
    torch.testing.assert_close(full.per_token, small.per_token)
    torch.testing.assert_close(full.student_entropy, small.student_entropy)
    torch.testing.assert_close(full.teacher_entropy, small.teacher_entropy)
    _, head_gradient = case.gradients(full.loss)
    (kept_gradient,) = torch.autograd.grad(small.loss, kept_head)
    torch.testing.assert_close(head_gradient[~excluded], kept_gradient)
    assert (head_gradient[excluded] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_huge_logits(name, dtype):
    head = torch.eye(4, dtype=dtype).requires_grad_()
    student = torch.tensor([[1e4, -1e4, 0.0, 3.0], [0.0, 1.0, 2.0, 3.0], [-1e4, 0, 0, 0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0, 3.0], [0.0, 1.0, 1e4, 3.0], [-1e4, 0, 0, 1]], dtype=dtype)
    fused = fused_linear_divergence(
        student, head, teacher, head, weights=torch.ones(3), divergence=name, token_ids=torch.tensor([0, 2, 3])
    )
    reference = DIVERGENCES[name](teacher.double().log_softmax(-1), student.detach().double().log_softmax(-1))
    torch.testing.assert_close(fused.per_token.double(), reference, rtol=2e-2, atol=1e-3)
    for tensor in (*torch.autograd.grad(fused.loss, (student, head)), fused.log_ratio, fused.teacher_entropy):
        assert tensor is not None
        assert tensor.isfinite().all()


def test_constant_shift_of_all_teacher_logits_changes_nothing():
    """A large common offset in D must not swamp the small differences that carry the signal."""
    head = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    head[:, 0] = 1.0
    student = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    teacher = student + 0.01 * torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    teacher[:, 0] = student[:, 0]
    shifted = teacher.clone()
    shifted[:, 0] -= 25.0
    plain = fused_linear_divergence(student, head, teacher, head, weights=torch.ones(3))
    moved = fused_linear_divergence(student, head, shifted, head, weights=torch.ones(3))
    torch.testing.assert_close(moved.per_token, plain.per_token, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("gap", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("dtype", "options", "bound"),
    [(torch.bfloat16, {}, 0.005), (torch.bfloat16, {"fast_logits": True}, 0.02), (torch.float32, {}, 1e-5)],
)
def test_gradient_error_does_not_grow_as_the_divergence_shrinks(gap, shared, dtype, options, bound):
    """Mean KL from 5 down to 0.006 nats, against float64."""
    case = Case(tokens=32, hidden=64, vocabulary=4001, dtype=dtype, gap=0.0)
    scale = 4 / math.sqrt(64)
    generator = torch.Generator().manual_seed(5)
    case.student_head = (case.student_head.detach() * scale).requires_grad_()
    case.teacher_head = case.student_head
    if not shared:
        nudge = gap * scale * torch.randn(4001, 64, generator=generator)
        case.teacher_head = (case.student_head.detach().float() + nudge).to(dtype)
    noise = torch.randn(32, 64, generator=generator)
    case.teacher_hidden = (case.student_hidden.detach().float() + gap * noise).to(dtype)
    exact = Case(tokens=32)
    for name in ("student_hidden", "student_head"):
        setattr(exact, name, getattr(case, name).detach().double().requires_grad_())
    exact.teacher_hidden, exact.teacher_head = case.teacher_hidden.double(), case.teacher_head.detach().double()
    exact.weights = case.weights.double()
    teacher, student = exact.log_probs()
    truth = exact.gradients((exact.weights * DIVERGENCES["forward_kl"](teacher, student)).sum())
    for gradient, true_gradient in zip(case.gradients(case.fused(**options).loss), truth, strict=True):
        assert (gradient.double() - true_gradient).norm() <= bound * true_gradient.norm()


def test_a_self_teacher_of_another_width():
    case = Case(shared=False)
    case.teacher_hidden, case.teacher_head = case.teacher_hidden[:, :4].contiguous(), case.teacher_head[:, :4].clone()
    teacher, student = case.log_probs()
    expected = DIVERGENCES["forward_kl"](teacher, student)
    result = case.fused()
    torch.testing.assert_close(result.per_token, expected.detach())
    for ours, plain in zip(case.gradients(result.loss), case.gradients((case.weights * expected).sum()), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("chunk_tokens", [100, 4, 1])
def test_token_log_probs_and_entropy(chunk_tokens):
    case = Case()
    _, student = case.log_probs(1.3)
    expected = take_tokens(student, case.token_ids)
    fused = fused_linear_log_probs(
        case.student_hidden, case.student_head, case.token_ids, temperature=1.3, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(fused.log_probs, expected)
    torch.testing.assert_close(fused.entropy, entropy(student))
    upstream = torch.sin(torch.arange(13.0, dtype=torch.float64))
    torch.testing.assert_close(case.gradients(fused.log_probs @ upstream), case.gradients(expected @ upstream))
    assert not fused.entropy.requires_grad


@pytest.mark.parametrize("chunk_tokens", [100, 4])
def test_the_likeliest_tokens_of_both_sides(chunk_tokens):
    case = Case()
    fused = case.fused(token_ids=case.token_ids, alternatives=3, temperature=1.3, chunk_tokens=chunk_tokens)
    for found, log_probs in zip((fused.teacher_top, fused.student_top), case.log_probs(1.3), strict=True):
        expected = log_probs.detach().topk(3, dim=-1)
        assert found is not None
        assert torch.equal(found[0], expected.indices)
        torch.testing.assert_close(found[1], expected.values)


def test_empty_batch_is_zero_with_zero_gradients():
    case = Case(tokens=0)
    fused = case.fused(token_ids=case.token_ids)
    assert fused.loss.item() == 0.0
    assert fused.per_token.shape == (0,)
    assert (case.gradients(fused.loss)[1] == 0).all()
    log_probs = fused_linear_log_probs(case.student_hidden, case.student_head, case.token_ids).log_probs
    assert (case.gradients(log_probs.sum())[1] == 0).all()


def test_wrong_inputs_say_what_is_wrong():
    case = Case()
    with pytest.raises(ValueError, match="expected hidden states"):
        case.fused(weights=torch.ones(3))
    with pytest.raises(ValueError, match="unknown divergence 'kl'"):
        case.fused(divergence="kl")
    with pytest.raises(ValueError, match="temperature must be positive"):
        case.fused(temperature=0.0)
    with pytest.raises(ValueError, match="token_clip must be positive"):
        case.fused(token_clip=0.0)
    with pytest.raises(ValueError, match="strictly between"):
        case.fused(divergence="jensen_shannon(1.0)")
    with pytest.raises(TypeError, match="float16"):
        Case(dtype=torch.float16).fused()
    case.teacher_head = torch.zeros(30, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="vocabularies differ"):
        case.fused()


# ---------------------------------------------------------------------------------------------------------------------
# A trust region: the self-teacher's logits are a mixture


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("divergence", NAMES)
def test_a_trust_region_mixes_logits(shared, divergence):
    generator = torch.Generator().manual_seed(7)
    student, teacher, live = (torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    head = torch.randn(13, 5, generator=generator, dtype=torch.float64)
    other = head if shared else head + torch.randn(13, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(9, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    head.requires_grad_()
    mixture = 0.7 * teacher @ other.detach().t() + 0.3 * live @ head.detach().t()
    rows = DIVERGENCES[divergence]((mixture / 1.3).log_softmax(-1), (student @ head.t() / 1.3).log_softmax(-1))
    expected = torch.autograd.grad((weights * rows).sum(), (student, head))
    result = fused_linear_divergence(
        student, head, teacher, other.detach(), weights=weights, divergence=divergence, temperature=1.3,
        live_hidden=live, live_share=0.3, chunk_tokens=4,
    )  # fmt: skip
    torch.testing.assert_close(result.per_token, rows.detach())
    for mine, true in zip(torch.autograd.grad(result.loss, (student, head)), expected, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trust_region_around_the_student_itself_is_the_student(shared, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(50, 8, generator=generator).to(dtype)
    other = head if shared else head.clone()
    result = fused_linear_divergence(
        hidden, head, hidden, other, weights=torch.ones(6), live_hidden=hidden, live_share=0.05
    )
    assert result.loss == 0
    assert not torch.autograd.grad(result.loss, hidden)[0].any()


def test_a_trust_region_needs_a_share_and_something_live():
    hidden, head = torch.randn(3, 4), torch.randn(5, 4)
    with pytest.raises(ValueError, match="live_hidden"):
        fused_linear_divergence(hidden, head, hidden, head, weights=torch.ones(3), live_share=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fused_linear_divergence(hidden, head, hidden, head, weights=torch.ones(3), live_hidden=hidden, live_share=1.5)
    with pytest.raises(ValueError, match="meet the student's head"):
        fused_linear_divergence(
            hidden, head, hidden, head, weights=torch.ones(3), live_hidden=hidden[:2], live_share=0.5
        )


def test_products_of_many_lengths_keep_no_memory() -> None:
    def resident() -> float:
        """MiB."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    head, out = torch.randn(48, 96), torch.empty(400, 48)
    for rows in (400, 3):
        head_products.product_into(out[:rows], torch.randn(rows, 96), head)
    before = resident()
    for rows in range(1, 400):  # each of them once kept half a MiB for ever
        hidden = torch.randn(rows, 96)
        head_products.product_into(out[:rows], hidden, head)
        torch.testing.assert_close(out[:rows], hidden @ head.t())
    assert resident() - before < 60
