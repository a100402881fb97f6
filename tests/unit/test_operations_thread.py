"""Blocking work as a step: what is shown of it, and how a cancel reaches it."""

import asyncio
import threading
from typing import Any

import pytest

from twofold.model.progress import Progress
from twofold.operations import Operation, in_thread


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_work_is_one_step_with_its_progress() -> None:
    async def main() -> tuple[int, Operation]:
        operation = Operation("test")

        def work(tell: Progress) -> int:
            tell(0.5, "half")
            return 7

        return await in_thread(operation, "Working", work), operation

    result, operation = run(main())
    assert result == 7
    (step,) = operation.steps
    assert (step.title, step.status.value, step.message) == ("Working", "done", "half")


def test_quick_work_becomes_a_step_only_when_it_speaks() -> None:
    async def main() -> list[str]:
        operation = Operation("test")
        await in_thread(operation, "Silent", lambda tell: None, quick=True)
        await in_thread(operation, "Loud", lambda tell: tell(None, "a word"), quick=True)
        return [step.title for step in operation.steps]

    assert run(main()) == ["Loud"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_cancel_reaches_the_thread_and_waits_for_its_end(quick: bool) -> None:
    unwound: list[bool] = []
    begun = threading.Event()

    def work(tell: Progress) -> None:
        try:
            while True:
                tell(None, "still at it")
                begun.set()
        finally:
            unwound.append(True)

    async def main() -> str:
        operation = Operation("test")
        task = asyncio.ensure_future(in_thread(operation, "Long", work, quick=quick))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return operation.steps[0].status.value if operation.steps else "none"

    assert run(main()) in ("cancelled", "none")
    assert unwound == [True]


def test_a_failure_of_the_work_fails_its_step() -> None:
    async def main() -> str:
        operation = Operation("test")

        def work(tell: Progress) -> None:
            tell(None, "about to fail")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await in_thread(operation, "Failing", work, quick=True)
        return operation.steps[0].status.value

    assert run(main()) == "failed"
