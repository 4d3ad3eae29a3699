"""An event loop in a thread of its own, so that calls go on while the caller samples, and file work beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE_SECONDS = 10.0


class BackgroundLoop:
    """Starts with the first piece of work; ``close`` cancels what is under way.

    Args:
        name: of the threads.
        on_start: a coroutine to keep running beside the work, if any.
        on_close: awaited on the loop at the end, after everything else has been cancelled.
    """

    def __init__(
        self,
        name: str,
        *,
        on_start: Callable[[], Coroutine[Any, Any, None]] | None = None,
        on_close: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._name, self._on_start, self._on_close = name, on_start, on_close
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-disk")
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a piece of work. Raises RuntimeError once closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError(f"the {self._name} is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
                if self._on_start is not None:
                    asyncio.run_coroutine_threadsafe(self._on_start(), self._loop)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        """File work off the loop, one piece after the other: a busy file must not hold up the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    def close(self) -> bool:
        """Cancel what is under way and end the threads. False when that was done before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result(timeout=_PATIENCE_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=_PATIENCE_SECONDS)
        self._disk.shutdown(wait=True)
        return True

    async def _shut_down(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._on_close()
