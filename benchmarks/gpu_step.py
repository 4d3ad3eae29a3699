"""One training step at the size of Qwen3-1.7B on a GPU: our Learner against TRL's SDPO and the bare matrix products.

    python benchmarks/gpu_step.py --out runs/gpu_step                 # one CUDA device with 80 GB, about six minutes
    python benchmarks/gpu_step.py --out runs/gpu_step --parts step    # some of checks, step, sampler, pieces
    python benchmarks/gpu_step.py --tiny                              # the same code on any CPU in a minute

Random weights, LoRA adapters on seven projections in float32 beside bfloat16 weights, self-teacher = adapter off,
forward KL over the whole vocabulary, checkpointing of layers on every side. What is measured:

checks      the fused objective, plain and compiled, and both routes of attention on this device, against float64
step        a whole step on 8 completions, behind prompts of their own or behind one prompt on each side: self-teacher
            forward, student forward and backward, optimizer. "Student alone" is the same Learner with the verdict's
            term only (GRPO): what it lacks is the self-teacher.
TRL SDPO    TRL's own code for logits and loss of its trainer, in a loop over micro-batches, so that neither side pays
            for sampling; "as trained" under the mixed precision that its trainer sets up by default (bfloat16 for
            products, float32 logits), "in bfloat16" with logits that stay so. SDPO has no fused loss in TRL 1.16:
            "fused" puts the chunked divergence of TRL's DistillationTrainer behind the same forward passes.
sampler     tokens per second of the local sampler, 32 completions at once
pieces      where the time of our step goes: each pass of it alone

Times are medians over rounds after a warm-up on one micro-batch; the floor is the matrix products of the step alone,
measured in the same run. The gradient error is that of all adapter gradients against a float32 model with whole logits,
on a few sequences. Every result is on disk (gpu_step.md and gpu_step.jsonl in --out) before the next is measured; what
does not fit into memory or into --seconds is said and left out. TRL takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import importlib.metadata
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.config import LoraSection, ObjectiveSection, TrainingSection
from stepalign.models import packed_attention
from stepalign.models.load import Solver, with_lora
from stepalign.models.packing import pack
from stepalign.models.sampling.local import LocalSampler
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.divergences import find_divergence, forward_kl
from stepalign.objectives.fused import fused_linear_divergence
from stepalign.records import Sample
from stepalign.training.learner import Learner, can_compile
from stepalign.training.teacher import Teacher

TEMPERATURE = 1.1
CHECKED = ("forward_kl", "reverse_kl", "jensen_shannon")
PARTS = ("checks", "step", "sampler", "pieces")
RESERVED = 60.0
"""Seconds that the tables leave for what comes after them."""


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
    sequences: int = 8
    prompt: int = 256
    context: int = 512
    """Tokens by which the self-teacher's prompt is longer."""
    completion: int = 2048
    pass_tokens: int = 24_576
    """Tokens of a forward pass where it takes as many sequences as fit."""
    checked: int = 2
    """Sequences behind the gradient error."""
    check_tokens: int = 1024
    check_hidden: int = 256
    sampled: int = 32
    sampled_tokens: int = 256

    @property
    def many(self) -> int:
        """Sequences of a forward pass that takes many."""
        return max(1, min(self.sequences, self.pass_tokens // (self.prompt + self.context + self.completion)))


TINY = Size(
    vocabulary=300, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, head_dim=16, rank=4, sequences=4,
    prompt=8, context=6, completion=20, pass_tokens=150, check_tokens=70, check_hidden=16, sampled=4, sampled_tokens=9,
)  # fmt: skip


class Report:
    """Lines and rows, on disk as soon as they are known; and how much time is left."""

    def __init__(self, folder: Path | None, seconds: float) -> None:
        self._folder, self._end = folder, time.monotonic() + seconds
        self.reserved = 0.0
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self._end - time.monotonic() - self.reserved

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self._append("gpu_step.md", line)

    def keep(self, **row: Any) -> None:
        self._append("gpu_step.jsonl", json.dumps(row))

    def _append(self, name: str, line: str) -> None:
        if self._folder:
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------------------------------
# Model and samples


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
        eos_token_id=size.vocabulary - 1,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(dtype)
    lora = LoraSection(r=size.rank, alpha=2 * size.rank)
    model: Any = with_lora(Solver(model, None), lora, seed=0, path="random").model  # type: ignore[arg-type]
    with torch.no_grad():  # away from the start, so that every adapter has a gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    model.activation_checkpointing_enable()
    return model.to(device)


def make_samples(size: Size, *, shared: bool = False, taught: bool = True) -> list[Sample]:
    """Completions behind prompts of their own or, as the rollouts of one problem under one context, behind the same."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(size.vocabulary, (count,), generator=generator).tolist())

    samples: list[Sample] = []
    prompt = context = ()
    for index in range(size.sequences):
        if not (shared and samples):
            prompt, context = ids(size.prompt), ids(size.context)
        samples.append(
            Sample(
                rollout_id=str(index),
                student_prompt_ids=prompt,
                teacher_prompt_ids=(*prompt, *context) if taught else None,
                completion_ids=ids(size.completion),
                sampler_log_probs=(-math.log(size.vocabulary),) * size.completion,
                loss_mask=(True,) * size.completion,
                advantage=0.0 if taught else 1.0,
                distillation_weight=1.0 if taught else 0.0,
                policy_weight=0.0 if taught else 1.0,
            )
        )
    return samples


# ---------------------------------------------------------------------------------------------------------------------
# Steps

Step = Callable[[list[Sample]], float]
"""Leaves gradients in the model, takes an optimizer step, returns the loss."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    name: str
    step: Callable[[Any, Size, Row], Step]
    at_once: int
    """Sequences of a forward pass."""
    shared: bool = False
    taught: bool = True
    trained: bool = True
    """TRL: with float32 logits, as under its trainer's mixed precision."""
    fused: bool = False
    """TRL: through the chunked divergence."""


def our_step(model: Any, size: Size, row: Row) -> Step:
    prompt = size.prompt + size.context
    tokens = prompt + row.at_once * size.completion if row.shared else row.at_once * (prompt + size.completion)
    training = TrainingSection(learning_rate=1e-12, max_grad_norm=1e9, warmup_steps=0, max_micro_batch_tokens=tokens)
    objective = ObjectiveSection(divergence="forward_kl")
    learner = Learner(Solver(model, None), objective, training, temperature=TEMPERATURE)  # type: ignore[arg-type]
    teacher = Teacher(model, objective.teacher)
    # The initial adapters add nothing, as if switched off.
    teacher.load({name: value * ("lora_B" not in name) for name, value in teacher.state().items()})
    return lambda samples: learner.update(samples, teacher, 0)["loss"]


def trl_step(model: Any, size: Size, row: Row) -> Step:
    from trl.experimental.sdpo import SDPOTrainer
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-12)
    device, decoder, head_VH = model.device, model.get_base_model().model, model.get_output_embeddings().weight
    model.config._attn_implementation = "sdpa"
    # The attributes that the trainer asks for.
    trainer = SimpleNamespace(
        model=model,
        temperature=TEMPERATURE,
        model_kwarg_keys={"logits_to_keep"},
        args=SimpleNamespace(distillation_mode="full_logits", distillation_alpha=0.0, distillation_is_clip=None),
        accelerator=SimpleNamespace(gather=lambda value: value),
        _get_teacher_context_for_self_distillation=model.disable_adapter,
        _log_self_distillation_metric=lambda *_: None,
    )

    def forward_logits(**inputs: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and not row.trained):
            return SDPOTrainer._forward_logits(trainer, **inputs)  # type: ignore[arg-type]

    trainer._forward_logits = forward_logits

    def stack(rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, device=device)

    def whole(called: Any, inputs: dict[str, Tensor]) -> Tensor:
        logits = SDPOTrainer._compute_teacher_student_logits(trainer, called, called, inputs)  # type: ignore[arg-type]
        return SDPOTrainer._compute_self_distillation_loss(trainer, called, inputs, logits)  # type: ignore[arg-type]

    def fused(_: Any, inputs: dict[str, Tensor]) -> Tensor:
        def hidden(ids: Tensor) -> Tensor:
            output = decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            return output.last_hidden_state[:, -1 - inputs["completion_ids"].shape[1] : -1]

        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            student = hidden(torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1))
            with torch.no_grad(), model.disable_adapter():
                taught = hidden(inputs["teacher_input_ids"])
            mask = inputs["completion_mask"]
            return _chunked_divergence_loss(student, taught, head_VH, head_VH, mask, 0.0, temperature=TEMPERATURE)[0]

    def step(samples: list[Sample]) -> float:
        model.train()  # checkpoints layers; the model has no dropout
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with _as_trl_runs_it(model, mixed=row.trained and not row.fused) as called:
            for start in range(0, len(samples), row.at_once):
                rows = samples[start : start + row.at_once]
                prompts = stack([s.student_prompt_ids for s in rows])
                completions = stack([s.completion_ids for s in rows])
                taught = stack([(*(s.teacher_prompt_ids or ()), *s.completion_ids) for s in rows])
                inputs = {
                    "prompt_ids": prompts,
                    "prompt_mask": torch.ones_like(prompts),
                    "completion_ids": completions,
                    "completion_mask": torch.ones_like(completions),
                    "teacher_input_ids": taught,
                    "teacher_attention_mask": torch.ones_like(taught),
                }
                loss = (fused if row.fused else whole)(called, inputs) * (len(rows) / len(samples))
                loss.backward()
                total += float(loss.detach())
        optimizer.step()
        return total

    return step


