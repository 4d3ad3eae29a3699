"""For the PYTHONPATH of a vLLM server, which imports it through ``--worker-extension-cls stepalign_sync.Extension``.

It adds the weight-transfer engine "file" (``--weight-transfer-config '{"backend": "file"}'``): new weights are read
from safetensors files in a folder that both sides see. One plain file; it needs vLLM and nothing of stepalign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer.base import WeightTransferEngine  # pyright: ignore[reportMissingImports]


@dataclass
class InitInfo:
    """Nothing has to be set up."""


@dataclass
class UpdateInfo:
    """One version."""

    path: str
    """Folder with safetensors files; tensors have the names of the Hugging Face model."""


class FileEngine(WeightTransferEngine):
    """Weights from files."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload  # pyright: ignore

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self.model.load_weights(read(update_info.path))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Without the wait for an accelerator where there is none."""
        with torch.no_grad():
            self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload  # pyright: ignore

        finalize_layerwise_reload(self.model, self.model_config)
        repack_heads(self.model)

    def shutdown(self) -> None:
        pass


def read(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tensors.get_tensor(name)


def repack_heads(model: torch.nn.Module) -> None:
    """On a CPU vLLM multiplies with packed copies of weights; a tied head has one of its own that no reload renews."""
    try:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm  # pyright: ignore
    except ImportError:
        return
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class Extension:
    """Mixed into the server's workers; the import of this module is what matters."""


WeightTransferEngineFactory.register_engine("file", FileEngine)
