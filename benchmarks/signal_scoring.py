"""The cost of `stepalign signal` beyond the forward passes it needs, and whether its memory stays where it is.

    python benchmarks/signal_scoring.py                        # CPU seconds against bare forward passes
    python benchmarks/signal_scoring.py --memory               # 1,000 rollouts x 2,048 tokens, the whole command

Speed: 64 rollouts x 512 tokens x 2 contexts. The floor is what no tool can spare: hidden states of the student once and
of the self-teacher under each context, in the same batches, and the logits of the completion tokens of each. On top of
that come log-probabilities, A_t, KL, entropies and the five likeliest tokens of either side, and (third column) the
lines and arrays on disk. Rounds are interleaved, one thread, process CPU time, medians; the first round warms up.

Head and layers stand to each other as in Qwen3-1.7B (about 1 : 4.5), at a size that a CPU can run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from stepalign.build import make_prompts
from stepalign.config import Config, changed
from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.events import Event, progress
from stepalign.models.load import Solver
from stepalign.records import Attempt, Problem
from stepalign.token_signal.analyse import AttemptInContexts, Shown
from stepalign.token_signal.score import ScoringJob, _hidden_states, _num_tokens, _pairs, score, windows
from stepalign.verbs.signal.folder import write_signal_folder

BUDGET = 16384
"""Tokens of a forward pass, the default of ``training.max_micro_batch_tokens``."""
WORDS = tuple(f"w{i}" for i in range(3067))


def build(num_layers: int, hidden_size: int, tokenizer: PreTrainedTokenizerBase) -> Solver:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 64 or 1,
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return Solver(Qwen3ForCausalLM(config).eval(), tokenizer)


def make_attempts(count: int, length: int, vocabulary: int, context_words: int) -> Iterator[AttemptInContexts]:
    """Random ids behind random questions; two contexts a rollout."""
    for number in range(count):
        draw = random.Random(number)

        def words(n: int, draw: random.Random = draw) -> str:
            return " ".join(draw.choices(WORDS, k=n))

        problem = Problem(problem_id=str(number), question=words(64), answer="")
        yield AttemptInContexts(
            attempt=Attempt(rollout_id=f"r{number:05d}", problem=problem, text=""),
            ids=tuple(draw.choices(range(5, vocabulary), k=length)),
            contexts={name: Shown(text=words(context_words)) for name in ("first", "second")},
        )


def bare(solver: Solver, jobs: list[ScoringJob]) -> None:
    """The passes nobody can spare: hidden states of every side, and the logits of its completion tokens."""
    with torch.no_grad():
        for window in windows(jobs, _num_tokens, BUDGET):
            pairs = [pair for job in window for pair in _pairs(job, 1.0, 0).values()]
            for hidden_TH in _hidden_states(solver, pairs, BUDGET).values():
                for part_CH in hidden_TH.split(128):
                    solver.logits(part_CH)


def speed(rounds: int, num_layers: int, hidden_size: int, count: int) -> None:
    tokenizer = build_tokenizer(WORDS)
    solver = build(num_layers, hidden_size, tokenizer)
    config = changed(Config(), {"prompts.student": "plain", "prompts.self_teacher": "plain_self_teacher"})
    prompts = make_prompts(config, solver)
    attempts = list(make_attempts(count, 512, len(tokenizer), 256))
    jobs = [
        ScoringJob(
            completion_ids=a.ids,
            student_prompt_ids=prompts.student(a.attempt.problem),
            teacher_prompt_ids={n: prompts.self_teacher(a.attempt.problem, s.text).ids for n, s in a.contexts.items()},
        )
        for a in attempts
    ]

    def scored() -> None:
        for _ in score(solver, jobs, temperature=1.0, top_k=5, max_micro_batch_tokens=BUDGET):
            pass

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_signal_folder(
                Path(folder) / "out", config, solver, prompts, attempts, source={"name": "benchmark"},
                labels={"first": "first", "second": "second"}, prompts_from="benchmark",
            )  # fmt: skip

    runs: dict[str, Callable[[], None]] = {"bare": lambda: bare(solver, jobs), "score": scored, "command": written}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| model (layers x hidden x vocabulary) | bare, CPU s | score / bare | whole command / bare |")
    print("| --- | --- | --- | --- |")
    cells = []
    for name in ("score", "command"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})")
    print(f"| {num_layers} x {hidden_size} x {len(tokenizer)} | {medians['bare']:.1f} | {cells[0]} | {cells[1]} |")


def memory(count: int, length: int) -> None:
    """Resident memory while ``count`` rollouts pass through the whole command."""
    tokenizer = build_tokenizer(WORDS)
    solver = build(1, 64, tokenizer)
    config = changed(Config(), {"prompts.student": "plain", "prompts.self_teacher": "plain_self_teacher"})
    found: dict[int, float] = {}

    def resident(event: Event) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found[event.done] = pages * resource.getpagesize() / 2**20

    resident(progress("scoring", 0, count))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write_signal_folder(
            out, config, solver, make_prompts(config, solver), make_attempts(count, length, len(tokenizer), 256),
            source={"name": "benchmark"}, labels={"first": "first", "second": "second"}, prompts_from="benchmark",
            total=count, listener=resident,
        )  # fmt: skip
        size = sum(path.stat().st_size for path in out.rglob("*")) / 2**20
        num_lines = sum(1 for _ in (out / "signal.jsonl").open("rb"))
    marks = [max(k for k in found if k <= share * count) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shown = {f"{mark} rollouts": round(found[mark]) for mark in marks}
    print(f"resident MiB: {json.dumps(shown)}; peak with localisation and page {peak:.0f} MiB")
    print(f"{num_lines} lines, {size:.0f} MiB on disk, {time.process_time() - start:.0f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=0, help="64 for speed, 1,000 for memory")
    parser.add_argument("--length", type=int, default=2048, help="tokens a rollout, for memory")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        memory(arguments.rollouts or 1000, arguments.length)
    else:
        speed(arguments.rounds, arguments.layers, arguments.hidden, arguments.rollouts or 64)


if __name__ == "__main__":
    main()
