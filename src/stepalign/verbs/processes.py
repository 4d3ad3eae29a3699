"""Runs as child processes: started a few at a time, followed through their folders, stopped with their parent.

A child is an ordinary command with a log file. It says what it does in the files of its run folder, and how it ended in
its exit code and its log. Nothing is shared with it, so a child that is killed takes nothing with it but its own run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from stepalign.errors import BudgetSpentError, ConfigError, EndpointError, LockedError, UserError
from stepalign.events import Event, Listener, evaluation, progress, step, warning
from stepalign.stopping import LIFELINE, StopRequest
from stepalign.storage.files import open_log
from stepalign.storage.jsonl import read_json_lines, whole_lines

POLL_SECONDS = 0.1
_BY_CODE = {kind.exit_code: kind for kind in (ConfigError, EndpointError, LockedError, BudgetSpentError)}
_PHASE = re.compile(r"(?:[^:]+: )?(?P<name>(?!step )\w[\w ]*): (?P<done>\d+) of (?P<total>\d+)\b")
"""How ``progress.Display`` writes the progress of a phase to a child's log."""
MARK = "STEPALIGN_CHILD"
"""Environment variable of a child and of all that it starts: the marks of its parents and its own."""
STOPPED = (130, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a child that was asked to stop: it saved itself, had nothing to save yet, or was too slow to save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One child process to be."""

    name: str
    command: Sequence[str]
    folder: Path
    """The run folder that it writes."""
    log: Path
    """Receives its output, after that of earlier attempts."""
    num_steps: int = 0
    """Optimizer steps that it will take, for its progress."""
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for a shell."""
        return shell_line(self.environment, self.command)


def shell_line(environment: Mapping[str, str], words: Sequence[str]) -> str:
    """A command as a shell takes it."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(words)])


def run_all(jobs: Sequence[Job], num_parallel: int, *, stop: StopRequest, listener: Listener) -> dict[str, UserError]:
    """Run all jobs, in their order, and return why they failed by name. The others go on when one fails.

    Args:
        stop: when asked, every child is asked to save itself, and no other begins.
        listener: receives the events of each child with its name as ``run``, and how it ended.

    """
    todo, running = deque(jobs), list[Child]()
    failures: dict[str, UserError] = {}
    try:
        while todo or running:
            if stop.asked and (todo or not all(child.asked for child in running)):
                todo.clear()
                for child in running:
                    child.ask_to_stop()
            while todo and len(running) < num_parallel:
                running.append(Child(todo.popleft()))
                listener(Event(kind="progress", name="running", run=running[-1].job.name))
            for child in list(running):
                code = child.process.poll()  # before the news, so that none is missed
                for event in child.news():
                    listener(replace(event, run=child.job.name))
                if code is None:
                    continue
                running.remove(child)
                child.close()
                if code == 0:
                    listener(Event(kind="finished", run=child.job.name))
                elif not (stop.asked and code in STOPPED):
                    error = failures[child.job.name] = child.failure(code)
                    listener(Event(kind="failed", run=child.job.name, text=error.what))
            time.sleep(POLL_SECONDS)
    finally:
        for child in running:
            child.signal(signal.SIGKILL)
            child.close()
    return failures


class Child:
    """A running process with what has been read of its files."""

    def __init__(self, job: Job) -> None:
        self.job, self.asked, self._mark = job, False, uuid.uuid4().hex
        self._begin = self._read = job.log.stat().st_size if job.log.exists() else 0
        """Bytes of the log before this attempt; bytes read so far."""
        self._step, self._sizes = 0, {"metrics": 0, "evaluations": 0}
        self._evaluated = {(row["step"], row["set"]) for row in read_json_lines(job.folder / "evaluations.jsonl")}
        # One torch thread a process unless the user says otherwise: small matrices lose on more.
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **job.environment, LIFELINE: "1"}
        environment[MARK] = os.environ.get(MARK, "") + self._mark
        with open_log(job.log) as log:
            self.process = subprocess.Popen(
                job.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # signals reach a launcher's children too, and Ctrl-C reaches each process once
            )

    def ask_to_stop(self) -> None:
        """Ask the process that saves: rank 0, as torchrun would end its ranks half a minute later, or all of them."""
        self.asked = True
        own = [(pid, found) for pid, found in self._marked().items() if found[MARK].endswith(self._mark)]
        if first := [pid for pid, found in own if found.get("RANK") == "0"]:
            _signal(first, signal.SIGTERM)
        else:
            self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Wait for its end. What it has left behind after a failure, in whatever group or session, is ended too."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        while self.process.returncode and (left := self._marked()):
            _signal(left, signal.SIGKILL)
            time.sleep(0.02)

    def _marked(self) -> dict[int, dict[str, str]]:
        """The environments of its living processes, by process; of none where the system has no /proc."""
        found = {}
        for place in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                content = place.read_bytes()
                if self._mark.encode() in content:
                    pairs = (word.partition("=") for word in content.decode(errors="replace").split("\0"))
                    found[int(place.parent.name)] = {name: value for name, _, value in pairs}
        return found

    def news(self) -> list[Event]:
        """The events in its files since the last call."""
        found: list[Event] = []
        if self._has_grown("metrics"):
            *_, row = {}, *read_json_lines(self.job.folder / "metrics.jsonl")
            if row.get("step", self._step) != self._step:
                self._step = row["step"]
                found.append(step(self._step, self.job.num_steps, row))
        if self._has_grown("evaluations"):
            for row in read_json_lines(self.job.folder / "evaluations.jsonl"):
                if (row["step"], row["set"]) not in self._evaluated:
                    self._evaluated.add((row["step"], row["set"]))
                    found.append(evaluation(row["step"], row["set"], row["metrics"]))
        for content in whole_lines(self.job.log, self._read):
            self._read += len(content)
            text = content.decode(errors="replace").rstrip()
            if text.startswith("warning: "):
                found.append(warning(text.removeprefix("warning: ")))
            elif phase := _PHASE.match(text):
                found.append(progress(phase["name"], int(phase["done"]), int(phase["total"])))
        return found

    def _has_grown(self, name: str) -> bool:
        file = self.job.folder / f"{name}.jsonl"
        size = file.stat().st_size if file.exists() else 0
        before, self._sizes[name] = self._sizes[name], size
        return size != before

    def failure(self, code: int) -> UserError:
        """Why it failed, from its exit code and the end of its log."""
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return UserError("its process was killed (SIGKILL), as the kernel does when memory runs out")
        if code in STOPPED:
            return UserError("its process was asked to stop from outside")
        with self.job.log.open("rb") as log:
            log.seek(self._begin)
            text = log.read().decode(errors="replace").rstrip()
        if "error: " in (head := text[text.rfind("\nerror: ") + 1 :])[:7]:
            what, *more = head.removeprefix("error: ").split("\n")
            said = {key: value for key, _, value in (line.strip().partition(": ") for line in more)}
            return _BY_CODE.get(code, UserError)(what, where=said.get("where"), hint=said.get("hint"))
        if code < 0:
            return UserError(f"its process ended by {signal.Signals(-code).name}", where=str(self.job.log))
        last = text.rpartition("\n")[2]
        failure = UserError(last if "Traceback" in text else f"its process ended with exit code {code}")
        failure.where = str(self.job.log)
        failure.add_note(text)
        return failure


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
