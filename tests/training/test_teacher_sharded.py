"""Teachers of a model under FSDP2 are what they say: against an unsharded twin and weights kept by this test."""

from __future__ import annotations

import copy
import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.config import TeacherSection
from stepalign.objectives.fused import fused_linear_divergence
from stepalign.training.teacher import Teacher

KINDS = ("initial", "ema", "live", "trust_region")
DECAY = 0.7
STEPS = 3
STUDENT_IDS = torch.tensor([[3, 20, 30, 9, 4, 17]])
TEACHER_IDS = torch.tensor([[5, 11, 30, 9, 4, 17]])
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def build(lora: bool) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model: Any = Qwen3ForCausalLM(config).eval()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])).eval()
    model.hidden = lambda ids: model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return model


def shard(model: Any, processes: int) -> Any:
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no mean
            module.set_gradient_divide_factor(float(processes))  # every process has the same tokens
    return model


def step(model: Any, teacher: Teacher, optimizer: torch.optim.Optimizer) -> float:
    """A training step as the learner makes it: student, self-teacher in place, divergence, backward, update."""
    student_NH = model.hidden(STUDENT_IDS).flatten(0, 1)
    head_VH = model.get_output_embeddings().weight
    with torch.no_grad(), teacher.in_place(model) as keep:
        teacher_NH, teacher_head_VH = model.hidden(TEACHER_IDS).flatten(0, 1), keep(head_VH)
    loss = fused_linear_divergence(
        student_NH, head_VH, teacher_NH, teacher_head_VH, weights=torch.ones(len(student_NH)) / len(student_NH)
    ).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    teacher.update(model)
    return float(loss.detach())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(STUDENT_IDS, use_cache=False).logits.clone()


def expected_weights(kind: str, history: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The self-teacher's weights after the steps so far, by the definition of its kind."""
    if kind == "live":
        return history[-1]
    if kind != "ema":
        return history[0]
    average = history[0]
    for weights in history[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in average}
    return average


def check(kind: str, lora: bool, processes: int) -> None:
    twin, model = build(lora), shard(build(lora), processes)
    probe = copy.deepcopy(twin)  # computes with the weights that this test expects
    section = TeacherSection(weights=kind, ema_decay=DECAY)
    runs = []
    for one in (twin, model):
        trained = [p for p in one.parameters() if p.requires_grad]
        runs.append((one, Teacher(one, section, keeps_reference=True), torch.optim.SGD(trained, lr=2.0)))
    history = [copy.deepcopy(twin.state_dict())]

    def holds(weights: dict[str, torch.Tensor], found: torch.Tensor) -> None:
        probe.load_state_dict(weights)
        torch.testing.assert_close(found, logits(probe), **CLOSE)

    for _ in range(STEPS):
        losses = [step(*run) for run in runs]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        history.append(copy.deepcopy(twin.state_dict()))
        for one, teacher, _ in runs:
            holds(history[-1], logits(one))
            with torch.no_grad(), teacher.in_place(one):
                holds(expected_weights(kind, history), logits(one))
            with torch.no_grad(), teacher.reference_in_place(one):
                holds(history[0], logits(one))
            holds(history[-1], logits(one))
    probe.load_state_dict(history[0])
    assert (logits(probe) - logits(twin)).abs().max() > 0.01  # the student has moved, so that a mistake would show


def worker(rank: int, processes: int, folder: str, lora: bool, answers: Any) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
        for kind in KINDS:
            check(kind, lora, processes)
        dist.barrier()
        dist.destroy_process_group()
        answers.put("")
    except BaseException:
        answers.put(traceback.format_exc())
        raise


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_teachers_of_a_sharded_model_are_what_they_say(lora: bool, processes: int, tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    arguments = (processes, str(tmp_path), lora, answers)
    workers = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(processes)]
    for process in workers:
        process.start()
    faults = [answers.get(timeout=PATIENCE) for _ in workers]
    for process in workers:
        process.join(timeout=PATIENCE)
    assert faults == [""] * processes, "\n".join(faults)
