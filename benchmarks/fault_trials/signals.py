"""Signals in every phase of every command: how long until it leaves, with which code and which words.

The commands are forked from a process that has the imports behind it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from fault_server import FaultServer

from fault_trials.damage import a_run
from fault_trials.lab import SMALL, Lab, setting_words

MOST_SECONDS = 10.0
Begun = Callable[[Path, FaultServer], bool]
ARITHMETIC = ("arithmetic", "--set", "training.max_steps=400", "--set", "evaluation.at_start=false")
SHORT = ("arithmetic", *setting_words({**SMALL, "training.max_steps": 1}))
SERVED = ("--set", "critic.kind=endpoint", "--set", 'critic.base_urls=["{critic}"]', "--set", "critic.model=critic")
ATTEMPTS = [
    {"question": f"{n} + 1", "completion": f"<step_1> {n} + 1 = 9\n<answer> 9", "answer": str(n + 1)} for n in range(9)
]
VLLM = "import time\nopen({place!r}, 'w').write('x')\ntime.sleep(600)\n"
"""In the place of a server that loads its model."""
SLOW_GRADER = "import time\ndef grade(text, expected):\n    time.sleep(60)\n"


def _holds(pattern: str) -> Begun:
    return lambda folder, _: any(file.stat().st_size for file in folder.glob(pattern))


def _asked(_: Path, server: FaultServer) -> bool:
    return bool(server.asked)


@dataclass(frozen=True)
class Phase:
    """A command, and how one sees that it has come to where the signal is to hit it."""

    words: tuple[str, ...]
    begun: Begun
    is_short: bool = False
    """Part of the tests of the repository."""
    seconds: float = 0.3
    """From there to the signal."""


PHASES: dict[str, Phase] = {
    "train, loading": Phase(("train", *ARITHMETIC, "--out", "out"), lambda *_: True),
    "train, waiting for a critic": Phase(("train", *ARITHMETIC, *SERVED, "--out", "out"), _asked, is_short=True),
    "train, ahead, waiting for a critic": Phase(
        ("train", *ARITHMETIC, *SERVED, "--set", "rollouts.ahead=1", "--out", "out"), _asked
    ),
    "train, steps": Phase(("train", *ARITHMETIC, "--out", "out"), _holds("out/metrics.jsonl"), is_short=True),
    "train, saving at each step": Phase(
        ("train", *ARITHMETIC, "--set", "training.save_steps=1", "--out", "out"),
        _holds("out/checkpoints/*/manifest.json"),
    ),
    "train, evaluating": Phase(
        ("train", "arithmetic", "--set", "evaluation.num_samples=64", "--out", "out"), _holds("out/samples/*")
    ),
    "train, one long update": Phase(
        ("train", *ARITHMETIC, "--set", "training.problems_per_step=282", "--out", "out"), _holds("out/config.toml")
    ),
    "compare, children at work": Phase(
        ("compare", *ARITHMETIC, "--set", "compare.launcher={launcher}", "--out", "out"),
        _holds("out/arms/*/*/metrics.jsonl"),
    ),
    "compare, loading": Phase(("compare", *ARITHMETIC, "--out", "out"), _holds("out/config.toml")),
    "evaluate": Phase(
        ("evaluate", "embedded:arithmetic", "--problems", "embedded:arithmetic", "--n", "64", "--out", "out.json"),
        _holds("out.samples.jsonl"), is_short=True,
    ),
    "prepare": Phase(("prepare", "arithmetic", "--out", "out"), _holds("out/config.toml")),
    "select, asking the critic": Phase(
        ("select", *ARITHMETIC, *SERVED, "--set", "selection.critic_solves=true", "--out", "out"), _asked
    ),
    "critique": Phase(
        ("critique", "attempts.jsonl", "--critic", "{critic}", "--out", "out"), _asked, is_short=True
    ),
    "grade": Phase(
        ("grade", "attempts.jsonl", "--completion", "completion", "--answer", "answer", "--out", "v.jsonl",
         "--grader", "slow:grade", "--seconds", "60", "--workers", "2"),
        _holds("begun"), is_short=True,
    ),
    "lab": Phase(("lab", "embedded:arithmetic"), _holds("stdout")),
    "signal": Phase(
        ("signal", "attempts.jsonl", "--model", "embedded:arithmetic", "--out", "out"), lambda *_: True
    ),
    "preflight, asking the critic": Phase(("preflight", *ARITHMETIC, *SERVED, "--out", "out"), _asked),
    "serve": Phase(("serve", "embedded:arithmetic", "--python", "./python"), _holds("serving")),
    "launch, waiting for the server": Phase(
        ("launch", *ARITHMETIC, "--servers", "1", "--port", "{port}", "--python", "./python", "--out", "out"),
        _holds("serving")
    ),
    "launch, the run at work": Phase(("launch", *ARITHMETIC, "--out", "out"), _holds("out/metrics.jsonl")),
    "compare, the base and the signal": Phase(
        ("compare", *SHORT, "--set", "compare.launcher={launcher}", "--out", "out"), _holds("out/arms/base/config.toml")
    ),
    "select, sampling": Phase(("select", *ARITHMETIC, "--set", "selection.num_samples=16", "--out", "out"),
                              _holds("out/samples.jsonl")),
    "preflight": Phase(("preflight", *ARITHMETIC, "--out", "out"), _holds("out/config.toml")),
    "verify": Phase(("verify", "{run}", "--num", "64"), _holds("stdout"), seconds=0.0),
    "doctor --repair": Phase(("doctor", "{run}", "--repair"), lambda *_: True, seconds=0.0),
    "reproduce": Phase(("reproduce", "{run}", "--out", "out"), _holds("out/config.toml")),
    "report": Phase(("report", "{run}"), lambda *_: True, seconds=0.0),
    "export": Phase(("export", "{run}", "--to", "jsonl", "--out", "rows.jsonl"), lambda *_: True, seconds=0.0),
}  # fmt: skip


def stopped(phase: Phase, number: int, *, again: int = 0, launcher: str = "[]", run: str = "") -> dict[str, Any]:
    """Send a signal to the command in its phase, and perhaps a second one half a second later.

    Args:
        launcher: of ``fault_trials.forkery``, as ``compare.launcher`` takes it.
        run: a finished run, for the commands that read one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, server = Path(name), FaultServer(lambda text, asked: "hang", hangs=120.0)
        (folder / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ATTEMPTS))
        (folder / "slow.py").write_text(SLOW_GRADER.replace("time.sleep", "open('begun', 'w').write('x'); time.sleep"))
        _write_stand_in(folder)
        places = {"critic": server.url, "port": _free_port(), "launcher": launcher, "run": run}
        words = [_filled(word, places) for word in phase.words]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [*json.loads(launcher), sys.executable, "-m", "stepalign", *words],
                stdout=out, stderr=err, cwd=folder, process_group=0, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        try:
            while (command := _that_listens(process.pid)) is None and process.poll() is None:
                time.sleep(0.02)
            while process.poll() is None and not phase.begun(folder, server):
                time.sleep(0.02)
            time.sleep(phase.seconds)
            begin = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(command or process.pid, number)
                if again:
                    time.sleep(0.5)
                    os.kill(command or process.pid, again)
            with suppress(subprocess.TimeoutExpired):
                process.wait(6 * MOST_SECONDS)
            seconds = time.monotonic() - begin
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            server.stop()
        said = (folder / "stderr").read_text(errors="replace")
        last = [line for line in said.splitlines() if line.startswith("stopped (")]
        return {
            "code": process.returncode,
            "seconds": round(seconds, 2),
            "said": last,
            "traceback": "Traceback" in said,
        }


