"""Checkpoints: everything a run needs to continue with the same bits, written whole or not at all.

A checkpoint is written to a temporary folder, every file is made durable, the manifest with the checksums comes last,
and one rename makes it appear. A folder without a valid manifest does not count.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stepalign.errors import ConfigError
from stepalign.events import Listener, silent, warning
from stepalign.models.load import Solver, save_solver
from stepalign.storage.files import MANIFEST, WRECK, damaged_file, step_folders, tidy, whole_folder

TRAINABLE = "trainable.safetensors"
"""Written only where the Hugging Face files do not hold the trainable weights under the model's own names."""
SHARDS = "shard-*.safetensors"
"""Optimizer and self-teacher of a run on many ranks, a file a rank, instead of one file for each of the two."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back."""

    folder: Path
    state: dict[str, Any]
    """The loop's own numbers: step, counters, sizes of the record files."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return _load_weights(self.folder)

    @property
    def optimizer(self) -> dict[str, torch.Tensor]:
        return self._part("optimizer")

    @property
    def teacher(self) -> dict[str, torch.Tensor]:
        return self._part("teacher")

    def _part(self, name: str) -> dict[str, torch.Tensor]:
        if not any(self.folder.glob(SHARDS)):
            return load_file(self.folder / f"{name}.safetensors")
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(self.folder))
        shapes: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        whole = {
            n: torch.empty(s.size, dtype=s.properties.dtype) for n, s in shapes.items() if n.startswith(f"{name}.")
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is one process
            load(whole, storage_reader=reader, no_dist=True)
        return {name.partition(".")[2]: tensor for name, tensor in whole.items()}


def save_checkpoint(
    root: Path, step: int, *, solver: Solver, write: Callable[[Path], None], state: Mapping[str, Any]
) -> Path:
    """Write ROOT/step-NNNNN; ``write`` puts optimizer and self-teacher into a folder."""
    target = root / f"step-{step:05d}"
    with whole_folder(target) as folder:  # it replaces one of the same step, which a resumed run makes again
        save_solver(solver, folder)
        if not dict(_trainable(solver)).keys() <= _load_weights(folder).keys():  # adapters, or a layout that renames
            save_file(trainable_weights(solver), folder / TRAINABLE)
        write(folder)
        (folder / "state.json").write_text(json.dumps(dict(state), indent=2) + "\n", encoding="utf-8")
    return target


def find_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return [folder for folder in step_folders(root) if (folder / MANIFEST).exists()]


def is_wreck(folder: Path) -> bool:
    return (folder / WRECK).exists()


def load_latest(root: Path, listener: Listener = silent, *, wrecks: bool = False) -> Checkpoint | None:
    """The newest checkpoint whose files match their checksums; None when there is none.

    What a killed process has left half done is tidied up first. Damaged checkpoints, and wrecks that are passed over,
    are named to the listener.

    Args:
        wrecks: take one that a guard has found broken, too.

    Raises:
        ConfigError: there are checkpoints, but every one is damaged or a wreck.
    """
    tidy(root)
    damaged = []
    for folder in reversed(step_folders(root)):
        if is_wreck(folder) and not wrecks:
            damaged.append(f"{folder.name} (a wreck: {(folder / WRECK).read_text(encoding='utf-8').strip()})")
            continue
        parts = () if any(folder.glob(SHARDS)) else ("optimizer.safetensors", "teacher.safetensors")
        fault = damaged_file(folder, ("state.json", *parts))
        if fault is None:
            if damaged:
                listener(warning(f"damaged checkpoints are left out: {', '.join(damaged)}; taken is {folder.name}"))
            return Checkpoint(folder, json.loads((folder / "state.json").read_text(encoding="utf-8")))
        damaged.append(f"{folder.name}/{fault}")
    if damaged:
        raise ConfigError(
            f"every checkpoint is damaged: {', '.join(damaged)}",
            where=str(root),
            hint="start again with another --out; --set guards.policy=warn takes a wreck",
        )
    return None


def _load_weights(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder / TRAINABLE] if (folder / TRAINABLE).exists() else sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _trainable(solver: Solver) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in solver.model.named_parameters() if p.requires_grad)


def trainable_weights(solver: Solver) -> dict[str, torch.Tensor]:
    """Exact copies of what the optimizer changes, under the model's own names."""
    return {name: p.detach().clone().contiguous() for name, p in _trainable(solver)}


@torch.no_grad()
def restore_weights(solver: Solver, weights: Mapping[str, torch.Tensor]) -> None:
    """Put saved trainable weights back. Raises ConfigError when they are of another model."""
    parameters = dict(_trainable(solver))
    if not all(n in weights and weights[n].shape == p.shape for n, p in parameters.items()):
        raise ConfigError(
            "the checkpoint has other trainable parameters than this model",
            where="model.path",
            hint="put the model back that the run began with, or give another --out",
        )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def write_state(folder: Path, optimizer: torch.optim.Optimizer, teacher: Mapping[str, torch.Tensor]) -> None:
    """The files of optimizer and self-teacher."""
    save_file(_flatten_optimizer(optimizer), folder / "optimizer.safetensors")
    save_file({name: value.contiguous() for name, value in teacher.items()}, folder / "teacher.safetensors")


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state as "index.name" tensors; learning rates follow from the step and are not stored."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put Adam's state back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})


def save_final(solver: Solver, folder: Path) -> None:
    """The last weights in Hugging Face layout; adapters stay adapters."""
    with whole_folder(folder) as filled:
        save_solver(solver, filled)
