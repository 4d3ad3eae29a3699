"""Solvers: any Hugging Face causal language model from a folder or the Hub, or the one that ships with the package."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepalign.errors import ConfigError
from stepalign.models.places import adapted_base, address, find_model, is_gguf
from stepalign.storage.files import MANIFEST, damaged_file, is_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepalign.config import LoraSection

# For base models, which know no turns: the texts one after another.
_PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['content'] + '\n\n' }}{% endfor %}"
)


SMALL = 5_000_000
"""Parameters below which a model is trained on one thread."""


@dataclass(frozen=True, slots=True)
class Solver:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return f"Solver({type(self.model).__name__}, {size:,} parameters, {self.model.dtype}, {self.device})"

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        found = {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}
        return tuple(sorted(found))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and completion that the model was made for; None where it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def decoder(self) -> torch.nn.Module:
        """Everything below the head: ids in, hidden states out."""
        return self.model.get_decoder()

    def hidden_states(self, **inputs: Any) -> torch.Tensor:
        """The decoder's last hidden states, by way of the whole model where its weights are sharded."""
        run = getattr(self.model, "hidden_states", None) or self.decoder
        return run(use_cache=False, **inputs).last_hidden_state

    @property
    def head_VH(self) -> torch.Tensor:
        """The output embedding; logits are hidden states times its transpose (checked when the model is loaded)."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return head.weight  # type: ignore[return-value]

    def computing(self) -> torch.autocast:
        """Around every forward pass: adapters, which peft keeps in float32 beside 16-bit weights so that small steps
        are not rounded away, are multiplied in the model's own dtype. Elsewhere it changes nothing."""
        own = self.head_VH.dtype
        mixed = own.itemsize == 2 and any(p.dtype != own for p in self.model.parameters() if p.requires_grad)
        return torch.autocast(self.device.type, dtype=own if mixed else None, enabled=mixed)

    def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states whose product with the head is the logits: some models multiply these by a constant."""
        config = self.model.config.get_text_config()
        divisor = getattr(config, "logits_scaling", None)
        factor = 1.0 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0
        return hidden if factor == 1.0 else hidden * factor

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., V] in float32, before any temperature; from the hidden states of ``decoder``."""
        return torch.nn.functional.linear(self.scaled(hidden), self.head_VH).float()


