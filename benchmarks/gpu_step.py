"""One training step at the size of Qwen3-1.7B: our Learner against TRL's SDPO trainer and the bare matrix products.

    python benchmarks/gpu_step.py --out docs/results/gpu_step.md      # one CUDA device with 80 GB
    python benchmarks/gpu_step.py --tiny                              # the same code on any CPU in seconds

Random weights, LoRA adapters on seven projections, self-teacher = adapter off, forward KL over the whole vocabulary,
gradient checkpointing on both sides. Both learners get the same completions behind the same prompts; TRL's trainer
contributes its own loss code (``_compute_teacher_student_logits``, ``_compute_self_distillation_loss``) in a loop over
micro-batches, so that neither side pays for sampling. Times are medians over rounds after one warm-up; the floor is
the matrix products of the step alone, measured in the same run. The gradient error is that of all adapter gradients
against a float32 model with whole logits, on a few sequences. TRL takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.models.load import Solver
from stepalign.objectives.divergences import forward_kl
from stepalign.records import Sample
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher

TEMPERATURE = 1.1
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Size:
    vocabulary: int = 151_936
    hidden: int = 2048
    intermediate: int = 6144
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    rank: int = 64
    sequences: int = 32
    prompt: int = 512
    context: int = 512
    """Tokens by which the self-teacher's prompt is longer."""
    completion: int = 2048
    micro_batch_tokens: int = 16_384
    peer_batch: int = 1
    """Sequences of one forward pass of TRL's: whole logits of more do not fit beside the model."""
    checked: int = 2
    """Sequences behind the gradient error."""


TINY = Size(
    vocabulary=300, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, head_dim=16, rank=4,
    sequences=4, prompt=8, context=6, completion=20, micro_batch_tokens=128, peer_batch=2,
)  # fmt: skip


def make_model(size: Size, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(dtype)
    adapters = LoraConfig(r=size.rank, lora_alpha=2 * size.rank, target_modules=PROJECTIONS)
    model = get_peft_model(model, adapters)
    with torch.no_grad():  # away from the start, so that every adapter has a gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device)


def make_samples(size: Size) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(size.vocabulary, (count,), generator=generator).tolist())

    samples = []
    for index in range(size.sequences):
        prompt, completion = ids(size.prompt), ids(size.completion)
        samples.append(
            Sample(
                rollout_id=str(index),
                student_prompt_ids=prompt,
                teacher_prompt_ids=(*prompt, *ids(size.context)),
                completion_ids=completion,
                sampler_log_probs=(0.0,) * size.completion,
                loss_mask=(True,) * size.completion,
                advantage=0.0,
                distillation_weight=1.0,
                policy_weight=0.0,
            )
        )
    return samples


Step = Callable[[list[Sample]], float]
"""Leaves gradients in the model, takes an optimizer step, returns the loss."""


def our_step(model: Any, size: Size) -> Step:
    training = TrainingSection(
        learning_rate=1e-12, max_grad_norm=1e9, warmup_steps=0, max_micro_batch_tokens=size.micro_batch_tokens
    )
    objective = ObjectiveSection(divergence="forward_kl")
    learner = Learner(Solver(model, None), objective, training, temperature=TEMPERATURE)  # type: ignore[arg-type]
    teacher = Teacher(model, objective.teacher)
    for name, value in teacher.values.items():  # the initial adapters do nothing, as if switched off
        if "lora_B" in name:
            value.zero_()
    return lambda samples: learner.update(samples, teacher, 0)["loss"]


def trl_step(model: Any, size: Size) -> Step:
    from trl.experimental.sdpo import SDPOTrainer

    trainer = mock.MagicMock(
        model=model,
        temperature=TEMPERATURE,
        model_kwarg_keys={"logits_to_keep"},
        args=SimpleNamespace(distillation_mode="full_logits", distillation_alpha=0.0, distillation_is_clip=None),
        _get_teacher_context_for_self_distillation=model.disable_adapter,
    )
    trainer.accelerator.gather.side_effect = lambda value: value
    trainer._forward_logits = functools.partial(SDPOTrainer._forward_logits, trainer)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-12)
    device = model.device

    def stack(rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, device=device)

    def step(samples: list[Sample]) -> float:
        model.train()  # checkpoints layers; the model has no dropout
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(samples), size.peer_batch):
            rows = samples[start : start + size.peer_batch]
            prompts, completions = stack([s.student_prompt_ids for s in rows]), stack([s.completion_ids for s in rows])
            taught = stack([(*(s.teacher_prompt_ids or ()), *s.completion_ids) for s in rows])
            inputs = {
                "prompt_ids": prompts,
                "prompt_mask": torch.ones_like(prompts),
                "completion_ids": completions,
                "completion_mask": torch.ones_like(completions),
                "teacher_input_ids": taught,
                "teacher_attention_mask": torch.ones_like(taught),
            }
            logits = SDPOTrainer._compute_teacher_student_logits(trainer, model, model, inputs)
            loss = SDPOTrainer._compute_self_distillation_loss(trainer, model, inputs, logits)
            loss = loss * (len(rows) / len(samples))
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        return total

    return step


