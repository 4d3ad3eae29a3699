"""Designs of a user's own: a function or a ``Design`` by import path, or a template file (docs/designs.md).

A function in a recipe runs its module: such a recipe needs the trust of code. Templates are sandboxed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.feedback.designs import builtin
from stepalign.feedback.designs.design import FEEDBACK, Design, Group, Need, NothingToShow, sibling, usable_critique
from stepalign.feedback.prompts import load_template
from stepalign.outside import encodable
from stepalign.own_code import import_own, raised_by_own_code

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
    if name.endswith(".jinja"):
        return _from_template(name)
    found = import_own(name, "context design", "function")
    if isinstance(found, Design):
        return replace(found, show=_checked(found.show, name))
    label = (inspect.getdoc(found) or name.rpartition(":")[2]).splitlines()[0].rstrip(".")
    return Design(_checked(found, name), label)


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
