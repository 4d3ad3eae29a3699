"""A launch: servers and ranks that are killed, a launcher that is killed, and nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import warm
from patience import PATIENCE, wait_until

from stepalign.config import load_config
from stepalign.errors import ConfigError, EndpointError, UserError
from stepalign.stopping import Interrupted, StopRequest
from stepalign.verbs.launch import Fleet, jobs_of, launch
from stepalign.verbs.processes import Job

SERVER = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)  # as an engine is
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): ...
print("pid", os.getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
RUN = """
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path
from stepalign.stopping import StopRequest
folder, what = Path(sys.argv[1]), sys.argv[2]
attempts = len(list(folder.glob("attempt-*")))
(folder / f"attempt-{attempts}-{'resumed' if '--resume' in sys.argv else 'new'}").touch()
if what == "dies once" and not attempts or what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what.startswith("exits"):
    print("error: it is wrong\\n  where: here", flush=True)
    sys.exit(int(what.split()[1]))
stop = StopRequest()
with stop.listening(), suppress(KeyboardInterrupt), stop.held():
    for _ in range(100_000):
        time.sleep(0.02)
        if stop.asked:
            (folder / "saved").touch()
            os._exit(130)
        if what != "waits" and (what != "waits for three" or (folder / "three").exists()):
            break
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def alive(*marks: str) -> list[int]:
    """Living processes whose environment or command has all of some words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            if all(mark.encode() in text for mark in marks):
                found.append(int(place.name))
    return found


class Scene:
    """A launch of stand-ins: small programs in the place of vLLM and of the run."""

    def __init__(self, folder: Path, what: str, servers: int = 1, restarts: int = 3) -> None:
        self.port = free_port()
        self.folder, self.mark = folder, f"SCENE={folder}"
        self.fleet = Fleet(servers=servers, port=self.port, restarts=restarts, compares=True)
        environment = {"SCENE": str(folder)}

        def job(name: str, *words: str) -> Job:
            command = (sys.executable, "-c", *words)
            return Job(name=name, command=command, folder=folder, log=folder / f"{name}.log", environment=environment)

        self.servers = [job(f"server {n + 1}", SERVER, str(self.port + n)) for n in range(servers)]
        self.run = job("run", RUN, str(folder), what)
        self.said: list[str] = []
        self.stop = StopRequest()
        self.patience = 300.0

    def go(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Launch, and do something from a thread of its own."""
        config, thread = (
            load_config("arithmetic", {"sampling.timeout": self.patience}),
            threading.Thread(target=meanwhile),
        )
        thread.start()
        try:
            launch(
                self.fleet,
                self.servers,
                self.run,
                config,
                resume=False,
                stop=self.stop,
                listener=lambda event: self.said.append(event.text),
            )
        finally:
            thread.join()

    def attempts(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("attempt-*"))

    def kill_server(self, name: str, times: int) -> None:
        """Wait for the start after ``times`` - 1 deaths, and kill it."""
        log = self.folder / f"{name}.log"
        wait_until(lambda: log.exists() and log.read_text().count("pid") == times)
        os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)


def test_a_run_that_dies_goes_on_and_all_is_over_when_it_has_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "dies once")
    scene.go()
    assert scene.attempts() == ["attempt-0-new", "attempt-1-resumed"]
    assert any("killed (SIGKILL)" in text and "last checkpoint" in text for text in scene.said)
    assert alive(scene.mark) == []


@pytest.mark.parametrize(
    ("what", "attempts", "error"),
    [("dies", 3, "SIGKILL"), ("exits 2", 1, "it is wrong"), ("exits 5", 1, "it is wrong"), ("exits 3", 3, "wrong")],
)
def test_only_what_may_end_otherwise_is_tried_again_and_not_for_ever(
    tmp_path: Path, what: str, attempts: int, error: str
) -> None:
    scene = Scene(tmp_path, what, servers=0, restarts=2)
    with pytest.raises(UserError, match=error) as raised:
        scene.go()
    assert len(scene.attempts()) == attempts
    assert isinstance(raised.value, ConfigError) == (what == "exits 2")
    assert alive(scene.mark) == []


