"""Adapters through peft: only they train, the initial teacher is the adapter switched off, and they load again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="the extra `lora` is not installed")

from peft import PeftModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from stepalign.build import open_session
from stepalign.config import Config, changed, load_config
from stepalign.domains.arithmetic.task import EMBEDDED
from stepalign.errors import ConfigError
from stepalign.events import silent
from stepalign.models.load import Solver, load_solver
from stepalign.models.places import find_model
from stepalign.models.scoring import completion_hidden
from stepalign.records import Sample
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.verbs.train import train_config
from stepalign.waiting import wait_for


@pytest.fixture
def config() -> Config:
    small = ["training.max_steps=2", "training.problems_per_step=4", "data.max_validation=2", "data.max_test=2"]
    lora = ["model.lora.r=4", "model.lora.alpha=8", "training.save_steps=1", "objective.teacher.weights=initial"]
    return load_config("arithmetic", [*small, *lora, "evaluation.num_samples=2", "training.learning_rate=1e-2"])


def test_the_initial_teacher_is_the_adapter_switched_off(config: Config) -> None:
    session = open_session(config)
    model = session.solver.model
    teacher = Teacher(model, config.objective.teacher)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        sequence = [((2, 30, 9, 12, 3), (10, 20, 30, 40))]
        live = completion_hidden(session.solver, sequence)
        with teacher.in_place(model):
            initial = completion_hidden(session.solver, sequence)
        with model.disable_adapter():
            off = completion_hidden(session.solver, sequence)
    assert torch.equal(initial, off)
    assert not torch.allclose(initial, live, atol=1e-3)
    # The teacher costs the adapter and no second copy of the model.
    held = sum(value.numel() for value in teacher.values.values())
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert held < 0.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("weights", ["initial", "ema", "trust_region", "live"])
def test_teacher_and_reference_are_as_small_as_the_adapter(config: Config, tmp_path: Path, weights: str) -> None:
    """The recipe of the paper: r = 64, alpha = 128, seven projections."""
    paper = load_config("paper").model.lora
    assert paper is not None
    assert (paper.r, paper.alpha, len(paper.targets)) == (64, 128, 7)
    settings = {
        "model.lora": paper.model_dump(mode="json"),
        "objective.teacher.weights": weights,
        "objective.beta": 0.1,
    }
    config = changed(config, {**settings, "evaluation.at_start": False, "evaluation.num_samples": 1})
    model = open_session(config).solver.model
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    targets = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapters}
    assert targets == set(paper.targets)
    assert {p.shape[0] for n, p in adapters.items() if "lora_A" in n} == {64}
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {128 / 64}

    train_config(config, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00002" / "teacher.safetensors")
    assert {name.removeprefix("reference.") for name in kept} == adapters.keys()
    # The reference is the self-teacher's very weights where that one stands still.
    sets = {"initial": 1, "trust_region": 1, "ema": 2, "live": 1}[weights]
    assert sum(v.numel() for v in kept.values()) == sets * sum(p.numel() for p in adapters.values())
    rows = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert rows[0]["kl"] == 0.0  # the first step starts at the reference
    assert rows[1]["kl"] > 0.0


def test_the_teachers_pass_keeps_no_gradient_memory(config: Config) -> None:
    session = open_session(config)
    learner = Learner(session.solver, config.objective, config.training, temperature=1.0)
    kept: list[int] = []
    during_teacher: list[int] = []
    score_teacher = learner._score_teacher

    def watched(*arguments: Any) -> Any:
        before = len(kept)
        side = score_teacher(*arguments)
        during_teacher.append(len(kept) - before)
        assert not side.hidden_NH.requires_grad
        return side

    learner._score_teacher = watched  # type: ignore[method-assign]
    completion = (10, 20, 30, 40)
    sample = Sample(
        rollout_id="a",
        student_prompt_ids=(2, 30, 3),
        teacher_prompt_ids=(2, 30, 9, 12, 3),
        completion_ids=completion,
        sampler_log_probs=(-1.0,) * len(completion),
        loss_mask=(True,) * len(completion),
        advantage=0.0,
        distillation_weight=1.0,
        policy_weight=0.0,
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        learner.update([sample], Teacher(session.solver.model, config.objective.teacher), 0)
    assert during_teacher == [0]
    assert len(kept) > 10  # the student's pass does


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_adapters_are_switched_off_and_not_multiplied(config: Config, dtype: str) -> None:
    """Until a loaded teacher holds others. Afterwards the student's are as they were, and train."""
    model = open_session(changed(config, {"model.dtype": dtype})).solver.model
    solver = Solver(model, None)  # type: ignore[arg-type]
    teacher = Teacher(model, config.objective.teacher, keeps_reference=True)
    sequence = [((2, 30, 9, 12, 3), (10, 20, 30, 40))]
    with torch.no_grad():
        with FlopCounterMode(display=False) as multiplying:
            multiplied = completion_hidden(solver, sequence)  # by adapters that add 0
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(1.0)
        for place in (teacher.in_place, teacher.reference_in_place):
            with FlopCounterMode(display=False) as switched, place(model):
                assert torch.equal(completion_hidden(solver, sequence), multiplied)
            assert switched.get_total_flops() < multiplying.get_total_flops()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == teacher.values.keys()
    assert all(torch.equal(p, teacher.values[name] + 1.0) for name, p in trained.items())

    state = {name: value + 0.5 for name, value in teacher.state().items()}
    teacher.load(state)
    with torch.no_grad(), teacher.in_place(model):
        assert all(torch.equal(p, state[name]) for name, p in trained.items())
        assert not torch.equal(completion_hidden(solver, sequence), multiplied)


