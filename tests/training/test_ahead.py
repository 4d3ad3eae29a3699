"""Rollouts collected ahead: whose weights drew them, resumed to the same bits, and a timeline of it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm_server import VllmServer

from stepalign.config import Config, changed, load_config
from stepalign.events import Event, silent
from stepalign.models.load import load_solver
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.train import train_config

SMALL = {
    "training.max_steps": 6,
    "training.problems_per_step": 3,
    "training.save_steps": 2,
    "sampling.num_generations": 2,
    "evaluation.at_start": False,
    "evaluation.num_samples": 1,
    "data.max_validation": 2,
    "data.max_test": 2,
}


def train(config: Config, out: Path, listener: Callable[[Event], None] = silent, **options: Any) -> Path:
    train_config(config, out, **{"resume": False, "stop": StopRequest(), **options}, listener=listener)
    return out


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_json_lines(out / f"{name}.jsonl")]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("arithmetic", {**SMALL, "rollouts.ahead": 2, "critic.quality": {"misses": 0.3}})


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("ahead") / "whole")


def test_every_completion_names_weights_that_are_as_old_as_asked_for(whole: Path) -> None:
    versions = [(row["record_step"], row["completion"]["policy_version"]) for row in rows(whole, "rollouts")]
    assert set(versions) == {(step, max(0, step - 3)) for step in range(1, 7)}
    assert [row["max_staleness"] for row in rows(whole, "metrics")] == [0, 1, 2, 2, 2, 2]
    assert [row["staleness"] for row in rows(whole, "metrics")] == [0, 1, 2, 2, 2, 2]


STOPS: dict[str, Callable[[Event], bool]] = {
    "while the first steps are collected": lambda e: (e.kind, e.name, e.done) == ("progress", "sampling", 2),
    "after the first step": lambda e: (e.kind, e.done) == ("step", 1),
    "after a step that was saved": lambda e: (e.kind, e.done) == ("step", 2),
    "near the end": lambda e: (e.kind, e.done) == ("step", 5),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_was_stopped_ends_in_the_same_bits(config: Config, whole: Path, tmp_path: Path, name: str) -> None:
    stop, out = StopRequest(), tmp_path / "broken"

    def listener(event: Event) -> None:
        if STOPS[name](event):
            stop.ask()

    with pytest.raises(Interrupted):
        train(config, out, listener, stop=stop)
    train(config, out, resume=True)
    for records in ("rollouts", "critiques", "contexts", "metrics", "evaluations"):
        assert rows(out, records) == rows(whole, records), records
    last = "checkpoints/step-00006/optimizer.safetensors"
    for file in ("final/model.safetensors", last):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_collecting_ahead_trains_on_other_completions_than_collecting_in_time(
    config: Config, whole: Path, tmp_path: Path
) -> None:
    """The first step is the same; the weights behind the others are not."""
    straight = train(changed(config, {"rollouts.ahead": 0, "training.learning_rate": 0.01}), tmp_path / "straight")
    early = train(changed(config, {"training.learning_rate": 0.01}), tmp_path / "early")
    one, other = rows(straight, "rollouts"), rows(early, "rollouts")
    assert one[:6] == other[:6]
    assert one[6:] != other[6:]
    assert "staleness" not in rows(straight, "metrics")[0]


def test_the_timeline_is_a_chrome_trace_of_every_step(whole: Path) -> None:
    trace = json.loads((whole / "timeline.json").read_text())["traceEvents"]
    spans = [event for event in trace if event["ph"] == "X"]
    assert all(span["dur"] >= 0 and span["ts"] > 1.7e15 and {"pid", "tid", "name"} <= span.keys() for span in spans)
    learning = [span["args"]["step"] for span in spans if span["name"] == "learning"]
    assert learning == list(range(6))
    assert [span["args"]["step"] for span in spans if span["name"] == "rollouts"] == list(range(1, 7))
    names = {event["tid"]: event["args"]["name"] for event in trace if event["ph"] == "M"}
    assert {span["tid"] for span in spans} <= names.keys()


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"objective.divergence": "reverse_kl"}, True),
        ({"objective.divergence": "sampled_token"}, True),
        ({"objective.divergence": "reverse_kl", "objective.importance_clip": 2.0}, False),
        ({"objective.divergence": "reverse_kl", "rollouts.ahead": 0}, False),
        ({"objective.divergence": "forward_kl"}, False),
        ({"objective.divergence": "reverse_kl", "condition": "grpo"}, False),
    ],
)
def test_old_completions_under_reverse_kl_are_warned_about(settings: dict[str, Any], warns: bool) -> None:
    from stepalign.verbs.checks import old_completions
    from stepalign.verbs.inputs import Inputs

    said: list[Event] = []
    old_completions(Inputs(load_config("arithmetic", {"rollouts.ahead": 1, **SMALL, **settings}), said.append))
    assert [event.kind for event in said] == ["warning"] * warns


@pytest.mark.slow
def test_servers_draw_later_steps_while_the_learner_works(tmp_path: Path) -> None:
    """Rollouts of a step begin before the step before it has learnt, and log-probabilities still agree."""
    server = VllmServer(load_solver("embedded:arithmetic").model, token_seconds=0.005)
    try:
        served = {"sampling.engine": "vllm", "sampling.base_urls": [server.url], "model.lora": {"r": 4, "alpha": 8}}
        early = {"rollouts.ahead": 1, "sampling.check_steps": 2, "sampling.max_completion_length": 32}
        out = train(load_config("arithmetic", {**SMALL, **served, **early}), tmp_path / "run")
    finally:
        server.stop()
    spans = [e for e in json.loads((out / "timeline.json").read_text())["traceEvents"] if e["ph"] == "X"]
    begins = {span["args"]["step"]: span["ts"] for span in spans if span["name"] == "rollouts"}
    learnt = {span["args"]["step"] + 1: span["ts"] + span["dur"] for span in spans if span["name"] == "learning"}
    assert all(begins[step + 1] < learnt[step] for step in range(1, 6))
    metrics = rows(out, "metrics")
    assert [row["max_staleness"] for row in metrics] == [0, 1, 1, 1, 1, 1]
    gaps = [row["sampling/sampling_logp_difference/mean"] for row in metrics]
    assert [gap is not None for gap in gaps] == [True, True, True, False, True, False]
    assert all(gap < 2e-5 for gap in gaps if gap is not None)
    assert len({row["rollout_id"] for row in rows(out, "rollouts")}) == 36
    assert server.most_adapters <= 3
