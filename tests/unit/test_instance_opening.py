"""Copies from and to what does not run: made for the moment, gone afterwards, however it ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.errors import IllegalState, NotFound, RuntimeFailed
from twofold.instance import restoring
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Isolation, State
from twofold.operations import Operation


async def created(house: FakeHouse, **fields: Any) -> Record:
    spec = InstanceSpec(image="alpine", command=["sleep"], name="web", **fields)
    return await house.manager.creation.create(spec, Operation("create"))


async def read(house: FakeHouse, record: Record) -> bytes:
    chunks = [chunk async for chunk in house.manager.sessions.archive_out(record, "/etc")]
    return b"".join(chunks)


async def body() -> AsyncIterator[bytes]:
    yield b"tar"


async def test_out_of_and_into_a_stopped_container(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house)
        assert await read(house, record) == b"tar"
        await house.manager.sessions.archive_in(record, "/srv", body())
        await house.settle()
        assert house.keeper.archived == [("out", "/etc"), ("in", "/srv")]
        assert house.keeper.sandboxes == {}
        assert house.networks.plugged == set()
        assert "start" not in house.keeper.calls
        assert (record.state, record.exit_event) == (State.CREATED, None)
        await house.manager.lifecycle.start(record, Operation("start"))
        assert await read(house, record) == b"tar"
        assert house.keeper.calls.count("create") == 3


@pytest.mark.parametrize("step", ["create", "archive", "root"])
async def test_a_failure_leaves_no_sandbox(tmp_path: Path, step: str) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house)
        house.failing.names.add(step)
        with pytest.raises(RuntimeFailed):
            await read(house, record)
        await house.settle()
        assert house.keeper.sandboxes == {}
        house.failing.names.clear()
        assert await read(house, record) == b"tar"


async def test_a_reader_that_leaves_and_a_forced_removal(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house)
        copy = house.manager.sessions.archive_out(record, "/etc")
        await anext(copy)
        await copy.aclose()
        assert house.keeper.sandboxes == {}

        async def stall() -> None:
            async for _ in house.manager.sessions.archive_out(record, "/etc"):
                await asyncio.Event().wait()

        stalled = asyncio.ensure_future(stall())
        await house.settle()
        assert len(house.keeper.sandboxes) == 1
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        with pytest.raises(asyncio.CancelledError):
            await stalled
        assert house.left() == []


async def test_a_daemon_that_dies_meanwhile_leaves_nothing_running(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house)
        rows = [dict(row) for row in house.store.rows.values()]
        copy = house.manager.sessions.archive_out(record, "/etc")
        await anext(copy)
        manager = house.new_daemon()
        await restoring.restore(manager, rows, same_boot=True)
        assert house.keeper.sandboxes == {}
        assert manager.find("web").state is State.CREATED
        await copy.aclose()


async def test_a_virtual_machine_says_what_to_type(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house, isolation=Isolation.VM)
        with pytest.raises(IllegalState, match="only its own kernel") as refusal:
            await read(house, record)
        assert refusal.value.hint == "twofold start web"


async def test_paused_and_removed_are_refused(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await created(house)
        await house.manager.lifecycle.start(record, Operation("start"))
        await house.manager.lifecycle.pause(record)
        with pytest.raises(IllegalState, match="it is paused") as refusal:
            await read(house, record)
        assert "twofold resume web" in refusal.value.hint
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        with pytest.raises(NotFound):
            await read(house, record)
