"""All operations of one daemon: started here, found by id, kept for a while after their end.

Refuses more than ``MAX_RUNNING`` at a time, so that a flood of requests costs bounded memory.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from twofold.errors import NotFound, TwofoldError, Unavailable
from twofold.operations.operation import Operation
from twofold.operations.scope import TaskScope

KEEP_FINISHED = 128
MAX_RUNNING = 1024

Work = Callable[[Operation], Awaitable[Any]]

log = logging.getLogger("twofold.operations")


class Operations:
    """Owns the tasks: an operation outlives the request that asked for it."""

    def __init__(self, scope: TaskScope) -> None:
        self._scope = scope
        self._running: dict[str, Operation] = {}
        self._finished: dict[str, Operation] = {}

    def start(self, kind: str, work: Work) -> Operation:
        """Begin ``work`` and return at once. Raises Unavailable when too much runs already."""
        if len(self._running) >= MAX_RUNNING:
            raise Unavailable(
                f"{len(self._running)} operations are running already",
                hint="try again in a moment",
            )
        operation = Operation(kind)
        self._running[operation.id] = operation
        task = self._scope.spawn(self._run(operation, work), name=f"{kind} {operation.id}")
        operation.attach(task)
        # A task cancelled before its first step never enters _run: end the operation here too.
        task.add_done_callback(lambda _: self._settle(operation))
        return operation

    def get(self, operation_id: str) -> Operation:
        found = self._running.get(operation_id) or self._finished.get(operation_id)
        if found is None:
            raise NotFound(
                f"no operation {operation_id!r}",
                hint=f"finished operations are kept until {KEEP_FINISHED} newer ones ended",
            )
        return found

    def list(self) -> list[Operation]:
        return [*self._running.values(), *self._finished.values()]

    def cancel(self, operation_id: str) -> Operation:
        operation = self.get(operation_id)
        operation.cancel()
        return operation

    async def _run(self, operation: Operation, work: Work) -> None:
        try:
            operation.finish(await work(operation))
        except asyncio.CancelledError as error:
            operation.fail(error)
            raise
        except TwofoldError as error:
            operation.fail(error)
        except Exception as error:
            log.exception("%s %s failed", operation.kind, operation.id)
            operation.fail(error)

    def _settle(self, operation: Operation) -> None:
        if not operation.ended:
            operation.fail(asyncio.CancelledError())
        if self._running.pop(operation.id, None) is None:
            return
        self._finished[operation.id] = operation
        while len(self._finished) > KEEP_FINISHED:
            del self._finished[next(iter(self._finished))]
