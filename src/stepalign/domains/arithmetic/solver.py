"""The tokenizer and the tiny model of the embedded task, untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stepalign.models.load import Solver

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] }}"
    "{{ ' <|end|> ' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(vocabulary: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """One id a word. The bar is split off so that no plain text can spell a control token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<|pad|>", "<|end|>", "<|unknown|>", "<|user|>", "<|assistant|>")
    ids = {word: index for index, word in enumerate((*special, *vocabulary))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("|", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def build_tiny_solver(
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    hidden_size: int = 96,
    num_layers: int = 3,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    intermediate_size: int = 288,
    max_positions: int = 512,
) -> Solver:
    """An untrained Qwen3 model; head_dim 32 is the smallest that a vLLM server loads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=32,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),  # type: ignore[arg-type]
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),  # type: ignore[arg-type]
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return Solver(Qwen3ForCausalLM(config), tokenizer)
