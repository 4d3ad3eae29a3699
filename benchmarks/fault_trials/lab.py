"""The commands under trial, and how they are started: forked from this process, which has imported torch already.

A child runs ``stepalign.cli.main`` on the words of the command, so all that differs from the command line is the time
of the imports.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fault_trials import forkery
from fault_trials.forkery import serve

ROOT = Path(__file__).parents[2]
STEPS = 4
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
SMALL = {
    "training.max_steps": STEPS,
    "training.problems_per_step": 2,
    "training.save_steps": 1,
    "training.save_total_limit": 2,
    "evaluation.num_samples": 2,
    "evaluation.at_start": False,
    "evaluation.eval_steps": 2,
    "evaluation.bootstrap_samples": 100,
    "data.max_validation": 2,
    "data.max_test": 2,
}
GRPO = {"condition": "grpo", "sampling.num_generations": 4, "training.learning_rate": 3e-4}
CRITIC = {"critic.kind": "endpoint", "critic.base_urls": ["{critic}"], "critic.model": "critic"}
SAMPLER = {"sampling.engine": "vllm", "sampling.base_urls": ["{sampler}"]}
RUNS: dict[str, dict[str, Any]] = {
    "StepAlignFB": {},
    "GRPO": GRPO,
    "ahead = 1": {"rollouts.ahead": 1},
    "a served critic": CRITIC,
    "a sampler of vLLM's shape": SAMPLER,
    "two ranks": {},
    "compare": {"signal.num_rollouts": 8, "compare.processes": 2, "compare.launcher": "{launcher}", **CRITIC},
}
"""Kind of run -> its keys beside ``SMALL``."""


def setting_words(settings: Mapping[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={_toml(value)}")]


def _toml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(slots=True)
class Ended:
    """How a command ended."""

    code: int
    """Negative: the signal that killed it."""
    out: str
    err: str
    seconds: float

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out


@dataclass(slots=True)
class Child:
    """A command under way; the first process leads the group of all."""

    pids: Sequence[int]
    files: tuple[Path, Path]
    begun: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.pids[0]

    @property
    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 1800.0) -> Ended:
        deadline = time.monotonic() + timeout
        statuses = []
        for pid in self.pids:
            while not (found := os.waitpid(pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    self.kill()
                    raise TimeoutError(f"a command did not end: {self.files[1].read_text(errors='replace')[-2000:]}")
                time.sleep(0.01)
            statuses.append(found[1])
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in self.files)
        return Ended(os.waitstatus_to_exitcode(statuses[0]), out, err, time.monotonic() - self.begun)


class Lab:
    """Starts commands; owns the servers and a folder for everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        warm_up()
        self._servers: subprocess.Popen[str] | None = None
        self._sockets = Path(tempfile.mkdtemp())  # its path is short, as that of a socket must be
        self._forkery = serve(self._sockets / "socket")
        launcher = [sys.executable, "-S", "-E", forkery.__file__, str(self._sockets / "socket")]
        self.addresses = {"launcher": json.dumps(launcher)}

    def ask_servers(self, line: str) -> Any:
        """Send a line to the process of the servers, which is started with the first; its answer."""
        if self._servers is None:
            self._servers = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("servers.py"))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert self._servers.stdout is not None
            self.addresses |= json.loads(self._servers.stdout.readline())
        assert self._servers.stdin is not None
        assert self._servers.stdout is not None
        print(line, file=self._servers.stdin, flush=True)
        return json.loads(self._servers.stdout.readline())

    def close(self) -> None:
        os.kill(self._forkery, signal.SIGKILL)
        os.waitpid(self._forkery, 0)
        shutil.rmtree(self._sockets)
        if self._servers is not None:
            self._servers.kill()
            self._servers.wait()

    def filled(self, words: Sequence[str]) -> list[str]:
        """Words with addresses of the servers in place of {critic} and {sampler}, and {launcher} of the forked runs."""
        if any("{critic}" in word or "{sampler}" in word for word in words) and self._servers is None:
            self.ask_servers("asked")
        for name, address in self.addresses.items():
            words = [word.replace(f"{{{name}}}", address) for word in words]
        return list(words)

    def start(self, words: Sequence[str], *, ranks: int = 1, environment: Mapping[str, str] | None = None) -> Child:
        """Begin ``stepalign WORDS`` in a process group of its own: a process a rank, as torchrun starts them."""
        words = self.filled(words)
        port = _free_port() if ranks > 1 else 0
        pids = []
        for rank in range(ranks):
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": f"{ranks}"}
            meeting = meeting | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if port else {}
            sys.stdout.flush()
            sys.stderr.flush()
            files = [os.open(self.folder / f"{name}{rank or ''}", _NEW) for name in ("stdout", "stderr")]
            if (pid := os.fork()) == 0:
                os.setpgid(0, pids[0] if pids else 0)
                become(words, [os.open(os.devnull, os.O_RDONLY), *files], {**(environment or {}), **meeting})
            for file in files:
                os.close(file)
            pids.append(pid)
            with suppress(OSError):
                os.setpgid(pid, pids[0])
        return Child(pids, (self.folder / "stdout", self.folder / "stderr"))

    def run(self, words: Sequence[str], **options: Any) -> Ended:
        return self.start(words, **options).wait()


@functools.cache
def warm_up() -> None:
    """A run of one step in this process, so that the children find every module loaded."""
    from stepalign.config import load_config
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs import compare, critique, select  # noqa: F401
    from stepalign.verbs.signal import folder as signal_folder  # noqa: F401
    from stepalign.verbs.train import train_config

    with tempfile.TemporaryDirectory() as name:
        config = load_config("arithmetic", {**SMALL, "training.max_steps": 1})
        train_config(config, Path(name) / "run", resume=False, listener=silent, stop=StopRequest())


def become(words: Sequence[str], files: Sequence[int], environment: Mapping[str, str]) -> NoReturn:
    """Run ``stepalign WORDS`` in this process, forked for it, and end it. ``files``: input, output, errors."""
    code = 1
    try:
        os.environ.update(environment)
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.argv = ["stepalign", *words]
        from stepalign.cli import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty path, and nothing of it left afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
