"""The packed row against its definition: what every token sees, read off the segments, is exactly its own context."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from stepalign.models import packed_attention
from stepalign.models.packed_attention import CALL_IN_PAIRS, RectangleAttention, VarlenAttention, rectangles
from stepalign.models.packing import Packing, Scored, micro_batches, pack

tokens = st.integers(0, 9)
prompts = st.lists(tokens, min_size=1, max_size=6)
sequences = st.lists(prompts, min_size=1, max_size=4).flatmap(
    lambda pool: st.lists(
        st.tuples(st.sampled_from(pool).map(tuple), st.lists(tokens, max_size=9).map(tuple)), min_size=1, max_size=9
    )
)
"""A few prompts, each with none, one or several completions, in any order; completions may be empty."""


def sees(packing: Packing) -> list[list[int]]:
    """The places that each place attends to, itself last."""
    return [
        [*segment.shown, *segment.places[: number + 1]]
        for segment in packing.segments
        for number in range(segment.length)
    ]


@given(sequences)
def test_every_completion_token_is_predicted_from_its_own_context_and_nothing_else(sequences: list[Scored]) -> None:
    packing = pack(sequences)
    visible = sees(packing)
    contexts = [
        [*prompt, *completion[:number]] for prompt, completion in sequences for number in range(len(completion))
    ]
    assert [[packing.ids[place] for place in visible[predictor]] for predictor in packing.predictors] == contexts
    for context in visible:
        assert [packing.positions[place] for place in context] == list(range(len(context)))


@given(sequences)
def test_the_row_holds_each_prompt_once_and_no_padding(sequences: list[Scored]) -> None:
    packing = pack(sequences)
    assert [place for segment in packing.segments for place in segment.places] == list(range(len(packing.ids)))
    distinct = {prompt for prompt, _ in sequences}
    real = sum(map(len, distinct)) + sum(max(0, len(completion) - 1) for _, completion in sequences)
    assert len(packing.ids) == len(packing.positions) == real


def test_a_row_to_read() -> None:
    packing = pack([((1, 2), (5, 6, 7)), ((3,), (8, 9)), ((1, 2), (4,)), ((1, 2), (5, 5))])
    assert packing.ids == [1, 2, 5, 6, 5, 3, 8]
    assert packing.positions == [0, 1, 2, 3, 2, 0, 1]
    assert packing.predictors == [1, 2, 3, 5, 6, 1, 1, 4]


@pytest.mark.parametrize("sequences", [[((), (5,))], [((3, 4), (5,)), ((), (5,)), ((), (6,))]])
def test_an_empty_prompt_is_an_error(sequences: list[Scored]) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        pack(sequences)


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches


@given(sequences, st.data(), st.integers(1, 60))
def test_micro_batches_are_a_partition_within_the_budget(
    student: list[Scored], data: st.DataObject, budget: int
) -> None:
    teacher = [(data.draw(prompts), completion) for _, completion in student]
    batches = list(micro_batches(student, teacher, max_tokens=budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(student)))
    for batch in batches:
        longest = max(len(pack([side[i] for i in batch]).ids) for side in (student, teacher))
        assert len(batch) == 1 or longest <= budget
    assert batches == list(micro_batches(student, teacher, max_tokens=budget))


@given(sequences, st.integers(1, 60))
def test_sequences_of_one_prompt_are_together_where_a_row_holds_them(sequences: list[Scored], budget: int) -> None:
    batches = list(micro_batches(sequences, max_tokens=budget))
    for prompt in {prompt for prompt, _ in sequences}:
        members = [i for i, (other, _) in enumerate(sequences) if other == prompt]
        if len(prompt) + sum(len(sequences[i][1]) for i in members) <= budget:
            assert sum(1 for batch in batches if set(batch) & set(members)) == 1


def test_the_order_given_is_kept_and_a_long_sequence_is_alone() -> None:
    lengths = [5, 2, 40, 3, 3, 2]
    sequences = [((number,), (1,) * (length - 1)) for number, length in enumerate(lengths)]
    assert list(micro_batches(sequences, max_tokens=8)) == [[0, 1], [2], [3, 4, 5]]


# ---------------------------------------------------------------------------------------------------------------------
# Attention against one dense mask


@given(sequences)
def test_rectangles_hold_every_segment_once_and_waste_less_than_calls(sequences: list[Scored]) -> None:
    segments = pack(sequences).segments
    cut = list(rectangles(segments))
    assert sorted(s.start for r in cut for s in r.segments) == [s.start for s in segments]
    for rectangle in cut:
        for segment in rectangle.segments:
            assert len(segment.shown) == rectangle.shown
            assert segment.length <= rectangle.width
            area = rectangle.width * (rectangle.shown + rectangle.width)
            assert area - segment.length * (rectangle.shown + segment.length) <= CALL_IN_PAIRS


def by_documentation(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """The documented computation of ``varlen_attn``, one sequence at a time."""
    assert window_size == (-1, 0)
    assert query.shape[1] == key.shape[1] or enable_gqa
    outputs = []
    for (q0, q1), (k0, k1) in zip(*map(itertools.pairwise, (cu_seq_q.tolist(), cu_seq_k.tolist())), strict=True):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        parts = (x.transpose(0, 1)[None] for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        output = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def before_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """The same of torch 2.11, which does not say that heads may be shared."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    bounds = (cu_seq_q, cu_seq_k, max_q, max_k)
    return by_documentation(query, key, value, *bounds, scale=scale, window_size=window_size, enable_gqa=False)


