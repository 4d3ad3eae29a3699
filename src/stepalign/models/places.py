"""Where a model is: the path of a recipe, as something that can be loaded. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from stepalign.errors import ConfigError

_SHIPPED = "embedded:"
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
            raise ConfigError(f"unknown embedded solver {path}", hint=f"the only one is {known}")
    if folder.is_dir():
        if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            hint = "a run folder holds its last weights in final/" if (folder / "final").is_dir() else None
            raise ConfigError(f"no model in {path}: config.json is missing", where=str(folder), hint=hint)
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(f"no model at {path}", where=str(folder), hint="give a folder in Hugging Face layout")
    return path
