"""One thread for all scoring; of each page only the newest request counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_CLIENTS = 64
"""Open pages whose newest request is remembered."""

Result = TypeVar("Result")


class Cancelled(Exception):  # noqa: N818 - nothing is wrong
    """Raised by work whose result is no longer wanted."""


class Worker:
    """Runs work on one thread, so that a model is never used by two."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lab")
        self._newest: dict[str, threading.Event] = {}

    async def run(self, client: str, work: Callable[[threading.Event], Result]) -> Result:
        """The result of ``work``; the client's request before this one is cancelled.

        Raises:
            Cancelled: a newer request took its place, or ``cancel`` was called.
        """
        self.cancel(client)
        cancelled = self._newest[client] = threading.Event()
        while len(self._newest) > MAX_CLIENTS:
            self._newest.pop(next(iter(self._newest))).set()

        def unless_cancelled() -> Result:
            if cancelled.is_set():
                raise Cancelled
            return work(cancelled)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, unless_cancelled)
        finally:
            if self._newest.get(client) is cancelled:
                del self._newest[client]

    def cancel(self, client: str) -> None:
        """Cancel the client's newest request, waiting or running."""
        before = self._newest.pop(client, None)
        if before is not None:
            before.set()

    def close(self) -> None:
        """Cancel everything and wait for the thread."""
        for event in self._newest.values():
            event.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
