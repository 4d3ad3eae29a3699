"""The three kinds of self-teacher in closed form, and the swap of weights under every exit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from stepalign.config import TeacherSection
from stepalign.solver.model import Solver
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
    assert initial.values.keys() == history[0].keys()
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


@pytest.mark.parametrize("weights", ["initial", "ema", "live"])
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
