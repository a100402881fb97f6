"""A machine that QEMU has stopped for want of room: what it is called, and who lets it go on."""

import asyncio
from pathlib import Path

import pytest
from fake_house import FakeHouse

from twofold.errors import IllegalState, NoSpace
from twofold.instance import full_disk
from twofold.instance.record import Record
from twofold.instance.sessions import ExecRequest
from twofold.model.instance import InstanceSpec, State
from twofold.model.plugging import PlugWish
from twofold.operations import Operation


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "RETRY_S", 0.01)
    monkeypatch.setattr(full_disk, "SETTLE_S", 0.001)


async def becomes(record: Record, state: State) -> None:
    await asyncio.wait_for(record.until(lambda: record.state is state), 5)


async def machine(house: FakeHouse) -> Record:
    spec = InstanceSpec(image="alpine", command=["sleep"], name="m", isolation="vm", cold=True)
    return await house.manager.creation.run(spec, Operation("run"))


async def halted(house: FakeHouse) -> Record:
    record = await machine(house)
    house.machines.state = "io-error"
    house.manager.on_event({"event": "halted", "id": record.id})
    await becomes(record, State.PAUSED)
    return record


async def test_it_is_paused_with_the_reason_until_there_is_room(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await halted(house)
        assert record.view()["error"] == full_disk.REASON
        assert house.store.rows[record.id]["state"] == "running"
        with pytest.raises(IllegalState, match=full_disk.REASON) as refused:
            await house.manager.sessions.execute(record, ExecRequest(command=["true"]), ticket="t")
        assert refused.value.hint == full_disk.HINT
        house.machines.state = "running"
        await becomes(record, State.RUNNING)
        assert record.view()["error"] is None


async def test_what_its_guest_has_to_answer_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await halted(house)
        manager, operation = house.manager, Operation("x")
        wish = PlugWish(disk_bytes=1 << 20)
        for work in (
            manager.forks.fork(record, operation, count=2, pattern=None),
            manager.suspension.suspend(record, operation),
            manager.plugging.plug(record, wish, operation),
        ):
            with pytest.raises(IllegalState, match=full_disk.REASON) as refused:
                await work
            assert refused.value.hint == full_disk.HINT


async def test_its_user_lets_it_go_on_where_there_is_room(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await halted(house)
        with pytest.raises(NoSpace, match=full_disk.REASON):
            await house.manager.lifecycle.resume(record)
        assert record.view()["error"] == full_disk.REASON
        house.machines.state = "running"
        await house.manager.lifecycle.resume(record)
        assert record.state is State.RUNNING


async def test_one_that_its_user_paused_stays_paused(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await halted(house)
        await house.manager.lifecycle.pause(record)
        assert record.view()["error"] is None
        house.machines.state = "running"
        await asyncio.sleep(0.05)
        assert record.state is State.PAUSED
        await house.manager.lifecycle.resume(record)
        assert record.state is State.RUNNING


async def test_it_can_be_stopped_and_is_not_let_go_on_after(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await halted(house)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        assert (record.state, record.halted) == (State.STOPPED, "")
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        await asyncio.sleep(0.02)
        assert house.left() == []


async def test_one_that_runs_or_is_held_still_by_us_is_left_alone(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await machine(house)
        for state in ("running", "paused"):
            house.machines.state = state
            house.manager.on_event({"event": "halted", "id": record.id})
            await house.settle()
            assert record.state is State.RUNNING
