"""The ranks that torchrun starts: how they meet, what they say to each other, and what ends them together."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from stepalign.errors import UserError
from stepalign.records import Sample

START_SECONDS = 600.0
"""For all ranks to start."""
_CLOSE_SECONDS = 5.0


class RankLostError(UserError):
    """The ranks cannot reach each other any more (exit code 1)."""


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


if num_ranks() > 1:  # read when torch is loaded; it warns about its own process groups otherwise
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def shared_out(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Samples for each rank, balanced by tokens. Those with one prompt stay together, as rows compute it once, unless
    they are more than a rank's part."""
    if size == 1:
        return [list(samples)]
    families: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        families.setdefault(sample.student_prompt_ids, []).append(index)
    sizes = [len(s.student_prompt_ids) + len(s.teacher_prompt_ids or ()) + 2 * len(s.completion_ids) for s in samples]
    part = sum(sizes) / size
    pieces: list[list[int]] = []
    for members in families.values():
        together = sum(sizes[i] for i in members) <= part
        pieces += [members] if together else [[member] for member in members]
    shares: list[list[int]] = [[] for _ in range(size)]
    for piece in sorted(pieces, key=lambda piece: (-sum(sizes[i] for i in piece), piece)):
        min(shares, key=lambda share: sum(sizes[i] for i in share)).extend(piece)
    return [[samples[i] for i in sorted(share)] for share in shares]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This rank among all; of one process by default."""

    rank: int = 0
    size: int = 1
    store: Any = None
    """Keys and values that all ranks see."""
    timeout: float = 600.0
    """Seconds that a rank waits for another one that is at work."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all ranks."""
        if self.size == 1:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def say(self, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Rank 0's message, on every rank."""
        import torch

        text = (
            torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
            if message is not None
            else torch.empty(0)
        )
        length = torch.tensor([len(text)])
        torch.distributed.broadcast(length, 0)
        text = text if message is not None else torch.empty(int(length), dtype=torch.uint8)
        torch.distributed.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))


ONE_PROCESS = Ranks()


def join(timeout: float) -> Ranks:
    """Meet the other ranks. ``timeout`` in seconds: how long a rank waits for another one that is at work."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    patience = timedelta(seconds=max(timeout, START_SECONDS))
    store, rank, size = next(rendezvous("env://", timeout=patience))
    _meet(PrefixStore("meeting", store), rank, size, patience)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    return Ranks(rank, size, PrefixStore("stepalign", store), timeout)


def _meet(store: Any, rank: int, size: int, patience: timedelta) -> None:
    """Wait until all ranks are here. Raises RankLostError with the names of those that did not come."""
    store.set(f"{rank}", "")
    try:
        store.wait([f"{other}" for other in range(size)], patience)
    except RuntimeError as error:
        late = [other for other in range(size) if not store.check([f"{other}"])]
        raise RankLostError(
            f"rank {', '.join(map(str, late))} of {size} did not start within {patience.total_seconds():.0f} s",
            where=f"rank {rank}",
            hint="the log of that rank says why; a rank waits training.rank_timeout seconds, and 600 at least",
        ) from error


class Watch:
    """A thread that shows that this process lives, and ends it soon after another rank has died or shows nothing."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._closing, here = ranks, threading.Event(), socket.gethostname()
        ranks.store.set(f"rank {ranks.rank}", f"{os.getpid()} {here}")
        found = [ranks.store.get(f"rank {rank}").decode().split(" ", 1) for rank in range(ranks.size)]
        processes = {rank: int(pid) for rank, (pid, host) in enumerate(found) if host == here and rank != ranks.rank}
        self._processes = {rank: pid for rank, pid in processes.items() if _is_alive(pid)}  # hosts may share a name
        self._store = ranks.store.clone()  # the main thread blocks the other connection while it waits
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that is in torch's code while Python ends would abort the process

    def close(self) -> None:
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)

    def places(self) -> str:
        """Where the main thread of every rank is."""
        beats: dict[int, str] = {}
        with suppress(RuntimeError):  # the store may be gone
            beats = {rank: self._beat(rank).partition(" ")[2] for rank in range(self._ranks.size)}
        return ", ".join(f"rank {rank} at {place}" for rank, place in beats.items())

    def _watch(self) -> None:
        ranks, count, main = self._ranks, 0, threading.main_thread().ident or 0
        watched = [0] if ranks.rank else range(1, ranks.size)  # rank 0 watches all, and is watched by all
        beats = {rank: ("", time.monotonic()) for rank in watched}
        try:
            while not self._closing.is_set():
                count += 1
                self._store.set(f"beat {ranks.rank}", f"{count} {_place(sys._current_frames().get(main))}")
                for rank, process in self._processes.items():
                    if not _is_alive(process) and not self._closing.is_set():
                        self._end(rank, f"(process {process}) has died")
                for rank in beats:
                    beats[rank] = self._look(rank, *beats[rank])
                self._closing.wait(0.5)
        except RuntimeError:  # of torch: the store is gone with the process that holds it, and torchrun ends all
            return

    def _look(self, rank: int, last: str, heard: float) -> tuple[str, float]:
        """The sign that a rank has given last, and when it was new."""
        if (beat := self._beat(rank)) != last:
            return beat, time.monotonic()
        silent = time.monotonic() - heard
        if silent > self._ranks.timeout and not self._closing.is_set():
            if process := self._processes.get(rank):
                os.kill(process, signal.SIGKILL)  # torchrun would only ask it
            self._end(rank, f"has given no sign for {silent:.0f} s; it was at {beat.partition(' ')[2]}")
        return last, heard

    def _beat(self, rank: int) -> str:
        """A count that grows while a rank's process lives, and where its main thread is; "" before the first."""
        name = f"beat {rank}"
        return self._store.get(name).decode() if self._store.check([name]) else ""

    def _end(self, rank: int, reason: str) -> NoReturn:
        if self._ranks.rank == (0 if rank else 1):
            hint = "the run goes on from its last checkpoint with --resume"
            os.write(2, f"error: rank {rank} of {self._ranks.size} {reason}\n  hint: {hint}\n".encode())
        os._exit(1)


def _place(frame: Any) -> str:
    """Where a thread is: the innermost line of this package."""
    while frame is not None and "stepalign" not in Path(frame.f_code.co_filename).parts:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "elsewhere"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