def test_a_killed_server_is_started_again_and_the_run_does_not_stop(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "waits for three", servers=2)

    def meanwhile() -> None:
        scene.kill_server("server 1", 1)  # while it starts
        wait_until(scene.attempts)
        scene.kill_server("server 1", 2)
        wait_until(lambda: sum("started again" in text for text in scene.said) == 2)
        (tmp_path / "three").touch()

    scene.go(meanwhile)
    assert sum(text.startswith("server 1 ended: its process was killed") for text in scene.said) == 2
    assert scene.attempts() == ["attempt-0-new"]
    assert alive(scene.mark) == []


def test_a_server_that_hangs_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepalign.verbs.launch.ASK_SECONDS", 0.1)
    monkeypatch.setattr("stepalign.verbs.launch.ANSWER_SECONDS", 0.2)
    scene = Scene(tmp_path, "waits for three")
    scene.patience = 0.5

    def meanwhile() -> None:
        wait_until(scene.attempts)
        os.kill(int((tmp_path / "server 1.log").read_text().split()[-1]), signal.SIGSTOP)
        wait_until(lambda: any("it does not answer any more; it is started again" in text for text in scene.said))
        (tmp_path / "three").touch()

    scene.go(meanwhile)
    assert scene.attempts() == ["attempt-0-new"]
    assert alive(scene.mark) == []


def test_a_run_whose_servers_are_all_lost_ends_with_the_reason(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "waits", restarts=0)

    def meanwhile() -> None:
        wait_until(scene.attempts)
        scene.kill_server("server 1", 1)

    with pytest.raises(EndpointError, match="no rollout server is left"):
        scene.go(meanwhile)
    assert (tmp_path / "saved").exists()
    assert alive(scene.mark) == []


def test_asked_to_stop_the_run_saves_itself_and_servers_end_with_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "waits")

    def meanwhile() -> None:
        wait_until(scene.attempts)
        scene.stop.ask()

    with pytest.raises(Interrupted):
        scene.go(meanwhile)
    assert (tmp_path / "saved").exists()
    assert alive(scene.mark) == []


def test_a_port_in_use_is_found_before_anything_starts(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "waits")
    with socket.socket() as other:
        other.bind(("127.0.0.1", scene.port))
        other.listen()
        with pytest.raises(ConfigError, match=f"port {scene.port} is in use"):
            scene.go()
    assert not scene.attempts()


def test_cards_go_to_ranks_and_then_to_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config("arithmetic", {"model.lora": {"r": 20}})

    def placed(cards: str, **fleet: Any) -> list[tuple[str, str]]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
        servers, run = jobs_of(Fleet(**fleet), config, "arithmetic", tmp_path / "run", [])
        words = [shlex.split(str(job)) for job in servers]
        shares = [w[w.index("--gpu-memory") + 1] if "--gpu-memory" in w else "" for w in words]
        assert all(w[w.index("--lora-rank") + 1] == "20" for w in words)
        cards_of = [job.environment.get("CUDA_VISIBLE_DEVICES", "") for job in (*servers, run)]
        return list(zip(cards_of, [*shares, ""], strict=True))

    assert placed("0,1,2,3", servers=2, ranks=2) == [("2", ""), ("3", ""), ("0,1", "")]
    assert placed("5", servers=1, ranks=1) == [("5", "0.40"), ("5", "")]
    assert placed("0,1,2", servers=2, ranks=2) == [("2", "0.45"), ("2", "0.45"), ("0,1", "")]
    assert placed("", servers=1, ranks=2) == [("", ""), ("", "")]


def fake_python(folder: Path, program: str, path: str = "", interpreter: Sequence[str] = (sys.executable,)) -> Path:
    """An interpreter whose vllm is a program of this test."""
    package = folder / "fake" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for one in (package.parents[1], package.parent, package):
        (one / "__init__.py").write_text("")
    (package / "api_server.py").write_text(program)
    python = folder / "python"
    words = shlex.join(interpreter)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "fake"}:{path}:$PYTHONPATH exec {words} "$@"\n')
    python.chmod(0o755)
    return python


