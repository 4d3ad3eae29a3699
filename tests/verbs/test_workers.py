"""The workers by themselves, on tasks that fail in every way a task can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stepalign.errors import ConfigError
from stepalign.stopping import Interrupted, StopRequest
from stepalign.verbs.workers import Send, work_off


@dataclass(frozen=True)
class Job:
    name: str
    folder: Path


def do(job: Job, send: Send, stop: StopRequest) -> None:
    """What a job does is its name; what is done leaves a file."""
    if job.name == "raises":
        raise ValueError("seven")
    if job.name == "user-error":
        raise ConfigError("a wrong key", where="a.b", hint="mend it")
    if job.name in ("SIGKILL", "SIGTERM", "SIGSEGV"):
        os.kill(os.getpid(), getattr(signal, job.name))
    if job.name == "exits":
        os._exit(7)
    if job.name.startswith("talks"):
        for index in range(2_000):  # far more than a pipe holds
            send("say", {"text": f"{index}" * 50})
    while job.name.startswith("long") or job.name == "SIGTERM":
        send("waits", {})
        time.sleep(0.02)
        if stop.asked:
            (job.folder / f"{job.name}-saved").touch()
            raise Interrupted
    (job.folder / job.name).touch()


class Heard:
    """What the workers said."""

    def __init__(self, stop: StopRequest | None = None, when: int = 0) -> None:
        self.events: list[tuple[str, str]] = []
        self._stop, self._when = stop, when

    def __call__(self, task: str, kind: str, payload: Mapping[str, Any]) -> None:
        self.events.append((task, kind))
        if self._stop and sum(k == "waits" for _, k in self.events) == self._when:
            self._stop.ask()


def work(folder: Path, *names: str, workers: int = 2, stop: StopRequest | None = None, heard: Heard | None = None):
    jobs = [Job(name, folder) for name in names]
    return work_off(jobs, do, workers, stop=stop or StopRequest(), listen=heard or Heard())


def test_whatever_fails_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    heard = Heard()
    failures = work(tmp_path, "a", "raises", "user-error", "talks-1", "talks-2", "b", heard=heard)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "talks-1", "talks-2"}
    assert set(failures) == {"raises", "user-error"}
    assert failures["raises"].what == "ValueError: seven"
    assert "in do" in failures["raises"].__notes__[0]  # the traceback, for --debug
    assert (failures["user-error"].where, failures["user-error"].hint) == ("a.b", "mend it")
    assert isinstance(failures["user-error"], ConfigError)
    assert sum(kind == "say" for _, kind in heard.events) == 4_000
    assert {name for name, kind in heard.events if kind == "finished"} == {"a", "b", "talks-1", "talks-2"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SIGKILL", "killed (SIGKILL), as the kernel does when memory runs out"),
        ("SIGSEGV", "ended by SIGSEGV"),
        ("exits", "exit code 7"),
        ("SIGTERM", "told to stop by somebody else"),
    ],
)
def test_a_worker_that_dies_takes_its_own_task_with_it(tmp_path: Path, name: str, reason: str) -> None:
    failures = work(tmp_path, name, "a", "b", "c")
    assert set(failures) == {name}
    assert reason in failures[name].what
    assert {"a", "b", "c"} <= {p.name for p in tmp_path.iterdir()}


def test_when_every_worker_has_died_the_rest_is_named_as_not_begun(tmp_path: Path) -> None:
    failures = work(tmp_path, "SIGKILL", "exits", "a", "b")
    assert set(failures) == {"SIGKILL", "exits", "a", "b"}
    assert "not begun" in failures["a"].what


def test_asked_to_stop_every_worker_saves_and_nothing_new_begins(tmp_path: Path) -> None:
    stop = StopRequest()
    failures = work(tmp_path, "long-1", "long-2", "a", stop=stop, heard=Heard(stop, when=10))
    assert failures == {}
    assert {p.name for p in tmp_path.iterdir()} == {"long-1-saved", "long-2-saved"}


def test_a_stop_request_speaks_at_once_and_the_second_interrupt_is_final(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest("stopping soon")
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err.count("stopping soon") == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
