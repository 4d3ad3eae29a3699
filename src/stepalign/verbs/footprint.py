"""How much memory and how many tokens a run takes, from the shapes of its model: known before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stepalign.build import CORRECTING, has_teacher
from stepalign.config import Config, ModelSection
from stepalign.critics.budget import prices_of
from stepalign.evaluation.evaluate import CHUNK as EVALUATED_AT_ONCE
from stepalign.feedback.designs import find_condition, find_design

if TYPE_CHECKING:
    from stepalign.models.load import Solver

BASE_BYTES = {"cpu": 440e6, "cuda": 800e6}
"""Interpreter, torch and transformers, measured; on a GPU what its driver keeps there."""
TOKENIZER_BYTES, COMPILER_BYTES = 1000, 60e6
"""Of an entry of the vocabulary; of ``torch.compile`` where the objective goes through it. Measured."""
CHUNK_TOKENS, CHUNK_ROWS = 512, {"cpu": 171, "cuda": 512}
"""Of the fused objective: tokens whose differences exist at once, and those whose float32 logits do."""
DRAW_BYTES = 28
"""Of an entry of a row's logits while a token is drawn: logits, their logarithms and exponentials, float64 sums."""
COUNTED_LENGTHS = 16, 32
PROMPT_TOKENS, LARGE_VOCABULARY = 8192, 2**14
"""As the sampler and the learner have them; importing either would load torch."""


SHAPES = {
    "Qwen/Qwen3-0.6B": (28, 1024, 3072, 16, True),
    "Qwen/Qwen3-1.7B": (28, 2048, 6144, 16, True),
    "Qwen/Qwen3-4B": (36, 2560, 9728, 32, True),
    "Qwen/Qwen3-8B": (36, 4096, 12288, 32, False),
}
"""Layers, hidden width, feed-forward width, heads, and whether the embeddings are the head: of models that recipes
name, so that a dry run needs no download. All have 8 key heads of 128 and 151,936 entries."""


