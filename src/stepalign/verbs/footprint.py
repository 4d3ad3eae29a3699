"""How much memory and how many tokens a run takes, from the shapes of its model: known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.config import Config
from stepalign.feedback.designs import find_condition, find_design

if TYPE_CHECKING:
    from stepalign.models.load import Solver

BASE_BYTES = {"cpu": 410e6, "cuda": 800e6}
"""Interpreter, torch and transformers, measured; on a GPU what its driver keeps there."""
CHUNK_TOKENS, CHUNK_ROWS = 512, 4
"""Of the fused objective: tokens whose logits exist at once, in so many buffers of the vocabulary's width."""
SAVED_HIDDEN, SAVED_ATTENTION, SAVED_MLP, SAVED_ADAPTED = 7, 7, 4.5, 0.4
"""Values that the backward pass needs of a token and layer, in widths: hidden, all heads, feed-forward, and outputs of
layers with an adapter. Fitted to measured peaks (docs/scale.md)."""


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
    config: Config, solver: Solver, *, student_tokens: int, teacher_tokens: int, device: str, dtype: str, ranks: int = 1
) -> dict[str, float]:
    """Bytes of each part on one rank.

    Args:
        solver: of the recipe, shapes only.
        student_tokens, teacher_tokens: of a prompt.
    """
    shape, model, training = _Shape(solver.model.config.get_text_config()), config.model, config.training
    width = 4 if dtype == "float32" else 2
    total = sum(parameter.numel() for parameter in solver.model.parameters())
    adapted = _adapted(solver.model, model.lora.targets) if model.lora else []
    adapters = sum(model.lora.r * (rows + columns) for rows, columns in adapted) if model.lora else 0
    trained, trained_width = (adapters, 4) if model.lora else (total, width)
    condition = find_condition(config.condition)
    teacher = config.objective.teacher.weights if condition.distillation_weight else "live"
    other = 0.0
    if config.objective.teacher.model and condition.distillation_weight:
        other, teacher = width * _parameters_of(config.objective.teacher.model, config.model.trust_remote_code), "live"
    if config.objective.teacher.base_urls:
        teacher = "live"
    copies = {"live": 0, "initial": 1, "trust_region": 1, "ema": 2}[teacher] or int(config.objective.beta > 0)
    own = find_design(condition.design).form in ("own", "second_turn")
    frozen = own and config.critic.solver_weights == "initial"
    completion = config.sampling.max_completion_length
    completions = config.sampling.num_generations * training.problems_per_step
    group = config.sampling.num_generations * completion + student_tokens  # a shared prompt is computed once
    row = min(training.max_micro_batch_tokens, training.problems_per_step * group)
    saved = shape.layers * (SAVED_HIDDEN * shape.hidden + SAVED_ATTENTION * shape.heads + SAVED_MLP * shape.mlp)
    if model.lora:
        saved += SAVED_ADAPTED * sum(shape[0] for shape in adapted)
    if model.gradient_checkpointing:
        saved = saved / shape.layers + shape.layers * shape.hidden
    drawn = min(config.sampling.max_batch_tokens, completions * (student_tokens + completion))
    local = config.sampling.engine == "local" or ranks > 1
    base = BASE_BYTES["cuda" if device.startswith("cuda") else "cpu"]
    parts = {
        "base": base,
        "weights": total * width / ranks
        + adapters * 4
        + (total * width if ranks > 1 else 0),  # rank 0 holds a whole copy
        "gradients": trained * trained_width / ranks,
        "optimizer": 2 * trained * trained_width / ranks,
        "teacher": copies * trained * trained_width / ranks + other,  # another model is whole on every rank
        "frozen critic": total * width if frozen else 0.0,
        "activations": row * saved * width,
        "logits": min(CHUNK_TOKENS, row) * shape.vocabulary * CHUNK_ROWS * 4,
        "sampler cache": drawn * shape.layers * 2 * shape.key_values * width if local else 0.0,
    }
    return {name: float(size) for name, size in parts.items()}


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
    """The bytes of a process at its fullest: gradients replace what they are computed from, and an allocator keeps what
    sampling has used."""
    learning = max(parts["gradients"], parts["activations"] + parts["logits"])
    return learning + sum(size for name, size in parts.items() if name not in ("gradients", "activations", "logits"))


def describe_memory(parts: Mapping[str, float]) -> str:
    """One line that begins with "memory"."""
    named = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
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
    if config.critic.kind == "endpoint" and find_design(condition.design).needs_critic:
        asked = completions * (student_tokens + sampling.max_completion_length + config.critic.max_tokens)
        text += f"; {asked:,} by the critic a step, {asked * training.max_steps:,} in all"
        if config.critic.prices:
            text += f" ({_money(config, completions * training.max_steps, student_tokens):,.2f} in its currency)"
    return text


def _money(config: Config, calls: int, student_tokens: int) -> float:
    prices = config.critic.prices
    prompt = (student_tokens + config.sampling.max_completion_length) * prices.get("prompt", 0.0)
    return calls * (prompt + config.critic.max_tokens * prices.get("completion", 0.0)) / 1e6


def expected(
    config: Config,
    *,
    completion_tokens: float,
    critic_tokens: tuple[float, float],
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """What the whole run would take, from means that were measured on a few rollouts.

    Args:
        completion_tokens: of a completion.
        critic_tokens: of a critique: prompt, completion.
        seconds: of a sampled "token", of a "critique", and of scoring one "side" of a rollout.
    """
    training, condition = config.training, find_condition(config.condition)
    rollouts = training.max_steps * training.problems_per_step * config.sampling.num_generations
    asks = rollouts * find_design(condition.design).needs_critic
    sides = 3 + bool(condition.distillation_weight)  # forward and backward of the student; forward of the self-teacher
    prices = config.critic.prices
    cost = sum(
        asks * tokens * prices.get(kind, 0.0) / 1e6
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
