"""Child processes by themselves, on commands that fail in every way a run can."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

from stepalign.errors import ConfigError, UserError
from stepalign.events import Event
from stepalign.stopping import ONE_REQUEST, StopRequest
from stepalign.verbs.processes import Job, run_all

# What a child does is its name; what is done leaves a file.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from stepalign.stopping import StopRequest
name, folder = sys.argv[1], Path(sys.argv[2])
if name == "raises":
    raise ValueError("seven")
if name == "user-error":
    print("error: a wrong key\\n  where: a.b\\n  hint: mend it", file=sys.stderr)
    sys.exit(2)
if name in ("SIGKILL", "SIGSEGV"):
    os.kill(os.getpid(), getattr(signal, name))
if name == "exits":
    sys.exit(7)
if name.startswith("talks"):
    for index in range(2_000):  # far more than a pipe holds
        print(f"warning: {index}" + str(index) * 50)
with StopRequest().listening() as stop, stop.held():
    if name == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    while name.startswith("long") or name == "SIGTERM":
        (folder / f"{name}-begun").touch()
        time.sleep(0.02)
        if stop.asked:
            (folder / f"{name}-saved").touch()
            sys.exit(130)
(folder / name).touch()
"""


def job(folder: Path, name: str) -> Job:
    command = (sys.executable, "-c", CHILD, name, str(folder))
    return Job(name=name, command=command, folder=folder / "run", log=folder / "logs" / f"{name}.log")


class Heard:
    """The lines of the children; asks to stop once all of some have begun."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


def work(
    folder: Path, *names: str, parallel: int = 2, stop: StopRequest | None = None, heard: Heard | None = None
) -> dict[str, UserError]:
    jobs = [job(folder, name) for name in names]
    return run_all(jobs, parallel, stop=stop or StopRequest(), listener=heard or Heard())


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_whatever_fails_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    heard = Heard()
    failures = work(tmp_path, "a", "raises", "user-error", "talks-1", "talks-2", "b", heard=heard)
    assert files(tmp_path) == {"a", "b", "talks-1", "talks-2"}
    assert set(failures) == {"raises", "user-error"}
    assert failures["raises"].what == "ValueError: seven"
    assert "Traceback" in failures["raises"].__notes__[0]  # for --debug
    assert (failures["user-error"].where, failures["user-error"].hint) == ("a.b", "mend it")
    assert isinstance(failures["user-error"], ConfigError)
    assert sum(event.kind == "warning" for event in heard.events) == 4_000
    ended = {(event.run, event.kind) for event in heard.events if event.kind in ("finished", "failed")}
    assert ended == {
        *((name, "finished") for name in ("a", "b", "talks-1", "talks-2")),
        *((name, "failed") for name in ("raises", "user-error")),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SIGKILL", "killed (SIGKILL), as the kernel does when memory runs out"),
        ("SIGSEGV", "ended by SIGSEGV"),
        ("exits", "exit code 7"),
        ("SIGTERM", "asked to stop from outside"),
    ],
)
def test_a_process_that_dies_takes_its_own_run_with_it(tmp_path: Path, name: str, reason: str) -> None:
    failures = work(tmp_path, name, "a", "b", "c")
    assert set(failures) == {name}
    assert reason in failures[name].what
    assert {"a", "b", "c"} <= files(tmp_path)


def test_asked_to_stop_every_process_saves_and_nothing_new_begins(tmp_path: Path) -> None:
    class Stopper(StopRequest):
        """Asked as soon as both long jobs have begun."""

        @property
        def asked(self) -> bool:
            return all((tmp_path / f"long-{n}-begun").exists() for n in (1, 2))

        @asked.setter
        def asked(self, value: bool) -> None: ...

    failures = work(tmp_path, "long-1", "long-2", "a", stop=Stopper())
    assert failures == {}
    assert files(tmp_path) == {"long-1-begun", "long-1-saved", "long-2-begun", "long-2-saved"}


def test_the_log_of_an_earlier_attempt_is_kept_and_not_read_again(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    assert work(tmp_path, "user-error", heard=first)["user-error"].what == "a wrong key"
    log = tmp_path / "logs" / "user-error.log"
    log.write_text(log.read_text() + "warning: old\n")
    quiet = Job(name="q", command=(sys.executable, "-c", ""), folder=tmp_path, log=log)
    assert run_all([quiet], 1, stop=StopRequest(), listener=second) == {}
    assert "error: a wrong key" in log.read_text()
    assert not any(event.kind == "warning" for event in second.events)


def test_children_of_a_killed_parent_save_themselves(tmp_path: Path) -> None:
    parent = (
        "import sys\n"
        "from pathlib import Path\n"
        "from stepalign.stopping import StopRequest\n"
        "from stepalign.verbs.processes import Job, run_all\n"
        "folder = Path(sys.argv[1])\n"
        "command = (sys.executable, '-c', sys.argv[2], 'long-1', str(folder))\n"
        "job = Job(name='long-1', command=command, folder=folder, log=folder / 'log')\n"
        "run_all([job], 1, stop=StopRequest(), listener=lambda event: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path), CHILD])
    wait_until((tmp_path / "long-1-begun").exists, process)
    process.kill()
    process.wait()
    wait_until((tmp_path / "long-1-saved").exists)


SLEEPER = """
import sys, time
from stepalign.stopping import PROCESS
with PROCESS.listening(), PROCESS.held("stopping soon"):
    print("begun", flush=True)
    end = time.monotonic() + 3600
    while time.monotonic() < end and not (sys.argv[1] == "polite" and PROCESS.asked):
        time.sleep(0.02)
    PROCESS.kept = "all of it is saved"
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_speaks_at_once_and_a_second_signal_of_either_kind_is_final(second: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "busy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    assert process.stderr
    process.send_signal(signal.SIGTERM)
    told = [process.stderr.readline() for _ in range(2)]  # it has come to the handler
    time.sleep(1.5 * ONE_REQUEST)
    assert process.poll() is None  # it is held
    process.send_signal(second)
    said = "".join(told) + process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.split("\n")[1:3] == ["stopping soon", "stopped (SIGTERM): nothing is left half done"]


def test_a_process_that_does_not_come_to_its_end_is_ended() -> None:
    code = SLEEPER.replace("import sys", "import stepalign.stopping; stepalign.stopping.PATIENCE = 0.5; import sys")
    process = subprocess.Popen([sys.executable, "-c", code, "busy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
