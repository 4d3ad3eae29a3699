"""Requests to stop: signals ask, work leaves where it can save itself, and no process outlives a request for long."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIFELINE = "STEPALIGN_LIFELINE"
"""Environment variable of a child process: its parent keeps the child's standard input open as long as it lives."""
IS_CHILD = LIFELINE in os.environ
PATIENCE = 5.0 if IS_CHILD else 7.0
"""Seconds from a request to the end of the process, saved or not; a child's parent waits for it."""
ONE_REQUEST, ONE_REQUEST_OF_RANKS = 0.2, 3.0
"""Seconds within which several signals are one request: torchrun passes on what its whole process group gets."""


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop; ``StopRequest.kept`` says what of it is saved."""


class StopRequest:
    """A request that Ctrl-C, SIGTERM and a closed terminal make; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self.number = signal.SIGINT
        """The signal that asked."""
        self.kept = "nothing is left half done"
        """What is saved at the moment, for the line that a stopped command ends with."""
        self.again = ""
        """The command that goes on."""
        self._held = self._heard = 0
        self._notice = ""

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    @property
    def line(self) -> str:
        """What is saved, and how to go on."""
        goes_on = f"; continue with: {self.again}" if self.again else ""
        return f"stopped ({signal.Signals(self.number).name}): {self.kept}{goes_on}"

    def ask(self, number: int = signal.SIGTERM) -> None:
        if not self.asked:
            self.asked, self.number = True, signal.Signals(self._heard or number)

    @contextmanager
    def held(self, notice: str = "") -> Iterator[StopRequest]:
        """Inside the block a signal only asks, and ``notice`` is printed; at its end the request interrupts.

        Signals come to the main thread: in others the block is like any other.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before, self._held, self._notice = self._notice, self._held + 1, notice or self._notice
        try:
            yield self
        finally:
            self._held, self._notice = self._held - 1, before
        if self.asked and not self._held:
            raise Interrupted

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the block runs (main thread only; elsewhere nothing can send signals).

        A signal raises Interrupted. A thread reads the signals too: where the main thread is busy in compiled code, or
        waits, it ends the process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self.kept, self.again, self._heard = StopRequest().kept, "", 0
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # nohup has a closed terminal ignored: that stays
        heard = [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self._interrupt) for s in heard}
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        stop_with_parent()
        try:
            yield self
        finally:
            if not self.asked:  # else the thread sees to it that the process ends
                signal.set_wakeup_fd(-1)
                os.close(writing)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _interrupt(self, number: int, _: object) -> None:
        if self.asked:
            return  # the thread ends the process
        self.ask(number)
        if not self._held:
            raise Interrupted
        if self._notice:
            os.write(2, f"\n{self._notice}\n".encode())  # a signal handler must not enter buffered output

    def _watch(self, reading: int) -> None:
        """End the process by the second request, or when it outlives the first one for too long."""
        while (found := os.read(reading, 1)) and found[0] not in SIGNALS:
            pass
        if not found:  # closed
            return os.close(reading)
        begun, self._heard = time.monotonic(), found[0]  # handlers run by number where several wait, not as they came
        one = ONE_REQUEST_OF_RANKS if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ONE_REQUEST
        while (spent := time.monotonic() - begun) < PATIENCE:
            if select.select([reading], [], [], PATIENCE - spent)[0]:
                again = os.read(reading, 1)[0] in SIGNALS
                if again and time.monotonic() - begun > one:
                    break
        self.ask(found[0])  # the main thread may not have come to it
        os.write(2, f"{self.line}\n".encode(errors="replace"))
        return os._exit(self.exit_code)


PROCESS = StopRequest()
"""The request that signals make to this process; what waits looks at it."""


def stop_with_parent() -> None:
    """Where a parent holds the lifeline: send this process SIGTERM when the parent is gone."""
    if not os.environ.pop(LIFELINE, ""):  # grandchildren have parents of their own
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