def _write_stand_in(folder: Path) -> None:
    """An interpreter whose vllm never gets to answer."""
    package = folder / "fake" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for one in (package.parents[1], package.parent, package):
        (one / "__init__.py").touch()
    (package / "api_server.py").write_text(VLLM.format(place=str(folder / "serving")))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "fake"}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def _that_listens(group: int) -> int | None:
    """The process of a group that has come to our own code: before, signals are the interpreter's."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            pid = int(status.parent.name)
            caught = int(status.read_text().partition("SigCgt:\t")[2].split()[0], 16)
            if caught >> (signal.SIGTERM - 1) & 1 and os.getpgid(pid) == group:
                return pid
    return None


def _filled(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{{name}}}", place)
    return word


def is_well(row: dict[str, Any], number: int) -> bool:
    """Left in time with the code of the signal and one last line."""
    in_time = row["seconds"] < MOST_SECONDS and row["code"] == 128 + number
    return in_time and len(row["said"]) == 1 and not row["traceback"]


def signals(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: every phase with SIGINT, with SIGTERM, and with a second signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    kinds = [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGTERM, signal.SIGINT)]
    trials, run = [(name, *kind) for kind in kinds for name in PHASES], str(a_run(lab))
    for index in range(first, first + number):
        name, one, two = trials[index % len(trials)]
        row = stopped(PHASES[name], one, again=two, launcher=lab.addresses["launcher"], run=run)
        row |= {"phase": name, "signal": one, "again": two}
        yield row | ({"outcome": "ended before the signal"} if not row["code"] else {"well": is_well(row, one)})
