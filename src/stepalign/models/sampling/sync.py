"""How weights reach a vLLM server: one small function a way, chosen from what trains and from what the server answers.

An adapter is loaded under a new name for each version and unloaded after its last request; loading in place would keep
cached prefixes of the old weights. All weights go through the server's weight-transfer routes, either as a file that
the engine ``on_server/stepalign_sync.py`` reads, or by NCCL. The stock call ``reload_weights`` leaves a packed copy of
a tied head as it was, and is never made.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

from stepalign.errors import EndpointError
from stepalign.models.sampling import nccl
from stepalign.models.sampling.server import (
    Policy,
    Server,
    ask,
    cannot,
    offers,
    one_line,
    post,
    transfer,
    weight_version,
)

if TYPE_CHECKING:
    from torch import Tensor

FRESH = "default"
"""The weight version of a server whose weights are those it was started with."""


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def write_adapter(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """An adapter in PEFT's layout."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model.peft_config["default"].save_pretrained(folder)
    plain = {name.replace(".default.", "."): value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(plain, folder / "adapter_model.safetensors")


async def has_adapter(client: httpx2.AsyncClient, server: Server, policy: Policy) -> bool:
    return policy.name in server.holds  # after a restart its requests answer 404, and it is forgotten


async def load_adapter(client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
    if not await offers(client, server, "/v1/load_lora_adapter"):
        raise cannot(server, "load adapters while it runs")
    if await weight_version(client, server) not in (None, FRESH):
        what = "the rollout server has other base weights than it was started with, and an adapter would sit on them"
        raise EndpointError(what, where=server.label, hint="restart the server")
    body = {"lora_name": policy.name, "lora_path": str(policy.folder)}
    reply = await ask(client, "POST", server, "/v1/load_lora_adapter", json=body)
    if reply.status_code != 200 and "already been loaded" not in reply.text:
        what = f"the rollout server does not load the adapter: {one_line(reply.text)}"
        hint = "it must see the folder that sampling.sync_folder names, and allow the rank (--max-lora-rank)"
        raise EndpointError(what, where=f"{server.label}, {policy.folder}", hint=hint)


async def unload_adapter(client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
    await ask(client, "POST", server, "/v1/unload_lora_adapter", json={"lora_name": policy.name})


# ---------------------------------------------------------------------------------------------------------------------
# All weights


def write_file(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """All trained weights under the model's own names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / "all.safetensors")


async def has_version(client: httpx2.AsyncClient, server: Server, policy: Policy) -> bool:
    """Asked before each request: a server that was restarted holds its first weights again, and says so here only.

    Raises:
        EndpointError: another run has put its weights in the place of ours.
    """
    found = await weight_version(client, server)
    if policy.name in server.holds and found not in (policy.name, FRESH, None):
        what = f"another run hands its weights to this rollout server: it holds {one_line(str(found))}"
        hint = "give each run that trains all weights servers of its own, or train adapters, which live side by side"
        raise EndpointError(what, where=server.label, hint=hint)
    return found == policy.name


async def send_file(client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
    await transfer(
        client,
        server,
        policy,
        lambda: post(client, server, "/init_weight_transfer_engine", init_info={}),
        lambda: post(client, server, "/update_weights", update_info={"path": str(policy.folder)}),
    )


# ---------------------------------------------------------------------------------------------------------------------


async def nothing(client: httpx2.AsyncClient, server: Server, policy: Policy) -> None:
    pass


async def always(client: httpx2.AsyncClient, server: Server, policy: Policy) -> bool:
    return True


def write_nothing(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    pass


class Way(NamedTuple):
    """How a server gets a version."""

    write: Callable[[Any, Mapping[str, Tensor], Path], None]
    """(model, trainable weights, folder): makes what servers read."""
    has: Callable[[httpx2.AsyncClient, Server, Policy], Awaitable[bool]]
    send: Callable[[httpx2.AsyncClient, Server, Policy], Awaitable[None]]
    drop: Callable[[httpx2.AsyncClient, Server, Policy], Awaitable[None]]
    named: bool
    """Whether requests name the version, so that several are served side by side."""


WAYS: dict[str, Way] = {
    "none": Way(write_nothing, always, nothing, nothing, named=False),
    "lora": Way(write_adapter, has_adapter, load_adapter, unload_adapter, named=True),
    "file": Way(write_file, has_version, send_file, nothing, named=False),
    "nccl": Way(write_nothing, has_version, nccl.send, nothing, named=False),
}


def choose(setting: str, weights: Mapping[str, Tensor]) -> Way:
    """The way for these weights: adapters are hot-loaded, all weights go through a file unless the recipe says NCCL."""
    if setting == "auto":
        setting = "lora" if any(".lora_" in name for name in weights) else "file"
    return WAYS[setting]


def delete(policy: Policy) -> None:
    """Delete the files of a version."""
    if policy.folder is not None:
        shutil.rmtree(policy.folder, ignore_errors=True)
