"""Samplers: token ids in; ids, log-probabilities, finish reason and policy version out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from stepalign.errors import ConfigError
from stepalign.own_code import import_own
from stepalign.records import Completion

if TYPE_CHECKING:
    from torch import Tensor

OnFinished = Callable[[int, int, Completion], None]
"""Called with (prompt index, sample index, completion) as soon as a completion ends, before the others do."""


class Sampler(Protocol):
    """An engine that draws completions from the weights it was given last."""

    has_own_weights: bool
    """Whether it draws from a copy, which ``publish`` renews: then it may draw while the learner works, and its
    log-probabilities are compared with the learner's."""

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        """``num_samples`` completions for each prompt, in the order of the prompts. Several calls may run at once.

        Args:
            prompts: token ids, of any lengths.
            temperature: 0 is greedy.
            max_tokens: length limit of a completion; one that reaches it has finish reason "length".
            seed: same weights, prompts and seed give the same completions on the same machine.
        """
        ...

    async def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Draw from these weights from now on.

        Args:
            weights: the solver's trainable parameters by name. A sampler that shares their memory has them already.
            version: finished optimizer steps behind them; every completion names it.
        """
        ...

    def close(self) -> None:
        """Delete what was made for publishing."""
        ...


def own_sampler(name: str) -> Any:
    """A class of the user's, made with the solver and the section ``sampling``, by "module:Class" or "file.py:Class".

    Raises:
        ConfigError: it cannot be imported, or lacks a part of ``Sampler``.
    """
    made = import_own(name, "sampler", "class")
    lacking = [part for part in ("has_own_weights", "sample", "publish", "close") if not hasattr(made, part)]
    if lacking:
        raise ConfigError(
            f"{name.rpartition(':')[2]} has no {', no '.join(lacking)}",
            where=f"sampler {name}",
            hint="a sampler is as docs/scale.md shows one",
        )
    return made
