"""The sampler against transformers' own generation, against plain forward passes, and against exact probabilities."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from stepalign.models.load import Solver
from stepalign.models.sampling.local import LocalSampler, draw
from stepalign.records import Completion
from stepalign.waiting import wait_for

ENDS = (1, 20, 21, 22, 23, 24)
PROMPTS = [[3, 14, 30, 16, 4], [3, 9, 4], [3, 20, 31, 12, 30, 25, 31, 11, 4], [3, 15, 30, 15, 4]]


def llama(seed: int, vocabulary: int, tokenizer) -> Solver:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return Solver(model, tokenizer)


@pytest.fixture(params=["qwen3", "llama"])
def solver(request: pytest.FixtureRequest, make_solver: Callable[..., Solver], word_tokenizer) -> Solver:
    """Two architectures, both with several end tokens, so that rows leave the batch at different times."""
    solver = make_solver(3) if request.param == "qwen3" else llama(4, len(word_tokenizer), word_tokenizer)
    solver.model.generation_config.eos_token_id = list(ENDS)
    return solver


@pytest.fixture
def ending_solver(make_solver: Callable[..., Solver]) -> Solver:
    """A solver with several end tokens, so that many completions end before the limit, and flat probabilities."""
    solver = make_solver(0, scale=3.0)
    solver.model.generation_config.eos_token_id = list(ENDS)
    assert solver.end_ids == ENDS
    return solver


def sample(solver: Solver, prompts=PROMPTS, *, num_samples=1, temperature=1.0, max_tokens=16, seed=0, **options):
    sampler = LocalSampler(solver, **{k: options.pop(k) for k in ("max_batch_tokens",) if k in options})
    return wait_for(
        sampler.sample(
            prompts, num_samples=num_samples, temperature=temperature, max_tokens=max_tokens, seed=seed, **options
        )
    )


@torch.no_grad()
def full_log_probs(solver: Solver, prompt: list[int], completion: Completion, temperature: float) -> torch.Tensor:
    """Log-probabilities of a completion from one forward pass over the whole sequence, without cache or padding."""
    ids = torch.tensor([[*prompt, *completion.ids]])
    logits = solver.model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def test_greedy_is_what_generate_gives(solver: Solver) -> None:
    found = sample(solver, temperature=0, max_tokens=20)
    for prompt, (mine,) in zip(PROMPTS, found, strict=True):
        whole = solver.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=20
        )
        assert list(mine.ids) == whole[0, len(prompt) :].tolist()
        assert set(mine.log_probs) == {0.0}  # greedy is certain of what it takes


def test_log_probs_are_those_of_the_distribution_drawn_from(solver: Solver) -> None:
    for temperature in (0.7, 1.0, 1.3):
        found = sample(solver, num_samples=4, temperature=temperature, max_tokens=24, seed=5)
        lengths = {len(c.ids) for row in found for c in row}
        assert len(lengths) > 1  # rows have left the batch at different times
        for prompt, row in zip(PROMPTS, found, strict=True):
            for completion in row:
                expected = full_log_probs(solver, prompt, completion, temperature)
                torch.testing.assert_close(
                    torch.tensor(completion.log_probs, dtype=torch.float64), expected, atol=2e-5, rtol=1e-5
                )


@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_first_tokens_come_as_often_as_their_probability_says(tiny_solver: Solver, temperature: float) -> None:
    from scipy.stats import chisquare

    count, prompt = 20_000, PROMPTS[0]
    (row,) = sample(
        tiny_solver, [prompt], num_samples=count, temperature=temperature, max_tokens=1, seed=11, max_batch_tokens=10**6
    )
    with torch.no_grad():
        logits = tiny_solver.model(torch.tensor([prompt])).logits[0, -1].double()
    probabilities = (logits / temperature).softmax(-1)
    found = Counter(c.ids[0] for c in row)
    likely = [i for i in range(len(probabilities)) if probabilities[i] * count >= 10]
    assert len(likely) > 5
    observed = [*(found[i] for i in likely), count - sum(found[i] for i in likely)]
    expected = [*(float(probabilities[i]) * count for i in likely)]
    expected.append(count - sum(expected))
    if expected[-1] < 5:  # fold a tiny rest into the last cell
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    assert chisquare(observed, expected).pvalue > 1e-4


def test_second_tokens_come_as_often_as_their_probability_says(tiny_solver: Solver) -> None:
    """The joint law of two tokens: the second one is drawn behind the first one that was really taken."""
    from scipy.stats import chisquare

    count, prompt = 20_000, PROMPTS[1]
    (row,) = sample(tiny_solver, [prompt], num_samples=count, temperature=0.6, max_tokens=2, seed=3)
    found = Counter(c.ids for c in row)
    observed, expected = [], []
    for ids, times in found.most_common(12):
        log_probs = full_log_probs(
            tiny_solver,
            prompt,
            Completion(ids=ids, log_probs=(), finish_reason="stop", policy_version=0),
            temperature=0.6,
        )
        observed.append(times)
        expected.append(count * math.exp(float(log_probs.sum())))
    assert min(expected) > 5
    observed.append(count - sum(observed))
    expected.append(count - sum(expected))
    assert chisquare(observed, expected).pvalue > 1e-4


def test_draws_of_impossible_tokens_never_happen() -> None:
    logits = torch.full((2000, 5), 1.0)
    logits[:, 1] = -math.inf
    logits[:, 3] = -200.0
    ids, log_probs = draw(
        logits, 1.0, torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    assert set(ids.tolist()) == {0, 2, 4}
    torch.testing.assert_close(log_probs, torch.full((2000,), -math.log(3)))


# ---------------------------------------------------------------------------------------------------------------------
# What must make no difference


def test_batching_and_padding_change_no_greedy_completion(solver: Solver) -> None:
    together = sample(solver, temperature=0, max_tokens=20)
    alone = [sample(solver, [prompt], temperature=0, max_tokens=20)[0] for prompt in PROMPTS]
    small = sample(solver, temperature=0, max_tokens=20, max_batch_tokens=30)
    backwards = sample(solver, PROMPTS[::-1], temperature=0, max_tokens=20)[::-1]
    for one, *others in zip(together, alone, small, backwards, strict=True):
        assert all(one[0].ids == other[0].ids for other in others)


def test_all_samples_of_a_greedy_prompt_are_the_same(tiny_solver: Solver) -> None:
    for row in sample(tiny_solver, num_samples=3, temperature=0):
        assert len(row) == 3
        assert len(set(row)) == 1


def test_the_same_seed_draws_the_same(tiny_solver: Solver) -> None:
    torch.manual_seed(1)
    one = sample(tiny_solver, num_samples=5, seed=8)
    torch.manual_seed(2)
    torch.rand(100)
    assert sample(tiny_solver, num_samples=5, seed=8) == one
    assert sample(tiny_solver, num_samples=5, seed=9) != one
    assert len({c.ids for c in one[0]}) > 1  # and the samples of one prompt are draws of their own


def test_sampling_leaves_the_generator_and_the_mode_of_the_model_alone(tiny_solver: Solver) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for training in (True, False):
        tiny_solver.model.train(training)
        sample(tiny_solver)
        assert tiny_solver.model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in tiny_solver.model.parameters())


def test_the_weights_at_the_time_of_the_call_are_used(make_solver: Callable[..., Solver]) -> None:
    solver, other = make_solver(0), make_solver(1)
    sampler = LocalSampler(solver)
    settings = {"num_samples": 2, "temperature": 1.0, "max_tokens": 8, "seed": 0}
    before = wait_for(sampler.sample(PROMPTS, **settings))
    solver.model.load_state_dict(other.model.state_dict())
    after = wait_for(sampler.sample(PROMPTS, **settings))
    assert after != before
    assert after == wait_for(LocalSampler(other).sample(PROMPTS, **settings))


# ---------------------------------------------------------------------------------------------------------------------
# Ends and reports


def test_completions_end_with_the_end_token_or_at_the_limit(ending_solver: Solver) -> None:
    found = [c for row in sample(ending_solver, num_samples=12, max_tokens=12, seed=1) for c in row]
    assert len({c.ids[-1] for c in found if c.finish_reason == "stop"}) > 1
    reasons = Counter(c.finish_reason for c in found)
    assert reasons["stop"] >= 3
    assert reasons["length"] >= 3
    for completion in found:
        assert not set(completion.ids[:-1]) & set(ENDS)
        assert (completion.ids[-1] in ENDS) == (completion.finish_reason == "stop")
        assert 1 <= len(completion.ids) == len(completion.log_probs) <= 12
        if completion.finish_reason == "length":
            assert len(completion.ids) == 12


def test_an_end_on_the_last_allowed_token_is_an_end(ending_solver: Solver) -> None:
    long = sample(ending_solver, num_samples=12, max_tokens=12, seed=1)
    ended = next((p, s, c) for p, row in enumerate(long) for s, c in enumerate(row) if c.finish_reason == "stop")
    prompt, _, completion = ended
    again = sample(ending_solver, [PROMPTS[prompt]], num_samples=400, max_tokens=len(completion.ids), seed=2)
    last = {c.finish_reason for c in again[0] if len(c.ids) == len(completion.ids)}
    assert "stop" in last
    for c in again[0]:
        assert (c.finish_reason == "stop") == (c.ids[-1] in ending_solver.end_ids)


def test_every_completion_is_reported_once_when_it_ends(ending_solver: Solver) -> None:
    reported: list[tuple[int, int, Completion]] = []
    found = sample(
        ending_solver,
        num_samples=3,
        max_tokens=10,
        max_batch_tokens=60,  # several batches
        on_finished=lambda p, s, c: reported.append((p, s, c)),
    )
    assert len(reported) == 12
    assert {(p, s): c for p, s, c in reported} == {(p, s): c for p, row in enumerate(found) for s, c in enumerate(row)}
    # within one batch, shorter ones are reported first
    one_batch: list[int] = []
    sample(ending_solver, num_samples=6, max_tokens=10, on_finished=lambda p, s, c: one_batch.append(len(c.ids)))
    assert one_batch == sorted(one_batch)
    assert len(set(one_batch)) > 1


def test_completions_name_the_version_that_was_published_last(tiny_solver: Solver) -> None:
    sampler = LocalSampler(tiny_solver)

    def versions() -> set[int]:
        found = wait_for(sampler.sample(PROMPTS, num_samples=1, temperature=1.0, max_tokens=4, seed=0))
        return {c.policy_version for row in found for c in row}

    assert versions() == {0}
    wait_for(sampler.publish(dict(tiny_solver.model.named_parameters()), 17))
    assert versions() == {17}


def test_calls_that_run_at_once_draw_what_they_draw_alone(ending_solver: Solver) -> None:
    sampler = LocalSampler(ending_solver)
    settings = {"num_samples": 2, "temperature": 1.0}
    ending_solver.model.train()

    async def both() -> list[list[list[Completion]]]:
        short = sampler.sample(PROMPTS[:2], max_tokens=3, seed=4, **settings)
        long = sampler.sample(PROMPTS, max_tokens=16, seed=5, **settings)
        return await asyncio.gather(short, long)

    alone = [
        wait_for(sampler.sample(PROMPTS[:2], max_tokens=3, seed=4, **settings)),
        wait_for(sampler.sample(PROMPTS, max_tokens=16, seed=5, **settings)),
    ]
    assert wait_for(both()) == alone
    assert ending_solver.model.training


def test_no_prompts_give_no_completions(tiny_solver: Solver) -> None:
    assert sample(tiny_solver, []) == []


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are given to waiting prompts


def same(one: list[list[Completion]], other: list[list[Completion]]) -> bool:
    """The same tokens, and the same log-probabilities but for the rounding of products of another size."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    near = [torch.allclose(torch.tensor(a.log_probs), torch.tensor(b.log_probs), atol=1e-5) for a, b in pairs]
    return all(near) and all((a.ids, a.finish_reason) == (b.ids, b.finish_reason) for a, b in pairs)


