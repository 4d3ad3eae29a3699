"""Groups that learn while others are out: the step is that of the whole batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_server import VllmServer

from stepalign.config import ObjectiveSection, TeacherSection, TrainingSection, load_config
from stepalign.errors import ConfigError
from stepalign.events import silent
from stepalign.models.load import Solver, load_solver
from stepalign.records import Sample
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.verbs.checks import groups_learn_alone
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.train import train_config

OBJECTIVES: dict[str, dict[str, Any]] = {
    "forward_kl": {},
    "reverse_kl per completion": {"divergence": "reverse_kl", "loss_type": "grpo"},
    "both terms, a reference": {"beta": 0.1, "loss_type": "dr_grpo"},
    "importance and top-k": {"importance_clip": 2.0, "top_k": 5},
}


def samples() -> list[Sample]:
    """Two groups of unequal lengths, one of them with masked tokens and one sample that trains nothing."""
    found = []
    for index in range(6):
        length = 3 + 2 * index
        found.append(
            Sample(
                rollout_id=str(index),
                student_prompt_ids=(1, 5, 9 + index // 3),
                teacher_prompt_ids=(1, 5, 9 + index // 3, 7, 8),
                completion_ids=tuple(2 + (index * 7 + place) % 30 for place in range(length)),
                sampler_log_probs=(-1.5,) * length,
                loss_mask=tuple(place >= index // 2 for place in range(length)),
                advantage=(-1.0, 0.5, 1.0)[index % 3],
                distillation_weight=0.7,
                policy_weight=0.3,
            )
        )
    return [*found[:5], replace(found[5], distillation_weight=0.0, policy_weight=0.0)]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_parts_make_the_step_of_the_whole(make_solver: Callable[..., Solver], name: str, clip: float) -> None:
    rows = samples()
    found = []
    for parts in ([rows], [rows[3:], rows[:3]], [[row] for row in reversed(rows)]):
        solver = make_solver(0, scale=3.0)
        training = TrainingSection(max_grad_norm=clip, warmup_steps=0)
        learner = Learner(
            solver, ObjectiveSection(**OBJECTIVES[name]), training, temperature=1.1, max_completion_length=20
        )
        teacher = Teacher(solver.model, TeacherSection(), keeps_reference=True)
        if len(parts) == 1:
            numbers = learner.update(rows, teacher, 0)
        else:
            numbers = learner.update_as_they_come(iter(parts), teacher, 0)
        gradients = [p.grad.clone() for p in solver.model.parameters() if p.grad is not None]
        found.append((numbers, gradients))
    (whole, gradients), *others = found
    for numbers, own in others:
        assert numbers == pytest.approx(whole, rel=1e-4, abs=1e-6, nan_ok=True)
        for one, other in zip(own, gradients, strict=True):
            assert (one - other).abs().max() < 1e-5 * other.abs().max() + 1e-9


SMALL = {
    **{"training.max_steps": 1, "training.problems_per_step": 4, "sampling.num_generations": 2},
    **{"sampling.max_completion_length": 32, "sampling.engine": "vllm", "model.lora": {"r": 4, "alpha": 8}},
    **{"evaluation.at_start": False, "evaluation.num_samples": 1, "data.max_validation": 1, "data.max_test": 1},
}


@pytest.mark.slow
def test_a_run_learns_the_same_while_others_are_out(tmp_path: Path) -> None:
    """A prompt whose completions take longest is still out when the first group learns."""
    server = VllmServer(load_solver("embedded:arithmetic").model, token_seconds=0.03)
    metrics = []
    try:
        for accumulate in (False, True):
            settings = {**SMALL, "sampling.base_urls": [server.url], "rollouts.accumulate": accumulate}
            out = tmp_path / str(accumulate)
            config = load_config("arithmetic", settings)
            train_config(config, out, resume=False, listener=silent, stop=StopRequest())
            rows = read_json_lines(out / "metrics.jsonl")
            metrics.append([{k: v for k, v in row.items() if k != "seconds" and v is not None} for row in rows])
    finally:
        server.stop()
    assert len(metrics[1]) == 1
    for one, other in zip(*metrics, strict=True):
        rough = {k for k in one if "logp_difference" in k}
        assert {k: v for k, v in other.items() if k not in rough} == pytest.approx(
            {k: v for k, v in one.items() if k not in rough}, rel=1e-3, abs=1e-5, nan_ok=True
        )
    spans = [e for e in json.loads((out / "timeline.json").read_text())["traceEvents"] if e["ph"] == "X"]
    ends = {e["args"]["step"]: e["ts"] + e["dur"] for e in spans if e["name"] == "rollouts"}
    begins = {e["args"]["step"] + 1: e["ts"] for e in reversed(spans) if e["name"] == "learning"}
    assert begins[1] < ends[1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sampling.engine": "local"}, "engine"),
        ({"rollouts.ahead": 1}, "ahead"),
        ({"objective.loss_type": "bnpo"}, "bnpo"),
        ({"objective.scale_rewards": "batch"}, "batch"),
        ({"training.updates_per_batch": 2}, "updates_per_batch"),
        ({"condition": "worked_example"}, "other problems"),
    ],
)
def test_steps_that_need_the_whole_batch_are_refused(settings: dict[str, Any], reason: str) -> None:
    config = load_config("arithmetic", {**SMALL, "rollouts.accumulate": True, **settings})
    with pytest.raises(ConfigError, match=reason):
        groups_learn_alone(Inputs(config))
