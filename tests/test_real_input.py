"""Any model folder, problems from a file, a critic behind a URL: the same loop with real parts, on a CPU.

The model is small and random, so nothing is learnt here; what is checked is that every part is real, everything is on
disk, and a critic that talks nonsense masks its samples and stops nothing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until
from pytest_httpserver import HTTPServer
from warm import python
from werkzeug import Request, Response

DATA = Path(__file__).parent / "data" / "gsm8k"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def random_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a byte-level BPE tokenizer trained on the problems, saved to disk."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    texts = [row["question"] + row["answer"] for row in map(json.loads, (DATA / "train.jsonl").open(encoding="utf-8"))]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("random-qwen")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: Path, url: str, critic: str, **more: object) -> list[str]:
    values = {
        "model.path": f'"{model}"',
        "data.train": f'"{DATA / "train.jsonl"}"',
        "data.test": f'"{DATA / "test.jsonl"}"',
        "data.validation_share": 0.1,
        "critic.base_urls": f'["{url}"]',
        "critic.model": f'"{critic}"',
        "critic.max_tokens": 32,
        "critic.timeout": 60,
        "sampling.max_completion_length": 24,
        "training.problems_per_step": 16,
        "training.max_steps": 2,
        "training.save_steps": 1,
        "evaluation.num_samples": 2,
        "evaluation.eval_steps": 0,
        **more,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def stepalign(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*python(), "-m", "stepalign", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).read()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def served(random_qwen: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same random model behind `transformers serve`: a real server whose critiques are nonsense."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("hf-home")
    (home / "hub").mkdir()  # the server lists its cache and fails without one
    log = (home / "serve.log").open("w")
    command = [Path(sys.executable).with_name("transformers"), "serve", random_qwen, "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*map(str, command), "--port", str(port), "--device", "cpu"],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/v1/models"), server, home / "serve.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)
        log.close()


@pytest.mark.slow
def test_a_run_with_a_served_critic_finishes_and_masks_nonsense(random_qwen: Path, served: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = stepalign("train", "gsm8k", "--out", str(out), *settings(random_qwen, served, str(random_qwen)))
    assert done.returncode == 0, done.stderr
    rollouts, critiques, contexts = (lines(out / f"{n}.jsonl") for n in ("rollouts", "critiques", "contexts"))
    assert len(rollouts) == len(critiques) == len(contexts) == 32
    assert {r["rollout_id"] for r in rollouts} == {c["rollout_id"] for c in critiques}
    bad = [c for c in critiques if c["status"] != "ok"]
    assert bad, "a random model should not write step-tagged critiques"
    masked = [c for c in contexts if c["text"] is None]
    assert {c["rollout_id"] for c in masked} == {c["rollout_id"] for c in bad}
    assert all(c["masked"] for c in masked)
    assert sum(row["masked"] for row in lines(out / "metrics.jsonl")) == len(masked)
    assert all(c["raw"] or c["status"] == "failed" for c in critiques)  # what was paid for is kept
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(out / "final")
    evaluated = lines(out / "evaluations.jsonl")
    assert {row["set"] for row in evaluated} == {"validation", "test"}


def _faithful(request: Request) -> Response:
    """A critic that always writes the same well-formed critique."""
    text = "<case>D</case>\n<step_1> 40 / 2 = 20\n<step_2> 20 + 20 = 40\n<answer> 40"
    asked = json.loads(request.get_data())
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return Response(json.dumps(body), content_type="application/json")


@pytest.fixture
def faithful(httpserver: HTTPServer) -> str:
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(_faithful)
    models = {"object": "list", "data": [{"id": "faithful", "object": "model"}]}
    httpserver.expect_request("/v1/models").respond_with_json(models)
    return httpserver.url_for("/v1")


@pytest.mark.slow
def test_critiques_reach_the_self_teacher_and_the_page(random_qwen: Path, faithful: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # The stand-in's trace ends in the answer of its own example, which the default policies mask.
    words = settings(random_qwen, faithful, "faithful", **{"critic.policies.wrong_answer": '"use"'})
    done = stepalign("train", "gsm8k", "--out", str(out), *words)
    assert done.returncode == 0, done.stderr
    contexts = lines(out / "contexts.jsonl")
    assert all("<step_2> 20 + 20 = 40" in c["text"] and not c["masked"] for c in contexts)
    metrics = lines(out / "metrics.jsonl")
    assert all(row["divergence"] > 0 and row["grad_norm"] > 0 for row in metrics)

    page = tmp_path / "signal"
    done = stepalign("signal", str(out), "--out", str(page), "--contexts", "step_aligned,reference", "--num", "8")
    assert done.returncode == 0, done.stderr
    signal = json.loads((page / "signal.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in signal["contexts"]] == ["step_aligned", "reference"]
    for rollout in signal["rollouts"]:
        assert len(rollout["contexts"][0]["log_ratio"]) == len(rollout["tokens"])
    assert (page / "index.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_resumed_run_does_not_pay_twice(
    random_qwen: Path, httpserver: HTTPServer, faithful: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = settings(random_qwen, faithful, "faithful", **{"training.save_steps": 0})
    assert stepalign("train", "gsm8k", "--out", str(out), *words).returncode == 0
    paid = len([1 for request, _ in httpserver.log if request.path.endswith("completions")])
    before = (out / "final" / "model.safetensors").read_bytes()
    import shutil

    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # as if it had been killed before its first checkpoint
    done = stepalign("train", "gsm8k", "--out", str(out), "--resume", *words)
    assert done.returncode == 0, done.stderr
    assert len([1 for request, _ in httpserver.log if request.path.endswith("completions")]) == paid
    assert (out / "final" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_an_unreachable_critic_is_one_clear_message(random_qwen: Path, tmp_path: Path) -> None:
    done = stepalign(
        "train", "gsm8k", "--out", str(tmp_path / "run"), *settings(random_qwen, "http://127.0.0.1:9/v1", "critic")
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "127.0.0.1:9" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "rollouts.jsonl").exists()


@pytest.mark.slow
def test_a_comparison_asks_for_its_critic_before_it_writes(random_qwen: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    done = stepalign("compare", "gsm8k", "--out", str(out), *settings(random_qwen, "http://127.0.0.1:9/v1", "critic"))
    assert done.returncode == 3
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