def load_solver(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    plain_prompts: bool = False,
    weights: bool = True,
) -> Solver:
    """Load a solver.

    Args:
        path: ``embedded:arithmetic``, a folder in Hugging Face layout, a Hub name, or a GGUF file (de-quantised).
        dtype: "float32", "bfloat16", "float16"; "auto" takes bfloat16 on a GPU that has it, else float32.
        device: a torch device; "auto" takes a GPU where there is one, else the CPU.
        plain_prompts: a tokenizer without chat template (a base model's) gets a plain one, and a warning says so.
        weights: False loads tokenizer and shapes only.

    Raises:
        ConfigError: nothing there, no tokenizer, no usable chat template, weights that are not safetensors, or a
            device that this machine lacks.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device, dtype = choose(device, dtype)
    place = _device(device)
    folder = find_model(path)
    if weights:
        _refuse_damage(folder)
    tokenizer = _load_tokenizer(path, folder, trust_remote_code, plain_prompts)
    model = _load_model(path, folder, trust_remote_code, getattr(torch, dtype) if weights else None)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no end-of-text token", where=folder)
    num_embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if len(tokenizer) > num_embeddings:
        raise ConfigError(
            f"the tokenizer of {path} has {len(tokenizer)} ids, the model only {num_embeddings} embeddings",
            where=folder,
            hint="tokenizer and weights belong to different models",
        )
    solver = Solver(model, tokenizer)
    if weights:
        model.eval().to(place)  # type: ignore[arg-type]
    check_head(solver, path)
    return solver


def _refuse_damage(folder: str) -> None:
    """Weights that a run has sealed must be as they were. Raises ConfigError."""
    path = Path(folder)
    if is_sealed(path) and (name := damaged_file(path)):
        raise ConfigError(
            f"the file {name} of the model is damaged: it does not match {MANIFEST}",
            where=folder,
            hint=f"copy it again, or take a folder of checkpoints/; without {MANIFEST} the model is loaded as it is",
        )


def choose(device: str, dtype: str) -> tuple[str, str]:
    """(device, dtype) on this machine, where either may be "auto". A device that is not here is not noticed yet."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if dtype == "auto":
        has_bfloat16 = device.startswith("cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if has_bfloat16 else "float32"
    return device, dtype


def check_same_vocabulary(solver: Solver, other: Solver, name: str) -> None:
    """Raises ConfigError unless every id is the same token for both, and the other model has a logit for each."""
    own, theirs = solver.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    different = min(
        (token for token in own.keys() | theirs.keys() if own.get(token) != theirs.get(token)), default=None
    )
    if different is not None:
        ids = f"{different!r} is {theirs.get(different)}, not {own.get(different)}"
        what = f"has another vocabulary than the solver: {ids}"
    elif len(other.head_VH) < len(solver.head_VH):
        what = f"has {len(other.head_VH)} logits, and the solver {len(solver.head_VH)}"
    else:
        return
    hint = "a teacher scores the student's own ids: choose one of the same family"
    raise ConfigError(f"the model {name} {what}", where="objective.teacher.model", hint=hint)


def dtype_of(solver: Solver) -> str:
    return str(solver.model.dtype).removeprefix("torch.")


def limit_threads(solver: Solver) -> None:
    """One torch thread for a small model on the CPU: its matrices lose on more."""
    if solver.device.type == "cpu" and not is_large(solver):
        torch.set_num_threads(1)


def is_large(solver: Solver) -> bool:
    return sum(p.numel() for p in solver.model.parameters()) >= SMALL


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model alone, for reading ids. Raises ConfigError as ``load_solver`` does."""
    return _load_tokenizer(path, find_model(path), trust_remote_code=False, plain_prompts=True)


def _load_tokenizer(path: str, folder: str, trust_remote_code: bool, plain_prompts: bool) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template that works."""
    from transformers import AutoTokenizer

    try:
        place, options = address(folder)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
        if not tokenizer.encode("1 a", add_special_tokens=False):  # made up from config.json, without a vocabulary
            raise ValueError("there are no tokenizer files")
    except Exception as error:
        raise ConfigError(
            f"no usable tokenizer for the model {path}",
            where=folder,
            hint=f"{_where_it_should_be(folder)}; the loader said: {_first_line(error)}",
        ) from error
    if not tokenizer.chat_template and not plain_prompts:
        raise ConfigError(
            f"the tokenizer of {path} has no chat template",
            where=folder,
            hint="base models have none: ask them in plain text with --set model.plain_prompts=true, or put a "
            "chat_template.jinja into the folder",
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = _PLAIN_TEMPLATE
        warnings.warn(
            f"the tokenizer of {path} has no chat template: prompts are plain text, a blank line between their parts "
            "(a chat_template.jinja in the model's folder changes that)",
            stacklevel=3,
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "1 a"}], add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise ConfigError(
            f"the chat template of {path} does not work: {_first_line(error)}",
            where=folder,
            hint="mend chat_template.jinja (or chat_template in tokenizer_config.json)",
        ) from error
    return tokenizer


def _load_model(path: str, folder: str, trust_remote_code: bool, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model; without a dtype only its shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = adapted_base(folder)
    if base and dtype is None:
        return _load_model(path, base, trust_remote_code, None)
    place, options = address(folder)
    options["trust_remote_code"] = trust_remote_code
    try:
        if dtype is None:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    AutoConfig.from_pretrained(place, **options), trust_remote_code=trust_remote_code
                )
        options["dtype"] = dtype
        if is_gguf(folder):
            return _dequantised(place, options)
        if base and is_gguf(base):
            model = _load_model(path, base, trust_remote_code, dtype)
            model.load_adapter(folder)
            return model
        return AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, **options)
    except Exception as error:
        raise ConfigError(
            f"cannot load the model {path}",
            where=folder,
            hint="weights must be safetensors (model.save_pretrained writes them) or a GGUF file; "
            f"the loader said: {_first_line(error)}",
        ) from error


def _dequantised(place: str, options: dict[str, Any]) -> PreTrainedModel:
    """A GGUF file as an ordinary model: one that trains, and that ``save_pretrained`` writes as safetensors."""
    from transformers import AutoModelForCausalLM, GgufConfig, modeling_gguf_pytorch_utils

    # Its progress bar asks no switch of transformers.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors  # type: ignore[attr-defined]
    file = options["gguf_file"]
    model = AutoModelForCausalLM.from_pretrained(
        place, quantization_config=GgufConfig(gguf_file=file, dequantize=True), **options
    )
    model.name_or_path = model.config.name_or_path = str(Path(place, file))  # not the title that the file gives itself
    return model


