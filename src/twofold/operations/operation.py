"""A long piece of work: steps with progress, warnings, one result or error, and cancel.

    async with op.step("Building the image") as step:
        step.progress(0.4, "unpacking libc6")

A watcher that reads slowly costs a bounded amount of memory: of each step only the latest state
waits for it. Progress may be reported from any thread. Refuses nothing; the registry owns life
times (see ``registry.py``).
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twofold.errors import TwofoldError, no_space
from twofold.model.operation import Operation as OperationModel
from twofold.model.operation import OperationStatus
from twofold.model.operation import Step as StepModel

# A terminal redraws ten times a second; more events than that help nobody.
PROGRESS_INTERVAL_S = 0.1

Event = dict[str, Any]


class StepHandle:
    """One running step. ``progress`` may be called from threads."""

    def __init__(self, operation: "Operation", index: int, title: str) -> None:
        self._operation = operation
        self._started = time.monotonic()
        self._last_sent = 0.0
        self.index = index
        self.title = title
        self.status = OperationStatus.RUNNING
        self.fraction: float | None = None
        self.message = ""
        self._elapsed_s: float | None = None

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Report how far the step is (0..1, or None when unknown) and what it does now."""
        if fraction is not None:
            fraction = min(1.0, max(0.0, float(fraction)))
        self.fraction, self.message = fraction, message
        now = time.monotonic()
        if now - self._last_sent >= PROGRESS_INTERVAL_S:
            self._last_sent = now
            self._operation.publish_step(self)

    def finish(self, status: OperationStatus) -> None:
        self.status = status
        self._elapsed_s = time.monotonic() - self._started
        if status is OperationStatus.DONE and self.fraction is not None:
            self.fraction = 1.0
        self._operation.publish_step(self)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started if self._elapsed_s is None else self._elapsed_s

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "title": self.title,
            "status": self.status.value,
            "progress": self.fraction,
            "message": self.message,
            "elapsed_s": round(self.elapsed_s, 3),
        }


class _Watcher:
    """What one reader has not seen yet: the latest of each step, and everything else in order."""

    def __init__(self) -> None:
        self.pending: dict[object, Event] = {}
        self.wake = asyncio.Event()

    def put(self, key: object, event: Event) -> None:
        self.pending[key] = event
        self.wake.set()


class Operation:
    """Created by ``Operations.start``; the work gets it as its only argument."""

    def __init__(self, kind: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.id = secrets.token_hex(8)
        self.kind = kind
        self.subject = ""  # the instance or image that it is about
        self.status = OperationStatus.RUNNING
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.warnings: list[tuple[str, str]] = []
        self.steps: list[StepHandle] = []
        self._watchers: set[_Watcher] = set()
        self._loop = loop or asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._done = asyncio.Event()
        self._failure: TwofoldError | None = None

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[StepHandle]:
        """One step; ends as done, failed or cancelled with the block."""
        handle = StepHandle(self, len(self.steps), title)
        self.steps.append(handle)
        self.publish_step(handle)
        try:
            yield handle
        except asyncio.CancelledError:
            handle.finish(OperationStatus.CANCELLED)
            raise
        except BaseException:
            handle.finish(OperationStatus.FAILED)
            raise
        handle.finish(OperationStatus.DONE)

    def warn(self, message: str, hint: str = "") -> None:
        """Say something the user should know although the work goes on."""
        self.warnings.append((message, hint))
        event = {"type": "warning", "message": message, "hint": hint}
        self._publish(("warning", len(self.warnings)), event)

    def cancel(self) -> bool:
        """Ask the work to stop and unwind; False when it had already ended."""
        if self._task is None or self._task.done():
            return False
        return self._task.cancel()

    @property
    def ended(self) -> bool:
        return self.status is not OperationStatus.RUNNING

    async def settled(self) -> None:
        """Until it has ended, however. Leaving early does not cancel the work."""
        await self._done.wait()

    async def wait(self) -> Any:
        """The result, or the error raised again. Leaving early does not cancel the work."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self.result

    def model(self) -> OperationModel:
        return OperationModel(
            id=self.id,
            kind=self.kind,
            subject=self.subject,
            status=self.status,
            steps=[StepModel(**step.to_dict()) for step in self.steps],
            result=self.result,
            error=self.error,
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """All that happened so far, then what happens, ending with one result or error.

        Leaving the iterator does not cancel the work: only ``cancel`` does.
        """
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            yield {"type": "operation", "operation": self.model().model_dump(mode="json")}
            for message, hint in self.warnings:
                yield {"type": "warning", "message": message, "hint": hint}
            while True:
                while watcher.pending:
                    key = next(iter(watcher.pending))
                    yield watcher.pending.pop(key)
                if self.ended:
                    yield self.final_event()
                    return
                watcher.wake.clear()
                await watcher.wake.wait()
        finally:
            self._watchers.discard(watcher)

    def final_event(self) -> Event:
        if self.error is not None:
            return {"type": "error", "error": self.error}
        return {"type": "result", "result": self.result}

    def attach(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def finish(self, result: Any) -> None:
        self.result = result
        self._end(OperationStatus.DONE)

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._failure = TwofoldError(f"{self.kind} was cancelled", hint="start it again")
            self.error = {**self._failure.to_dict(), "code": "cancelled"}
            self._end(OperationStatus.CANCELLED)
            return
        self._failure = error if isinstance(error, TwofoldError) else unexpected(error)
        name_in_hint(self._failure, self.subject)
        self.error = self._failure.to_dict()
        self._end(OperationStatus.FAILED)

    def publish_step(self, step: StepHandle) -> None:
        if self._watchers:
            self._publish(("step", step.index), {"type": "step", "step": step.to_dict()})

    def _publish(self, key: object, event: Event) -> None:
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self._deliver(key, event)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, key, event)

    def _deliver(self, key: object, event: Event) -> None:
        for watcher in self._watchers:
            watcher.put(key, event)

    def _end(self, status: OperationStatus) -> None:
        self.status = status
        self._done.set()
        for watcher in self._watchers:
            watcher.wake.set()


def name_in_hint(error: TwofoldError, subject: str) -> None:
    """The rooms below do not know what an instance is called: their hints say NAME."""
    if subject and "NAME" in error.hint:
        error.hint = re.sub(r"(?<![\w-])NAME(?![\w=])", lambda _: subject, error.hint)


def unexpected(error: BaseException) -> TwofoldError:
    """What a user sees of a failure nobody foresaw: the cause in one line, the rest in the log."""
    if (full := no_space(error)) is not None:
        return full
    cause = str(error).split("\n", 1)[0][:300] or "no message"
    return TwofoldError(
        f"unexpected {type(error).__name__}: {cause}",
        hint="the daemon's log has the traceback; `twofold doctor` checks the host",
    )
