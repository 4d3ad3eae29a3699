"""The objective on a model whose weights are spread over two processes by FSDP2 equals the one on a whole model."""

from __future__ import annotations

import multiprocessing
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.objectives.fused import fused_linear_divergence

PROCESSES = 2
TOKENS = 24
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""The calls of FSDP2, by the version of torch."""


def build(tied: bool) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    model = Qwen3ForCausalLM(config).eval()
    # The way to hidden states without logits; FSDP gathers the weights of the model itself for it.
    model.hidden = lambda ids: model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's and self-teacher's sequences, one a process, and weights of the tokens of both."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randint(40, (PROCESSES, TOKENS), generator=generator) for _ in range(2))
    return student, teacher, torch.rand(PROCESSES, TOKENS, generator=generator) / (PROCESSES * TOKENS)


def divergence(model: Any, rows: slice, chunk_tokens: int) -> torch.Tensor:
    student, teacher, weights = batch()
    with torch.no_grad():
        teacher_NH = model.hidden(teacher[rows]).flatten(0, 1)
        teacher_head = model.get_output_embeddings().weight.detach()
    student_NH = model.hidden(student[rows]).flatten(0, 1)
    head_VH = model.get_output_embeddings().weight  # whole from the forward pass until the end of the backward pass
    assert not isinstance(head_VH, DTensor)
    return fused_linear_divergence(
        student_NH, head_VH, teacher_NH, teacher_head, weights=weights[rows].flatten(), chunk_tokens=chunk_tokens
    ).loss


def sharded(tied: bool) -> Any:
    model = build(tied)
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the weights of the tokens contain the global count: gradients add up
            module.set_force_sum_reduction_for_comms(True)  # a mean is taken with an operation that gloo lacks
            module.set_gradient_divide_factor(1.0)
    return model


def worker(rank: int, folder: str, tied: bool, answers: Any) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
        gathers, found = [], {}
        for chunk_tokens in (512, 5):
            model = sharded(tied)
            with mock.patch.object(dist, GATHER, wraps=getattr(dist, GATHER)) as gather:
                loss = divergence(model, slice(rank, rank + 1), chunk_tokens)
                loss.backward()
            gathers.append(gather.call_count)
            assert all(isinstance(p.grad, DTensor) for p in model.parameters())
            found = {name: p.grad.full_tensor().tolist() for name, p in model.named_parameters()}
        total = loss.detach().clone()
        dist.all_reduce(total)
        answers.put((rank, float(total), found, gathers))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, traceback.format_exc(), {}, []))
        raise


@pytest.mark.parametrize("tied", [True, False])
def test_two_processes_with_half_the_weights_each_compute_the_same(tied: bool, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=worker, args=(rank, str(tmp_path), tied, answers)) for rank in range(PROCESSES)]
    for process in workers:
        process.start()
    told = [answers.get(timeout=PATIENCE) for _ in workers]
    for process in workers:
        process.join(timeout=PATIENCE)
        assert process.exitcode == 0

    whole = build(tied)
    loss = divergence(whole, slice(0, PROCESSES), 512)
    loss.backward()
    for rank, total, gradients, gathers in told:
        assert isinstance(total, float), f"process {rank}: {total}"
        assert total == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(torch.tensor(gradients[name]), parameter.grad, rtol=1e-4, atol=1e-7)
        assert gathers[0] == gathers[1] > 0  # the head is gathered with a forward pass, not with a chunk
