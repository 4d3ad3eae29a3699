"""A GGUF file as a solver: the file is written by the package ``gguf``, from a model whose logits are known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from stepalign.errors import ConfigError
from stepalign.models.load import Solver, load_solver, save_solver
from stepalign.models.places import weight_files

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
IDS = torch.tensor([[40, 71, 12, 99, 256]])


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 260}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    return model


def rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp interleaves the two halves of a head that transformers rotates against each other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, kind: Any) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a title that is no path")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    letters = [chr(i if 32 < i < 127 else 256 + i) for i in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "ab"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_unk_token_id(256)
    writer.add_pad_token_id(258)
    writer.add_chat_template(TEMPLATE)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    weights = {"token_embd": model.model.embed_tokens.weight, "output_norm": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weights[f"blk.{index}.{theirs}"] = layer.get_submodule(ours).weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in weights.items():
        part = name.rpartition(".")[2]
        value = rotated(weight, heads[part]) if part in heads else weight
        array = value.detach().float().numpy()
        if array.ndim == 1 or kind is None:
            writer.add_tensor(f"{name}.weight", array)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_llama()
    kinds = {"plain": None, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    return {name: write_gguf(folder / f"{name}.gguf", model, kind) for name, kind in kinds.items()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS % model.config.vocab_size).logits


def test_an_unquantised_file_gives_the_logits_of_its_model(files: dict[str, Path]) -> None:
    solver = load_solver(str(files["plain"]))
    torch.testing.assert_close(logits(solver.model), logits(tiny_llama()))
    assert solver.end_ids == (258,)
    assert solver.context_length == 512
    assert solver.model.name_or_path == str(files["plain"])
    assert weight_files(str(files["plain"])) == [files["plain"]]


def test_a_quantised_file_is_dequantised_trained_and_saved_as_safetensors(
    files: dict[str, Path], tmp_path: Path
) -> None:
    solver = load_solver(str(files["q8_0"]))
    expected = copy.deepcopy(tiny_llama())
    with torch.no_grad():  # the package's own de-quantisation of what it wrote
        for name, weight in expected.named_parameters():
            if weight.ndim == 2 and "proj" not in name:
                kind = gguf.GGMLQuantizationType.Q8_0
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)))
    torch.testing.assert_close(solver.head_VH.detach(), expected.lm_head.weight.detach())
    torch.testing.assert_close(logits(solver.model), logits(tiny_llama()), atol=0.1, rtol=0.05)
    solver.model(IDS).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum()) for p in solver.model.parameters())
    save_solver(solver, tmp_path / "saved")
    again = load_solver(str(tmp_path / "saved"))
    torch.testing.assert_close(logits(again.model), logits(solver.model), atol=0, rtol=0)
    assert again.tokenizer.encode("ab<|im_end|>") == solver.tokenizer.encode("ab<|im_end|>") == [259, 258]
    assert again.tokenizer.chat_template == TEMPLATE
    assert again.model.get_input_embeddings().weight is again.model.get_output_embeddings().weight


def test_shapes_are_read_without_the_weights(files: dict[str, Path]) -> None:
    shapes = load_solver(str(files["q8_0"]), weights=False)
    assert shapes.model.device.type == "meta"
    assert shapes.model.num_parameters() == tiny_llama().num_parameters()


@pytest.mark.parametrize("kind", ["a GGUF file", "the embedded solver"])
def test_adapters_find_their_base_again(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    path = str(files["plain"]) if kind == "a GGUF file" else "embedded:arithmetic"
    base = load_solver(path)
    torch.manual_seed(0)
    tuned = get_peft_model(base.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    save_solver(Solver(tuned, base.tokenizer), tmp_path / "adapters")
    again = load_solver(str(tmp_path / "adapters"))
    torch.testing.assert_close(logits(again.model), logits(tuned))
    assert not torch.allclose(logits(again.model), logits(load_solver(path).model))
    shapes = load_solver(str(tmp_path / "adapters"), weights=False)
    assert shapes.model.device.type == "meta"
    assert shapes.model.config.hidden_size == base.model.config.hidden_size


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.gguf", None, "no model at"),
        ("words.gguf", b"these are words", "no GGUF file"),
        ("half.gguf", b"GGUF\x03\x00\x00\x00", "no usable tokenizer"),
        ("big-00001-of-00003.gguf", b"GGUF", "several parts"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        load_solver(str(tmp_path / name))


def test_a_folder_that_holds_a_gguf_file_is_answered_with_the_file(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as error:
        load_solver(str(files["plain"].parent))
    assert error.value.hint is not None
    assert str(files["plain"]) in error.value.hint
