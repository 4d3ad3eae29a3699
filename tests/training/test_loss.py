"""The loss as a value: random hidden states in, no solver, no recipe; and a divergence that this file adds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.errors import ConfigError
from stepalign.objectives.divergences import DIVERGENCES, Divergence, find_divergence
from stepalign.objectives.fused import fused_linear_divergence
from stepalign.objectives.policy_gradient import StepCounts
from stepalign.records import Sample
from stepalign.training.learner import Learner
from stepalign.training.loss import Objective, Side, batch_loss
from stepalign.training.teacher import Teacher

VOCABULARY, WIDTH = 19, 6


def alpha(order: float = 0.5) -> Divergence:
    """(1 - sum p_T^a p_S^(1-a)) / (a (1-a)), Amari's alpha divergence: near reverse KL at 0, near forward KL at 1."""
    scale = 1 / (order * (1 - order))

    def formula(teacher: Tensor, student: Tensor) -> Tensor:
        mixed = (order * teacher + (1 - order) * student).exp()
        return scale * (order * teacher.exp() + (1 - order) * student.exp() - mixed)

    def terms(student: Tensor, teacher: Tensor, ratio: Tensor, _: object) -> tuple[Tensor, Tensor]:
        growth = (order * ratio).expm1()
        entries = scale * (order * (teacher - student) - student * growth)
        return entries, -student * growth / order

    return Divergence(name="alpha", terms=terms, formula=formula, family=alpha)


@pytest.fixture
def with_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that adding a divergence takes: its value in the table."""
    monkeypatch.setitem(DIVERGENCES, "alpha", alpha())


def make_sample(name: str, length: int, **changes: object) -> Sample:
    fields: dict = {
        "rollout_id": name,
        "student_prompt_ids": (1,),
        "teacher_prompt_ids": (1, 2),
        "completion_ids": tuple(range(3, 3 + length)),
        "sampler_log_probs": (-2.5,) * length,
        "loss_mask": (True,) * length,
        "advantage": 0.0,
        "distillation_weight": 1.0,
        "policy_weight": 0.0,
    }
    return Sample(**{**fields, **changes})


def side(tokens: int, seed: int) -> Side:
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(rows, WIDTH, generator=generator).double() for rows in (tokens, VOCABULARY))
    return Side(hidden.requires_grad_(), head.requires_grad_())


def log_probs(one: Side, temperature: float) -> Tensor:
    return (one.hidden_NH @ one.head_VH.T / temperature).log_softmax(-1)


def test_micro_batches_add_up_to_the_batch() -> None:
    samples = [
        make_sample("a", 4, loss_mask=(True, False, True, True)),
        make_sample("b", 3, distillation_weight=0.3, policy_weight=0.7, advantage=1.2),
        make_sample("c", 5, distillation_weight=0.0, policy_weight=1.0, advantage=-0.4, teacher_prompt_ids=None),
    ]
    counts = StepCounts(completions=3, tokens=11)
    objective = Objective(temperature=1.2, beta=0.1, divergence=find_divergence("jensen_shannon(0.3)"))
    student, teacher, reference = side(12, 0), side(7, 1), side(12, 2)

    def part(first: int, last: int, tokens: slice, teacher_tokens: slice | None) -> tuple[Tensor, dict]:
        own = replace(student, hidden_NH=student.hidden_NH[tokens])
        frozen = replace(reference, hidden_NH=reference.hidden_NH[tokens])
        taught = None if teacher_tokens is None else replace(teacher, hidden_NH=teacher.hidden_NH[teacher_tokens])
        return batch_loss(samples[first:last], counts, own, taught, frozen, objective=objective)

    whole, watched = part(0, 3, slice(None), slice(None))
    parts = [part(0, 1, slice(0, 4), slice(0, 4)), part(1, 3, slice(4, 12), slice(4, 7))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    for name, (total, count) in watched.items():
        sums = [found.get(name, (0.0, 0)) for _, found in parts]
        assert sum(n for _, n in sums) == count
        assert sum(value for value, _ in sums) == pytest.approx(total)
    assert watched["divergence"][1] == 6
    assert watched["kl"][1] == 11


def test_the_distillation_term_is_the_divergence_over_the_global_count() -> None:
    student, teacher = side(4, 0), side(4, 1)
    sample = make_sample("a", 4, loss_mask=(True, True, False, True), distillation_weight=0.5)
    loss, _ = batch_loss(
        [sample], StepCounts(completions=2, tokens=10), student, teacher, objective=Objective(temperature=1.4)
    )
    p, q = log_probs(teacher, 1.4).detach(), log_probs(student, 1.4)
    expected = 0.5 * ((p.exp() * (p - q)).sum(-1) * torch.tensor(sample.loss_mask)).sum() / 10
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student.hidden_NH)[0], torch.autograd.grad(expected, student.hidden_NH)[0],
        rtol=1e-6, atol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("order", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"entry_clip": 0.01}, {"temperature": 1.3, "chunk_tokens": 3}], ids=str)
def test_a_divergence_added_in_one_place_has_the_gradient_of_its_formula(with_alpha, order: float, options) -> None:
    student, teacher = side(8, 0), side(8, 1)
    temperature = options.get("temperature", 1.0)
    sides = log_probs(teacher, temperature).detach(), log_probs(student, temperature)
    expected = alpha(order)(*sides, entry_clip=options.get("entry_clip"))
    fused = fused_linear_divergence(
        student.hidden_NH, student.head_VH, teacher.hidden_NH, teacher.head_VH,
        weights=torch.ones(8).double(), divergence=f"alpha({order})", **options,
    )  # fmt: skip
    torch.testing.assert_close(fused.per_token, expected.detach())
    inputs = student.hidden_NH, student.head_VH
    torch.testing.assert_close(torch.autograd.grad(fused.loss, inputs), torch.autograd.grad(expected.sum(), inputs))


def test_a_divergence_added_in_one_place_trains_from_a_recipe(with_alpha, tiny_solver) -> None:
    section = ObjectiveSection(divergence="alpha(0.3)")
    training = TrainingSection(learning_rate=1e-2, warmup_steps=0)
    learner = Learner(tiny_solver, section, training, temperature=1.0)
    teacher = Teacher(tiny_solver.model, section.teacher)
    losses = [learner.update([make_sample("a", 6)], teacher, step)["loss"] for step in range(8)]
    assert losses[0] > 0
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["kl", "forward_kl(0.3)", "jensen_shannon(a)", "jensen_shannon(0.1, 0.2)", ""])
def test_a_divergence_that_is_not_there_is_refused_by_the_recipe(name: str) -> None:
    from stepalign.config import Config, changed

    with pytest.raises(ConfigError, match=r"objective\.divergence"):
        changed(Config(), {"objective.divergence": name})


def test_a_parameter_in_the_name_is_that_of_the_key(tiny_solver) -> None:
    sections = (
        ObjectiveSection(divergence="jensen_shannon", jensen_shannon_weight=0.3),
        ObjectiveSection(divergence="jensen_shannon(0.3)"),
        ObjectiveSection(divergence="jensen_shannon"),
    )
    losses = []
    for section in sections:
        learner = Learner(tiny_solver, section, TrainingSection(max_grad_norm=1e-30), temperature=1.0)
        losses.append(learner.update([make_sample("a", 6)], Teacher(tiny_solver.model, section.teacher), 0)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert not math.isclose(losses[0], losses[2], rel_tol=1e-3)
