"""Blocking work of an operation: in a thread, as one step, its progress shown, its cancel heard.

There is one shape of progress (``model/progress.py``) for all who work in threads. A cancelled
operation reaches such work through its next progress call, which then raises; the operation waits
until the work has unwound, so that nothing of it goes on unseen.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import TypeVar

from twofold.model.progress import Progress
from twofold.operations.operation import Operation, StepHandle

T = TypeVar("T")


class _CancelledInThreadError(Exception):
    """Raised by a progress call in the working thread, to make the work stop and unwind."""


async def in_thread(
    operation: Operation,
    title: str,
    work: Callable[[Progress], T],
    *,
    executor: Executor | None = None,
    quick: bool = False,
) -> T:
    """The result of ``work(progress)``, run as a step called ``title``.

    ``quick``: mostly there is nothing to do; it becomes a step with its first word of progress.
    """
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()
    speaks = asyncio.Event()
    said: tuple[float | None, str] | None = None
    step: StepHandle | None = None

    def tell(fraction: float | None, message: str) -> None:
        nonlocal said
        if cancelled.is_set():
            raise _CancelledInThreadError
        said = (fraction, message)
        if step is not None:
            step.progress(fraction, message)
        else:
            loop.call_soon_threadsafe(speaks.set)

    async with AsyncExitStack() as stack:
        if not quick:
            step = await stack.enter_async_context(operation.step(title))
        task = asyncio.ensure_future(loop.run_in_executor(executor, work, tell))
        task.add_done_callback(lambda _: speaks.set())
        try:
            if step is None:
                await speaks.wait()
                if said is not None:
                    step = await stack.enter_async_context(operation.step(title))
                    step.progress(*said)
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.gather(task, return_exceptions=True)
            raise
