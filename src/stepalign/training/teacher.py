"""The weights of the self-teacher: the solver as it was, as it is, or on average.

A teacher is a set of values for the solver's *trainable* parameters. Scoring puts these values in place of the current
ones by swapping storage, which copies nothing; under LoRA the set is as small as the adapter, and the initial teacher
equals the adapter switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stepalign.config import TeacherSection


class Teacher:
    """``initial`` keeps the first values, ``ema`` follows slowly, ``live`` holds none and is the student itself."""

    def __init__(self, model: torch.nn.Module, section: TeacherSection) -> None:
        self._section = section
        self.values: dict[str, torch.Tensor] = {}
        if section.weights != "live":
            self.values = {name: p.detach().clone() for name, p in _trainable(model)}

    @contextmanager
    def in_place(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside the block the model computes with the teacher's weights. Use under ``torch.no_grad``."""
        if not self.values:
            yield
            return
        parameters = dict(_trainable(model))
        current = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.values[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = current[name]

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Follow the student after an optimizer step: teacher <- decay * teacher + (1 - decay) * student."""
        if self._section.weights != "ema":
            return
        for name, parameter in _trainable(model):
            self.values[name].lerp_(parameter.detach(), 1 - self._section.ema_decay)

    def load(self, values: dict[str, torch.Tensor]) -> None:
        """Take over saved values. Raises ValueError when they do not fit the model."""
        if values.keys() != self.values.keys():
            raise ValueError("the saved teacher has other parameters than this model")
        for name, value in values.items():
            self.values[name].copy_(value)


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
