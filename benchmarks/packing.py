"""CPU time of scoring: packed rows against padded batches, one sequence at a time, and prompts repeated.

    python benchmarks/packing.py              # about five minutes on one core
    python benchmarks/packing.py --rounds 5

A random Qwen3 of 8 layers and hidden size 512 in float32 on one thread. The objective is left out: the forward pass
without gradients (the self-teacher's), and forward and backward with a given gradient (the student's). The variants of
a case run in turn in every round; medians of the process's CPU time, and of its ratio to ours in the same round. Every
variant must give the same hidden states.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.models.load import Solver
from stepalign.models.packing import Scored, micro_batches
from stepalign.models.scoring import completion_hidden

VOCABULARY, ROWS, TOKENS = 8192, 8, 4096
Batches = list[list[int]]


def build(num_layers: int, hidden_size: int) -> Solver:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        head_dim=64,
        tie_word_embeddings=True,
    )
    return Solver(Qwen3ForCausalLM(config).eval(), build_tokenizer(("word",)))


# ---------------------------------------------------------------------------------------------------------------------
# The variants: how sequences are cut into forward passes, and what one pass does


def rectangle(solver: Solver, sequences: Sequence[Scored]) -> torch.Tensor:
    """The usual batch: every row as long as the longest, causal attention without a mask, completion rows kept."""
    rows = [[*prompt, *completion[:-1]] for prompt, completion in sequences]
    ids_BS = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    scored_BS = torch.zeros(ids_BS.shape, dtype=torch.bool)
    for row, (prompt, ids) in enumerate(zip((prompt for prompt, _ in sequences), rows, strict=True)):
        ids_BS[row, : len(ids)] = torch.tensor(ids)
        scored_BS[row, len(prompt) - 1 : len(ids)] = True
    return solver.decoder(input_ids=ids_BS, use_cache=False).last_hidden_state[scored_BS]


def length(sequence: Scored) -> int:
    return len(sequence[0]) + len(sequence[1])


def as_they_come(sequences: Sequence[Scored]) -> Batches:
    """Batches of so many rows, as most trainers make them."""
    return [list(range(start, min(start + ROWS, len(sequences)))) for start in range(0, len(sequences), ROWS)]


def by_length(sequences: Sequence[Scored]) -> Batches:
    """Similar lengths together, as many as a budget of padded tokens allows."""
    batches: Batches = [[]]
    for index in sorted(range(len(sequences)), key=lambda i: length(sequences[i])):
        if batches[-1] and (len(batches[-1]) + 1) * length(sequences[index]) > TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def in_rows(sequences: Sequence[Scored]) -> Batches:
    return list(micro_batches(sequences, max_tokens=TOKENS))


def singly(sequences: Sequence[Scored]) -> Batches:
    return [[index] for index in range(len(sequences))]


def work(
    solver: Solver,
    sequences: Sequence[Scored],
    cut: Callable[[Sequence[Scored]], Batches],
    score: Callable[[Solver, Sequence[Scored]], torch.Tensor],
    backward: bool,
) -> float:
    """One step over all sequences. Returns a number that depends on every hidden state."""
    solver.model.zero_grad()
    total = 0.0
    with torch.set_grad_enabled(backward):
        for batch in cut(sequences):
            hidden_NH = score(solver, [sequences[i] for i in batch])
            total += float(hidden_NH.detach().double().abs().sum())
            if backward:
                hidden_NH.backward(torch.full_like(hidden_NH, 1e-3))
    return total


# ---------------------------------------------------------------------------------------------------------------------
# The cases


def long_tailed(num_sequences: int, prompts: tuple[int, int], median: int) -> list[Scored]:
    """Prompts of uniform lengths; completions at the even quantiles of a log-normal law (sigma 1), shuffled."""
    rng = random.Random(0)
    normal = statistics.NormalDist(math.log(median), 1.0)
    lengths = [round(math.exp(normal.inv_cdf((i + 0.5) / num_sequences))) for i in range(num_sequences)]
    rng.shuffle(lengths)
    return [(ids(rng, rng.randint(*prompts)), ids(rng, count)) for count in lengths]


def rollouts(num_problems: int, num_rollouts: int, prompt: int, completion: int, *, shared: bool) -> list[Scored]:
    """Equal completions of equal prompts; not shared means that the prompts of a problem differ in the first token."""
    rng = random.Random(0)
    drawn: list[Scored] = []
    for _ in range(num_problems):
        rest = ids(rng, prompt - 1)
        drawn += [((0 if shared else number, *rest), ids(rng, completion)) for number in range(num_rollouts)]
    return drawn


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(count))


def measure(variants: dict[str, Callable[[], float]], rounds: int, *, same: bool = True) -> None:
    """Print a row for each variant; the first is ours."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        totals = []
        for name, run in variants.items():
            start = time.process_time()
            totals.append(run())
            times[name].append(time.process_time() - start)
        if same:
            torch.testing.assert_close(totals, [totals[0]] * len(totals), rtol=1e-5, atol=0)
    ours, *_ = times.values()
    for name, values in times.items():
        ratios = [value / own for value, own in zip(values, ours, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(values):.2f} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    solver = build(arguments.layers, arguments.hidden)
    for score in (completion_hidden, rectangle):  # warm up
        work(solver, long_tailed(2, (8, 16), 16), singly, score, True)

    cases = {
        "long-tailed": long_tailed(16, (16, 64), 64),
        "long-tailed, short": long_tailed(48, (8, 16), 16),
    }
    for name, sequences in cases.items():
        real = sum(map(length, sequences))
        padded = {
            cut.__name__: sum(len(batch) * max(length(sequences[i]) for i in batch) for batch in cut(sequences))
            for cut in (as_they_come, by_length)
        }
        longest = max(map(length, sequences))
        print(
            f"\n{name}: {len(sequences)} sequences of {min(map(length, sequences))} to {longest} tokens, {real} in all"
        )
        print("padded: " + ", ".join(f"{tokens} tokens {cut.replace('_', ' ')}" for cut, tokens in padded.items()))
        for backward in (False, True):
            print(
                f"\n| {'forward and backward' if backward else 'forward'} | CPU s | time / ours |\n| --- | --- | --- |"
            )
            variants = {
                "packed": (in_rows, completion_hidden),
                f"padded, {ROWS} rows as they come": (as_they_come, rectangle),
                "padded, sorted by length": (by_length, rectangle),
                "one by one": (singly, rectangle),
            }
            measure({n: partial(work, solver, sequences, *v, backward) for n, v in variants.items()}, arguments.rounds)

    for prompt, completion in ((256, 128), (128, 256)):
        shared, repeated = (rollouts(1, 8, prompt, completion, shared=yes) for yes in (True, False))
        print(f"\nA prompt of {prompt} tokens, 8 completions of {completion} each")
        for backward in (False, True):
            print(
                f"\n| {'forward and backward' if backward else 'forward'} | CPU s | time / ours |\n| --- | --- | --- |"
            )
            variants = {
                "prompt once": (shared, in_rows, completion_hidden),
                "prompt repeated": (repeated, in_rows, completion_hidden),
                "padded": (shared, as_they_come, rectangle),
            }
            runs = {n: partial(work, solver, *v, backward) for n, v in variants.items()}
            measure(runs, arguments.rounds, same=False)


if __name__ == "__main__":
    main()
