"""A teacher that is another model: its loss by plain autograd, its vocabulary, its memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stepalign.build import find_terms, make_learner, other_teacher, recipe_solver, served_teacher
from stepalign.config import Config, ObjectiveSection, TrainingSection, changed, load_config
from stepalign.errors import ConfigError
from stepalign.events import Event
from stepalign.models.load import Solver
from stepalign.records import Sample
from stepalign.training.learner import Learner
from stepalign.training.ranks import ONE_PROCESS
from stepalign.training.teacher import Teacher
from stepalign.verbs.checks import model_is_there, teacher
from stepalign.verbs.footprint import memory_parts
from stepalign.verbs.inputs import Inputs

PROMPT, COMPLETIONS = (1, 7, 9, 4), ((5, 8, 11, 6), (6, 10, 3))


def wider(solver: Solver, rows: int, width: int = 40) -> Solver:
    """Another architecture and width with the solver's tokenizer, and ``rows`` more rows of padding in its head."""
    torch.manual_seed(5)
    vocabulary = len(solver.head_VH) + rows
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, initializer_range=0.4,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).eval()
    return Solver(model.to(solver.model.dtype), solver.tokenizer)


def samples() -> list[Sample]:
    return [
        Sample(
            rollout_id=str(at), student_prompt_ids=PROMPT, teacher_prompt_ids=PROMPT, completion_ids=ids,
            sampler_log_probs=(-1.0,) * len(ids), loss_mask=(True,) * len(ids), advantage=0.0,
            distillation_weight=1.0, policy_weight=0.0,
        )
        for at, ids in enumerate(COMPLETIONS)
    ]  # fmt: skip


