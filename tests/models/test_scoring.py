"""Packed scoring against one sequence at a time and against the whole model: same numbers, same gradients, no leaks."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign.models import packed_attention, scoring
from stepalign.models.load import Solver
from stepalign.models.packed_attention import unpackable
from stepalign.models.packing import Scored
from stepalign.models.scoring import completion_hidden, padded_hidden

SEQUENCES = [
    ((3, 14, 30, 4), (16, 20, 21, 1)),
    ((3, 9, 4), (11,)),
    ((3, 20, 31, 12, 30, 25, 31, 11, 4), (16, 20, 21, 9, 9, 33, 1)),
    ((3,), (7, 8)),
    ((3, 14, 30, 4), (16, 1)),  # a prompt shared by three, not side by side
    ((3, 9, 4), (12, 13, 14, 15, 16, 17, 18)),
    ((3, 14, 30, 4), (1,)),
]


def one_by_one(solver: Solver, sequences: list[Scored]) -> torch.Tensor:
    return torch.cat([padded_hidden(solver, [sequence]) for sequence in sequences])


def gradients(solver: Solver, hidden_NH: torch.Tensor) -> list[torch.Tensor]:
    """Of a scalar in which every number has a weight of its own."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(hidden_NH.shape, generator=generator).to(hidden_NH)
    parameters = [p for p in solver.decoder.parameters() if p.requires_grad]
    return list(torch.autograd.grad((hidden_NH * weights).sum(), parameters))


def assert_same_scores_and_gradients(solver: Solver, sequences: list[Scored], tolerance: float) -> None:
    packed, single = completion_hidden(solver, sequences), one_by_one(solver, sequences)
    torch.testing.assert_close(packed, single, rtol=tolerance, atol=tolerance)
    for one, other in zip(gradients(solver, packed), gradients(solver, single), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(1 + other.abs().max()))


def llama(word_tokenizer, **sizes) -> Solver:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    return Solver(LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=4, **sizes)).eval(), word_tokenizer)


def gpt2(word_tokenizer) -> Solver:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=96)
    return Solver(GPT2LMHeadModel(config).eval(), word_tokenizer)