@pytest.mark.parametrize("route", [RectangleAttention, VarlenAttention])
@pytest.mark.parametrize("kernel", [by_documentation, before_groups])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_both_routes_are_attention_under_the_dense_mask_of_the_row(
    route, kernel, num_kv_heads: int, monkeypatch
) -> None:
    """Outputs and gradients in float64. The kernel of the second needs a GPU: its documentation replaces it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(packed_attention, "CALL_IN_PAIRS", 60)  # several rectangles, with padding in them
    torch.manual_seed(0)
    lengths = [(3, 0, 40), (5, 1, 17), (5, 1, 22), (2, 2, 9), (5, 1, 21), (2, 2, 1), (3, 3, 30), (3, 4, 29), (2, 2, 8)]
    packing = pack([((number,) * prompt, (1,) * completion) for prompt, number, completion in lengths])
    mask = torch.zeros(len(packing.ids), len(packing.ids), dtype=torch.bool)
    for place, visible in enumerate(sees(packing)):
        mask[place, visible] = True
    heads = (4, num_kv_heads, num_kv_heads)
    inputs = [torch.randn(len(mask), n, 8, dtype=torch.float64, requires_grad=True) for n in heads]
    direction = torch.randn(len(mask), 4, 8, dtype=torch.float64)
    q, k, v = (x.transpose(0, 1)[None] for x in inputs)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)[0].transpose(0, 1)
    output = route(packing, torch.device("cpu"))(*inputs, 0.3, 0.0)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    gradients, others = (torch.autograd.grad(y, inputs, direction) for y in (output, expected))
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "capability", "takes"),
    [
        (by_documentation, (9, 0), True),
        (before_groups, (8, 0), True),
        (by_documentation, (7, 5), False),
        (lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: None, (9, 0), False),
    ],
    ids=["torch 2.13", "torch 2.11", "an old card", "no window"],
)
def test_which_kernels_the_route_of_a_gpu_takes(kernel, capability, takes: bool, monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert packed_attention._has_varlen_kernel(torch.device("cuda"), torch.bfloat16) is takes
    assert not packed_attention._has_varlen_kernel(torch.device("cuda"), torch.float32)
    assert not packed_attention._has_varlen_kernel(torch.device("cpu"), torch.bfloat16)
