"""Batched scoring against one sequence at a time, and the cut into micro-batches against its two promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepalign.solver.model import Solver
from stepalign.solver.scoring import completion_hidden, micro_batches

SEQUENCES = [
    ((3, 14, 30, 4), (16, 20, 21, 1)),
    ((3, 9, 4), (11,)),
    ((3, 20, 31, 12, 30, 25, 31, 11, 4), (16, 20, 21, 9, 9, 33, 1)),
    ((3,), (7, 8)),
]


@torch.no_grad()
def test_batched_equals_one_by_one_and_equals_the_whole_model(tiny_solver: Solver) -> None:
    batched = completion_hidden(tiny_solver, SEQUENCES)
    single = torch.cat([completion_hidden(tiny_solver, [sequence]) for sequence in SEQUENCES])
    torch.testing.assert_close(batched, single, atol=1e-5, rtol=1e-5)
    rows = []
    for prompt, completion in SEQUENCES:
        logits = tiny_solver.model(torch.tensor([[*prompt, *completion]])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    expected = torch.cat(rows)
    head = tiny_solver.model.get_output_embeddings().weight
    torch.testing.assert_close(batched @ head.T, expected, atol=1e-4, rtol=1e-5)


def test_a_hidden_state_predicts_its_token_and_has_not_seen_it(tiny_solver: Solver) -> None:
    prompt, completion = SEQUENCES[2]
    with torch.no_grad():
        before = completion_hidden(tiny_solver, [(prompt, completion)])
        for place in range(len(completion)):
            changed = (*completion[:place], 40, *completion[place + 1 :])
            after = completion_hidden(tiny_solver, [(prompt, changed)])
            same = torch.isclose(before, after, atol=1e-6).all(-1)
            assert same[: place + 1].all()
            assert not same[place + 1 :].any()


def test_gradients_are_those_of_one_by_one(make_solver: Callable[..., Solver]) -> None:
    def gradients(batches: list[list]) -> list[torch.Tensor]:
        solver = make_solver(2)
        for batch in batches:
            completion_hidden(solver, batch).square().sum().backward()
        return [p.grad for p in solver.model.parameters() if p.grad is not None]

    for one, other in zip(gradients([SEQUENCES]), gradients([[s] for s in SEQUENCES]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_empty_prompt_is_an_error(tiny_solver: Solver) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        completion_hidden(tiny_solver, [((3, 4), (5,)), ((), (5,))])


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(micro_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(50, 400))
def test_micro_batches_are_as_few_as_sorted_batches_can_be(lengths: list[int], budget: int) -> None:
    """Two neighbours never fit into one: nothing is wasted, and similar lengths are together."""
    batches = list(micro_batches(lengths, budget))
    for one, following in itertools.pairwise(batches):
        assert max(lengths[i] for i in one) <= min(lengths[i] for i in following)
        assert (len(one) + 1) * min(lengths[i] for i in following) > budget