def _device(name: str) -> torch.device:
    """The device. Raises ConfigError where this machine has none of that name."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        hint = f"use cpu, cuda, cuda:0, mps; torch said: {_first_line(error)}"
        raise ConfigError(f"no device {name} here", where="model.device", hint=hint) from error
    return device


def with_lora(solver: Solver, section: LoraSection, *, seed: int, path: str) -> Solver:
    """The solver with trainable adapters, whose first values follow from the seed.

    Raises:
        ConfigError: peft is not installed, a target that is no layer, or an adapter on the head.
    """
    check_targets(solver, section)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("model.lora needs peft", hint='pip install "stepalign[lora]"') from error
    torch.manual_seed(seed)
    adapters = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha or 2 * section.r,
        target_modules=list(section.targets),
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = get_peft_model(solver.model, adapters)  # type: ignore[arg-type]
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "cast_input_dtype_enabled")]
    for layer in layers:
        layer.cast_input_dtype_enabled = False  # ``Solver.computing`` brings adapters and inputs to the model's dtype
    adapted = Solver(model, solver.tokenizer)  # type: ignore[arg-type]
    check_head(adapted, path)
    return adapted


def check_targets(solver: Solver, section: LoraSection) -> None:
    """Raises ConfigError for a target that names no layer with a matrix."""
    layers = [n for n, layer in solver.model.named_modules() if getattr(getattr(layer, "weight", None), "ndim", 0) == 2]
    unknown = [one for one in section.targets if not any(f".{layer}".endswith(f".{one}") for layer in layers)]
    if unknown or not section.targets:
        known = sorted({layer.rsplit(".", 1)[-1] for layer in layers} - {"lm_head"})
        raise ConfigError(
            f"the model has no layer {', '.join(unknown)}" if unknown else "no layer gets an adapter",
            where="model.lora.targets",
            hint=f"its layers are {', '.join(known)}",
        )


def check_head(solver: Solver, path: str) -> None:
    """Raises ConfigError, by name, for a head that is more than one matrix: the logits of a batch are never formed."""
    head: Any = solver.model.get_output_embeddings()
    config = solver.model.config.get_text_config()
    hint = "such models are not supported: the objective works on hidden states and a plain linear head"
    if cap := getattr(config, "final_logit_softcapping", None):
        found = f"its logits are capped (final_logit_softcapping = {cap:g})"
    elif type(head).__module__.startswith("peft."):
        found = "an adapter changes its output embedding (lm_head), which is read as a plain matrix"
        hint = "leave lm_head out of model.lora.targets; merge an adapter that has it (merge_and_unload) and save that"
    elif head is None or not hasattr(head, "weight"):
        found = "it has no output embedding"
    elif getattr(head, "bias", None) is not None:
        found = "its output embedding has a bias"
    elif head.weight.device.type == "meta" or _head_explains_logits(solver):
        return
    else:
        found = "its logits are not its hidden states times its output embedding"
    raise ConfigError(f"the model {path} cannot be used: {found}", where="model.path", hint=hint)


@torch.inference_mode()
def _head_explains_logits(solver: Solver) -> bool:
    """On tokens from all of the vocabulary: the embedding of a single one may be zero, and then it shows nothing."""
    ids_BS = torch.linspace(0, len(solver.head_VH) - 1, 32, device=solver.device).long().view(8, 4)
    with solver.computing():
        hidden_BSH = solver.decoder(input_ids=ids_BS, use_cache=False).last_hidden_state
        expected_BSV = solver.model(input_ids=ids_BS, use_cache=False).logits.float()
        error_BSV = solver.logits(hidden_BSH) - expected_BSV
    return bool(error_BSV.norm() <= 0.02 * expected_BSV.norm())


def _where_it_should_be(folder: str) -> str:
    if Path(folder).is_dir():
        return "save it beside the weights with tokenizer.save_pretrained(FOLDER)"
    return "a Hub name needs the network once, and a token for a gated model; else name a local folder"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def save_solver(solver: Solver, folder: Path) -> None:
    """Hugging Face layout, safetensors."""
    with warnings.catch_warnings():
        # peft looks for a config.json at the base model, which a GGUF file has not; embeddings keep their size here.
        warnings.filterwarnings("ignore", "Could not find a config file")
        solver.model.save_pretrained(folder, safe_serialization=True)
    solver.tokenizer.save_pretrained(folder)


def on_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor, an array or nested lists of numbers on a device, without waiting for what the device has still to do.

    A copy to a GPU returns at once only from pinned memory; ``torch.tensor(values, device=device)`` waits.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