def exact_gradients(model: Any, samples: list[Sample]) -> tuple[float, dict[str, Tensor]]:
    """Loss and adapter gradients of a float32 copy, from whole logits, sequence by sequence."""
    model = copy.deepcopy(model).float().train()
    model.zero_grad(set_to_none=True)
    num_tokens, total = sum(len(s.completion_ids) for s in samples), 0.0

    def log_probs(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits[0, :-1]
        return (logits / TEMPERATURE).log_softmax(-1)

    for sample in samples:
        with torch.no_grad(), model.disable_adapter():
            taught = log_probs(sample.teacher_prompt_ids or (), sample.completion_ids)
        loss = forward_kl(taught, log_probs(sample.student_prompt_ids, sample.completion_ids)).sum() / num_tokens
        loss.backward()
        total += float(loss.detach())
    return total, gradients_of(model)


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Relative Frobenius distance of all gradients together."""
    error = sum(float((found[name] - gradient).square().sum()) for name, gradient in exact.items())
    return (error / sum(float(gradient.square().sum()) for gradient in exact.values())) ** 0.5


def floor_products(model: Any, size: Size) -> Callable[[], None]:
    """The products of one step with frozen weights under gradient checkpointing: of the student forward, forward again
    and back, of the self-teacher forward; three with the head. Attention and adapters are left out."""
    student = size.sequences * (size.prompt + size.completion)
    teacher = student + size.sequences * size.context
    passes = 3 + teacher / student
    base = [m.weight for name, m in model.named_modules() if name.endswith("base_layer")]
    head_VH = model.get_output_embeddings().weight.detach()
    rows = min(student, size.micro_batch_tokens)
    repeats = student / rows * passes

    def run() -> None:
        inputs = {weight.shape[1]: head_VH.new_ones(rows, weight.shape[1]) for weight in base}
        for _ in range(round(repeats)):
            for weight in base:
                torch.mm(inputs[weight.shape[1]], weight.t())
        completions = size.sequences * size.completion
        for start in range(0, completions, 512):
            hidden = head_VH.new_ones(min(512, completions - start), size.hidden)
            logits = hidden @ head_VH.t()
            _teacher_logits = hidden @ head_VH.t()
            _gradient = logits @ head_VH

    return run


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(run: Callable[[], object], device: str, rounds: int) -> tuple[float, float]:
    """(median seconds, peak GiB allocated) of a run; NaN for memory elsewhere than on CUDA."""
    seconds = []
    for number in range(rounds + 1):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = clock(device)
        run()
        if number:
            seconds.append(clock(device) - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    return statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny shape on the CPU: checks the code, measures nothing"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-batch", type=int, default=Size.peer_batch, help="sequences per forward pass of TRL's")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: run it where there is one, or with --tiny to try the code")
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda", torch.bfloat16)
    size = TINY if args.tiny else Size(peer_batch=args.peer_batch)

    model, samples = make_model(size, device, dtype), make_samples(size)
    steps: dict[str, Step] = {"stepalign": our_step(model, size)}
    try:
        steps["TRL SDPO"] = trl_step(model, size)
    except ImportError as error:
        print(f"TRL takes no part: {error}", file=sys.stderr)

    exact_loss, exact = exact_gradients(model, samples[: size.checked])
    errors = {}
    for name, step in steps.items():
        loss = step(samples[: size.checked])
        errors[name] = abs(loss - exact_loss) / exact_loss, apart(gradients_of(model), exact)
    del exact
    model.zero_grad(set_to_none=True)

    floor, _ = measure(floor_products(model, size), device, args.rounds)
    tokens = size.sequences * size.completion
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, tiny shape, load {os.getloadavg()[0]:.1f}"
    lines = [
        f"{where}; torch {torch.__version__}; {size.sequences} sequences of {size.prompt} + {size.completion} tokens, "
        f"self-teacher's prompt {size.prompt + size.context}, mean KL {exact_loss:.1e} nats; medians of {args.rounds} "
        "rounds.",
        "",
        "| learner | s a step | x floor | completion tokens / s | peak GiB | loss error | gradient error |",
        "|---|---|---|---|---|---|---|",
        f"| matrix products alone | {floor:.3f} | 1.00 | {tokens / floor:.0f} | - | - | - |",
    ]
    for name, step in steps.items():
        seconds, peak = measure(functools.partial(step, samples), device, args.rounds)
        loss_error, gradient_error = errors[name]
        lines.append(
            f"| {name} | {seconds:.3f} | {seconds / floor:.2f} | {tokens / seconds:.0f} | "
            f"{'-' if math.isnan(peak) else f'{peak:.1f}'} | "
            f"{loss_error:.1e} | {gradient_error:.1e} |"
        )
        model.zero_grad(set_to_none=True)
    text = "\n".join(lines)
    print(text)
    if args.out:
        command = f"python benchmarks/gpu_step.py --rounds {args.rounds} --peer-batch {size.peer_batch}"
        note = f"# A training step on a GPU\n\n`{command}`: see its docstring for what is compared.\n\n"
        args.out.write_text(note + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
