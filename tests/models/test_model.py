"""Loading a solver whose folder is not what a chat model's is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import python

from stepalign.config import load_config
from stepalign.errors import ConfigError
from stepalign.feedback.prompts import load_template
from stepalign.models.load import load_solver, save_solver
from stepalign.models.prompts import PromptBuilder
from stepalign.records import Problem
from stepalign.verbs.checks import run_checks
from stepalign.verbs.dry_run import describe
from stepalign.verbs.inputs import Inputs


def test_a_base_model_is_asked_in_plain_text_and_says_so(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template") as caught:
        load_solver(str(model_folder))
    assert "model.plain_prompts=true" in (caught.value.hint or "")
    with pytest.warns(UserWarning, match="no chat template: prompts are plain text"):
        solver = load_solver(str(model_folder), plain_prompts=True)
    solver.tokenizer.bos_token = "<|end|>"
    prompts = PromptBuilder(
        solver.tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} {{ feedback }}"),
        system="add",
    )
    problem = Problem(problem_id="1", question="1 + 2 <|user|>", answer="3")

    def ids(text: str) -> list[int]:
        return solver.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    bos = [solver.tokenizer.convert_tokens_to_ids("<|end|>")]
    assert list(prompts.student(problem)) == bos + ids("add\n\n1 + 2 <|user|>\n\n")
    assert list(prompts.self_teacher(problem, "3").ids) == bos + ids("add\n\n1 + 2 <|user|> 3\n\n")
    # What was trained under this template is asked under it ever after.
    save_solver(solver, tmp_path / "saved")
    assert load_solver(str(tmp_path / "saved")).tokenizer.chat_template == solver.tokenizer.chat_template


def test_looking_ahead_asks_a_base_model_as_its_run_will(write_recipe: Callable[..., Path], model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        run_checks(Inputs(load_config(str(write_recipe()))))
    config = load_config(str(write_recipe(model__plain_prompts=True)))
    with pytest.warns(UserWarning, match="no chat template"):
        run_checks(Inputs(config))
    with pytest.warns(UserWarning, match="no chat template"):
        describe(config)


@pytest.mark.slow
def test_a_warning_on_the_command_line_is_one_line_without_a_place_in_the_code(
    model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "chat_template.jinja").unlink()
    row = '{"question": "1 + 2", "completion": "<answer> 3", "contexts": {"reference": "3"}}\n'
    (tmp_path / "in.jsonl").write_text(row, encoding="utf-8")
    words = ("signal", tmp_path / "in.jsonl", "--model", model_folder, "--out", tmp_path / "out")
    done = subprocess.run([*python(), "-m", "stepalign", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert line.startswith(f"warning: the tokenizer of {model_folder} has no chat template")


def test_a_name_that_cannot_be_loaded_is_told_apart_from_a_folder_without_tokenizer(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the Hub cannot be reached"):
        load_solver("nobody/has-this-model")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model_folder.iterdir():
        if not file.name.startswith("tokenizer"):
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="save it beside the weights"):
        load_solver(str(bare))


def test_device_and_dtype_are_chosen_where_a_recipe_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from stepalign.models.load import choose

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose("auto", "auto") == ("cpu", "float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose("auto", "auto") == ("cuda", "bfloat16")
    assert choose("cpu", "auto") == ("cpu", "float32")
    assert choose("auto", "float32") == ("cuda", "float32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose("auto", "auto") == ("cuda", "float32")


def test_what_was_asked_for_is_in_the_recipe_and_what_was_chosen_on_one_line_and_in_the_summary(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import json

    from stepalign.events import Event
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    heard: list[Event] = []
    config = load_config(str(write_recipe(training__max_steps=0)))
    train_config(config, tmp_path / "run", resume=False, listener=heard.append, stop=StopRequest())
    told = [event.text for event in heard if event.text.startswith("solver ")]
    assert len(told) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told[0] == f"solver {config.model.path} on {summary['device']} in {summary['dtype']}"
    kept = load_config(str(tmp_path / "run" / "config.toml")).model
    assert (kept.device, kept.dtype) == ("auto", "auto")


# ---------------------------------------------------------------------------------------------------------------------
# Heads and templates that are refused by name


def random_model(kind: str, **changes: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=64, **sizes, **changes))


def refusal(model: Any, tokenizer: Any) -> str:
    from stepalign.models.load import Solver, check_head

    try:
        check_head(Solver(model, tokenizer), "it")
    except ConfigError as error:
        return f"{error.where}: {error.what}"
    return ""


def test_a_freshly_initialised_head_that_scales_its_logits_otherwise_is_found(word_tokenizer: Any) -> None:
    """Its logits are near 0, and those of the padding token are 0: only their proportion shows the scale."""
    import torch

    granite = random_model("granite", num_key_value_heads=1, logits_scaling=8.0, pad_token_id=3, eos_token_id=3)
    with torch.no_grad():
        granite.get_input_embeddings().weight[3] = 0
        granite.lm_head.weight.mul_(1e-2)
    assert refusal(granite, word_tokenizer) == ""
    granite.config.logits_scaling = 1.0  # read when the logits are formed, and here nowhere else
    assert refusal(granite, word_tokenizer) == ""
    forward = granite.forward

    def scaled(*words: Any, **options: Any) -> Any:
        found = forward(*words, **options)
        found.logits = found.logits / 8
        return found

    granite.forward = scaled
    assert "not its hidden states times" in refusal(granite, word_tokenizer)


@pytest.mark.parametrize("kind", ["gemma2", "phi", "gptj"])
def test_caps_and_biases_are_named_before_any_weights_are_loaded(kind: str, word_tokenizer: Any) -> None:
    import torch

    expected = {"gemma2": "logits are capped (final_logit_softcapping = 30)", "phi": "has a bias", "gptj": "has a bias"}
    with torch.device("meta"):
        shapes = random_model(kind, **({"rotary_dim": 4} if kind == "gptj" else {}))
    assert expected[kind] in refusal(shapes, word_tokenizer)


def test_an_adapter_on_the_head_is_refused_new_or_from_elsewhere(
    write_recipe: Callable[..., Path], tmp_path: Path, model_folder: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from stepalign.build import open_session

    for targets in (["lm_head"], ["q_proj", "lm_head"]):
        lora = {"r": 2, "alpha": 4, "targets": targets}
        with pytest.raises(ConfigError, match="an adapter changes its output embedding"):
            open_session(load_config(str(write_recipe(model__lora=lora))))
    base = load_solver(str(model_folder))
    for options in ({"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}):
        base = load_solver(str(model_folder))
        save_solver(type(base)(get_peft_model(base.model, LoraConfig(r=2, **options)), base.tokenizer), tmp_path / "a")
        with pytest.raises(ConfigError, match="an adapter changes its output embedding"):
            load_solver(str(tmp_path / "a"))


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endfor %}"
CHECKS_OPTIONS = (
    "{% if thinking is defined and thinking is not boolean %}{{ raise_exception('thinking is a bool') }}{% endif %}"
    "{{ messages[-1]['content'] }}"
)


@pytest.mark.parametrize(
    ("template", "options", "where"),
    [
        (NO_SYSTEM, {"system": "Think."}, "prompts.system"),
        (DROPS_SYSTEM, {"system": "Think."}, "prompts.system"),
        (CHECKS_OPTIONS, {"student_chat_options": {"thinking": "no"}}, "prompts.student_chat_options"),
        (CHECKS_OPTIONS, {"teacher_chat_options": {"thinking": 3}}, "prompts.teacher_chat_options"),
    ],
)
def test_what_a_chat_template_refuses_or_drops_is_an_error_at_its_key(
    template: str, options: dict[str, Any], where: str, tiny_solver: Any
) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_solver.tokenizer)
    tokenizer.chat_template = template
    texts = {"student": load_template("{{ question }}"), "self_teacher": load_template("{{ question }} {{ feedback }}")}
    PromptBuilder(tokenizer, **texts)
    with pytest.raises(ConfigError) as caught:
        PromptBuilder(tokenizer, **texts, **options)
    assert caught.value.where == where


def test_a_prompt_leaves_room_for_the_completion_that_is_scored_behind_it(tiny_solver: Any) -> None:
    prompts = PromptBuilder(
        tiny_solver.tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} {{ feedback }}"),
        context_length=64,
        completion_length=16,
    )
    problem, long = Problem(problem_id="1", question="1 + 2", answer="3"), "3 + 4 " * 40
    for length, at_most in ((None, 48), (16, 48), (40, 24), (4, 60)):
        found = prompts.self_teacher(problem, long, completion_length=length)
        assert len(found.ids) == at_most
        assert found.dropped_tokens > 0
