"""A new daemon meets what an old one left: every row of the table in instance/restoring.py."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.instance import restoring
from twofold.instance.record import Record
from twofold.instance.templates import TemplateDesk
from twofold.model.instance import InstanceSpec, State
from twofold.operations import Operation


async def run(house: FakeHouse, **fields: Any) -> Record:
    wish = InstanceSpec(image="alpine", command=["sleep"], **fields)
    return await house.manager.creation.run(wish, Operation("run"))


async def reborn(house: FakeHouse, **options: Any) -> restoring.Report:
    rows = [dict(row) for row in house.store.rows.values()]
    manager = house.new_daemon()
    return await restoring.restore(manager, rows, **{"same_boot": True, **options})


async def test_what_runs_is_adopted_with_its_network_and_can_be_stopped(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        await run(house, name="web")
        report = await reborn(house)
        record = house.manager.find("web")
        assert report.adopted == 1
        assert record.state is State.RUNNING
        assert record.main is not None
        assert house.networks.plugged == {record.id}
        await house.manager.lifecycle.stop(record, Operation("stop"))
        await house.manager.lifecycle.start(record, Operation("start"))
        assert record.state is State.RUNNING


async def test_an_exit_during_the_absence_is_recorded(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        kept, gone = await run(house, name="kept"), await run(house, name="gone", auto_remove=True)
        house.keeper.on_event = None
        house.keeper.end(kept.id, 7)
        house.keeper.end(gone.id, 0)
        report = await reborn(house)
        record = house.manager.find("kept")
        assert (record.state, record.exit_code) == (State.STOPPED, 7)
        assert report.ended == 2
        assert not house.keeper.sandboxes
        assert list(house.store.rows) == [kept.id]


async def test_what_ran_before_its_row_said_so_is_adopted(tmp_path: Path) -> None:
    """The reply to a start does not wait for the disk."""
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        house.store.rows[record.id].update(
            state="starting", exit_code=3, finished_at="2026-01-01T00:00:00Z", error="earlier"
        )
        report = await reborn(house)
        found = house.manager.find("web")
        assert report.adopted == 1
        assert (found.state, found.exit_code, found.finished_at) == (State.RUNNING, None, None)
        assert found.error is None
        assert found.facts == record.facts
        assert list(house.keeper.sandboxes) == [record.id]


@pytest.mark.parametrize("auto_remove", [True, False])
async def test_killed_while_a_template_was_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto_remove: bool
) -> None:
    """That may take long. Nobody asked for it to stay (--rm), or it can be started again."""
    reached = asyncio.Event()

    async def fork(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(TemplateDesk, "fork", fork)
    async with FakeHouse(tmp_path) as house:
        starting = asyncio.ensure_future(
            run(house, name="web", isolation="vm", auto_remove=auto_remove)
        )
        await reached.wait()
        await asyncio.sleep(0)  # the row is written beside
        await reborn(house)
        starting.cancel()
        names = [record.name for record in house.manager.records]
        assert names == ([] if auto_remove else ["web"])
        assert len(os.listdir(house.manager.rooms.paths.instances)) == len(names)


@pytest.mark.parametrize("state", ["created", "starting", "ended"])
async def test_killed_in_the_middle_of_a_start(tmp_path: Path, state: str) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        house.store.rows[record.id]["state"] = "starting"
        house.keeper.on_event = None
        house.keeper.sandboxes[record.id]["state"] = state
        await reborn(house)
        await house.settle()
        found = house.manager.find("web")
        assert found.state is State.STOPPED
        assert not house.keeper.sandboxes
        assert not house.networks.plugged
        await house.manager.lifecycle.start(found, Operation("start"))


async def test_killed_between_row_and_directory(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        wish = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.create(wish, Operation("create"))
        os.unlink(f"{house.paths.instance_dir(record.id)}/spec.json")
        report = await reborn(house)
        assert report.removed == 1
        assert house.left() == []


async def test_killed_in_the_middle_of_a_removal(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        wish = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.create(wish, Operation("create"))
        directory = house.paths.instance_dir(record.id)
        os.rename(directory, f"{house.paths.instances}/.removing-{record.id}")
        await reborn(house)
        assert house.left() == []


async def test_a_row_that_the_database_lost_is_made_again(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        del house.store.rows[record.id]
        report = await reborn(house)
        assert house.manager.find("web").state is State.RUNNING
        assert list(house.store.rows) == [record.id]
        assert any("missing in the database" in warning for warning in report.warnings)


async def test_a_sandbox_that_nothing_remembers_is_ended(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        del house.store.rows[record.id]
        os.unlink(f"{house.paths.instance_dir(record.id)}/spec.json")
        report = await reborn(house)
        await house.settle()
        assert not house.keeper.sandboxes
        assert report.removed == 1
        assert any("left alone" in warning for warning in report.warnings)


async def test_after_a_reboot_restart_always_starts_again(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        await run(house, name="always", restart="always")
        await run(house, name="never")
        await run(house, name="gone", auto_remove=True)
        house.keeper.sandboxes.clear()
        await reborn(house, same_boot=False)
        always, never = house.manager.find("always"), house.manager.find("never")
        await always.until(lambda: always.state is State.RUNNING)
        assert never.state is State.STOPPED
        assert never.error == "the host was restarted"
        assert len(house.manager.records) == 2


async def test_a_stopped_one_stays_stopped_after_a_reboot(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web", restart="always")
        await house.manager.lifecycle.stop(record, Operation("stop"))
        await reborn(house, same_boot=False)
        await house.settle()
        assert house.manager.find("web").state is State.STOPPED


async def test_a_lost_database_is_rebuilt_from_the_directories(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        running, stopped = await run(house, name="runs"), await run(house, name="stops")
        await house.manager.lifecycle.stop(stopped, Operation("stop"))
        os.mkdir(f"{house.paths.instances}/{'0' * 16}")
        Path(f"{house.paths.instances}/{'0' * 16}/spec.json").write_text("{broken")
        house.store.rows.clear()
        report = await reborn(house)
        assert report.rebuilt == 2
        assert house.manager.find("runs").state is State.RUNNING
        assert house.manager.find("stops").state is State.STOPPED
        assert house.manager.find("runs").id_base == running.id_base
        assert house.manager.find("runs").network == running.network
        assert any("could not be read" in warning for warning in report.warnings)
        assert set(house.store.rows) == {running.id, stopped.id}


@pytest.mark.parametrize("known", ["nothing", "not since when"])
async def test_a_rebuilt_machine_keeps_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    """A fork of a template begins with the template's disk: only a new machine may be one."""
    forked: list[str] = []

    async def fork(_: TemplateDesk, record: Record, *__: object) -> None:
        forked.append(record.name)

    monkeypatch.setattr(TemplateDesk, "fork", fork)
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web", isolation="vm")
        assert forked == ["web"], "the first start is a fork"
        await house.manager.lifecycle.stop(record, Operation("stop"))
        if known == "nothing":
            house.store.rows.clear()
        else:
            house.store.rows[record.id]["started_at"] = None
        await reborn(house)
        found = house.manager.find("web")
        assert (found.state, found.id) == (State.STOPPED, record.id)
        await house.manager.lifecycle.start(found, Operation("start"))
        assert found.state is State.RUNNING
        assert forked == ["web"], "what it had written would be gone"


async def test_a_row_that_makes_no_sense_is_left_alone_and_said(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        house.store.rows["bad"] = {**house.store.rows[record.id], "id": "bad", "name": "bad"}
        house.store.rows["bad"]["spec"] = json.dumps({"image": 1})
        report = await reborn(house)
        assert any("'bad'" in warning for warning in report.warnings)
        assert house.manager.find("web").state is State.RUNNING


async def test_the_ids_of_a_row_that_makes_no_sense_stay_taken(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        bad = record.id_base + 65536
        house.store.rows["bad"] = {**house.store.rows[record.id], "id": "bad", "name": "bad"}
        house.store.rows["bad"] |= {"spec": json.dumps({"image": 1}), "id_base": bad}
        await reborn(house)
        assert (await run(house, name="next")).id_base not in (record.id_base, bad)