MODELS: dict[str, Callable[..., Solver]] = {
    "qwen3, heads grouped": lambda make, _: make(2, num_heads=4, num_kv_heads=2),
    "llama, heads grouped": lambda _, tokenizer: llama(tokenizer, num_key_value_heads=2),
    "llama": lambda _, tokenizer: llama(tokenizer),
    "gpt2, learned positions": lambda _, tokenizer: gpt2(tokenizer),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_packed_equals_one_by_one_with_gradients(build, make_solver, word_tokenizer) -> None:
    solver = build(make_solver, word_tokenizer)
    assert unpackable(solver.decoder) is None
    assert_same_scores_and_gradients(solver, SEQUENCES, 1e-5)
    if "gpt2" in type(solver.model).__name__.lower():  # the norms of the others compute in float32 whatever they get
        solver.model.double()
        assert_same_scores_and_gradients(solver, SEQUENCES, 1e-12)


@torch.no_grad()
def test_packed_equals_the_whole_model(tiny_solver: Solver) -> None:
    rows = []
    for prompt, completion in SEQUENCES:
        logits = tiny_solver.model(torch.tensor([[*prompt, *completion]])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    logits_NV = completion_hidden(tiny_solver, SEQUENCES) @ tiny_solver.head_VH.T
    torch.testing.assert_close(logits_NV, torch.cat(rows), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("sequences", [SEQUENCES, [((3, 14, 30, 4), (i, 20, i, 1)) for i in range(5, 45)]])
def test_packed_bfloat16_is_as_exact_as_one_by_one(make_solver: Callable[..., Solver], sequences: list[Scored]) -> None:
    """Measured from float64, where the order of the sums does not matter; also with a prompt shared by forty."""

    def measure(score: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        solver = make_solver(3, scale=1.0)
        solver.model.to(torch.bfloat16).to(dtype)  # the same weights
        hidden_NH = score(solver, sequences)
        return [x.double() for x in (hidden_NH.detach(), *gradients(solver, hidden_NH))]

    exact = measure(one_by_one, torch.float64)
    for one, other, true in zip(
        measure(completion_hidden, torch.bfloat16), measure(one_by_one, torch.bfloat16), exact, strict=True
    ):
        assert (one - true).norm() <= 1.3 * (other - true).norm() + 1e-6 * true.norm()
        assert (one - true).norm() <= 0.05 * true.norm()


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_any_lengths_and_any_sharing(word_tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    pool = [tuple(rng.randrange(60) for _ in range(rng.choice((1, 3, 20)))) for _ in range(rng.randint(1, 4))]
    sequences: list[Scored] = [
        (rng.choice(pool), tuple(rng.randrange(60) for _ in range(rng.choice((0, 1, 2, 30, 70)))))
        for _ in range(rng.randint(1, 7))
    ]
    solver = gpt2(word_tokenizer)
    solver.model.double()
    assert_same_scores_and_gradients(solver, [*sequences, ((1,), (2,))], 1e-10)


def test_a_shared_prompt_is_computed_once_and_gets_the_gradients_of_all(make_solver: Callable[..., Solver]) -> None:
    prompt = (3, 20, 31, 12, 30, 25, 31, 11, 4)
    rng = random.Random(2)
    sequences = [(prompt, tuple(rng.randrange(5, 40) for _ in range(n))) for n in (6, 1, 11, 6, 3)]
    solver = make_solver(1)
    lengths: list[int] = []
    solver.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    assert_same_scores_and_gradients(solver, sequences, 1e-5)
    assert lengths[0] == len(prompt) + sum(len(completion) - 1 for _, completion in sequences)


# ---------------------------------------------------------------------------------------------------------------------
# Nothing leaks


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


def test_a_changed_sequence_changes_not_one_bit_of_the_others(tiny_solver: Solver) -> None:
    ends = [0]
    for _, completion in SEQUENCES:
        ends.append(ends[-1] + len(completion))
    with torch.no_grad():
        before = completion_hidden(tiny_solver, SEQUENCES)
        for index, (prompt, completion) in enumerate(SEQUENCES):
            changed = [*SEQUENCES]
            changed[index] = (prompt, tuple(41 + i for i in range(len(completion))))
            after = completion_hidden(tiny_solver, changed)
            own = torch.zeros(len(before), dtype=torch.bool)
            own[ends[index] + 1 : ends[index + 1]] = True  # its first token is predicted by the prompt alone
            assert torch.equal(before[~own], after[~own])
            assert not torch.isclose(before[own], after[own], atol=1e-6).all(-1).any()


def test_a_sequence_has_exactly_no_gradient_in_the_tokens_of_others(make_solver: Callable[..., Solver]) -> None:
    """Every sequence has tokens of its own, so the gradient of an embedding says which sequences were seen."""
    solver = make_solver(4)
    sequences = [((5, 6, 7), (8, 9, 10)), ((11, 12), (13, 14)), ((5, 6, 7), (15, 16, 17)), ((18,), (19, 20, 21, 22))]
    hidden_NH = completion_hidden(solver, sequences)
    embedding = solver.model.get_input_embeddings().weight
    start = 0
    for prompt, completion in sequences:
        rows = hidden_NH[start : start + len(completion)]
        start += len(completion)
        (gradient,) = torch.autograd.grad(rows.square().sum(), embedding, retain_graph=True)
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == {*prompt, *completion[:-1]}


def test_a_broken_sequence_breaks_no_other(make_solver: Callable[..., Solver]) -> None:
    """Also where segments of different lengths share a rectangle, infinities stay where they are."""
    solver = make_solver(4)
    with torch.no_grad():
        solver.model.get_input_embeddings().weight[40] = torch.nan
        sequences = [((5, 6), (7, 8, 9)), ((10, 11), (40,) * 6), ((5, 6), (12, 13))]
        hidden_NH = completion_hidden(solver, sequences)
    finite_N = torch.isfinite(hidden_NH).all(-1)
    assert finite_N[:3].all()
    assert not finite_N[4:9].any()
    assert finite_N[9:].all()


# ---------------------------------------------------------------------------------------------------------------------
# Bits, gradients and memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_sequences_give_the_same_bits_with_and_without_gradients(make_solver, dtype: torch.dtype) -> None:
    """A_t is exactly 0 where the self-teacher sees what the student sees, prompts shared or not."""
    solver = make_solver(2)
    solver.model.to(dtype)
    student = completion_hidden(solver, SEQUENCES)
    with torch.no_grad():
        teacher = completion_hidden(solver, SEQUENCES)
    assert student.requires_grad
    assert not teacher.requires_grad
    assert torch.equal(student, teacher)


def test_gradient_checkpointing_computes_the_same_packed_row_again(make_solver: Callable[..., Solver]) -> None:
    plain, saving = make_solver(2), make_solver(2)
    saving.model.activation_checkpointing_enable()
    saving.model.train()
    calls = []
    layer = saving.decoder.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    hidden = [completion_hidden(solver, SEQUENCES) for solver in (plain, saving)]
    assert torch.equal(*hidden)
    for one, other in zip(*(gradients(s, h) for s, h in zip((plain, saving), hidden, strict=True)), strict=True):
        assert torch.equal(one, other)
    assert len(calls) == 2  # once forward, once more on the way back


def test_scoring_without_gradients_keeps_nothing(tiny_solver: Solver) -> None:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.no_grad():
            completion_hidden(tiny_solver, SEQUENCES)
        assert not kept
        completion_hidden(tiny_solver, SEQUENCES)
        assert kept


def test_the_model_works_as_before_without_a_packed_row(make_solver: Callable[..., Solver], tmp_path) -> None:
    """Left-padded prompts, generation and saving: nobody else notices that scoring has switched the attention."""
    before, after = make_solver(1).model, make_solver(1)
    completion_hidden(after, SEQUENCES)
    ids = torch.tensor([[0, 0, 3, 14, 30], [3, 9, 4, 20, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        one, other = (m(input_ids=ids, attention_mask=mask).logits for m in (before, after.model))
        assert torch.equal(one, other)
        drawn = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (before, after.model)]
        assert torch.equal(*drawn)
    after.model.save_pretrained(tmp_path)
    assert packed_attention.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Models that cannot


def sliding_qwen3() -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    )
    return Qwen3ForCausalLM(config)


def mistral(window: int | None) -> torch.nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
    )
    return MistralForCausalLM(config)


def gpt_oss() -> torch.nn.Module:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        layer_types=["full_attention", "full_attention"],
    )
    return GptOssForCausalLM(config)


def mamba() -> torch.nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (sliding_qwen3, "sliding_attention"),
        (lambda: mistral(4), "sliding_window"),
        (gpt_oss, "attention implementation eager|sinks"),
        (mamba, "own code|state"),
    ],
)
def test_other_attention_is_found_out_said_once_and_scored_padded(build, reason: str, word_tokenizer) -> None:
    torch.manual_seed(0)
    solver = Solver(build().eval(), word_tokenizer)
    scoring._say_once.cache_clear()
    with pytest.warns(UserWarning, match=reason):
        batched = completion_hidden(solver, SEQUENCES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(completion_hidden(solver, SEQUENCES), batched, rtol=0, atol=0)
    torch.testing.assert_close(batched, one_by_one(solver, SEQUENCES), rtol=1e-5, atol=1e-5)


def test_a_mistral_without_a_window_is_packed(word_tokenizer) -> None:
    torch.manual_seed(0)
    solver = Solver(mistral(None).eval(), word_tokenizer)
    assert unpackable(solver.decoder) is None
    assert_same_scores_and_gradients(solver, SEQUENCES, 1e-5)


def test_the_padded_path_pads_little(tiny_solver: Solver) -> None:
    """A third of the real tokens at most; long and short sequences go separate ways."""
    shapes: list[torch.Size] = []
    tiny_solver.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    rng = random.Random(0)
    sequences = [((3, 4), (7,) * min(200, int(rng.expovariate(1 / 20)) + 1)) for _ in range(40)]
    with torch.no_grad():
        padded_hidden(tiny_solver, sequences)
    real = sum(len(prompt) + len(completion) for prompt, completion in sequences)
    assert sum(shape.numel() for shape in shapes) <= real / 0.75


def test_an_empty_prompt_is_an_error(tiny_solver: Solver) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        completion_hidden(tiny_solver, [((3, 4), (5,)), ((), (5,))])


@pytest.mark.parametrize("sequences", [[([5, 6], [])], [([5], []), ([5], [])]], ids=["one", "shared"])
def test_empty_completions_have_no_hidden_states(tiny_solver: Solver, sequences: list[Scored]) -> None:
    for score in (completion_hidden, padded_hidden):
        assert score(tiny_solver, sequences).shape == (0, tiny_solver.head_VH.shape[1])
