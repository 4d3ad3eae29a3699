"""Runs whose rollouts come from servers: same files, the version on every completion, and servers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm_server import VllmServer

from stepalign.config import load_config
from stepalign.errors import ConfigError, EndpointError
from stepalign.events import Event, silent
from stepalign.models.load import load_solver
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.train import train_config

SETTINGS = {
    "training.max_steps": 3,
    "training.problems_per_step": 2,
    "sampling.num_generations": 2,
    "sampling.max_completion_length": 24,
    "evaluation.at_start": False,
    "evaluation.num_samples": 1,
    "data.max_validation": 2,
    "data.max_test": 2,
}
GAP = "sampling/sampling_logp_difference"


@pytest.fixture
def server():
    found = VllmServer(load_solver("embedded:arithmetic").model)
    yield found
    found.stop()


def train(server: VllmServer, out: Path, listener=silent, **settings: Any) -> list[dict[str, Any]]:
    served = {"sampling.engine": "vllm", "sampling.base_urls": [server.url]}
    config = load_config("arithmetic", {**SETTINGS, **served, **settings})
    train_config(config, out, resume=False, listener=listener, stop=StopRequest())
    return list(read_json_lines(out / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "file"])
def test_a_run_learns_from_what_servers_draw(server: VllmServer, tmp_path: Path, way: str) -> None:
    extra = {"model.lora": {"r": 4, "alpha": 8}, "sampling.temperature": 1.1} if way == "lora" else {}
    rows = train(server, tmp_path / "run", **extra)
    assert len(rows) == 3
    for row in rows:
        assert row[f"{GAP}/mean"] < 2e-5
        assert row[f"{GAP}/max"] < 2e-4
    drawn = list(read_json_lines(tmp_path / "run" / "rollouts.jsonl"))
    assert [r["completion"]["policy_version"] for r in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    assert server.calls["/v1/load_lora_adapter" if way == "lora" else "/finish_weight_update"] == 4
    assert len(server.adapters) <= 1


def test_a_server_with_other_weights_ends_the_run_before_it_learns(tmp_path: Path) -> None:
    """A server of another model: its log-probabilities are right for it, and wrong for the one that learns."""
    other = load_solver("embedded:arithmetic").model
    for parameter in other.parameters():
        parameter.data.mul_(1.3)
    server = VllmServer(other)
    try:
        with pytest.raises(EndpointError, match="another policy than the one that learns") as raised:
            train(server, tmp_path / "run", **{"model.lora": {"r": 4, "alpha": 8}})
    finally:
        server.stop()
    assert "stepalign serve" in str(raised.value)
    assert not list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))


def test_one_of_two_servers_with_other_weights_does_not_hide_behind_the_other(
    server: VllmServer, tmp_path: Path
) -> None:
    other = load_solver("embedded:arithmetic").model
    for parameter in other.parameters():
        parameter.data.mul_(1.3)
    wrong = VllmServer(other)
    try:
        addresses = {"sampling.base_urls": [server.url, wrong.url], "model.lora": {"r": 4, "alpha": 8}}
        with pytest.raises(EndpointError, match="another policy than the one that learns") as raised:
            train(server, tmp_path / "run", **addresses)
    finally:
        wrong.stop()
    assert str(wrong.server_port) in str(raised.value)
    assert str(server.server_port) not in str(raised.value)
    assert not list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))


def test_a_server_that_reports_probabilities_before_temperature_is_noticed(server: VllmServer, tmp_path: Path) -> None:
    server.raw_log_probs = True
    said: list[Event] = []
    with pytest.raises(EndpointError, match="another policy"):
        train(server, tmp_path / "run", said.append, **{"sampling.temperature": 2.0})


def test_a_server_that_does_not_answer_is_found_before_the_model_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stepalign.build.session.trained_solver", None)
    served = {"sampling.engine": "vllm", "sampling.base_urls": ["http://name:secret-word@127.0.0.1:1/v1"]}
    config = load_config("arithmetic", {**SETTINGS, **served})
    with pytest.raises(EndpointError, match="no rollout server answers") as raised:
        train_config(config, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    assert "stepalign serve" in str(raised.value)
    assert "secret-word" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_tokens", "presence_penalty", "repetition_penalty"])
def test_what_cuts_the_distribution_is_refused_in_training(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} cannot be used in training"):
        load_config("arithmetic", {f"sampling.{key}": 1})


@pytest.mark.parametrize("settings", [{"sampling.engine": "vllm"}, {"sampling.base_urls": ["http://127.0.0.1:1/v1"]}])
def test_engine_and_addresses_go_together(settings: dict[str, Any], tmp_path: Path) -> None:
    config = load_config("arithmetic", settings)
    with pytest.raises(ConfigError, match="need their addresses"):
        train_config(config, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
