"""How the cost of a step grows with the length of completions, with the group, and with ranks.

    python benchmarks/growth.py [--rows 4x1x4096 4x16x128] [--ranks 2]

A random model of 4 layers and hidden size 128 on one CPU thread; completions never end by themselves. A row is
problems x completions of each x tokens of each, in a process of its own. Sampling is the local sampler, learning one
update with forward KL to an initial self-teacher whose prompt is 64 tokens longer. Times are CPU seconds of the
process, so that other work on the machine does not enter; memory is the peak over what was resident before.
``--ranks`` shares the update between gloo ranks, each with its own CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.models.load import Solver
from stepalign.models.sampling.local import LocalSampler
from stepalign.records import Sample
from stepalign.training.distributed import shard
from stepalign.training.learner import Learner
from stepalign.training.ranks import ONE_PROCESS, Ranks, join
from stepalign.training.teacher import Teacher
from stepalign.waiting import wait_for

VOCABULARY, NEVER, PROMPT, CONTEXT = 128, 10_000, 32, 64


def build() -> Solver:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=16_384, eos_token_id=NEVER, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config.eos_token_id = NEVER
    return Solver(model, SimpleNamespace(eos_token_id=NEVER))  # type: ignore[arg-type]


def resident(name: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" at most since the peak was set back."""
    return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


def measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(CPU seconds, MiB at most over what was there, result)."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    result = work()
    return time.process_time() - start, (resident("VmHWM") - before) / 2**20, result


def prompts_of(count: int) -> list[list[int]]:
    return torch.randint(1, VOCABULARY, (count, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()


def samples_of(prompts: list[list[int]], drawn: list[list[Any]]) -> list[Sample]:
    def sample(row: int, place: int, one: Any) -> Sample:
        return Sample(
            rollout_id=f"{row}-{place}", student_prompt_ids=tuple(prompts[row]), completion_ids=one.ids,
            teacher_prompt_ids=(*prompts[row], *range(1, CONTEXT + 1)), sampler_log_probs=one.log_probs,
            loss_mask=(True,) * len(one.ids), advantage=1.0, distillation_weight=1.0, policy_weight=0.0,
        )  # fmt: skip

    return [sample(row, place, one) for row, found in enumerate(drawn) for place, one in enumerate(found)]


def make_learner(solver: Solver, ranks: Ranks) -> tuple[Learner, Teacher]:
    objective = ObjectiveSection()
    learner = Learner(solver, objective, TrainingSection(max_micro_batch_tokens=4096), temperature=1.0, ranks=ranks)
    return learner, Teacher(solver.model, objective.teacher)


def draw(solver: Solver, problems: int, group: int, length: int) -> tuple[list[list[int]], list[list[Any]]]:
    prompts = prompts_of(problems)
    sampler = LocalSampler(solver, max_batch_tokens=16_384)
    options = {"num_samples": group, "temperature": 1.0, "max_tokens": length, "seed": 0}
    return prompts, wait_for(sampler.sample(prompts, **options))


def one_row(problems: int, group: int, length: int) -> None:
    solver = build()
    learner, teacher = make_learner(solver, ONE_PROCESS)
    learner.update(samples_of(*draw(solver, 2, 1, 16)), teacher, 0)  # warm
    sampling, held, (prompts, drawn) = measured(lambda: draw(solver, problems, group, length))
    samples = samples_of(prompts, drawn)
    learning, taken, _ = measured(lambda: learner.update(samples, teacher, 0))
    tokens = sum(len(sample.completion_ids) for sample in samples)
    numbers = f"{tokens:,} | {sampling:.2f} | {learning:.2f} | {held:.0f} | {taken:.0f}"
    print(f"| {problems} x {group} | {length:,} | {numbers} |", flush=True)


def on_ranks() -> None:
    """The same update on each number of ranks; called by torchrun."""
    ranks = join(600.0)
    prompts, drawn = draw(build(), 8, 1, 256)
    samples = samples_of(prompts, drawn)
    learner, teacher = make_learner(shard(build()), ranks)
    learner.update(samples, teacher, 0)
    spent, taken, _ = measured(lambda: learner.update(samples, teacher, 0))
    sums = ranks.sum([spent if rank == ranks.rank else 0.0 for rank in range(ranks.size)])
    if ranks.rank == 0:
        each = " and ".join(f"{one:.2f}" for one in sums)
        print(f"| {ranks.size} | {sum(len(s.completion_ids) for s in samples):,} | {each} | {taken:.0f} |", flush=True)
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [*(f"4x1x{2**power}" for power in range(7, 13)), *(f"4x{group}x128" for group in (2, 4, 8, 16))]
    parser.add_argument("--rows", nargs="*", default=rows)
    parser.add_argument("--ranks", type=int, default=2, help="0 leaves them out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        return on_ranks()
    if "ROW" in os.environ:
        return one_row(*map(int, os.environ["ROW"].split("x")))
    if options.rows:
        head = "| completions | tokens each | tokens | sampling, s | learning, s | sampling, MiB | learning, MiB |"
        print(f"{head}\n| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    for row in options.rows:
        subprocess.run([sys.executable, __file__], check=True, env={**threads, "ROW": row})
    if options.ranks:
        print("\n| ranks | tokens | learning on each rank, s | MiB, rank 0 |\n| --- | --- | --- | --- |", flush=True)
    for size in range(1, options.ranks + 1):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        subprocess.run([sys.executable, *torchrun, __file__], check=True, env=threads)
    return None


if __name__ == "__main__":
    main()