def test_a_completion_does_not_depend_on_what_is_drawn_beside_it(ending_solver: Solver) -> None:
    """More prompts than fit, one row at a time, another order, other prompts beside it: the same tokens."""
    many = [*PROMPTS, *([3, 9 + i, 12 + i, 4] for i in range(6))]
    together = sample(ending_solver, many, num_samples=3, seed=5)
    for budget in (25, 60, 200):
        assert same(sample(ending_solver, many, num_samples=3, seed=5, max_batch_tokens=budget), together)
    assert same(sample(ending_solver, many[::-1], num_samples=3, seed=5)[::-1], together)
    assert same([sample(ending_solver, [prompt], num_samples=3, seed=5)[0] for prompt in many], together)
    assert same([row[:2] for row in together], sample(ending_solver, many, num_samples=2, seed=5))
    assert len({len(c.ids) for row in together for c in row}) > 3


def test_a_prompt_that_comes_twice_has_samples_of_its_own(ending_solver: Solver) -> None:
    first, second = sample(ending_solver, [PROMPTS[0]] * 2, num_samples=3, seed=5)
    assert same(sample(ending_solver, PROMPTS[:1], num_samples=6, seed=5), [[*first, *second]])


def test_free_rows_are_given_to_waiting_prompts(ending_solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that end at once do not wait for the longest beside them: few steps in all."""
    widths: list[int] = []
    forward = ending_solver.decoder.forward

    def counted(*words, **options):
        if options["input_ids"].shape[1] == 1:
            widths.append(len(options["input_ids"]))
        return forward(*words, **options)

    monkeypatch.setattr(ending_solver.decoder, "forward", counted)
    prompts = [[3, 9 + i % 20, 12 + i // 20, 4] for i in range(60)]
    found = sample(ending_solver, prompts, max_tokens=16, seed=1, max_batch_tokens=8 * 20)
    assert max(widths) <= 8
    tokens = sum(len(row[0].ids) - 1 for row in found)  # the first one comes from the prompt's own pass
    assert sum(widths) == tokens
    busy = widths[:-16]
    assert sum(busy) / len(busy) > 7, "all but one of 8 rows are at work, until no prompt waits"


def test_a_prompt_without_room_or_without_tokens_is_refused(ending_solver: Solver) -> None:
    from stepalign.errors import ConfigError

    limit = ending_solver.context_length
    assert limit is not None
    with pytest.raises(ConfigError, match=f"leaves no room for a completion of {limit} tokens"):
        sample(ending_solver, max_tokens=limit)
    with pytest.raises(ValueError, match="empty prompt"):
        sample(ending_solver, [[3], []])


def test_a_stop_text_ends_a_completion_as_an_end_token_does(tiny_solver: Solver) -> None:
    free = sample(tiny_solver, num_samples=8, max_tokens=24, seed=2)
    words = [tiny_solver.tokenizer.decode(c.ids[5:7]) for row in free for c in row if len(c.ids) > 8]
    stops = (words[0], words[1])
    sampler = LocalSampler(tiny_solver, stop=stops)
    settings = {"num_samples": 8, "temperature": 1.0, "max_tokens": 24, "seed": 2}
    stopped = wait_for(sampler.sample(PROMPTS, **settings))
    ended = 0
    for before, after in zip((c for row in free for c in row), (c for row in stopped for c in row), strict=True):
        text = tiny_solver.tokenizer.decode(after.ids, skip_special_tokens=True)
        assert before.ids[: len(after.ids)] == after.ids, "what comes before the text is not changed by it"
        assert not any(stop in tiny_solver.tokenizer.decode(after.ids[:-1], skip_special_tokens=True) for stop in stops)
        if len(after.ids) < len(before.ids):
            ended += 1
            assert after.finish_reason == "stop"
            assert any(text.endswith(stop) for stop in stops)
        else:
            assert after == before
    assert ended >= 2