LAUNCHER = """
import sys
from pathlib import Path
from stepalign.config import load_config
from stepalign.stopping import PROCESS
from stepalign.verbs.launch import Fleet, jobs_of, launch
from stepalign.verbs.processes import Job
folder, run, config = Path(sys.argv[1]), sys.argv[4], load_config("arithmetic")
fleet = Fleet(servers=1, port=int(sys.argv[2]), python=sys.argv[3], compares=True)
servers, _ = jobs_of(fleet, config, "arithmetic", folder / "run", [])
job = Job(name="run", command=(sys.executable, "-c", run, str(folder), "waits"), folder=folder, log=folder / "log")
launch(fleet, servers, job, config, resume=False, stop=PROCESS, listener=lambda event: None)
"""


def test_nothing_is_left_of_a_launch_whose_launcher_is_killed(tmp_path: Path) -> None:
    """The server's command is our own; its engine, a grandchild, would outlive it."""
    program = SERVER.replace("sys.argv[1]", "sys.argv[sys.argv.index('--port') + 1]")
    program = program.replace(", start_new_session=True", "")
    words = (str(tmp_path), str(free_port()), str(fake_python(tmp_path, program)), RUN)
    environment, mark = {**os.environ, "SCENE": str(tmp_path)}, f"SCENE={tmp_path}"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *words], env=environment)
    try:
        wait_until(lambda: list(tmp_path.glob("attempt-*")) or launcher.poll() is not None)
        assert len(alive(mark)) >= 5  # launcher, serve, server, its engine, the run
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not alive(mark))
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_server_and_a_rank_are_killed_and_the_run_is_done_all_the_same(tmp_path: Path) -> None:
    """The command itself, with two ranks and the tests' server of the real model."""
    out, mark = tmp_path / "run", f"SCENE={tmp_path}"
    program = (
        "import sys, time\n"
        "from transformers import AutoModelForCausalLM\n"
        "from vllm_server import VllmServer\n"
        "named = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "server = VllmServer(AutoModelForCausalLM.from_pretrained(named['--model']), port=int(named['--port']))\n"
        "time.sleep(3600)\n"
    )
    python = fake_python(tmp_path, program, str(Path(__file__).parents[1] / "helpers"), warm.python())
    settings = [
        *("training.max_steps=8", "training.problems_per_step=2", "sampling.max_completion_length=24"),
        *("training.save_steps=1", "evaluation.at_start=false", "evaluation.num_samples=1"),
        *("data.max_validation=2", "data.max_test=2", "training.rank_timeout=120"),
    ]
    words = [*warm.python(), "-m", "stepalign", "launch", "arithmetic", "--out", str(out), "--servers", "1"]
    words += ["--ranks", "2", "--python", str(python), "--port", str(free_port())]
    words += [word for setting in settings for word in ("--set", setting)]

    def steps() -> int:
        file = out / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    with (tmp_path / "log").open("w+") as log:

        def text() -> str:
            return (tmp_path / "log").read_text()

        launcher = subprocess.Popen(
            words, env={**os.environ, **warm.CHILDREN, "SCENE": str(tmp_path)}, stdout=log, stderr=log
        )

        def wait_for_steps(count: int) -> None:
            wait_until(lambda: steps() >= count or launcher.poll() is not None)
            assert launcher.poll() is None, text()

        try:
            wait_for_steps(1)
            os.kill(alive(mark, "vllm.entrypoints.openai.api_server\0--model")[0], signal.SIGKILL)
            wait_for_steps(3)
            assert "it is started again" in text()
            os.kill(alive(mark, "\0RANK=1\0")[0], signal.SIGKILL)
            assert launcher.wait(PATIENCE) == 0, text()
        finally:
            launcher.kill()
    assert "rank 1 of 2" in text()
    assert "goes on from its last checkpoint" in text()
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [*range(1, 9)]
    assert (out / "final" / "model.safetensors").exists()
    assert alive(mark) == []
