"""All weights by NCCL, from GPU to GPU. Untried: no GPU with vLLM was at hand; ``sync.send_file`` is what was measured.

The trainer is rank 0 and the workers of one server are the ranks behind it. vLLM's own trainer side would need vLLM in
this process, so the library is called through ctypes: a unique id over HTTP, one element reduced by all as a greeting,
then one broadcast a tensor, in the order that the server was given.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
from collections.abc import Mapping
from typing import Any

import httpx2
import torch

from stepalign.errors import ConfigError
from stepalign.models.sampling.server import Policy, Server, ask, post, transfer

TYPES = {torch.int8: 0, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
"""ncclDataType_t."""
SUM, NUM_ID_BYTES = 0, 128


class _Id(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_byte * NUM_ID_BYTES),)


class Link:
    """A communicator of this process and the workers of one server."""

    def __init__(self) -> None:
        try:
            self._nccl = ctypes.CDLL("libnccl.so.2")
        except OSError as error:
            hint = "--set sampling.sync=file, or install nvidia-nccl-cu13 and put its folder on LD_LIBRARY_PATH"
            raise ConfigError("there is no NCCL library", where="sampling.sync", hint=hint) from error
        self._nccl.ncclGetErrorString.restype = ctypes.c_char_p
        self.id = _Id()
        self._comm = ctypes.c_void_p()
        self._call("ncclGetUniqueId", ctypes.byref(self.id))

    def join(self, num_ranks: int) -> None:
        """Wait for the workers and greet them."""
        self._call("ncclCommInitRank", ctypes.byref(self._comm), num_ranks, self.id, 0)
        one = torch.zeros(1, device="cuda")
        place = ctypes.c_void_p(one.data_ptr())
        self._call("ncclAllReduce", place, place, ctypes.c_size_t(1), TYPES[one.dtype], SUM, self._comm, _stream())
        torch.cuda.synchronize()

    def send(self, weights: Mapping[str, torch.Tensor]) -> None:
        for value in weights.values():
            whole = value.detach().contiguous()
            place, count = ctypes.c_void_p(whole.data_ptr()), ctypes.c_size_t(whole.numel())
            self._call("ncclBroadcast", place, place, count, TYPES[whole.dtype], 0, self._comm, _stream())
        torch.cuda.synchronize()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._nccl, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: {self._nccl.ncclGetErrorString(code).decode()}")


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


async def send(client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
    """Send a version to one server. Raises ConfigError, EndpointError, Fault."""

    async def connect() -> None:
        if server.link is not None:
            return
        link = Link()
        size = 1 + int((await ask(client, "GET", server, "/get_world_size")).json()["world_size"])
        unique = base64.b64encode(bytes(link.id.bytes)).decode()
        info = {"nccl_unique_id_b64": unique, "rank_offset": 1, "world_size": size, "packed": False}
        await asyncio.gather(
            post(client, server, "/init_weight_transfer_engine", init_info=info), asyncio.to_thread(link.join, size)
        )
        server.link = link

    async def update() -> None:
        info = {
            "names": list(policy.weights),
            "dtype_names": [str(value.dtype).removeprefix("torch.") for value in policy.weights.values()],
            "shapes": [list(value.shape) for value in policy.weights.values()],
        }
        await asyncio.gather(
            post(client, server, "/update_weights", update_info=info),
            asyncio.to_thread(server.link.send, policy.weights),
        )

    await transfer(client, server, policy, connect, update)
