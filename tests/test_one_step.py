"""The example that shows one step of the method computes what the trainer computes, from the public names alone."""

from __future__ import annotations

import ast
import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from warm import python

import stepalign
from stepalign.config import ObjectiveSection, TeacherSection, TrainingSection
from stepalign.models.load import Solver, load_solver
from stepalign.records import Sample
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.waiting import wait_for

FILE = Path(__file__).parents[1] / "examples" / "one_step.py"


@pytest.fixture(scope="module")
def one_step() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_step"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_loss_and_step_are_those_of_the_trainer(one_step: ModuleType) -> None:
    torch.manual_seed(1)
    solver = load_solver("embedded:arithmetic")
    examples = wait_for(one_step.make_examples(solver))
    assert len(examples) > 16
    twin = Solver(copy.deepcopy(solver.model), solver.tokenizer)

    samples = [
        Sample(
            rollout_id=str(index),
            student_prompt_ids=example.student_prompt,
            teacher_prompt_ids=example.teacher_prompt,
            completion_ids=example.completion,
            sampler_log_probs=(0.0,) * len(example.completion),
            loss_mask=(True,) * len(example.completion),
            advantage=0.0,
            distillation_weight=1.0,
            policy_weight=0.0,
        )
        for index, example in enumerate(examples)
    ]
    objective = ObjectiveSection(divergence="forward_kl", teacher=TeacherSection(weights="initial"))
    training = TrainingSection(learning_rate=one_step.LEARNING_RATE, warmup_steps=0, max_grad_norm=1.0)
    learner = Learner(twin, objective, training, temperature=1.0)
    numbers = learner.update(samples, Teacher(twin.model, objective.teacher), 0)

    optimizer = torch.optim.AdamW(solver.model.parameters(), lr=one_step.LEARNING_RATE, weight_decay=0.0)
    loss = one_step.loss(solver, examples)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(solver.model.parameters(), 1.0)
    optimizer.step()

    assert loss.item() > 0.01
    assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
    # The first step of Adam is lr * sign(gradient) where the gradient is not tiny: weights agree but for those.
    ours = torch.cat([p.detach().flatten() for p in twin.model.parameters()])
    theirs = torch.cat([p.detach().flatten() for p in solver.model.parameters()])
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.99


def test_it_uses_public_names_only_and_fits_one_sitting() -> None:
    source = FILE.read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in imported if "stepalign" in line] == ["import stepalign as sa"]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sa"
    }
    assert used <= set(stepalign.__all__)
    assert len(source.splitlines()) < 200


@pytest.mark.slow
def test_it_prints_a_loss_that_falls() -> None:
    code = f"import runpy; runpy.run_path({str(FILE)!r}, run_name='__main__')"
    done = subprocess.run([*python(), "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("loss")]
    before, after = (float(line.split(":")[1].split()[0]) for line in lines)
    assert after < before
