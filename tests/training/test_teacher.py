"""The kinds of self-teacher in closed form, and the swap of weights under every exit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from stepalign.config import TeacherSection
from stepalign.models.load import Solver
from stepalign.training.teacher import Teacher


def walk(model: torch.nn.Module, steps: int, teacher: Teacher) -> list[dict[str, torch.Tensor]]:
    """Random optimizer steps; returns the weights before the first and after every one."""
    generator = torch.Generator().manual_seed(0)
    history = [{n: p.detach().clone() for n, p in model.named_parameters()}]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        teacher.update(model)
        history.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return history


def test_initial_never_moves_and_live_holds_nothing(tiny_solver: Solver) -> None:
    initial = Teacher(tiny_solver.model, TeacherSection(weights="initial"))
    live = Teacher(tiny_solver.model, TeacherSection(weights="live"))
    history = walk(tiny_solver.model, 3, initial)
    region = Teacher(tiny_solver.model, TeacherSection(weights="trust_region", live_share=0.2))
    assert (initial.live_share, live.live_share, region.live_share) == (0.0, 0.0, 0.2)
    assert region.values.keys() == initial.values.keys() == history[0].keys()
    assert all(torch.equal(value, history[0][name]) for name, value in initial.values.items())
    assert live.values == {}
    live.update(tiny_solver.model)
    assert live.values == {}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_is_the_geometric_sum(tiny_solver: Solver, decay: float) -> None:
    tiny_solver.model.double()
    teacher = Teacher(tiny_solver.model, TeacherSection(weights="ema", ema_decay=decay))
    history = walk(tiny_solver.model, 6, teacher)
    for name, value in teacher.values.items():
        expected = decay**6 * history[0][name]
        for step, weights in enumerate(history[1:], 1):
            expected = expected + (1 - decay) * decay ** (6 - step) * weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_the_average_follows_where_bfloat16_would_round_its_steps_away(tiny_solver: Solver) -> None:
    tiny_solver.model.bfloat16()
    teacher = Teacher(tiny_solver.model, TeacherSection(weights="ema", ema_decay=0.999))
    with torch.no_grad():
        for parameter in tiny_solver.model.parameters():
            parameter.fill_(1.0)
        for value in teacher.values.values():
            value.fill_(0.5)
    for _ in range(3):
        teacher.update(tiny_solver.model)
    for value in teacher.values.values():
        torch.testing.assert_close(value, torch.full_like(value, 1 - 0.5 * 0.999**3))
    with teacher.in_place(tiny_solver.model):
        assert {p.dtype for p in tiny_solver.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("weights", ["initial", "ema", "live", "trust_region"])
@pytest.mark.parametrize("keeps_reference", [False, True])
def test_the_reference_is_the_initial_model_and_costs_a_copy_only_beside_a_moving_teacher(
    make_solver: Callable[..., Solver], weights: str, keeps_reference: bool
) -> None:
    solver = make_solver(0)
    teacher = Teacher(solver.model, TeacherSection(weights=weights), keeps_reference=keeps_reference)
    ids = torch.tensor([[3, 20, 30, 9, 4]])
    with torch.no_grad():
        first = solver.model(ids).logits
        history = walk(solver.model, 2, teacher)
        now = solver.model(ids).logits
        with teacher.reference_in_place(solver.model):
            assert torch.equal(solver.model(ids).logits, first if keeps_reference else now)
    copies = {"initial": 1, "trust_region": 1, "ema": 1 + keeps_reference, "live": int(keeps_reference)}[weights]
    assert len({value.data_ptr() for value in teacher.state().values()}) == copies * len(history[0])
    # What is saved makes the same teacher of another solver.
    state = {name: value.clone() for name, value in teacher.state().items()}
    again = Teacher(make_solver(1).model, TeacherSection(weights=weights), keeps_reference=keeps_reference)
    again.load(state)
    assert again.values.keys() == teacher.values.keys()
    assert again.reference.keys() == teacher.reference.keys()
    for mine, other in ((again.values, teacher.values), (again.reference, teacher.reference)):
        assert all(torch.equal(value, other[name]) for name, value in mine.items())


@pytest.mark.parametrize("weights", ["initial", "ema", "live", "trust_region"])
def test_in_place_computes_with_the_teachers_weights(make_solver: Callable[..., Solver], weights: str) -> None:
    solver, other = make_solver(0), make_solver(1)
    teacher = Teacher(other.model, TeacherSection(weights=weights))
    ids = torch.tensor([[3, 20, 30, 9, 4]])
    with torch.no_grad():
        own, foreign = solver.model(ids).logits, other.model(ids).logits
        with teacher.in_place(solver.model):
            inside = solver.model(ids).logits
            head = solver.head_VH.data
        assert torch.equal(inside, own if weights == "live" else foreign)
        assert torch.equal(head, (solver if weights == "live" else other).head_VH)  # the tied head is the teacher's too
        assert torch.equal(solver.model(ids).logits, own)


def test_in_place_restores_the_very_same_storage_after_an_exception(tiny_solver: Solver) -> None:
    teacher = Teacher(tiny_solver.model, TeacherSection(weights="initial"))
    walk(tiny_solver.model, 1, teacher)
    pointers = [p.data_ptr() for p in tiny_solver.model.parameters()]
    before = copy.deepcopy(tiny_solver.model.state_dict())
    inside: list[int] = []

    def interrupted() -> None:
        with teacher.in_place(tiny_solver.model):
            inside.extend(p.data_ptr() for p in tiny_solver.model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not set(inside) & set(pointers)
    assert [p.data_ptr() for p in tiny_solver.model.parameters()] == pointers
    assert all(torch.equal(value, before[name]) for name, value in tiny_solver.model.state_dict().items())


def test_only_trainable_parameters_are_kept(tiny_solver: Solver) -> None:
    for name, parameter in tiny_solver.model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    teacher = Teacher(tiny_solver.model, TeacherSection(weights="ema"))
    assert teacher.values
    assert all("q_proj" in name for name in teacher.values)


def test_a_teacher_is_loaded_into_its_own_storage_and_only_when_it_fits(make_solver: Callable[..., Solver]) -> None:
    solver, other = make_solver(0), make_solver(1)
    teacher = Teacher(solver.model, TeacherSection(weights="ema"))
    saved = {n: p.detach().clone() for n, p in other.model.named_parameters()}
    teacher.load(saved)
    assert all(torch.equal(teacher.values[n], value) for n, value in saved.items())
    teacher.update(solver.model)
    assert all(torch.equal(saved[n], p) for n, p in other.model.named_parameters())  # what was loaded stays as it was
    live = Teacher(solver.model, TeacherSection(weights="live"))
    live.load({})
    for misfit in ({}, {**saved, "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match="other parameters"):
            teacher.load(misfit)
