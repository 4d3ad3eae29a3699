"""The bridges from plain code to coroutines: wait for one, or let it go on in a thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

from stepalign.stopping import PROCESS, Interrupted

Result = TypeVar("Result")
_CLOSE_SECONDS = 10.0
_LOOK_SECONDS, _CANCEL_SECONDS = 0.1, 2.0
"""Between two looks at the request to stop; for work to clean up when it is cancelled."""


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end. Inside a running event loop, such as a notebook's, it runs in a thread of its own.

    Raises:
        Interrupted: the process is asked to stop; the work is cancelled.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with PROCESS.held():
            return asyncio.run(_unless_stopped(work))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _unless_stopped(work)).result()


async def _unless_stopped(work: Coroutine[Any, Any, Result]) -> Result:
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # also of one that is left behind
    while not (await asyncio.wait([task], timeout=_LOOK_SECONDS))[0]:
        if PROCESS.asked:
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_SECONDS)
            raise Interrupted
    if PROCESS.asked and task.cancelled():  # it looked by itself
        raise Interrupted
    return task.result()


def result_of(future: Future[Result]) -> Result:
    """The result of work in another thread. Raises Interrupted when the process is asked to stop before it."""
    with PROCESS.held():
        while not wait([future], _LOOK_SECONDS).done:
            if PROCESS.asked:
                raise Interrupted
        if PROCESS.asked and future.cancelled():  # as above
            raise Interrupted
        return future.result()


def wait_for_item(items: queue.SimpleQueue[Result]) -> Result:
    """The next item of a queue. Raises Interrupted when the process is asked to stop before it."""
    with PROCESS.held():
        while not PROCESS.asked:
            with suppress(queue.Empty):
                return items.get(timeout=_LOOK_SECONDS)
        raise Interrupted


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
