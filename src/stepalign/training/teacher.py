"""The weights of the self-teacher: the solver as it was, as it is, on average, or held near where it was.

A teacher is a set of values for the solver's *trainable* parameters. Scoring puts these values in place of the current
ones by swapping storage, which copies nothing; under LoRA the set is as small as the adapter, and the initial one
equals the adapter switched off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from stepalign.config import TeacherSection

Weights = dict[str, torch.Tensor]
"""Values of trainable parameters by name; empty for the parameters as they are."""

REFERENCE = "reference."
"""Begins the names of a saved reference that is not the self-teacher itself."""


class Teacher:
    """Holds the self-teacher's weights and, for ``objective.beta``, those of the reference: the initial ones.

    ``initial`` keeps the first values, ``ema`` follows slowly, ``live`` holds none and is the student itself.
    ``trust_region`` keeps the first values too; the objective mixes their logits with those of the live weights.
    """

    def __init__(self, model: torch.nn.Module, section: TeacherSection, *, keeps_reference: bool = False) -> None:
        self._section = section
        first = {} if section.weights == "live" and not keeps_reference else _copies(model)
        self.values: Weights = {
            "initial": lambda: first,
            "trust_region": lambda: first,
            # In float32 at least: bfloat16 would round a step of (1 - decay) away.
            "ema": lambda: {name: value.to(_at_least_float32(value), copy=True) for name, value in first.items()},
            "live": dict,
        }[section.weights]()
        self.reference: Weights = first if keeps_reference else {}
        """The very tensors of ``values`` where the self-teacher does not move, so that there is one copy of both."""

    @property
    def live_share(self) -> float:
        """The part of the live weights' logits in the self-teacher's."""
        return self._section.live_share if self._section.weights == "trust_region" else 0.0

    @contextmanager
    def in_place(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside the block the model computes with the self-teacher's weights. Use under ``torch.no_grad``."""
        with _in_place(model, self.values):
            yield

    @contextmanager
    def reference_in_place(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside the block the model computes with the reference's weights. Use under ``torch.no_grad``."""
        with _in_place(model, self.reference):
            yield

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Follow the student after an optimizer step: teacher <- decay * teacher + (1 - decay) * student."""
        if self._section.weights != "ema":
            return
        for name, parameter in _trainable(model):
            self.values[name].lerp_(parameter.detach().to(self.values[name].dtype), 1 - self._section.ema_decay)

    def state(self) -> Weights:
        """All that must be saved, every tensor once."""
        apart = {} if self.reference is self.values else self.reference
        return {**self.values, **{REFERENCE + name: value for name, value in apart.items()}}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``state`` gave. Raises ValueError when it does not fit the model."""
        own = self.state()
        if state.keys() != own.keys():
            raise ValueError("the saved teacher has other parameters than this model")
        for name, value in state.items():
            own[name].copy_(value)


@contextmanager
def _in_place(model: torch.nn.Module, values: Weights) -> Iterator[None]:
    if not values:
        yield
        return
    parameters = dict(_trainable(model))
    current = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter.dtype)  # the very tensor where the dtype is the same
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = current[name]


def _copies(model: torch.nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in _trainable(model)}


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _at_least_float32(value: torch.Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
