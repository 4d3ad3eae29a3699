"""Samplers: token ids in; ids, log-probabilities, finish reason and policy version out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from stepalign.records import Completion

OnFinished = Callable[[int, int, Completion], None]
"""Called with (prompt index, sample index, completion) as soon as a completion ends, before the others do."""


class Sampler(Protocol):
    """An engine that draws completions from the solver's current weights."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        """``num_samples`` completions for each prompt, in the order of the prompts.

        Args:
            prompts: token ids, of any lengths.
            temperature: 0 is greedy.
            max_tokens: length limit of a completion; one that reaches it has finish reason "length".
            seed: same weights, prompts and seed give the same completions on the same machine.
        """
        ...
