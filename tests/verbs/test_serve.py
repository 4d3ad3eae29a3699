"""The command of a rollout server, and a real child in its place."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

from stepalign.errors import ConfigError
from stepalign.verbs.serve import server_command

OPTIONS = {"--logprobs-mode": "processed_logprobs", "--host": "127.0.0.1", "--generation-config": "vllm"}


def options(words: list[str]) -> dict[str, str]:
    return {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}


@pytest.mark.parametrize("gpu", [False, True])
def test_the_command_asks_for_what_training_needs(gpu: bool) -> None:
    command = server_command("embedded:arithmetic", lora_rank=20, gpu=gpu, port=8123)
    found = options(command.words)
    assert OPTIONS.items() <= found.items()
    assert (found["--max-lora-rank"], found["--port"], found["--max-model-len"]) == ("32", "8123", "512")
    assert Path(found["--model"], "config.json").is_file()
    assert command.environment["VLLM_SERVER_DEV_MODE"] == command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    folder = Path(command.environment["PYTHONPATH"])
    assert [path.name for path in folder.glob("*.py")] == [found["--worker-extension-cls"].split(".")[0] + ".py"]
    assert ("--no-enable-chunked-prefill" in command.words) == (not gpu)
    assert found.get("--dtype") == (None if gpu else "float32")


def test_the_printed_line_is_what_a_shell_would_run() -> None:
    command = server_command("embedded:arithmetic", python="/some folder/python")
    assert shlex.split(str(command))[len(command.environment) :] == command.words


def test_a_command_for_another_machine_is_printed_for_a_gpu() -> None:
    words = [sys.executable, "-m", "stepalign", "serve", "embedded:arithmetic", "--print", "--gpu"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shlex.split(printed) == shlex.split(str(server_command("embedded:arithmetic", gpu=True)))


def test_a_command_for_another_machine_may_name_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepalign.models.places.is_reachable", lambda: False)
    command = server_command("someone/a-model", gpu=True, elsewhere=True)
    assert command.words[command.words.index("--model") + 1] == "someone/a-model"
    for model in ("someone/a-model", "./someone/a-model"):
        with pytest.raises(ConfigError, match="no "):
            server_command(model, gpu=True, elsewhere=model.startswith("."))


def test_an_adapter_that_no_server_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="up to rank 512"):
        server_command("embedded:arithmetic", lora_rank=513)


def test_an_interpreter_without_vllm_is_refused_with_the_install_line() -> None:
    words = [sys.executable, "-m", "stepalign", "serve", "embedded:arithmetic", "--python"]
    for python in ("/nowhere/python", sys.executable):
        done = subprocess.run([*words, python], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "has no vLLM" in done.stderr
        assert "pip install" in done.stderr


@pytest.mark.slow
def test_a_stopped_server_leaves_no_process_behind(tmp_path: Path) -> None:
    """A stand-in for vLLM whose engine, a grandchild, would outlive it."""
    package, marks = tmp_path / "vllm" / "entrypoints" / "openai", tmp_path / "pids"
    package.mkdir(parents=True)
    for folder in (tmp_path / "vllm", package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "api_server.py").write_text(
        "import os, signal, subprocess, sys, time\n"
        "sleep = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', sleep])\n"
        f"open({str(marks)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}\\n')\n"
        "time.sleep(3600)\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words = [sys.executable, "-m", "stepalign", "serve", "embedded:arithmetic", "--python", str(python)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_until(lambda: marks.exists() and marks.read_text().endswith("\n"), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    for pid in map(int, marks.read_text().split()):
        wait_until(lambda pid=pid: state(pid) in ("gone", "Z"))


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
