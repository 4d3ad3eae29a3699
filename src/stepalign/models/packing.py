"""Many sequences end to end in one row, without padding; a prompt that several of them share is there once.

    row:    [prompt A] [completion A1] [completion A2] [prompt B, completion B1]
    shown:             [prompt A]      [prompt A]

Every segment attends causally to itself and wholly to the shared prompt that it continues. Positions count from the
start of each sequence; its place in the row means nothing. This module is arithmetic on lists; ``packed_attention``
computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Scored = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, completion ids)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of tokens of the packed row."""

    start: int
    """Its first place in the row."""
    length: int
    """Tokens."""
    prompt: Segment | None = None
    """The shared prompt that it continues: an earlier segment of the row."""

    @property
    def places(self) -> range:
        """Its places in the row."""
        return range(self.start, self.start + self.length)

    @property
    def shown(self) -> range:
        """The places that its first token sees besides itself."""
        return self.prompt.places if self.prompt else range(0)


@dataclass(frozen=True, slots=True)
class Packing:
    """One row of S tokens. The segments cover it in order, without a gap."""

    ids: list[int] = field(default_factory=list)
    """[S]"""
    positions: list[int] = field(default_factory=list)
    """[S], each token's distance from the start of its sequence."""
    segments: list[Segment] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    """[N], the place whose hidden state predicts each completion token; sequences in the order given."""


def pack(sequences: Sequence[Scored]) -> Packing:
    """Lay the sequences end to end. Equal prompts are in the row once, at the place of the first.

    The last token of a completion predicts nothing that is scored; it is left out.

    Raises:
        ValueError: a prompt is empty, so that nothing predicts the first token of its completion.
    """
    packing = Packing()
    predictors: list[list[int]] = [[] for _ in sequences]
    for prompt, members in _by_prompt(sequences).items():
        if not prompt:
            raise ValueError("a completion cannot be scored behind an empty prompt")
        shared = _append(packing, prompt) if len(members) > 1 else None
        for member in members:
            completion = sequences[member][1]
            if shared:
                own = _append(packing, completion[:-1], prompt=shared)
                places = [shared.places[-1], *own.places]
            else:
                whole = _append(packing, [*prompt, *completion[:-1]])
                places = whole.places[len(prompt) - 1 :]
            predictors[member] = list(places[: len(completion)])
    packing.predictors.extend(place for places in predictors for place in places)
    return packing


def micro_batches(*sides: Sequence[Scored], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches that make rows of at most ``max_tokens`` tokens, a shared prompt counted once.

    Sequences with the same prompt stay together as long as they fit into one row; otherwise the order given is kept. A
    sequence longer than the budget gets a batch of its own.

    Args:
        sides: the sequences of each context, row i of every side with the same completion: a batch is as long as its
            longest side. The first side's prompts say what belongs together.
    """
    rows = [_Row(side) for side in sides]
    batch: list[int] = []
    for family in _by_prompt(sides[0]).values():
        fits_alone = max(_Row(side).length_with(family) for side in sides) <= max_tokens
        for members in [family] if fits_alone else [[member] for member in family]:
            if batch and max(row.length_with(members) for row in rows) > max_tokens:
                yield batch
                batch, rows = [], [_Row(side) for side in sides]
            batch.extend(members)
            for row in rows:
                row.add(members)
    if batch:
        yield batch


class _Row:
    """How long the packed row of the members added so far is."""

    def __init__(self, sequences: Sequence[Scored]) -> None:
        self._sequences = sequences
        self._prompts: set[tuple[int, ...]] = set()
        self._length = 0

    def length_with(self, members: Sequence[int]) -> int:
        prompts = {tuple(self._sequences[member][0]) for member in members} - self._prompts
        return self._length + sum(map(len, prompts)) + sum(len(self._sequences[member][1]) for member in members)

    def add(self, members: Sequence[int]) -> None:
        self._length = self.length_with(members)
        self._prompts.update(tuple(self._sequences[member][0]) for member in members)


def _by_prompt(sequences: Sequence[Scored]) -> dict[tuple[int, ...], list[int]]:
    """The indices of the sequences of each prompt, in order of first appearance."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(sequences):
        found.setdefault(tuple(prompt), []).append(index)
    return found


def _append(packing: Packing, ids: Sequence[int], *, prompt: Segment | None = None) -> Segment:
    """Put tokens at the end of the row."""
    segment = Segment(start=len(packing.ids), length=len(ids), prompt=prompt)
    if ids:
        first = prompt.length if prompt else 0
        packing.ids.extend(ids)
        packing.positions.extend(range(first, first + len(ids)))
        packing.segments.append(segment)
    return segment
