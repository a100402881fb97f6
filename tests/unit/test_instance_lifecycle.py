"""The verbs, on a manager among fakes: order, undo at every step, races between verbs, restarts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NotFound,
    RuntimeFailed,
    Unsupported,
)
from twofold.instance import restart_policy
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Port, State
from twofold.operations import Operation


def spec(word: str = "sleep", **fields: Any) -> InstanceSpec:
    return InstanceSpec(image="alpine", command=[word], **fields)


async def run(house: FakeHouse, word: str = "sleep", **fields: Any) -> Record:
    return await house.manager.creation.run(spec(word, **fields), Operation("run"))


async def test_run_stop_remove(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web", ports=[Port(host_port=8080, guest_port=80)])
        assert record.state is State.RUNNING
        assert record.pid == 4242
        assert record.ready_seconds is not None
        assert house.networks.published == {record.id}
        await house.manager.lifecycle.stop(record, Operation("stop"))
        assert (record.state, record.exit_code) == (State.STOPPED, 143)
        assert house.store.rows[record.id]["state"] == "stopped"
        assert not house.keeper.sandboxes
        assert not house.networks.plugged
        await house.manager.lifecycle.remove(record, Operation("rm"), force=False)
        assert house.left() == []


@pytest.mark.parametrize(
    "step",
    [
        *("allocate", "insert", "provision", "root", "resolver", "create", "admit", "plug"),
        *("publish", "start"),
    ],
)
async def test_a_failing_step_leaves_nothing_of_a_run(tmp_path: Path, step: str) -> None:
    async with FakeHouse(tmp_path) as house:
        house.failing.names.add(step)
        with pytest.raises(RuntimeFailed, match=step):
            await run(house, ports=[Port(host_port=8080, guest_port=80)])
        await house.settle()
        assert house.left() == []
        house.failing.names.clear()
        assert (await run(house)).state is State.RUNNING


@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_cancelled_run_leaves_nothing(tmp_path: Path, step: str) -> None:
    async with FakeHouse(tmp_path) as house:
        house.keeper.hang_on = step
        operation = house.operations.start("run", lambda op: house.manager.creation.run(spec(), op))
        await house.keeper.hanging.wait()
        house.keeper.hang_on = ""
        operation.cancel()
        await house.settle()
        assert house.left() == []


async def test_a_failed_start_of_a_kept_instance_keeps_it_as_it_was(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await house.manager.creation.create(spec(name="web"), Operation("create"))
        house.failing.names.add("plug")
        with pytest.raises(RuntimeFailed):
            await house.manager.lifecycle.start(record, Operation("start"))
        await house.settle()
        assert record.state is State.CREATED
        assert record.error == "plug was made to fail"
        assert not house.keeper.sandboxes


async def test_an_exit_is_recorded_and_auto_remove_removes(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        kept = await run(house, "brief", name="kept")
        gone = await run(house, "brief", name="gone", auto_remove=True)
        assert await house.manager.wait(kept) == 3
        assert await house.manager.wait(gone, "removed") == 3
        await house.settle()
        assert house.store.rows[kept.id]["exit_code"] == 3
        assert gone.id not in house.store.rows
        assert not house.keeper.sandboxes


async def test_a_deaf_payload_is_killed_after_the_timeout(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, "deaf")
        await house.manager.lifecycle.stop(record, Operation("stop"), timeout_s=0.05)
        assert record.exit_code == 137
        assert house.keeper.calls[-3:] == ["signal", "kill", "release"]


async def test_kill_reaches_an_instance_that_is_stopping(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, "deaf")
        stopping = asyncio.ensure_future(
            house.manager.lifecycle.stop(record, Operation("stop"), timeout_s=60)
        )
        await record.until(lambda: record.state is State.STOPPING)
        await house.manager.lifecycle.kill(record, "KILL")
        await asyncio.wait_for(stopping, 5)
        assert record.state is State.STOPPED


async def test_forced_removal_of_one_that_is_starting(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        house.keeper.hang_on = "start"
        operation = house.operations.start(
            "run", lambda op: house.manager.creation.run(spec(name="web"), op)
        )
        await house.keeper.hanging.wait()
        house.keeper.hang_on = ""
        record = house.manager.find("web")
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        await house.settle()
        assert operation.ended
        assert house.left() == []


async def test_pause_and_resume(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        await house.manager.lifecycle.pause(record)
        with pytest.raises(IllegalState, match="paused"):
            await house.manager.lifecycle.pause(record)
        await house.manager.lifecycle.resume(record)
        assert record.state is State.RUNNING
        await house.manager.lifecycle.pause(record)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        assert record.state is State.STOPPED


async def test_remove_refuses_what_runs_unless_forced(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web")
        with pytest.raises(IllegalState, match="running"):
            await house.manager.lifecycle.remove(record, Operation("rm"), force=False)
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        await house.manager.lifecycle.remove(record, Operation("rm"), force=True)
        assert house.left() == []
        with pytest.raises(NotFound):
            await house.manager.lifecycle.start(record, Operation("start"))


async def test_fifty_creates_of_one_name_have_one_winner(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        results = await asyncio.gather(
            *(
                house.manager.creation.create(spec(name="web"), Operation("create"))
                for _ in range(50)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(result, Record) for result in results) == 1
        assert all(isinstance(r, Record | Conflict) for r in results)
        assert len(house.store.rows) == 1


async def test_a_hundred_starts_have_distinct_names_ids_and_addresses(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        records = await asyncio.gather(*(run(house) for _ in range(100)))
        for field in ("id", "name", "id_base", "address", "mac"):
            assert len({getattr(record, field) for record in records}) == 100


async def test_a_name_is_free_again_once_its_auto_removed_owner_is_going(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        first = await run(house, "sleep", name="web", auto_remove=True)
        house.keeper.end(first.id, 0)
        second = await run(house, "sleep", name="web", auto_remove=True)
        assert second.id != first.id


async def test_restart_policy_restarts_until_stopped(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, name="web", restart="always")
        for count in (1, 2):
            house.keeper.end(record.id, 1)
            await asyncio.wait_for(
                record.until(
                    lambda count=count: (  # type: ignore[misc]
                        record.state is State.RUNNING and record.restart_count == count
                    )
                ),
                5,
            )
        house.keeper.end(record.id, 1)
        await record.until(lambda: record.state is State.STOPPED)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        await asyncio.sleep(0.5)
        assert record.state is State.STOPPED
        assert record.intent == "stopped"


@pytest.mark.parametrize(
    ("policy", "exit_code", "count", "expected"),
    [
        ("no", 1, 0, None),
        ("always", 0, 0, 0.1),
        ("unless-stopped", 1, 3, 0.8),
        ("always", 1, 50, 60.0),
        ("on-failure", 0, 0, None),
        ("on-failure", 1, 0, 0.1),
        ("on-failure:2", 1, 2, None),
        ("on-failure:2", None, 1, 0.2),
    ],
)
def test_delays(policy: str, exit_code: int | None, count: int, expected: float | None) -> None:
    found = restart_policy.delay(policy, exit_code=exit_code, restart_count=count, lived_s=0)
    assert found == expected


def test_a_long_run_begins_the_delays_anew() -> None:
    assert restart_policy.delay("always", exit_code=1, restart_count=9, lived_s=11) == 0.1


async def test_bad_wishes_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        for bad in (
            spec(volumes=[{"source": "/nonexistent/x", "target": "/data"}]),
            spec(volumes=[{"source": "/tmp", "target": "/proc/x"}]),
            spec(workdir="relative"),
            spec(env=["=x"]),
        ):
            with pytest.raises(InvalidInput):
                await house.manager.creation.create(bad, Operation("create"))
        with pytest.raises(NotFound):
            await house.manager.creation.create(InstanceSpec(image="nosuch"), Operation("create"))
        ignored = InstanceSpec(image="nosuch", user_data="root:x:0")
        with pytest.raises(InvalidInput, match="user-data"):  # before any image is fetched
            await house.manager.creation.create(ignored, Operation("create"))
        wish = spec(network="none", ports=[Port(host_port=1, guest_port=1)])
        with pytest.raises(Conflict):
            await house.manager.creation.create(wish, Operation("create"))
        assert house.left() == []


async def test_an_operating_system_of_its_own_has_no_streams_to_attach_to(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        wish = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.run(wish, Operation("run"))
        record.spec = record.spec.model_copy(update={"media": "disk"})
        with pytest.raises(Unsupported) as caught:
            await house.manager.sessions.attach(record, ticket="0" * 32)
        assert "attach" not in house.keeper.calls
        assert "twofold screen web" in caught.value.hint
        record.spec = wish
