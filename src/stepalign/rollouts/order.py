"""Which problems a step takes, and from which seed each draw of a run starts. Pure."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from stepalign.records import Problem
from stepalign.storage.fingerprint import digest


def derive_seed(*parts: object) -> int:
    """A seed for one purpose, from the run's seed and anything that tells the purposes apart.

    Every random draw of a run starts from such a seed and none from what was drawn before, so a resumed run needs no
    generator state to continue with the same bits.
    """
    return int.from_bytes(digest(repr(parts))[:8]) >> 1


def problems_of_step(problems: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of one step: consecutive pieces of epoch after epoch, each shuffled by itself."""
    places = (divmod(position, len(problems)) for position in range(step * count, (step + 1) * count))
    return [problems[_epoch_order(len(problems), epoch, seed)[place]] for epoch, place in places]


@functools.lru_cache(maxsize=8)
def _epoch_order(length: int, epoch: int, seed: int) -> list[int]:
    order = list(range(length))
    random.Random(derive_seed(seed, "problem order", epoch)).shuffle(order)
    return order
