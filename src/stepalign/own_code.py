"""Code of the user's own in a recipe, by import path: it runs with the rights of the command."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from stepalign.errors import ConfigError


def import_own(name: str, what: str, noun: str) -> Any:
    """The function or class ``package.module:name`` or ``path/to/file.py:name``, seen from the working directory.

    Args:
        what: its part of the recipe, such as "context design".
        noun: "function" or "class".

    Raises:
        ConfigError: the module cannot be imported, or has no such name.
    """
    place, _, attribute = name.rpartition(":")
    where = f"{what} {name}"
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"the module cannot be imported: {type(error).__name__}: {error}",
            where=where,
            hint='name it "package.module:name" or "path/to/file.py:name", as seen from the working directory',
        ) from error
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = f"it has {', '.join(public)}" if public else f"name a {noun} of it"
        raise ConfigError(f"{place} has no {noun} {attribute}", where=where, hint=hint)
    return getattr(module, attribute)


def raised_by_own_code(name: str, error: Exception, hint: str) -> ConfigError:
    """The error of a recipe for an exception in code of the user, with the file and the line that raised it.

    Args:
        name: of the code, such as "the design".
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    return ConfigError(f"{name} raises {type(error).__name__}: {error}", where=where, hint=hint)


def _from_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look into the working directory
        sys.path.append(here)
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stepalign_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
