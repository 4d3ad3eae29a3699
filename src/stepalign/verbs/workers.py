"""Processes that work tasks off, a few at a time, and cannot hang the one that waits for them.

The parent hands each worker one task at a time over a pipe of its own: no queue and no lock is shared, so a worker that
is killed at any instant takes nothing with it but its own task. A task that fails is remembered by name and the others
go on. A worker whose parent is gone saves what it can and leaves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any, Protocol

from stepalign.errors import UserError
from stepalign.stopping import SIGNALS, Interrupted, StopRequest

ORPHAN_SECONDS = 20.0
"""What a worker without a parent has for saving itself; a run that needs longer goes on from its last checkpoint."""
_POLL_SECONDS = 0.2


class Task(Protocol):
    """One piece of work."""

    @property
    def name(self) -> str: ...


Send = Callable[[str, Mapping[str, Any]], None]
"""Passes (kind, payload) on to the parent; from any thread."""
Run = Callable[[Any, Send, StopRequest], None]
"""Does a task; a function at the top of a module, since workers are fresh interpreters. May raise Interrupted."""
Listen = Callable[[str, str, Mapping[str, Any]], None]
"""Told (task, kind, payload) of everything that is sent, and of "finished" and "failed"."""


def work_off(
    tasks: Sequence[Task], run: Run, num_workers: int, *, stop: StopRequest, listen: Listen
) -> dict[str, UserError]:
    """Do all tasks, in their order, and return what failed by name. Asked to stop, every worker saves and leaves.

    A worker that dies is not replaced: what killed it, such as memory, would kill the next one.

    Raises:
        KeyboardInterrupt: asked twice; workers are killed, which a run folder survives.
    """
    todo = deque(tasks)
    failures: dict[str, UserError] = {}
    workers = _start(run, num_workers)
    told_to_stop = False
    try:
        for worker in workers:
            worker.take_next(todo)
        while any(worker.alive for worker in workers):
            if stop.asked and not told_to_stop:
                told_to_stop = True
                todo.clear()
                for worker in workers:
                    worker.ask_to_stop()
            for worker in _with_news(workers):
                for kind, payload in worker.read():
                    name = worker.task.name if worker.task else ""
                    if kind == "failed":
                        failures[name] = payload["error"]
                    elif kind == "interrupted" and not stop.asked:
                        failures[name] = UserError("its process was told to stop by somebody else")
                    listen(name, kind, payload)
                    if kind in ("finished", "failed"):
                        worker.take_next(todo)
                    elif kind == "interrupted":  # it leaves
                        worker.take_next(deque())
                if not worker.alive and worker.task is not None and not (stop.asked and worker.process.exitcode == 0):
                    name, worker.task = worker.task.name, None
                    failures[name] = worker.death()
                    listen(name, "failed", {"error": failures[name]})
        for task in todo:  # no worker is left
            failures[task.name] = UserError("it was not begun: no worker process was left")
    finally:
        for worker in workers:
            worker.end()
    return failures


class _Worker:
    """The parent's side of one process."""

    def __init__(self, process: Any, pipe: connection.Connection) -> None:
        self.process, self.pipe = process, pipe
        self.task: Task | None = None
        self.alive = True

    def take_next(self, todo: deque[Any]) -> None:
        self.task = todo.popleft() if todo else None
        with contextlib.suppress(OSError):  # it has died: read() tells
            self.pipe.send(self.task)

    def ask_to_stop(self) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGTERM)

    def read(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Everything it has said by now. Afterwards ``alive`` is up to date."""
        dead = self.process.exitcode is not None  # before reading: what it said at its end is still in the pipe
        news = []
        try:
            while self.pipe.poll():
                news.append(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join(timeout=10)
            dead = True
        self.alive = not dead
        return news

    def death(self) -> UserError:
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return UserError("its process was killed (SIGKILL), as the kernel does when memory runs out")
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
        return UserError(f"its process ended {how}")

    def end(self) -> None:
        if self.process.exitcode is None and self.alive:
            self.process.kill()
        self.process.join(timeout=10)
        self.pipe.close()


def _start(run: Run, num_workers: int) -> list[_Worker]:
    context = multiprocessing.get_context("spawn")  # forking a process that has loaded torch is not safe
    workers = []
    # Signals wait while a child starts, here and (the mask is inherited) there, until both can handle them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for index in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, run), name=f"worker-{index}", daemon=False)
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return workers


def _with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    """Workers that said something or died. A dead one is seen even when a child of its own holds its pipe open."""
    alive = [worker for worker in workers if worker.alive]
    ready = connection.wait([worker.pipe for worker in alive], timeout=_POLL_SECONDS)
    return [worker for worker in alive if worker.pipe in ready or worker.process.exitcode is not None]


# ---------------------------------------------------------------------------------------------------------------------
# In the worker


def _work(pipe: connection.Connection, run: Run) -> None:
    """Take tasks until there are none."""
    stop = StopRequest()
    lock = threading.Lock()

    def send(kind: str, payload: Mapping[str, Any]) -> None:
        with lock, contextlib.suppress(OSError):  # nobody listens any more: _leave_with_parent does the rest
            pipe.send((kind, payload))

    _leave_with_parent()
    with stop.listening():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while not stop.asked:
            try:
                task = pipe.recv()
            except (EOFError, OSError):
                return
            if task is None:
                return
            send(*_outcome(task, run, send, stop))


def _outcome(task: Any, run: Run, send: Send, stop: StopRequest) -> tuple[str, Mapping[str, Any]]:
    try:
        run(task, send, stop)
    except (Interrupted, KeyboardInterrupt):
        return "interrupted", {}
    except UserError as error:
        return "failed", {"error": error}
    except Exception as error:
        failure = UserError(f"{type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        return "failed", {"error": failure}
    return "finished", {}


def _leave_with_parent() -> None:
    """Stop like on a SIGTERM when the parent is gone, however it went, and leave for good soon after."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
