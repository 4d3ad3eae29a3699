"""Train a language model on feedback - and see, token by token, what that feedback teaches.

The names below are the public ones; docs/python.md shows each at work. They are loaded when they are first used, so
``import stepalign`` takes milliseconds and loads no torch. Every other module is internal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepalign.build import make_prompts
    from stepalign.config import load_config
    from stepalign.critics.served import served_critic as Critic  # noqa: N812
    from stepalign.domains.domain import Domain
    from stepalign.domains.math import grade
    from stepalign.domains.table import DOMAINS
    from stepalign.errors import UserError
    from stepalign.events import silent
    from stepalign.feedback import align, split_steps
    from stepalign.feedback.designs import DESIGNS, Design, Group, NothingToShow
    from stepalign.models.load import Solver, load_solver
    from stepalign.objectives.divergences import DIVERGENCES, forward_kl, jensen_shannon, reverse_kl
    from stepalign.objectives.fused import fused_linear_divergence
    from stepalign.records import Attempt, Context, Critique, Grade, Problem, Sample
    from stepalign.verbs.compare import compare
    from stepalign.verbs.evaluate import evaluate
    from stepalign.verbs.preflight import preflight
    from stepalign.verbs.signal.notebook import Signal, signal
    from stepalign.verbs.train import train
    from stepalign.verbs.trl import StepAlignCallback

__version__ = "0.1.0"

__all__ = [
    "DESIGNS",
    "DIVERGENCES",
    "DOMAINS",
    "Attempt",
    "Context",
    "Critic",
    "Critique",
    "Design",
    "Domain",
    "Grade",
    "Group",
    "NothingToShow",
    "Problem",
    "Sample",
    "Signal",
    "Solver",
    "StepAlignCallback",
    "UserError",
    "align",
    "compare",
    "evaluate",
    "forward_kl",
    "fused_linear_divergence",
    "grade",
    "jensen_shannon",
    "load_config",
    "load_solver",
    "make_prompts",
    "preflight",
    "reverse_kl",
    "signal",
    "silent",
    "split_steps",
    "train",
]

_HOMES = {
    "build": ("make_prompts",),
    "config": ("load_config",),
    "domains.domain": ("Domain",),
    "domains.math": ("grade",),
    "domains.table": ("DOMAINS",),
    "errors": ("UserError",),
    "events": ("silent",),
    "feedback": ("align", "split_steps"),
    "feedback.designs": ("DESIGNS", "Design", "Group", "NothingToShow"),
    "models.load": ("Solver", "load_solver"),
    "objectives.divergences": ("DIVERGENCES", "forward_kl", "jensen_shannon", "reverse_kl"),
    "objectives.fused": ("fused_linear_divergence",),
    "records": ("Attempt", "Context", "Critique", "Grade", "Problem", "Sample"),
    "verbs.compare": ("compare",),
    "verbs.evaluate": ("evaluate",),
    "verbs.preflight": ("preflight",),
    "verbs.signal.notebook": ("Signal", "signal"),
    "verbs.train": ("train",),
    "verbs.trl": ("StepAlignCallback",),
}
_HOME_OF = {name: (module, name) for module, names in _HOMES.items() for name in names}
_HOME_OF["Critic"] = ("critics.served", "served_critic")


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stepalign' has no attribute {name!r}")
    module, attribute = _HOME_OF[name]
    value = getattr(importlib.import_module(f"stepalign.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
