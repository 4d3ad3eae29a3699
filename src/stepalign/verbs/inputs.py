"""A recipe with its problems, its prompts and the shapes of its model, for commands that look before they work."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from stepalign.build import make_prompts, recipe_solver
from stepalign.config import Config
from stepalign.domains.table import load_sets
from stepalign.events import Listener, silent
from stepalign.problems.loading import ProblemSet
from stepalign.records import Problem

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.models.prompts import PromptBuilder


class Inputs:
    """The input of the checks: a recipe, and what it names, loaded when a check first asks for it."""

    def __init__(self, config: Config, listener: Listener = silent) -> None:
        self.config, self.listener = config, listener

    @cached_property
    def sets(self) -> dict[str, ProblemSet]:
        """Raises ConfigError as ``load_sets`` does."""
        found = load_sets(self.config.data)
        for name, one in found.items():
            one.say_skipped(self.listener, f"{name}: ")
        return found

    @property
    def problems(self) -> dict[str, tuple[Problem, ...]]:
        return {name: tuple(found.problems) for name, found in self.sets.items()}

    @cached_property
    def solver(self) -> Solver:
        """Tokenizer and shapes, no weights. Raises ConfigError as ``load_solver`` does."""
        return recipe_solver(self.config, weights=False)

    @cached_property
    def prompts(self) -> PromptBuilder:
        return make_prompts(self.config, self.solver)
