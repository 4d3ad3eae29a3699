"""Requests to stop: a flag that signals raise and that long work looks at where it can save itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIFELINE = "STEPALIGN_LIFELINE"
"""Environment variable of a child process: its parent keeps the child's standard input open as long as it lives."""
ORPHAN_SECONDS = 20.0
"""Time for an orphan to save itself; a run that needs longer goes on from its last checkpoint."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved
    """The run was asked to stop and has saved itself."""


class StopRequest:
    """A flag that Ctrl-C, SIGTERM and a closed terminal raise; a second Ctrl-C interrupts at once.

    Args:
        notice: printed on stderr the moment the first signal arrives.
    """

    def __init__(self, notice: str = "") -> None:
        self.asked = False
        self._notice = notice
        self._interrupts = 0

    def ask(self, number: int = signal.SIGTERM, *_: object) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self._notice and not self.asked:
            os.write(2, f"\n{self._notice}\n".encode())  # a signal handler must not enter buffered output
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the block runs (main thread only; elsewhere nothing can send signals)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # nohup has a closed terminal ignored: that stays
        heard = [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self.ask) for s in heard}
        stop_with_parent()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def stop_with_parent() -> None:
    """Where a parent holds the lifeline: send this process SIGTERM when the parent is gone, and end it soon after."""
    if not os.environ.pop(LIFELINE, ""):  # grandchildren have parents of their own
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
