"""What a task is, as a value."""

from __future__ import annotations

from stepalign.domains.math.bounded import GraderConfig
from stepalign.domains.math.grade import GraderError
from stepalign.domains.math.grading import Grader
from stepalign.errors import ConfigError


def open_grader(name: str = "", *, seconds: float = 1.0, num_workers: int = 2) -> Grader:
    """The built-in grader, one of a user's own (``module:function``), or the rewards of ``verifiers:TASKSET``.

    Raises:
        ConfigError: it cannot be started.
    """
    function, argument = name or None, ""
    if name.startswith("verifiers:"):
        function, argument = "stepalign.domains.verifiers:load_grader", name
    try:
        return Grader(GraderConfig(function=function, argument=argument, seconds=seconds, num_workers=num_workers))
    except GraderError as error:
        raise ConfigError("The grader cannot be started.", where=error.where, hint=error.hint) from None
