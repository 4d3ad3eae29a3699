"""Useful tokens per CPU second of the local sampler against ``model.generate`` on the same model and prompts.

    python benchmarks/sampler.py            # about a minute on one core
    python benchmarks/sampler.py --rounds 9

The evaluation workload: 8 prompts of 256 tokens, 12 samples each, completion lengths geometric with a long tail (a
random model in which three of 128 ids end a completion), at most 128 tokens. Useful tokens are those up to and with
the ending id. Rounds are interleaved, one thread, medians of process CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.models.load import Solver
from stepalign.models.sampling.local import LocalSampler
from stepalign.waiting import wait_for

VOCABULARY, END_IDS = 128, [1, 2, 3]


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(("word",))
    print("| model | prompt | generate tok/s | sampler tok/s | ratio (min - max) |\n| --- | --- | --- | --- | --- |")
    for num_layers, hidden_size, prompt_length in ((4, 128, 256), (4, 128, 32), (3, 96, 16), (8, 512, 256)):
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


if __name__ == "__main__":
    main()
