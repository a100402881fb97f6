"""A visible owner for background tasks: nothing runs that nobody would cancel.

Unlike ``asyncio.TaskGroup`` one failing task does not take its siblings along: instances are
independent of each other. A failure nobody awaits is logged once. Refuses work after closing.
"""

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

log = logging.getLogger("twofold.tasks")


class TaskScope:
    """``async with TaskScope() as scope: scope.spawn(work(), name="what")``."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def spawn(
        self, work: Coroutine[Any, Any, T], *, name: str, awaited: bool = False
    ) -> asyncio.Task[T]:
        """Run ``work`` in the scope; ``awaited`` says that somebody else takes its failure."""
        if self.closed:
            work.close()
            raise RuntimeError(f"task {name!r} started after its scope was closed")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not awaited:
            task.add_done_callback(_log_failure)
        return task

    async def close(self) -> None:
        """Cancel what still runs and wait until all of it has ended."""
        self.closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
