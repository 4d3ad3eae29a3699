"""Useful tokens per CPU second of the local sampler against ``model.generate`` on the same model and prompts.

    python benchmarks/sampler.py                # about two minutes on one core
    python benchmarks/sampler.py --tail --rounds 3
    python benchmarks/sampler.py --large        # the second table at 135 million parameters, about ten minutes

The evaluation workload: 8 prompts of 256 tokens, 12 samples each, completion lengths geometric with a long tail (a
random model in which three of 128 ids end a completion), at most 128 tokens. Useful tokens are those up to and with
the ending id. Rounds are interleaved, one thread, medians of process CPU time.

The second table has more prompts than fit: 24 to 63 tokens long, one sample each, through a fixed number of rows.
``generate`` gets them in batches of as many, left-padded; "batches" is the sampler without refilling: rows that have
ended leave, and the next prompts wait for the last row of all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.models.load import Solver
from stepalign.models.sampling import local
from stepalign.models.sampling.local import LocalSampler
from stepalign.waiting import wait_for

VOCABULARY, END_IDS = 128, [1, 2, 3]
NEVER = 1e9
"""Share of free rows at which rows are refilled: only when all are free."""


def build(num_layers: int, hidden_size: int, tokenizer: PreTrainedTokenizerBase) -> Solver:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        eos_token_id=END_IDS,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config.eos_token_id = END_IDS
    return Solver(model, tokenizer)


def by_generate(solver: Solver, prompts: torch.Tensor, num_samples: int, max_tokens: int) -> int:
    with torch.inference_mode():
        output = solver.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_return_sequences=num_samples,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
            eos_token_id=END_IDS,
            pad_token_id=0,
        )
    completions = output[:, prompts.shape[1] :]
    ended = torch.isin(completions, torch.tensor(END_IDS))
    first = torch.where(ended.any(1), ended.int().argmax(1) + 1, completions.shape[1])
    return int(first.sum())


def by_sampler(solver: Solver, prompts: torch.Tensor, num_samples: int, max_tokens: int, seed: int) -> int:
    sampler = LocalSampler(solver, max_batch_tokens=10**9)
    drawn = wait_for(
        sampler.sample(prompts.tolist(), num_samples=num_samples, temperature=1.0, max_tokens=max_tokens, seed=seed)
    )
    return sum(len(completion.ids) for row in drawn for completion in row)


def measure(solver: Solver, prompts: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Useful tokens per CPU second of both, interleaved; the first round warms up and is dropped."""
    rates: dict[str, list[float]] = {"generate": [], "sampler": []}
    for seed in range(rounds + 1):
        torch.manual_seed(seed)
        draws: dict[str, Callable[[], int]] = {
            "generate": partial(by_generate, solver, prompts, 12, 128),
            "sampler": partial(by_sampler, solver, prompts, 12, 128, seed),
        }
        for name, draw in draws.items():
            start = time.process_time()
            tokens = draw()
            rates[name].append(tokens / (time.process_time() - start))
    return {name: values[1:] for name, values in rates.items()}


def smollm2_shape(dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> Solver:
    """135 million random parameters in the shape of SmolLM2; one of 50 ids ends a completion."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, pad_token_id=0)).eval().to(dtype)
    model.generation_config.eos_token_id = list(range(1, 1 + 49152 // 50))
    return Solver(model, tokenizer)


def generate_in_batches(solver: Solver, prompts: list[list[int]], rows: int, max_tokens: int) -> int:
    ends = solver.model.generation_config.eos_token_id
    tokens = 0
    for batch in (prompts[first : first + rows] for first in range(0, len(prompts), rows)):
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens, "pad_token_id": 0}
        with torch.inference_mode():
            found = solver.model.generate(ids, attention_mask=mask, eos_token_id=ends, **options)[:, width:]
        ended = torch.isin(found, torch.tensor(ends))
        tokens += int(torch.where(ended.any(1), ended.int().argmax(1) + 1, found.shape[1]).sum())
    return tokens


def sample_in_rows(solver: Solver, prompts: list[list[int]], rows: int, max_tokens: int, refill_at: float) -> int:
    before, local.REFILL_AT = local.REFILL_AT, refill_at
    try:
        sampler = LocalSampler(solver, max_batch_tokens=rows * (64 + max_tokens))
        drawn = wait_for(sampler.sample(prompts, num_samples=1, temperature=1.0, max_tokens=max_tokens, seed=0))
    finally:
        local.REFILL_AT = before
    return sum(len(row[0].ids) for row in drawn)


def long_tail(name: str, solver: Solver, *, rows: int, count: int, max_tokens: int, rounds: int) -> str:
    """A row of the second table."""
    draw = torch.Generator().manual_seed(1)
    vocabulary = len(solver.head_VH)
    lengths = torch.randint(24, 64, (count,), generator=draw).tolist()
    prompts = [torch.randint(vocabulary // 2, vocabulary, (n,), generator=draw).tolist() for n in lengths]
    ways: dict[str, Callable[[], int]] = {
        "generate": partial(generate_in_batches, solver, prompts, rows, max_tokens),
        "batches": partial(sample_in_rows, solver, prompts, rows, max_tokens, NEVER),
        "refilled": partial(sample_in_rows, solver, prompts, rows, max_tokens, local.REFILL_AT),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds):
        torch.manual_seed(round_)
        for way, run in ways.items():
            start = time.process_time()
            tokens = run()
            rates[way].append(tokens / (time.process_time() - start))
    found = {way: statistics.median(values) for way, values in rates.items()}
    ratios = [f"{found['refilled'] / found[way]:.2f}" for way in ("batches", "generate")]
    shown = [f"{found[way]:.0f}" for way in ways]
    return f"| {name} | {count} in {rows} rows | {' | '.join(shown)} | {' | '.join(ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--tail", action="store_true", help="the second table alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(("word",))
    heading = "| model | prompts | generate tok/s | batches tok/s | refilled tok/s | / batches | / generate |"
    if arguments.large:
        print(f"{heading}\n| --- | --- | --- | --- | --- | --- | --- |")
        for dtype in (torch.float32, torch.bfloat16):
            name, solver = f"135 M, {str(dtype).removeprefix('torch.')}", smollm2_shape(dtype, tokenizer)
            sizes = {"rows": 8, "count": 32, "max_tokens": 192}
            print(long_tail(name, solver, **sizes, rounds=arguments.rounds), flush=True)
        return
    first = "| model | prompt | generate tok/s | sampler tok/s | ratio (min - max) |\n| --- | --- | --- | --- | --- |"
    print("" if arguments.tail else first)
    sizes = () if arguments.tail else ((4, 128, 256), (4, 128, 32), (3, 96, 16), (8, 512, 256))
    for num_layers, hidden_size, prompt_length in sizes:
        solver = build(num_layers, hidden_size, tokenizer)
        prompts = torch.randint(4, VOCABULARY, (8, prompt_length), generator=torch.Generator().manual_seed(1))
        rates = measure(solver, prompts, arguments.rounds)
        ratios = [b / a for a, b in zip(rates["generate"], rates["sampler"], strict=True)]
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(
            f"| {num_layers} x {hidden_size} | {prompt_length} | {medians['generate']:.0f} | {medians['sampler']:.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |",
            flush=True,
        )
    print(f"\n{heading}\n| --- | --- | --- | --- | --- | --- | --- |")
    solver = build(4, 128, tokenizer)
    for rows in (8, 16, 32):
        options = {"rows": rows, "count": 8 * rows, "max_tokens": 256}
        print(long_tail("4 x 128", solver, **options, rounds=arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
