"""The self-teacher: the solver as it was, as it is, on average, or held near where it was; or another model.

A teacher is a set of values for the solver's *trainable* parameters; under LoRA it is as small as the adapter, and the
initial one equals the adapter switched off. Scoring puts these values in place of the current ones. Plain parameters
swap storage, which copies nothing. FSDP2 gathers from the shards that it remembers, so the shards of a sharded model
are overwritten and written back, and nothing that was gathered before is used after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from stepalign.config import TeacherSection
from stepalign.models.load import Solver

Weights = dict[str, Tensor]
"""Values of trainable parameters by name, of a sharded one this process's shard; empty: the parameters as they are."""
Keep = Callable[[Tensor], Tensor]
"""A parameter of the block as a tensor that holds its values after the block as well."""

REFERENCE = "reference."
"""Begins the names of a saved reference that is not the self-teacher itself."""


class Teacher:
    """Holds the self-teacher's weights and, for ``objective.beta``, those of the reference: the initial ones.

    ``initial`` keeps the first values, ``ema`` follows slowly, ``live`` holds none and is the student itself.
    ``trust_region`` keeps the first values too; the objective mixes their logits with those of the live weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        section: TeacherSection,
        *,
        keeps_reference: bool = False,
        other: Solver | None = None,
    ) -> None:
        """``other``: the model of ``objective.teacher.model``, which has weights of its own."""
        self._section = section
        self.other = other
        elsewhere = other is not None or bool(section.base_urls)
        holds_none = section.weights == "live" or elsewhere
        first = {} if holds_none and not keeps_reference else _copies(model)
        self.values: Weights = {
            "initial": dict if elsewhere else lambda: first,
            "trust_region": lambda: first,
            # In float32 at least: bfloat16 would round a step of (1 - decay) away.
            "ema": lambda: {name: value.to(_at_least_float32(value), copy=True) for name, value in first.items()},
            "live": dict,
        }[section.weights]()
        self.reference: Weights = first if keeps_reference else {}
        """The very tensors of ``values`` where the self-teacher does not move, so that there is one copy of both."""
        self._first, self._first_is_off = first, _add_nothing(first)

    @property
    def live_share(self) -> float:
        """The part of the live weights' logits in the self-teacher's."""
        return self._section.live_share if self._section.weights == "trust_region" else 0.0

    def in_place(self, model: torch.nn.Module) -> AbstractContextManager[Keep]:
        """Inside the block the model computes with the self-teacher's weights. Use under ``torch.no_grad``."""
        return self._placed(model, self.values)

    def reference_in_place(self, model: torch.nn.Module) -> AbstractContextManager[Keep]:
        """Inside the block the model computes with the reference's weights. Use under ``torch.no_grad``."""
        return self._placed(model, self.reference)

    def _placed(self, model: Any, values: Weights) -> AbstractContextManager[Keep]:
        if values is self._first and self._first_is_off and not any(_shards(model)):
            return _adapters_off(model)
        return _in_place(model, values)

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Follow the student after an optimizer step: teacher <- decay * teacher + (1 - decay) * student."""
        if self._section.weights != "ema":
            return
        reshard(model)
        for name, parameter in _trainable(model):
            self.values[name].lerp_(local(parameter).to(self.values[name].dtype), 1 - self._section.ema_decay)

    @property
    def moving(self) -> Weights:
        """The values that an optimizer step changes."""
        return self.values if self._section.weights == "ema" else {}

    def state(self) -> Weights:
        """All that must be saved, every tensor once."""
        apart = {} if self.reference is self.values else self.reference
        return {**self.values, **{REFERENCE + name: value for name, value in apart.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave. Raises ValueError when it does not fit the model."""
        own = self.state()
        if own and state.keys() != own.keys():  # a run that needs none may have kept one before
            raise ValueError("the saved teacher has other parameters than this model")
        for name, value in own.items():
            value.copy_(state[name])
        self._first_is_off = _add_nothing(self._first)


def _add_nothing(values: Weights) -> bool:
    """Whether these are LoRA adapters B A with B = 0, as they are at first: switched off they do the same."""
    outer = [value for name, value in values.items() if "lora_B." in name]
    plain = all("lora_A." in name or "lora_B." in name for name in values)
    return bool(outer) and plain and not any(value.any() for value in outer)


@contextmanager
def _adapters_off(model: Any) -> Iterator[Keep]:
    with model.disable_adapter():
        yield torch.Tensor.detach


@contextmanager
def _in_place(model: torch.nn.Module, values: Weights) -> Iterator[Keep]:
    if not values:
        yield torch.Tensor.detach
        return
    # Gathered parameters are plain tensors, too; after this all of a sharded model are its shards.
    plain = {name for name, parameter in model.named_parameters() if not _is_sharded(parameter)}
    reshard(model)
    sharded = {name for name, parameter in model.named_parameters() if _is_sharded(parameter)}
    parameters = dict(_trainable(model))
    own = {name: local(p).clone() if name in sharded else p.data for name, p in parameters.items()}

    def put(weights: Weights) -> None:
        for name, parameter in parameters.items():
            if name in sharded:
                local(parameter).copy_(weights[name])
            else:
                parameter.data = weights[name].to(parameter.dtype)  # the very tensor where the dtype is the same

    try:
        put(values)
        yield _kept_copy if sharded else torch.Tensor.detach
    finally:
        reshard(model)
        put(own)
        if plain & sharded:  # the student's head is in use between its forward and its backward pass
            next(_shards(model)).unshard()


def _kept_copy(tensor: Tensor) -> Tensor:
    """Parameters that do not train are gathered again with the same values."""
    return tensor.detach().clone() if tensor.requires_grad else tensor.detach()


def _shards(model: torch.nn.Module) -> Iterator[Any]:
    """The modules that ``fully_shard`` wrapped, the root first."""
    return (module for module in model.modules() if hasattr(module, "reshard"))


def reshard(model: torch.nn.Module) -> None:
    """Let go of gathered parameters."""
    for module in _shards(model):
        module.reshard()


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "to_local")


def local(parameter: Tensor) -> Tensor:
    """The storage of a parameter, or of this process's shard of it."""
    value: Any = parameter.detach()
    return value.to_local() if _is_sharded(parameter) else value


def _copies(model: torch.nn.Module) -> Weights:
    reshard(model)
    return {name: local(parameter).clone() for name, parameter in _trainable(model)}


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _at_least_float32(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