class Products(TorchDispatchMode):
    """The dtypes that matrices have where they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.dtypes |= {a.dtype for a in arguments if isinstance(a, torch.Tensor)}
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_float32_adapters_beside_a_bfloat16_model_are_multiplied_in_bfloat16(
    config: Config, checkpointing: bool
) -> None:
    session = open_session(changed(config, {"model.gradient_checkpointing": checkpointing}))
    narrow = open_session(changed(config, {"model.dtype": "bfloat16", "model.gradient_checkpointing": checkpointing}))
    adapters = {name: p for name, p in narrow.solver.model.named_parameters() if p.requires_grad}
    for name, parameter in session.solver.model.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
                adapters[name].copy_(parameter)
    assert {p.dtype for p in adapters.values()} == {torch.float32}  # where small steps add up

    sequence = [((2, 30, 9, 12, 3), (10, 20, 30, 40))]
    exact = completion_hidden(session.solver, sequence)
    for module in narrow.solver.model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))
    with Products() as products:
        found = completion_hidden(narrow.solver, sequence)
        found.float().sum().backward()
    assert products.dtypes == {torch.bfloat16}
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 0.03 * exact.norm()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters.values())

    sampling = narrow.sampler.sample([[2, 30, 9, 12, 3]], num_samples=1, temperature=1.0, max_tokens=5, seed=0)
    [[drawn]] = wait_for(sampling)
    hidden = completion_hidden(narrow.solver, [((2, 30, 9, 12, 3), drawn.ids)])
    log_probs = narrow.solver.logits(hidden).log_softmax(-1)[range(len(drawn.ids)), list(drawn.ids)]
    assert torch.allclose(torch.tensor(drawn.log_probs), log_probs, atol=0.1)


@pytest.mark.slow
def test_a_run_saves_adapters_that_load_again(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_config(config, out, resume=False, listener=silent, stop=StopRequest())
    assert (out / "final" / "adapter_model.safetensors").exists()
    assert not (out / "final" / "model.safetensors").exists()
    described = json.loads((out / "final" / "adapter_config.json").read_text())
    assert described["r"] == 4
    assert set(described["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    trained, base = load_solver(str(out / "final")), load_solver(EMBEDDED)
    ids = torch.tensor([[2, 30, 9, 12, 3]])
    with torch.no_grad():
        assert not torch.allclose(trained.model(ids).logits, base.model(ids).logits, atol=1e-3)
        # Plain transformers and peft load it, without anything of ours.
        plain = AutoModelForCausalLM.from_pretrained(find_model(EMBEDDED), dtype=torch.float32)
        adapted = PeftModel.from_pretrained(plain, str(out / "final"))
        torch.testing.assert_close(adapted(ids).logits, trained.model(ids).logits)


@pytest.mark.slow
def test_a_resumed_adapter_run_ends_with_the_same_bits(config: Config, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_config(config, whole, resume=False, listener=silent, stop=StopRequest())
    train_config(config, cut, resume=False, listener=silent, stop=StopRequest())
    import shutil

    shutil.rmtree(cut / "checkpoints" / "step-00002")  # as if it had been killed after the first step
    shutil.rmtree(cut / "final")
    train_config(config, cut, resume=True, listener=silent, stop=StopRequest())
    files = [folder / "final" / "adapter_model.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("targets", [["q_proj", "nope"], ["norm"], []])
def test_adapters_on_layers_that_are_not_there_are_refused(config: Config, targets: list[str]) -> None:
    wrong = changed(config, {"model.lora.targets": targets}, "test")
    with pytest.raises(ConfigError, match="layer") as caught:
        open_session(wrong, silent)
    assert caught.value.where == "model.lora.targets"
    assert "q_proj" in (caught.value.hint or "")