def known_shape(path: str) -> Solver:
    """A solver of ``SHAPES`` without weights and tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from stepalign.models.load import Solver

    layers, hidden, mlp, heads, tied = SHAPES[path]
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return Solver(Qwen3ForCausalLM(config), None)  # type: ignore[arg-type]


def memory_parts(
    config: Config,
    solver: Solver,
    *,
    student_tokens: int,
    teacher_tokens: int,
    device: str,
    dtype: str,
    ranks: int = 1,
    longest: int = 0,
    held_out: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, float]:
    """Bytes of each part on one rank.

    Args:
        solver: of the recipe, shapes only.
        student_tokens, teacher_tokens: of a prompt.
        longest: tokens of the longest prompt that is sampled behind; 0: as ``student_tokens``.
        held_out: problems of each set that is measured.
    """
    shape, model = _Shape(solver.model.config.get_text_config()), config.model
    width, kind = 4 if dtype == "float32" else 2, "cuda" if device.startswith("cuda") else "cpu"
    total = sum(parameter.numel() for parameter in solver.model.parameters())
    adapted = _adapted(solver.model, model.lora.targets) if model.lora else []
    adapters = sum(model.lora.r * (rows + columns) for rows, columns in adapted) if model.lora else 0
    trained, trained_width = (adapters, 4) if model.lora else (total, width)
    condition = find_condition(config.condition)
    section, taught = config.objective.teacher, has_teacher(config)
    anchored = config.objective.beta > 0
    teacher = section.weights if (taught or anchored) and not section.is_other else "live"
    # Another model is whole on every rank.
    other = width * _parameters_of(section.model, model.trust_remote_code) if taught and section.model else 0
    first = teacher != "live" or anchored
    own = find_design(condition.design).form in ("own", "second_turn")
    frozen = own and config.critic.solver_weights == "initial"
    row, scored, batches = learnt_row(config, student_tokens, teacher_tokens)
    fixed, each = kept_bytes(solver, model, width)
    chunk = min(CHUNK_TOKENS, scored)
    head = 0 if model.lora else shape.vocabulary * shape.hidden * (4 if scored > CHUNK_TOKENS else width)
    compiled = config.objective.compiled or (config.objective.compiled is None and shape.vocabulary >= LARGE_VOCABULARY)
    parts = {
        "base": BASE_BYTES[kind] + TOKENIZER_BYTES * shape.vocabulary + COMPILER_BYTES * compiled,
        "weights": total * width / ranks + adapters * 4 + (total * width if ranks > 1 else 0),  # rank 0 has all
        "gradients": trained * trained_width / ranks,
        "optimizer": 2 * trained * trained_width / ranks,
        # The moving average is float32 whatever the weights are.
        "teacher": trained * ((trained_width if first else 0) + (4 if teacher == "ema" else 0)) / ranks + other,
        "frozen critic": total * width if frozen else 0.0,
        "activations": fixed + row * (each + shape.hidden * 2 * width),
        "logits": chunk * shape.vocabulary * width + min(CHUNK_ROWS[kind], chunk) * shape.vocabulary * 4 + head,
        **_sampler_parts(config, shape, width, longest or student_tokens, held_out),
    }
    parts["earlier micro-batches"] = parts["gradients"] * (batches > 1)
    return {name: float(size) for name, size in parts.items()}


def learnt_row(config: Config, student: int, teacher: int) -> tuple[int, int, int]:
    """Tokens of the student's packed row, completion tokens in it, and micro-batches of a step: as
    ``packing.micro_batches`` cuts completions of full length."""
    completion, group = config.sampling.max_completion_length, config.sampling.num_generations
    problems, most = config.training.problems_per_step, config.training.max_micro_batch_tokens
    behind = teacher if find_condition(config.condition).distillation_weight else 0
    family = max(student + group * completion, group * (behind + completion))
    if family <= most:
        held = min(problems, most // family)
        return held * (student + group * completion), held * group * completion, -(-problems // held)
    held = min(group * problems, max(1, most // (max(student, behind) + completion)))
    shared = student * -(-held // group)  # a shared prompt is computed once
    return shared + held * completion, held * completion, -(-group * problems // held)


def kept_bytes(solver: Solver, model: ModelSection, width: int) -> tuple[float, float]:
    """Bytes that the backward pass needs however many tokens there are (adapters in the model's type), and of each
    token: counted in forward passes of two lengths, through two layers of these widths and through one."""
    import torch

    from stepalign.models.load import Solver, with_lora
    from stepalign.models.scoring import completion_hidden

    shape = _Shape(solver.model.config.get_text_config())

    def counted(layers: int) -> list[int]:
        config = copy.deepcopy(solver.model.config)
        text = config.get_text_config()
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == shape.layers:  # one entry for each layer
                setattr(text, name, value[:layers])
        text.num_hidden_layers, text.vocab_size, text.pad_token_id = layers, 8, None
        with torch.device("meta"):
            small = type(solver.model)._from_config(config, dtype=torch.float32 if width == 4 else torch.bfloat16)
        small.to_empty(device="cpu").eval()
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.data.zero_()
        one = Solver(small, solver.tokenizer)
        if model.lora:
            one = with_lora(one, model.lora, seed=0, path=model.path)
        known = {parameter.untyped_storage().data_ptr() for parameter in one.model.parameters()}

        def kept_of(sequence: tuple[int, ...]) -> int:
            kept: dict[int, torch.Tensor] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                kept[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden = completion_hidden(one, [(sequence, sequence), (sequence[1:], (*sequence, 2))])
            del hidden
            return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known)

        return [kept_of((1,) * length) for length in COUNTED_LENGTHS]

    few, many = (two - one for two, one in zip(counted(2), counted(1), strict=True))
    shorter, longer = (4 * length - 2 for length in COUNTED_LENGTHS)  # a completion's last token is in no row
    each = (many - few) / (longer - shorter)
    fixed, layers = few - each * shorter, 1 if model.gradient_checkpointing else shape.layers
    return fixed * layers, each * layers + (shape.layers * shape.hidden * width if model.gradient_checkpointing else 0)


def _sampler_parts(
    config: Config, shape: _Shape, width: int, longest: int, held_out: Mapping[str, int]
) -> dict[str, float]:
    """The local sampler's keys and values, and what it computes with, where it draws most: in training or for an
    evaluation."""
    if config.sampling.engine != "local":
        return {"sampler cache": 0.0, "sampler": 0.0}
    training, evaluation = config.sampling, config.evaluation
    problems = min(EVALUATED_AT_ONCE, max(held_out.values(), default=0))
    draws = [(config.training.problems_per_step, training.num_generations, training.max_completion_length)]
    draws += [(problems, evaluation.num_samples, config.evaluation_length)] if problems else []
    found = []
    for count, group, length in draws:
        rows = min(count * group, max(1, training.max_batch_tokens // (longest + length)))
        prompts = longest * min(max(1, PROMPT_TOKENS // longest), -(-rows // group))
        cached = (rows * (longest + length) + prompts) * shape.layers * 2 * shape.key_values * width
        repeated = 2 * shape.heads * (longest + length) * width if shape.heads != shape.key_values else 0
        computed = rows * max(DRAW_BYTES * shape.vocabulary, repeated + 2 * width * shape.vocabulary)
        found.append((cached, max(computed, prompts * (3 * shape.mlp + 4 * shape.hidden) * width)))
    cached, computed = max(found, key=sum)
    return {"sampler cache": cached, "sampler": computed}


def _parameters_of(path: str, trust_remote_code: bool) -> int:
    from stepalign.models.load import load_solver

    known = path in SHAPES and not Path(path).exists()
    if known:
        found = known_shape(path)
    else:
        found = load_solver(path, trust_remote_code=trust_remote_code, plain_prompts=True, weights=False)
    return sum(parameter.numel() for parameter in found.model.parameters())


class _Shape:
    """Widths of a decoder, from its configuration."""

    def __init__(self, config: Any) -> None:
        self.layers, self.hidden, self.vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads = head * config.num_attention_heads
        self.key_values = head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self.mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def _adapted(model: Any, targets: tuple[str, ...]) -> list[tuple[int, int]]:
    """(outputs, inputs) of the linear layers that adapters are put on."""
    chosen = (m for name, m in model.named_modules() if name.rpartition(".")[2] in targets and hasattr(m, "weight"))
    return [(module.weight.shape[0], module.weight.shape[1]) for module in chosen]


def peak_bytes(parts: Mapping[str, float]) -> float:
    """The bytes of a process at its fullest: while it learns, steps, or samples. Gradients replace what they are
    computed from and stay until the next step's."""
    passing = ("gradients", "activations", "logits", "earlier micro-batches", "sampler cache", "sampler")
    most = max(
        parts["activations"] + parts["logits"] + parts["earlier micro-batches"],
        parts["gradients"] + parts["sampler cache"] + parts["sampler"],
    )
    return most + sum(size for name, size in parts.items() if name not in passing)


def describe_memory(parts: Mapping[str, float]) -> str:
    """One line that begins with "memory"."""
    named = ", ".join(f"{n} {_size(size)}" for n, size in parts.items() if size and n != "earlier micro-batches")
    return f"memory per rank: {_size(peak_bytes(parts))} at most: {named}"


def describe_tokens(config: Config, *, student_tokens: int, teacher_tokens: int) -> str:
    """One line that begins with "tokens"."""
    sampling, training = config.sampling, config.training
    completions = sampling.num_generations * training.problems_per_step
    drawn = completions * sampling.max_completion_length
    text = f"tokens at most: {drawn:,} sampled a step, {drawn * training.max_steps:,} in all"
    condition = find_condition(config.condition)
    if condition.distillation_weight:
        scored = completions * (teacher_tokens + sampling.max_completion_length)
        text += f"; {scored:,} scored by the self-teacher a step"
    if (models := _critic_models(config)) and find_design(condition.design).needs_critic:
        asked = completions * (student_tokens + sampling.max_completion_length + config.critic.max_tokens) * len(models)
        text += f"; {asked:,} by the critic{'s' * (len(models) > 1)} a step, {asked * training.max_steps:,} in all"
        if config.critic.prices:
            text += f" ({_money(config, completions * training.max_steps, student_tokens):,.2f} in its currency)"
    return text


def _critic_models(config: Config) -> list[str]:
    """The served models that are asked for each critique: one, two that must agree, or none."""
    section, design = config.critic, find_design(find_condition(config.condition).design)
    first = [section.model] if section.kind == "endpoint" else []
    agrees = section.second.kind == "endpoint" and design.form in CORRECTING
    return first + ([section.second.model or section.model] if agrees else [])


def _money(config: Config, calls: int, student_tokens: int) -> float:
    prompt, reply = student_tokens + config.sampling.max_completion_length, config.critic.max_tokens
    prices = [prices_of(config.critic.prices, model) for model in _critic_models(config)]
    return calls * sum(prompt * one.get("prompt", 0.0) + reply * one.get("completion", 0.0) for one in prices) / 1e6


def expected(
    config: Config, *, completion_tokens: float, critic_tokens: tuple[float, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """What the whole run would take, from means that were measured on a few rollouts.

    Args:
        completion_tokens: of a completion.
        critic_tokens: of a critique: prompt, completion; of two critics together, which are taken to use as many each.
        seconds: of a sampled "token", of a "critique", and of scoring one "side" of a rollout.
    """
    training, condition = config.training, find_condition(config.condition)
    rollouts = training.max_steps * training.problems_per_step * config.sampling.num_generations
    asks = rollouts * find_design(condition.design).needs_critic
    sides = 3 + bool(condition.distillation_weight)  # forward and backward of the student; forward of the self-teacher
    models = _critic_models(config)
    cost = sum(
        asks * tokens / len(models) * prices_of(config.critic.prices, model).get(kind, 0.0) / 1e6
        for model in models
        for kind, tokens in zip(("prompt", "completion"), critic_tokens, strict=True)
    )
    work = {
        "sampling": rollouts * completion_tokens * seconds["token"],
        "feedback": asks * seconds["critique"],
        "learning": rollouts * sides * seconds["side"],
    }
    return {
        "rollouts": float(rollouts),
        "sampled_tokens": rollouts * completion_tokens,
        "critic_tokens": asks * sum(critic_tokens),
        "cost": cost,
        "hours": sum(work.values()) / 3600,
        **{f"{name}_hours": value / 3600 for name, value in work.items()},
    }


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