def log_probs(model: torch.nn.Module, ids: tuple[int, ...], vocabulary: int, temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1, :vocabulary]
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("rows", [0, 13])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon(0.1)"])
def test_the_loss_is_the_divergence_from_the_other_model(tiny_solver: Solver, divergence: str, rows: int) -> None:
    tiny_solver.model.double()
    other, twin = wider(tiny_solver, rows), copy.deepcopy(tiny_solver.model)
    vocabulary = len(tiny_solver.head_VH)
    section = ObjectiveSection.model_validate({"divergence": divergence, "teacher": {"model": "other"}})
    learner = Learner(tiny_solver, section, TrainingSection(max_grad_norm=1e9), temperature=1.3)
    frozen = [parameter.clone() for parameter in other.model.parameters()]
    held = Teacher(tiny_solver.model, section.teacher, other=other)
    numbers = learner.update(samples(), held, 0)
    total = torch.zeros((), dtype=torch.float64)
    for ids in COMPLETIONS:
        q = log_probs(twin, ids, vocabulary, 1.3)
        p = log_probs(other.model, ids, vocabulary, 1.3).detach()
        m = (0.9 * q.exp() + 0.1 * p.exp()).log()
        total = (
            total
            + {
                "forward_kl": (p.exp() * (p - q)).sum(),
                "reverse_kl": (q.exp() * (q - p)).sum(),
                "jensen_shannon(0.1)": (0.1 * p.exp() * (p - m) + 0.9 * q.exp() * (q - m)).sum(),
            }[divergence]
        )
    loss = total / sum(map(len, COMPLETIONS))
    loss.backward()
    assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
    assert numbers["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert (held.values, held.state(), held.moving) == ({}, {}, {})  # nothing to save: it never moves
    assert all(torch.equal(a, b) for a, b in zip(frozen, other.model.parameters(), strict=True))


def test_a_reference_beside_another_model_is_the_students_first_weights(tiny_solver: Solver) -> None:
    section = ObjectiveSection.model_validate({"beta": 0.1, "teacher": {"model": "other"}})
    held = Teacher(tiny_solver.model, section.teacher, keeps_reference=True, other=wider(tiny_solver, 0))
    assert held.reference.keys() == dict(tiny_solver.model.named_parameters()).keys()
    numbers = Learner(tiny_solver, section, TrainingSection(), temperature=1.0).update(samples(), held, 0)
    assert numbers["kl"] == 0.0
    assert numbers["divergence"] > 0


def save(solver: Solver, folder: Path) -> str:
    solver.model.save_pretrained(folder)
    solver.tokenizer.save_pretrained(folder)
    return str(folder)


def gkd(path: str, **changes: Any) -> Config:
    own = {"condition": "gkd", "objective.teacher.model": path, "objective.teacher.weights": "initial"}
    return changed(load_config("arithmetic"), {**own, **changes})


def test_a_model_of_the_same_vocabulary_is_found_by_its_folder_and_its_memory_is_counted(tmp_path: Path) -> None:
    solver = recipe_solver(gkd("embedded:arithmetic"))
    large = wider(solver, 16, width=64)
    config = gkd(save(large, tmp_path))
    teacher(Inputs(config))
    _, held = make_learner(config, solver, ONE_PROCESS)
    assert held.other is not None
    assert held.other.model.config.hidden_size == 64
    sizes = {"student_tokens": 15, "teacher_tokens": 15, "device": "cpu", "dtype": "float32"}
    found = memory_parts(config, recipe_solver(config, weights=False), **sizes)
    assert found["teacher"] == 4 * sum(parameter.numel() for parameter in large.model.parameters())
    assert memory_parts(config, recipe_solver(config, weights=False), ranks=2, **sizes)["teacher"] == found["teacher"]


@pytest.mark.parametrize(
    ("changes", "taught"),
    [
        ({"condition": "grpo"}, False),
        ({"condition": "fixed_negative"}, False),
        ({"condition": "refsol", "objective.hybrid": "rlsd", "objective.rlsd_mixing": 0.0}, False),
        ({"condition": "refsol", "objective.hybrid": "weighted_sum", "objective.distillation_weight": 0.0}, False),
        ({"condition": "refsol", "objective.hybrid": "rlsd"}, True),
        ({"condition": "stepalign", "objective.hybrid": "rebellious"}, True),
        ({"condition": "stepalign"}, True),
    ],
)
def test_a_model_that_teaches_nothing_is_neither_looked_for_nor_loaded(
    tmp_path: Path, changes: dict[str, Any], taught: bool
) -> None:
    config = gkd(str(tmp_path / "nowhere"), **{"sampling.num_generations": 2, **changes})
    solver, events = recipe_solver(config), list[Event]()
    inputs = Inputs(config, events.append)
    inputs.solver = solver
    if taught:
        for look in (model_is_there, teacher):
            with pytest.raises(ConfigError, match="nowhere"):
                look(inputs)
        return
    assert find_terms(changed(config, {"objective.teacher.weights": "ema"}))  # nothing to refuse in it
    model_is_there(inputs)
    teacher(inputs)
    (event,) = events
    assert f"objective.teacher.model has no effect: under the condition {config.condition} no" in event.text
    _, held = make_learner(config, solver, ONE_PROCESS)
    assert (held.other, held.state()) == (None, {})
    sizes = {"student_tokens": 15, "teacher_tokens": 15, "device": "cpu", "dtype": "float32"}
    assert memory_parts(config, solver, **sizes)["teacher"] == 0
    assert served_teacher(changed(config, {"objective.teacher.base_urls": ["http://127.0.0.1:9/v1"]})) is None


def test_another_vocabulary_is_refused_by_the_token_that_differs(tmp_path: Path, make_solver: Callable) -> None:
    solver = recipe_solver(gkd("embedded:arithmetic"))
    stranger = wider(solver, 0)
    renamed = copy.deepcopy(solver.tokenizer)
    renamed.add_tokens(["twelve"])
    stranger.model.resize_token_embeddings(len(renamed))
    path = save(Solver(stranger.model, renamed), tmp_path / "more")
    for load in (lambda: teacher(Inputs(gkd(path))), lambda: other_teacher(gkd(path), solver)):
        with pytest.raises(
            ConfigError, match=r"more has another vocabulary than the solver: 'twelve' is \d+, not None"
        ):
            load()
    short = wider(solver, -1)
    path = save(short, tmp_path / "short")
    vocabulary = len(solver.head_VH)
    with pytest.raises(
        ConfigError, match=f"has {vocabulary} ids, the model only {vocabulary - 1} embeddings"
    ) as raised:
        other_teacher(gkd(path), solver)
    assert raised.value.where == path


def test_the_question_alone_needs_another_model_and_another_model_has_one_state() -> None:
    with pytest.raises(ConfigError, match="the self-teacher would be the student") as raised:
        find_terms(changed(load_config("arithmetic"), {"condition": "gkd"}))
    assert raised.value.where == "objective.teacher.model"
    with pytest.raises(ConfigError, match="another model: it is frozen") as raised:
        find_terms(gkd("embedded:arithmetic", **{"objective.teacher.weights": "ema"}))
    assert raised.value.hint == "--set objective.teacher.weights=initial"
    assert find_terms(gkd("embedded:arithmetic", **{"objective.hybrid": "rlsd", "sampling.num_generations": 2}))
