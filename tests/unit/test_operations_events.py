"""Operations: order of events, progress from threads, cancel, slow watchers."""

import asyncio
import errno
from typing import Any

import pytest

from twofold.errors import Conflict, NoSpace, NotFound, TwofoldError
from twofold.operations import Operation, Operations, TaskScope


async def collect(operation: Operation) -> list[dict[str, Any]]:
    return [event async for event in operation.events()]


async def test_stream_begins_with_the_operation_and_ends_with_the_result() -> None:
    async def work(op: Operation) -> dict[str, int]:
        async with op.step("Building the image") as step:
            step.progress(0.4, "unpacking")
        op.warn("no KVM", "twofold doctor")
        return {"answer": 42}

    async with TaskScope() as scope:
        operation = Operations(scope).start("image.build", work)
        events = await collect(operation)
    assert events[0]["type"] == "operation"
    assert events[-1] == {"type": "result", "result": {"answer": 42}}
    steps = [event["step"] for event in events if event["type"] == "step"]
    assert steps[-1]["status"] == "done"
    assert steps[-1]["progress"] == 1.0
    assert {"type": "warning", "message": "no KVM", "hint": "twofold doctor"} in events


async def test_a_late_watcher_sees_what_was() -> None:
    async def work(op: Operation) -> None:
        async with op.step("one"):
            pass
        op.warn("careful")

    async with TaskScope() as scope:
        registry = Operations(scope)
        operation = registry.start("x", work)
        await operation.wait()
        events = await collect(registry.get(operation.id))
    assert events[0]["operation"]["steps"][0]["status"] == "done"
    assert [event["type"] for event in events] == ["operation", "warning", "result"]


async def test_errors_cross_as_themselves_and_unknown_ones_in_one_line() -> None:
    async def taken(op: Operation) -> None:
        async with op.step("Allocating"):
            raise Conflict("name taken", hint="choose another")

    async def bug(op: Operation) -> None:
        raise ValueError("line one\nline two")

    async with TaskScope() as scope:
        registry = Operations(scope)
        with pytest.raises(Conflict):
            await registry.start("x", taken).wait()
        operation = registry.start("y", bug)
        with pytest.raises(TwofoldError, match="unexpected ValueError: line one"):
            await operation.wait()
    assert operation.error is not None
    assert "\n" not in operation.error["message"]


@pytest.mark.parametrize("path", ["/data/x", None])
async def test_a_full_disk_is_said_as_what_it_is(path: str | None) -> None:
    async def full(op: Operation) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    async with TaskScope() as scope:
        with pytest.raises(NoSpace, match="no space left on the disk") as caught:
            await Operations(scope).start("x", full).wait()
    assert (path or "disk") in caught.value.message
    assert caught.value.hint == "df -h"


async def test_progress_from_a_thread_reaches_the_watcher() -> None:
    release = asyncio.Event()

    async def work(op: Operation) -> None:
        async with op.step("Unpacking") as step:
            await release.wait()
            await asyncio.to_thread(step.progress, 0.5, "half")

    async with TaskScope() as scope:
        operation = Operations(scope).start("x", work)
        stream = operation.events()
        seen = [await anext(stream), await anext(stream)]
        release.set()
        seen += [event async for event in stream]
    assert any(event.get("step", {}).get("progress") == 0.5 for event in seen)


async def test_cancel_unwinds_and_leaving_the_stream_does_not_cancel() -> None:
    unwound = asyncio.Event()
    release = asyncio.Event()

    async def work(op: Operation) -> str:
        try:
            async with op.step("Waiting"):
                await release.wait()
        except asyncio.CancelledError:
            unwound.set()
            raise
        return "finished"

    async with TaskScope() as scope:
        registry = Operations(scope)
        first = registry.start("x", work)
        stream = first.events()
        await anext(stream)
        await stream.aclose()
        second = registry.start("x", work)
        await asyncio.sleep(0)
        registry.cancel(second.id)
        events = await collect(second)
        assert unwound.is_set()
        assert events[-1]["error"]["code"] == "cancelled"
        assert events[0]["operation"]["steps"][0]["title"] == "Waiting"
        release.set()
        assert await first.wait() == "finished"
        assert not first.cancel()


async def test_cancelled_before_the_first_step() -> None:
    async def work(op: Operation) -> None:
        raise AssertionError("never runs")

    async with TaskScope() as scope:
        registry = Operations(scope)
        operation = registry.start("x", work)
        operation.cancel()
        with pytest.raises(TwofoldError, match="cancelled"):
            await operation.wait()


async def test_a_slow_watcher_costs_bounded_memory() -> None:
    async def work(op: Operation) -> None:
        async with op.step("Much") as step:
            for n in range(20000):
                step._last_sent = 0.0  # no throttle: every call is an event
                step.progress(n / 20000)

    async with TaskScope() as scope:
        operation = Operations(scope).start("x", work)
        stream = operation.events()
        await anext(stream)
        await operation.wait()
        rest = [event async for event in stream]
    assert len(rest) == 2


async def test_finished_operations_are_forgotten_in_the_end() -> None:
    async def work(op: Operation) -> None:
        return None

    async with TaskScope() as scope:
        registry = Operations(scope)
        first = registry.start("x", work)
        for _ in range(200):
            await registry.start("x", work).wait()
        await asyncio.sleep(0)
        with pytest.raises(NotFound):
            registry.get(first.id)
        assert len(registry.list()) <= 130
