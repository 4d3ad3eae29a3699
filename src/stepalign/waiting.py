"""The bridges from plain code to coroutines: wait for one, or let it go on in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")
_CLOSE_SECONDS = 10.0


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end. Inside a running event loop, such as a notebook's, it runs in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _nothing() -> None:
    pass


class BackgroundLoop:
    """An event loop in a thread of its own: what it runs goes on while the caller works. ``with`` closes it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._closed = False

    def run(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a piece of work. Raises RuntimeError once closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError(f"the {self._name} is closed")
            if not self._thread.is_alive():
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, last: Callable[[], Awaitable[None]] = _nothing) -> bool:
        """Cancel the work under way, await ``last`` and end the thread. False when that was done before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
        if self._thread.is_alive():
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._shut_down(last), self._loop).result(_CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
        return True

    async def _shut_down(self, last: Callable[[], Awaitable[None]]) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_default_executor()
        await last()

    def __enter__(self) -> BackgroundLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
