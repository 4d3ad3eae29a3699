"""Where a model is: the path of a recipe, as something that can be loaded. Loads no torch."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.hub import has_copy, is_reachable

_SHIPPED = "embedded:"
_LAYOUT = "give a folder in Hugging Face layout, a run folder, OWNER/NAME on the Hub, or embedded:arithmetic"
_DOMAINS = Path(__file__).parents[1] / "domains"


def is_shipped(path: str) -> bool:
    """Whether a path names a solver that comes with the package, in the folder of its domain; these are tiny."""
    return path.startswith(_SHIPPED)


def name_of(folder: str) -> str:
    """A recipe's name for the folder that a model was loaded from: ``embedded:NAME`` for one that is shipped."""
    path = Path(folder)
    return _SHIPPED + path.parent.name if path.parent.parent == _DOMAINS else folder


def find_model(path: str) -> str:
    """A loadable address; a local path that does not exist is an error here and not a question to the Hub."""
    folder = Path(path).expanduser()
    if is_shipped(path):
        folder = _DOMAINS / path.removeprefix(_SHIPPED) / "solver"
        if not folder.is_dir():
            known = ", ".join(_SHIPPED + found.parent.name for found in sorted(_DOMAINS.glob("*/solver")))
            raise ConfigError(f"unknown embedded solver {path}", where="model.path", hint=f"the only one is {known}")
    if is_gguf(path):
        _check_gguf(folder)
        return str(folder)
    if folder.is_dir():
        if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            hint = "a run folder holds its last weights in final/" if (folder / "final").is_dir() else _LAYOUT
            if files := sorted(folder.glob("*.gguf")):
                hint = f"give the file: {files[0]}"
            raise ConfigError(f"no model in {path}: config.json is missing", where=str(folder), hint=hint)
        return str(folder)
    if not is_hub_name(path):
        raise ConfigError(f"no model at {path}", where=str(folder), hint=_LAYOUT)
    if not (is_reachable() or has_copy(path, "config.json") or has_copy(path, "adapter_config.json")):
        raise ConfigError(
            f"no folder {path}, and the Hub cannot be reached",
            where="model.path",
            hint=f"{_LAYOUT}; hf download {path}, where there is a network, gives a folder",
        )
    return path


def is_hub_name(path: str) -> bool:
    """OWNER/NAME, which may be a folder as well."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def is_gguf(path: str | Path) -> bool:
    return str(path).lower().endswith(".gguf")


def address(folder: str) -> tuple[str, dict[str, Any]]:
    """(place, options) for the loaders of transformers, which find a GGUF file in its folder."""
    path = Path(folder)
    return (str(path.parent), {"gguf_file": path.name}) if is_gguf(path) else (folder, {})


def adapted_base(folder: str) -> str | None:
    """The model below the adapters of a folder; None for a folder that holds a whole model."""
    config = Path(folder, "adapter_config.json")
    if not config.is_file() or Path(folder, "config.json").is_file():
        return None
    return find_model(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def weight_files(path: str) -> list[Path]:
    """The files that hold a model's weights; none for a Hub name."""
    found = Path(find_model(path))
    return sorted(found.glob("*.safetensors")) if found.is_dir() else [found] if found.is_file() else []


def _check_gguf(file: Path) -> None:
    """Raises ConfigError for a GGUF file that cannot be read here."""
    if not file.is_file():
        raise ConfigError(f"no model at {file}", where="model.path", hint="give the path of a GGUF file")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ConfigError("this is no GGUF file: its first bytes are others", where=str(file))
    if re.search(r"-of-\d+\.gguf$", file.name, re.I):
        raise ConfigError(
            "a GGUF file in several parts cannot be loaded",
            where=str(file),
            hint="join them: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("a GGUF file needs the package gguf", where=str(file), hint='pip install "stepalign[gguf]"')
