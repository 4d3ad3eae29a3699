"""Designs of a user's own: a function or a ``Design`` by import path, or a template file (docs/designs.md).

A function in a recipe runs its module: such a recipe needs the trust of code. Templates are sandboxed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from stepalign.errors import ConfigError, raised_by_own_code
from stepalign.feedback.designs import builtin
from stepalign.feedback.designs.design import FEEDBACK, Design, Group, Need, NothingToShow, sibling, usable_critique
from stepalign.feedback.prompts import load_template
from stepalign.outside import encodable

TEMPLATE_NEEDS: dict[str, tuple[Need, ...]] = {
    "question": (),
    "answer": (),
    "attempt": (),
    "verdict": (),
    "reference": ("reference",),
    "critique": ("critic",),
    "first_error": ("critic",),
    "correct_sibling": ("siblings",),
    "wrong_sibling": ("siblings",),
}
"""The variables of a template design and their needs."""


def is_own(name: str) -> bool:
    """Whether a name is a path to a design of the user's: ``module:function``, ``file.py:function``, ``file.jinja``."""
    return ":" in name or name.endswith(".jinja")


@cache
def load_own(name: str) -> Design:
    """The design behind a path.

    Raises:
        ConfigError: it cannot be found or imported, or does not keep to the contract.
    """
    return _from_template(name) if name.endswith(".jinja") else _from_code(name)


def _from_code(name: str) -> Design:
    where, _, attribute = name.rpartition(":")
    module = import_module_of(where, f"context design {name}")
    found = getattr(module, attribute, None)
    if isinstance(found, Design):
        return replace(found, show=_checked(found.show, name))
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{where} has no function {attribute}",
            where=f"context design {name}",
            hint=f"it has {', '.join(public)}" if public else "a design is a function of (group, index)",
        )
    label = (inspect.getdoc(found) or attribute).splitlines()[0].rstrip(".")
    return Design(_checked(found, name), label)


def import_module_of(place: str, what: str) -> ModuleType:
    """A user's module, by its dotted name or its file. Raises ConfigError where it cannot be imported."""
    try:
        return _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"the module cannot be imported: {type(error).__name__}: {error}",
            where=what,
            hint='name it "package.module:name" or "path/to/file.py:name", as seen from the working directory',
        ) from error


def _from_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look into the working directory
        sys.path.append(here)
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stepalign_design_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _checked(show: Callable[..., Any], name: str) -> Callable[[Group, int], str | None]:
    """The user's function, whose faults become errors of the recipe with file and line."""
    try:
        inspect.signature(show).bind(None, 0)
    except TypeError as error:
        raise ConfigError(
            f"the function does not take (group, index): {error}",
            where=f"context design {name}",
            hint="def my_design(group: Group, index: int) -> str | None",
        ) from error

    def call(group: Group, index: int) -> str | None:
        try:
            text = show(group, index)
        except NothingToShow:
            raise
        except Exception as error:
            hint = "raise NothingToShow(reason) for a rollout that has nothing to show"
            raise raised_by_own_code("the design", error, hint) from error
        if text is not None and not isinstance(text, str):
            raise ConfigError(
                f"the design returns {type(text).__name__}, not text or None", where=f"context design {name}"
            )
        return encodable(text)

    return call


def _from_template(name: str) -> Design:
    template = load_template(Path(name))
    template.refuse_others_than(TEMPLATE_NEEDS, "a context design")
    used = template.variables

    def show(group: Group, index: int) -> str:
        return template.render(**{variable: _value(variable, group, index) for variable in used})

    needs: tuple[Need, ...] = tuple(
        dict.fromkeys(need for variable in sorted(used) for need in TEMPLATE_NEEDS[variable])
    )
    return Design(show, Path(name).stem.replace("_", " "), FEEDBACK, needs)


def _value(variable: str, group: Group, index: int) -> str:
    """A variable of a template. Raises NothingToShow where the attempt lacks it."""
    problem, attempt = group.problem, group.attempts[index]
    values: dict[str, Callable[[], str]] = {
        "question": lambda: problem.question,
        "answer": lambda: problem.shown_answer,
        "attempt": lambda: attempt.text,
        "verdict": lambda: attempt.verdict,
        "reference": lambda: builtin.reference(group, index),
        "critique": lambda: usable_critique(group, index).text,
        "first_error": lambda: usable_critique(group, index).first_error,
        "correct_sibling": lambda: sibling(group, index, "correct").text,
        "wrong_sibling": lambda: sibling(group, index, "incorrect").text,
    }
    return values[variable]()