@contextmanager
def _as_trl_runs_it(model: Any, *, mixed: bool) -> Iterator[Any]:
    """With adapters as peft sets them up and, on a GPU, the mixed precision of a trainer with ``bf16``."""
    adapted = [layer for layer in model.modules() if hasattr(layer, "cast_input_dtype_enabled")]
    kept = [layer.cast_input_dtype_enabled for layer in adapted]
    for layer in adapted:
        layer.cast_input_dtype_enabled = True
    accelerator: Any = None
    called: Any = model
    if mixed and model.device.type == "cuda":
        from accelerate import Accelerator

        accelerator = Accelerator(mixed_precision="bf16")
        called = accelerator.prepare_model(model)
        assert "_original_forward" in called.__dict__
    try:
        yield called
    finally:
        if accelerator is not None:
            accelerator.unwrap_model(called, keep_fp32_wrapper=False)
            called._is_accelerate_prepared = False  # or it would not be prepared again
        for layer, value in zip(adapted, kept, strict=True):
            layer.cast_input_dtype_enabled = value


WHOLE, FUSED = "TRL SDPO, whole logits, as trained", "TRL SDPO, fused, as trained"


def rows_of(size: Size) -> list[Row]:
    many = size.many
    ours = Row(name="stepalign", step=our_step, at_once=many)
    whole = Row(name=WHOLE, step=trl_step, at_once=1)
    chunked = Row(name=FUSED, step=trl_step, at_once=1, fused=True)
    rows = [
        ours,
        whole,
        chunked,
        replace(ours, name="stepalign, shared prompts", shared=True),
        replace(ours, name="stepalign, student alone, shared prompts", shared=True, taught=False),
        replace(ours, name="stepalign, student alone", taught=False),
        replace(whole, at_once=many),
        replace(chunked, at_once=many),
        replace(ours, at_once=1),
        replace(whole, name="TRL SDPO, whole logits in bfloat16", trained=False),
        replace(whole, at_once=max(1, many // 2)),
    ]
    return list(dict.fromkeys(rows))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Measured:
    seconds: list[float] = field(default_factory=list)
    peak: float = math.nan
    """GiB allocated."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(run: Callable[[], object], device: str, rounds: int, left: Callable[[], float], first: float) -> Measured:
    """Rounds of a run that is expected to take ``first`` seconds, as many as the time allows and one at least."""
    found = Measured()
    for _ in range(rounds):
        if found.seconds and max(first, found.seconds[-1]) > left():
            break
        start = clock(device)
        run()
        found.seconds.append(clock(device) - start)
    if device == "cuda":
        found.peak = torch.cuda.max_memory_allocated() / 2**30
    return found


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
    error = sum(float((found[name].double() - gradient).square().sum()) for name, gradient in exact.items())
    return (error / sum(float(gradient.double().square().sum()) for gradient in exact.values())) ** 0.5


def floor_products(model: Any, size: Size) -> Callable[[], None]:
    """The products of one step with frozen weights under gradient checkpointing: of the student forward, forward again
    and back, of the self-teacher forward; three with the head. Attention and adapters are left out."""
    student = size.sequences * (size.prompt + size.completion)
    teacher = student + size.sequences * size.context
    passes = 3 + teacher / student
    base = [m.weight for name, m in model.named_modules() if name.endswith("base_layer")]
    head_VH = model.get_output_embeddings().weight.detach()
    rows = min(student, size.pass_tokens)
    repeats = student / rows * passes
    inputs = {width: torch.randn_like(head_VH[:1, :1].expand(rows, width)) for width in {w.shape[1] for w in base}}

    def run() -> None:
        for _ in range(round(repeats)):
            for weight in base:
                torch.mm(inputs[weight.shape[1]], weight.t())
        completions = size.sequences * size.completion
        for start in range(0, completions, 512):
            hidden = inputs[size.hidden][: min(512, completions - start)]
            logits = hidden @ head_VH.t()
            _teacher_logits = hidden @ head_VH.t()
            _gradient = logits @ head_VH

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def check_objective(size: Size, device: str, report: Report) -> None:
    """Loss, hidden gradients and head gradients of the fused objective on this device against float64."""
    report.say("| objective | dtype | walk | mean, nats | loss error | gradient error, hidden | gradient error, head |")
    report.say("|---|---|---|---|---|---|---|")
    generator = torch.Generator(device).manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

    tokens, width = size.check_tokens, size.check_hidden
    student, head = randn(tokens, width), randn(size.vocabulary, width) * 2 / width**0.5
    sides = {"student": student, "head": head, "teacher": student + 0.2 * randn(tokens, width)}
    compiles = [False, True] if can_compile(device) else [False]
    cases = [(name, dtype, c) for c in compiles for dtype in (torch.bfloat16, torch.float32) for name in CHECKED]
    for name, dtype, compiled in cases:
        if compiled and (dtype, name) not in {(torch.bfloat16, "forward_kl"), (torch.float32, "forward_kl")}:
            continue  # each takes seconds to compile
        rounded = {key: value.to(dtype) for key, value in sides.items()}
        exact = {key: value.double() for key, value in rounded.items()}
        row = _check_divergence(name, exact, rounded, compiled)
        how = "compiled" if compiled else "plain"
        report.keep(part="check objective", divergence=name, dtype=str(dtype), walk=how, **row)
        report.say(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {how} | {row['mean']:.3f} | {row['loss']:.1e} | "
            f"{row['hidden']:.1e} | {row['head']:.1e} |"
        )
        forget(device)


def _check_divergence(
    name: str, exact: dict[str, Tensor], rounded: dict[str, Tensor], compiled: bool
) -> dict[str, float]:
    def leaves(sides: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return sides["student"].detach().requires_grad_(), sides["head"].detach().requires_grad_()

    tokens = len(exact["student"])
    hidden, head = leaves(exact)
    taught = (exact["teacher"] @ head.detach().t() / TEMPERATURE).log_softmax(-1)
    expected = find_divergence(name)(taught, (hidden @ head.t() / TEMPERATURE).log_softmax(-1)).mean()
    expected_gradients = torch.autograd.grad(expected, (hidden, head))
    value = float(expected.detach())
    del taught, expected
    hidden, head = leaves(rounded)
    weights = torch.full((tokens,), 1 / tokens, dtype=torch.float32, device=hidden.device)
    found = fused_linear_divergence(
        hidden,
        head,
        rounded["teacher"],
        head,
        weights=weights,
        divergence=name,
        temperature=TEMPERATURE,
        compiled=compiled,
    )
    gradients = torch.autograd.grad(found.loss, (hidden, head))
    errors = [
        float((one.double() - other).norm() / other.norm())
        for one, other in zip(gradients, expected_gradients, strict=True)
    ]
    return {"mean": value, "loss": abs(float(found.loss) - value) / value, "hidden": errors[0], "head": errors[1]}


def check_attention(size: Size, device: str, dtype: torch.dtype, report: Report) -> None:
    """Both routes on a row with shared prompts, outputs and gradients against float64."""
    lengths = [(37, 0, 211), (64, 1, 130), (64, 1, 257), (9, 2, 31), (64, 1, 128), (9, 2, 300)]
    packing = pack([((number,) * prompt, (1,) * completion) for prompt, number, completion in lengths])
    generator = torch.Generator(device).manual_seed(2)
    heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
    *rows, direction = (
        torch.randn(len(packing.ids), n, size.head_dim, generator=generator, device=device).to(dtype) for n in heads
    )
    scaling = size.head_dim**-0.5

    def outputs(route: Any, kind: torch.dtype) -> list[Tensor]:
        inputs = [row.to(kind).requires_grad_() for row in rows]
        output = route(packing, torch.device(device))(*inputs, scaling, 0.0)
        return [x.double() for x in (output, *torch.autograd.grad(output, inputs, direction.to(kind)))]

    chosen = type(packed_attention.build_attention(packing, device=torch.device(device), dtype=dtype)).__name__
    exact = outputs(packed_attention.RectangleAttention, torch.float64)
    report.say(f"Attention over packed rows takes the route {chosen} here. Relative error against float64:")
    report.say()
    report.say("| route | output | gradient of queries | of keys | of values |")
    report.say("|---|---|---|---|---|")
    for route in (packed_attention.RectangleAttention, packed_attention.VarlenAttention):
        if route is packed_attention.VarlenAttention and device != "cuda":
            continue
        try:
            found = outputs(route, dtype)
        except Exception as error:  # the other route's result is wanted all the same
            traceback.print_exc()
            report.say(f"| {route.__name__} | {first_line(error)} | | | |")
            continue
        errors = [float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]
        report.keep(part="check attention", route=route.__name__, errors=errors)
        report.say(f"| {route.__name__} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


def table(model: Any, size: Size, device: str, rounds: int, report: Report, *, only: str, with_errors: bool) -> None:
    """One table: every learner at one length of completions."""
    rows = [row for row in rows_of(size) if only in row.name]
    exact_loss, exact = math.nan, {}
    checked = make_samples(size)[: size.checked]
    if with_errors:
        try:
            exact_loss, exact = exact_gradients(model, checked)
        except torch.OutOfMemoryError:
            report.say("No gradient errors: the float32 model runs out of memory.")
        forget(device)
    run = floor_products(model, size)
    run()
    floor = measure(run, device, rounds, lambda: report.left, 0.0).median
    del run
    report.say(
        f"{size.sequences} sequences of {size.prompt} + {size.completion:,} tokens, self-teacher's prompt "
        f"{size.prompt + size.context}"
        + (f", mean KL {exact_loss:.1e} nats" if exact else "")
        + f"; medians of {rounds} rounds, or of those there was time for."
    )
    report.say()
    columns = ("learner", "sequences a pass", "s a step", "x floor", "completion tokens / s", "peak GiB")
    report.say(f"| {' | '.join(columns)} | loss error | gradient error |")
    report.say("|---|---|---|---|---|---|---|---|")
    report.say(f"| matrix products alone | - | {floor:.3f} | 1.00 | {_rate(size, floor):,.0f} | - | - | - |")
    report.keep(part="floor", completion=size.completion, seconds=floor)
    found: dict[tuple[str, int], Measured] = {}
    for row in rows:
        measured = _measure_row(model, size, row, device, rounds, report, checked, exact_loss, exact, floor)
        if measured:
            found[row.name, row.at_once] = measured
        model.zero_grad(set_to_none=True)
        forget(device)
    report.say()
    for suffix in ("", ", shared prompts"):
        both, alone = (found.get((f"stepalign{kind}{suffix}", size.many)) for kind in ("", ", student alone"))
        if both and alone:
            report.say(f"- (teacher + student) / student{suffix or ', own prompts'}: {both.median / alone.median:.2f}")
    for (name, at_once), peer in found.items():
        mine = found.get(("stepalign", at_once))
        if name.startswith("TRL") and mine:
            report.say(
                f"- against {name}, {at_once} a pass on both sides: {peer.median / mine.median:.2f} x its speed, "
                f"{mine.peak / peer.peak:.2f} of its peak memory"
            )
    ours, whole, fused = (
        min((m.median for (name, _), m in found.items() if name == wanted), default=math.nan)
        for wanted in ("stepalign", WHOLE, FUSED)
    )
    report.say(
        f"- fastest against fastest: {whole / ours:.2f} x the speed of whole logits, {fused / ours:.2f} x of fused"
    )
    report.say()


def gib(peak: float) -> str:
    return "-" if math.isnan(peak) else f"{peak:.1f}"


def _rate(size: Size, seconds: float) -> float:
    return size.sequences * size.completion / seconds


def _measure_row(
    model: Any,
    size: Size,
    row: Row,
    device: str,
    rounds: int,
    report: Report,
    checked: list[Sample],
    exact_loss: float,
    exact: dict[str, Tensor],
    floor: float,
) -> Measured | None:
    cells = f"| {row.name} | {row.at_once} |"
    if report.left < 4 * floor:
        report.say(f"{cells} not run: no time left | | | | | |")
        return None
    errors = "- | -"
    numbers: dict[str, float] = {}
    try:
        step = row.step(model, size, row)
        if exact and row.taught and not row.shared:
            loss = step(checked)
            numbers = {
                "loss_error": abs(loss - exact_loss) / exact_loss,
                "gradient_error": apart(gradients_of(model), exact),
            }
            errors = f"{numbers['loss_error']:.1e} | {numbers['gradient_error']:.1e}"
        samples = make_samples(size, shared=row.shared, taught=row.taught)
        step(samples[: row.at_once])  # compiles
        start = clock(device)
        step(samples[: row.at_once])
        expected = (clock(device) - start) * size.sequences / row.at_once
        if expected > report.left:
            report.say(f"{cells} not run: would take {expected:.0f} s | | | | {errors} |")
            return None
        forget(device)
        measured = measure(lambda: step(samples), device, rounds, lambda: report.left, expected)
    except torch.OutOfMemoryError:
        report.say(f"{cells} out of memory | | | | {errors} |")
        report.keep(part="step", learner=row.name, at_once=row.at_once, completion=size.completion, out_of_memory=True)
        return None
    except Exception as error:  # the other learners' rows are wanted all the same
        traceback.print_exc()
        report.say(f"{cells} not run: {first_line(error)} | | | | {errors} |")
        return None
    seconds = measured.median
    report.say(
        f"{cells} {seconds:.3f} | {seconds / floor:.2f} | {_rate(size, seconds):,.0f} | "
        f"{gib(measured.peak)} | {errors} |"
    )
    report.keep(
        part="step", learner=row.name, at_once=row.at_once, completion=size.completion, seconds=measured.seconds,
        peak=measured.peak, **numbers,
    )  # fmt: skip
    return measured


def sampler(model: Any, size: Size, device: str, report: Report) -> None:
    """Tokens per second of the in-process sampler, with adapters and without."""
    solver = Solver(model, SimpleNamespace(eos_token_id=size.vocabulary - 1))  # type: ignore[arg-type]
    drawer = LocalSampler(solver)
    prompts = [
        sample.student_prompt_ids for sample in make_samples(replace(size, sequences=size.sampled, completion=1))
    ]

    def draw(max_tokens: int) -> int:
        drawn = asyncio.run(drawer.sample(prompts, num_samples=1, temperature=1.0, max_tokens=max_tokens, seed=0))
        return sum(len(completion.ids) for row in drawn for completion in row)

    @contextmanager
    def as_it_is() -> Iterator[None]:
        yield

    report.say(f"| sampler, {size.sampled} at once, prompts of {size.prompt} | tokens | s | tokens / s | peak GiB |")
    report.say("|---|---|---|---|---|")
    for name, context in (("with adapters", as_it_is), ("adapters off", model.disable_adapter)):
        forget(device)
        with context():
            draw(4)
            start = clock(device)
            draw(12)
            expected = (clock(device) - start) * size.sampled_tokens / 12
            if expected > report.left:
                report.say(f"| {name} | not run: would take {expected:.0f} s | | | |")
                continue
            start = clock(device)
            tokens = draw(size.sampled_tokens)
            seconds = clock(device) - start
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else math.nan
        report.keep(part="sampler", adapters=name, tokens=tokens, seconds=seconds, peak=peak)
        report.say(f"| {name} | {tokens:,} | {seconds:.2f} | {tokens / seconds:,.0f} | {gib(peak)} |")
    report.say()


def pieces(model: Any, size: Size, device: str, report: Report) -> None:
    """Each pass of a step by itself, on the completions of the first table behind prompts of their own."""
    solver, samples = Solver(model, None), make_samples(size)  # type: ignore[arg-type]
    student = [(s.student_prompt_ids, s.completion_ids) for s in samples][: size.many]
    taught = [(s.teacher_prompt_ids or (), s.completion_ids) for s in samples][: size.many]
    head_VH = solver.head_VH.detach()

    def forward(sequences: list[Any]) -> Tensor:
        with torch.no_grad():
            return completion_hidden(solver, sequences)

    def without_adapters() -> None:
        with model.disable_adapter():
            forward(taught)

    def there_and_back() -> None:
        hidden_NH = completion_hidden(solver, student)
        hidden_NH.backward(torch.ones_like(hidden_NH))
        model.zero_grad(set_to_none=True)

    def checkpointed() -> None:
        for module in model.eval().modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))
        there_and_back()

    def kept() -> None:
        model.eval()
        there_and_back()

    student_NH, taught_NH = forward(student), forward(taught)
    weights_N = torch.full((len(student_NH),), 1 / len(student_NH), device=device)
    ids_N = torch.tensor([i for _, completion in student for i in completion], device=device)

    def objective(compiled: bool) -> None:
        hidden_NH = student_NH.detach().requires_grad_()
        fused_linear_divergence(
            *(hidden_NH, head_VH, taught_NH, head_VH),
            **{"weights": weights_N, "token_ids": ids_N, "temperature": TEMPERATURE, "compiled": compiled},
        ).loss.backward()

    runs: dict[str, Callable[[], object]] = {
        "student forward, no gradient": lambda: forward(student),
        "self-teacher forward": lambda: forward(taught),
        "self-teacher forward, adapter off": without_adapters,
        "student forward and backward, layers checkpointed, no head": checkpointed,
        "student forward and backward, layers kept, no head": kept,
        "objective, compiled": lambda: objective(True),
        "objective, plain": lambda: objective(False),
    }
    report.say(f"| {size.many} sequences of {size.prompt} + {size.completion:,} tokens in one pass | s | peak GiB |")
    report.say("|---|---|---|")
    for name, run in runs.items():
        try:
            run()
            forget(device)
            measured = measure(run, device, 3, lambda: report.left, 0.0)
        except Exception as error:
            report.say(f"| {name} | {first_line(error)} | |")
            continue
        report.keep(part="pieces", piece=name, seconds=measured.seconds, peak=measured.peak)
        report.say(f"| {name} | {measured.median:.3f} | {gib(measured.peak)} |")
        forget(device)
    report.say()


def where(device: str) -> str:
    versions = []
    for package in ("torch", "transformers", "peft", "accelerate", "trl"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    if device == "cuda":
        place = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        place = f"CPU, tiny shape, load {os.getloadavg()[0]:.1f}"
    return f"{place}; Python {sys.version.split()[0]}; {', '.join(versions)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke",
        "--tiny",
        dest="tiny",
        action="store_true",
        help="a tiny shape on the CPU: checks the code, measures nothing",
    )
    parser.add_argument("--completions", type=int, nargs="+", default=[2048, 8192], help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3, help="half as many where completions are longer than 4,096")
    parser.add_argument("--seconds", type=float, default=480.0, help="parts that would end later are left out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", default="", help="rows of the table whose name holds this")
    parser.add_argument("--out", type=Path, help="also write gpu_step.md and gpu_step.jsonl into this folder")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: run it where there is one, or with --smoke to try the code")
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda", torch.bfloat16)
    size = TINY if args.tiny else Size()
    if args.tiny:
        torch.set_num_threads(1)
    report = Report(args.out, args.seconds)

    report.say(where(device))
    report.say()
    if "checks" in args.parts:
        _part("checks of the objective", report, lambda: check_objective(size, device, report))
        report.say()
        _part("checks of attention", report, lambda: check_attention(size, device, dtype, report))
        report.say()
        forget(device)
    if {"step", "sampler", "pieces"}.isdisjoint(args.parts):
        return
    model = make_model(size, device, dtype)
    report.reserved = 0.0 if {"sampler", "pieces"}.isdisjoint(args.parts) else RESERVED
    lengths = [TINY.completion, 2 * TINY.completion] if args.tiny else args.completions
    for number, completion in enumerate(lengths if "step" in args.parts else ()):
        at, rounds = replace(size, completion=completion), args.rounds if completion <= 4096 else -(-args.rounds // 2)

        def one_table(at: Size = at, rounds: int = rounds, first: bool = number == 0) -> None:
            table(model, at, device, rounds, report, only=args.only, with_errors=first)

        _part(f"completions of {completion}", report, one_table)
        model.zero_grad(set_to_none=True)
        forget(device)
    report.reserved = 0.0
    if "sampler" in args.parts:
        _part("sampler", report, lambda: sampler(model, size, device, report))
    if "pieces" in args.parts:
        _part("pieces", report, lambda: pieces(model, replace(size, completion=lengths[0]), device, report))


def _part(name: str, report: Report, run: Callable[[], None]) -> None:
    """A part that fails must not take the others with it."""
    try:
        run()
    except Exception as error:
        traceback.print_exc()
        report.say(f"{name}: {first_line(error)}")


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


if __name__ == "__main__":
    main()
