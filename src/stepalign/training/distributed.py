"""The learner on many ranks, as torchrun starts them: FSDP2 shards of one model, and equal steps on unequal Samples.

Rank 0 runs the loop of a single process, with folder, critics, samplers and trackers, beside a whole copy of the solver
that samples and is exported. It announces each part of the learner's work; the other ranks do nothing else. Samples
cross as JSON. All ranks get all Samples and cut them alike, so that every rank knows the global counts, and which
passes the others make, without asking.
"""

from __future__ import annotations

import copy
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.records import Sample
from stepalign.training.ranks import RankLostError, Ranks, Watch

if TYPE_CHECKING:
    import torch

    from stepalign.models.load import Solver
    from stepalign.training.checkpoint import Checkpoint
    from stepalign.training.learner import Learner
    from stepalign.training.teacher import Teacher

WAITING = timedelta(days=30)
"""For the next announcement: rank 0 may sample and evaluate for as long as that takes."""
LOOK_SECONDS = 1.5


def shard(solver: Solver) -> Solver:
    """A copy of the solver whose weights are spread over the ranks, layer by layer; this rank holds its part."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    from stepalign.models.load import Solver

    model: Any = copy.deepcopy(solver.model)
    mesh = init_device_mesh(solver.device.type, (torch.distributed.get_world_size(),))
    names = set(getattr(model, "_no_split_modules", None) or ())
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # Without logits, and not by a call of the decoder alone, which would leave the head in its shards.
    model.hidden_states = lambda **inputs: model.get_decoder()(**inputs)
    register_fsdp_forward_method(model, "hidden_states")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the weights of the tokens hold the global count: gradients add up
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return Solver(model, solver.tokenizer)


class Team:
    """A learner on many ranks. Rank 0 calls the methods of ``Learner`` on it; the other ranks ``follow``."""

    def __init__(self, ranks: Ranks, solver: Solver, learner: Learner, teacher: Teacher, whole: Solver | None) -> None:
        """``solver`` and ``teacher`` are sharded, ``whole`` is rank 0's own copy of the solver."""
        self._ranks, self._solver, self._learner, self._teacher, self._whole = ranks, solver, learner, teacher, whole
        self._announced = 0
        self._ended = False
        self._parts: dict[str, Callable[..., Any]] = {
            "update": self._update,
            "gather": self._gather,
            "keep": lambda step, drop: self._learner.keep(step, self._teacher, drop),
            "back": lambda step: self._learner.back(step, self._teacher),
            "write": self._write,
            "read": self._read,
        }
        self._watch = Watch(ranks)

    # -- rank 0 -------------------------------------------------------------------------------------------------------

    def update(
        self, samples: Sequence[Sample], teacher: Teacher, step: int, rate_factor: float = 1.0
    ) -> dict[str, float]:
        """``Learner.update``, the same numbers on every rank."""
        rows = [dataclasses.asdict(sample) for sample in samples]
        return self._lead("update", samples=rows, step=step, rate_factor=rate_factor)

    def keep(self, step: int, teacher: Teacher, drop: Sequence[int] = ()) -> None:
        """Keep all that a step changes in memory, each rank its part."""
        self._lead("keep", step=step, drop=list(drop))

    def back(self, step: int, teacher: Teacher) -> None:
        """Everything as it was after ``step``."""
        self._lead("back", step=step)

    def gather(self) -> None:
        """Bring the trained weights to the whole copy."""
        self._lead("gather")

    def write(self, folder: Path, teacher: Teacher) -> None:
        """Write optimizer and self-teacher into a folder, each rank its part."""
        self._lead("write", folder=str(folder))

    def read(self, found: Checkpoint, teacher: Teacher) -> None:
        """Put a checkpoint back, by however many ranks it was written."""
        self._lead("read", folder=str(found.folder))

    def close(self) -> None:
        """Let the other ranks go."""
        if self._ended:
            return
        self._announce({"do": "stop"})
        self._leave()

    def _lead(self, part: str, **fields: Any) -> Any:
        try:
            return self._parts[part](**self._announce({"do": part, **fields}))
        except RuntimeError as error:  # of torch: the connection or the time for an answer is lost
            time.sleep(LOOK_SECONDS)  # the thread that watches names a rank that has died, and ends this process
            self._ended = True
            self._watch.close()
            raise RankLostError(
                f"the {self._ranks.size} ranks have lost each other: {str(error).splitlines()[0]}",
                where=f"{part}: {self._watch.places()}",
                hint="give the command again with --resume; a rank waits training.rank_timeout seconds for another",
            ) from error

    def _announce(self, message: dict[str, Any]) -> dict[str, Any]:
        self._announced += 1
        self._ranks.store.set(f"part {self._announced}", "")
        fields = self._ranks.say(message)
        del fields["do"]
        return fields

    # -- the other ranks ----------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Do what rank 0 announces until it says stop. Requests to stop are rank 0's: it saves the run first."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            self._announced += 1
            self._ranks.store.wait([f"part {self._announced}"], WAITING)
            fields = self._ranks.say()
            part = fields.pop("do")
            if part == "stop":
                return self._leave()
            self._parts[part](**fields)

    # -- every rank ---------------------------------------------------------------------------------------------------

    def _update(self, samples: list[dict[str, Any]], step: int, rate_factor: float) -> dict[str, float]:
        def frozen(row: dict[str, Any]) -> dict[str, Any]:
            return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}

        return self._learner.update([Sample(**frozen(row)) for row in samples], self._teacher, step, rate_factor)

    def _gather(self) -> None:
        import torch

        targets = dict(self._whole.model.named_parameters()) if self._whole is not None else {}
        with torch.no_grad():
            for name, parameter in self._trained().items():
                whole = parameter.full_tensor()
                if targets:
                    targets[name].copy_(whole)

    def _write(self, folder: str) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(folder, save_distributed=True)
        save(self._state(self._learner.optimizer.state_dict()["state"]), storage_writer=writer)

    def _read(self, folder: str) -> None:
        import torch
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        from stepalign.training.checkpoint import SHARDS, Checkpoint, restore_optimizer

        found, trained = Checkpoint(Path(folder), {}), self._trained()
        with torch.no_grad():
            for name, value in found.weights.items():
                if name in trained:
                    trained[name].copy_(_spread(value, trained[name]))
        fresh = {
            index: {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for index, p in enumerate(trained.values())
        }
        state = self._state(fresh)
        if any(Path(folder).glob(SHARDS)):
            reader = HuggingFaceStorageReader(folder)
            there = reader.read_metadata().state_dict_metadata
            state = {name: value for name, value in state.items() if name in there}
            load(state, storage_reader=reader)
        else:
            whole = {f"optimizer.{name}": value for name, value in found.optimizer.items()}
            taught = ((f"teacher.{name}", value) for name, value in found.teacher.items())
            whole |= {name: value for name, value in taught if name in state}  # see Teacher.load
            state = {name: _spread(value, state[name]) for name, value in whole.items()}
        parts = {name: value for name, value in state.items() if name.startswith("optimizer.")}
        restore_optimizer(self._learner.optimizer, {name.partition(".")[2]: value for name, value in parts.items()})
        self._teacher.load(
            {n.partition(".")[2]: v.to_local() for n, v in state.items() if n.startswith("teacher.")}  # type: ignore[attr-defined]
        )

    def _trained(self) -> dict[str, Any]:
        return {name: p for name, p in self._solver.model.named_parameters() if p.requires_grad}

    def _state(self, optimizer: Mapping[int, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Optimizer and self-teacher by name, as tensors that know which part of the whole they are."""
        from torch.distributed.tensor import DTensor

        from stepalign.training.teacher import REFERENCE

        trained = self._trained()
        state = {f"optimizer.{i}.{name}": value for i, row in optimizer.items() for name, value in row.items()}
        for name, value in self._teacher.state().items():
            like = trained[name.removeprefix(REFERENCE)]
            state[f"teacher.{name}"] = DTensor.from_local(
                value, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
            )
        return state

    def _leave(self) -> None:
        import torch

        self._ended = True
        self._watch.close()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _spread(value: torch.Tensor, like: Any) -> torch.Tensor:
    """This rank's part of a whole tensor, spread as another one is; a plain number stays as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
