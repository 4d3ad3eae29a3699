"""Seconds and peak memory of a learner's step with each kind of self-teacher, in one process on a CPU.

    python benchmarks/learner_step.py            # every kind, each in a fresh process

A Qwen3 of 9 million weights in bfloat16, 8 completions of 128 tokens behind 64 (student) and 192 (self-teacher) prompt
tokens, full fine-tuning, one thread; process CPU seconds, median of five steps after a first one, and resident memory.
Run it from two checkouts in turn (PYTHONPATH=.../src) to compare them.
"""

from __future__ import annotations

import random
import resource
import statistics
import subprocess
import sys
import time

KINDS = ("initial", "ema", "live", "trust_region")


def measure(kind: str) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from stepalign.config import ObjectiveSection, TrainingSection
    from stepalign.domains.arithmetic.solver import build_tokenizer
    from stepalign.models.load import Solver
    from stepalign.records import Sample
    from stepalign.training.learner import Learner
    from stepalign.training.teacher import Teacher

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tuple(f"w{i}" for i in range(15_995)))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    solver = Solver(Qwen3ForCausalLM(config).to(torch.bfloat16).eval(), tokenizer)
    draw = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(5, len(tokenizer)), k=count))

    samples = [
        Sample(
            rollout_id=str(i), student_prompt_ids=words(64), teacher_prompt_ids=words(192), completion_ids=words(128),
            sampler_log_probs=(-9.0,) * 128, loss_mask=(True,) * 128, advantage=0.0, distillation_weight=1.0,
            policy_weight=0.0,
        )
        for i in range(8)
    ]  # fmt: skip
    objective = ObjectiveSection(teacher={"weights": kind}, compiled=False)
    learner = Learner(solver, objective, TrainingSection(max_micro_batch_tokens=2048), temperature=1.0)
    teacher = Teacher(solver.model, objective.teacher)
    seconds = []
    for step in range(6):
        start = time.process_time()
        learner.update(samples, teacher, step)
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {kind} | {statistics.median(seconds[1:]):.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        print("| self-teacher | CPU s a step | peak MiB |\n| --- | --- | --- |", flush=True)
        for name in KINDS:
            subprocess.run([sys.executable, __file__, name], check=True)
