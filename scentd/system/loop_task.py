"""One task of the event loop; to begin it twice is harmless, and so is to end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class LoopTask:
    """Runs `job()` once it is begun."""

    def __init__(self, job: Callable[[], Coroutine[None, None, None]]) -> None:
        self._job = job
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin, unless it has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._job())

    async def end(self) -> None:
        """Cancel it, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
