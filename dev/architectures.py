"""Which architectures the local sampler and the scorer compute alike, measured; writes the table of docs/models.md.

    python dev/architectures.py            # print the table
    python dev/architectures.py --write    # and put it into docs/models.md

Each is a tiny random model of transformers' own class. Sampled log-probabilities are compared with one plain forward
pass over the whole sequence, and so are those of the scorer; greedy completions with ``model.generate``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.errors import ConfigError
from stepalign.models.load import Solver, check_head
from stepalign.models.packed_attention import unpackable
from stepalign.models.sampling.local import LocalSampler
from stepalign.models.scoring import completion_hidden, padded_hidden
from stepalign.waiting import wait_for

PAGE = Path(__file__).resolve().parents[1] / "docs/models.md"
VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED = ["sliding_attention", "full_attention"] * 2

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen2, sliding window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "Qwen3": ("qwen3", {}),
    "Qwen3 MoE": ("qwen3_moe", EXPERTS),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, sliding window": ("mistral", {"sliding_window": 8}),
    "Ministral": ("ministral", {"sliding_window": 8, "layer_types": MIXED}),
    "Mixtral": ("mixtral", {**EXPERTS, "sliding_window": 8}),
    "Phi-3": ("phi3", {"sliding_window": None}),
    "Phi-3, sliding window": ("phi3", {"sliding_window": 8}),
    "Gemma 2, no cap on logits": ("gemma2", {"sliding_window": 8, "final_logit_softcapping": None}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 8, "layer_types": MIXED}),
    "Granite": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.1}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"sliding_window": 8, "layer_types": MIXED}),
    "SmolLM3": ("smollm3", {"no_rope_layer_interval": 2}),
    "SmolLM3, sliding window": ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": MIXED}),
    "Cohere 2": ("cohere2", {"sliding_window": 8, "logit_scale": 0.25, "layer_types": MIXED}),
    "EXAONE 4": ("exaone4", {"sliding_window": 8, "layer_types": MIXED}),
    "GLM 4": ("glm4", {}),
    "GPT-OSS": ("gpt_oss", {**EXPERTS, "sliding_window": 8, "layer_types": MIXED}),
    "Starcoder 2, sliding window": ("starcoder2", {"sliding_window": 8}),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "GPT-NeoX": ("gpt_neox", {}),
    "Gemma 2": ("gemma2", {"sliding_window": 8}),
    "Phi-2": ("phi", {}),
    "Falcon": ("falcon", {}),
    "Mamba": ("mamba", {"state_size": 8}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "Qwen3-Next": ("qwen3_next", {**EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2}),
}
"""Name -> (transformers' model type, what differs from ``SIZES``)."""

PROMPTS = [[5, 9, 31, 7], [4, 17, 8, 22, 61, 40, 13, 12, 50, 33, 21, 6, 14, 15, 90], [11, 3, 71, 44, 52, 7, 60, 29, 18]]
MAX_TOKENS = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The findings for one architecture."""

    refused: str = ""
    """Why it is refused, at loading or by the sampler; the rest is empty then."""
    sampled_error: float = 0.0
    """Largest |sampled - plain| log-probability, nats."""
    scored_error: float = 0.0
    """The same of the scorer."""
    padded_error: float = 0.0
    """Largest |packed - padded| log-probability; 0 where there is no packed route."""
    greedy: bool = False
    """Greedy completions equal those of ``generate``, alone, side by side, and with few rows."""
    packed: bool = False


def build(name: str) -> Solver:
    kind, changes = ARCHITECTURES[name]
    torch.manual_seed(0)
    known = AutoConfig.for_model(kind)
    computed = {name for name, value in vars(type(known)).items() if isinstance(value, property)}
    sizes = {key: value for key, value in SIZES.items() if hasattr(known, key) and key not in computed}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes})).eval()
    with torch.no_grad():  # far from uniform, and no two tokens near a tie
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.2 / parameter.shape[-1] ** 0.5)
        model.get_input_embeddings().weight.normal_()
        model.get_output_embeddings().weight.normal_(0.0, 0.4)
    solver = Solver(model, build_tokenizer(tuple(f"w{i}" for i in range(VOCABULARY))))
    model.generation_config.eos_token_id = list(solver.end_ids)  # generate ends where the sampler does
    return solver


def measure(name: str) -> Row:
    solver = build(name)
    try:
        check_head(solver, name)
        LocalSampler(solver)
    except ConfigError as error:
        return Row(refused=str(error).splitlines()[0].partition(": ")[2])
    drawn = _sample(solver, PROMPTS, 3, temperature=1.0)
    pairs = [(prompt, row.ids) for prompt, rows in zip(PROMPTS, drawn, strict=True) for row in rows]
    plain = torch.cat([_plain_log_probs(solver, *pair) for pair in pairs])
    sampled = torch.tensor([x for rows in drawn for row in rows for x in row.log_probs])
    scored, padded = (_log_probs(solver, route, pairs) for route in (completion_hidden, padded_hidden))
    greedy = [_generated(solver, prompt) for prompt in PROMPTS]
    wide, narrow = (_sample(solver, PROMPTS, 1, temperature=0.0, budget=budget) for budget in (65536, 40))
    alone = [_sample(solver, [prompt], 1, temperature=0.0)[0] for prompt in PROMPTS]
    return Row(
        sampled_error=float((sampled - plain).abs().max()),
        scored_error=float((scored - plain).abs().max()),
        padded_error=float((scored - padded).abs().max()),
        greedy=all([list(one.ids) for (one,) in found] == greedy for found in (wide, narrow, alone)),
        packed=unpackable(solver.decoder) is None,
    )


def _sample(solver: Solver, prompts: list[list[int]], count: int, *, temperature: float, budget: int = 65536) -> Any:
    sampler = LocalSampler(solver, max_batch_tokens=budget)
    options = {"num_samples": count, "temperature": temperature, "max_tokens": MAX_TOKENS, "seed": 0}
    return wait_for(sampler.sample(prompts, **options))  # type: ignore[arg-type]


@torch.no_grad()
def _generated(solver: Solver, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    found = solver.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS)  # type: ignore[operator]
    return found[0, len(prompt) :].tolist()


@torch.no_grad()
def _plain_log_probs(solver: Solver, prompt: list[int], completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    logits = solver.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


@torch.no_grad()
def _log_probs(solver: Solver, route: Callable[..., torch.Tensor], pairs: list[Any]) -> torch.Tensor:
    ids = torch.tensor([token for _, completion in pairs for token in completion])
    logits = torch.nn.functional.linear(route(solver, pairs), solver.head_VH)
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def table(rows: dict[str, Row]) -> str:
    lines = ["| architecture | sampled - plain | scored - plain | packed - padded | greedy = generate | scored in |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        if row.refused:
            lines.append(f"| {name} | refused: {row.refused} | | | | |")
            continue
        errors = " | ".join(f"{x:.0e}" for x in (row.sampled_error, row.scored_error, row.padded_error))
        route = "packed rows" if row.packed else "padded batches"
        lines.append(f"| {name} | {errors} | {'yes' if row.greedy else 'NO'} | {route} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    text = table({name: measure(name) for name in ARCHITECTURES})
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        page = re.sub(r"(?<=<!-- measured -->\n).*?(?=<!-- end -->)", lambda _: text + "\n", page, flags=re.S)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
