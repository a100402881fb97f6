"""Limits of an instance that exists: old or new, never mixed; what has to wait is said."""

from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.errors import Conflict, IllegalState, InvalidInput, NoSpace, RuntimeFailed
from twofold.instance.record import Record, from_row
from twofold.instance.usage import _held
from twofold.model.instance import InstanceChange, InstanceSpec, Isolation, State
from twofold.operations import Operation

MIB = 1 << 20


async def started(house: FakeHouse, **fields: Any) -> Record:
    spec = InstanceSpec(image="alpine", command=["sleep"], name="web", **fields)
    return await house.manager.creation.run(spec, Operation("run"))


async def change(house: FakeHouse, record: Record, **fields: Any) -> list[str]:
    """The sentences about what has to wait."""
    operation = Operation("change")
    await house.manager.limits.change(record, InstanceChange(**fields), operation)
    return [message for message, _ in operation.warnings]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the instance holds of memory."""
    figure = [0]
    monkeypatch.setattr(
        "twofold.instance.usage.Gauge.memory_held_bytes", lambda self, record: figure[0]
    )
    return figure


async def test_a_running_container_obeys_at_once(tmp_path: Path, held: list[int]) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house, cpus=2)
        said = await change(house, record, memory_bytes=64 * MIB, pids=100)
        assert said == []
        sandbox = house.keeper.sandboxes[record.id]
        assert sandbox["limits"] == {"memory_bytes": 64 * MIB, "pids": 100}  # cpus: untouched
        assert record.facts["limits"] == {"cpus": 2, "memory_bytes": 64 * MIB, "pids": 100}
        row = from_row({**house.store.rows[record.id]})
        assert (row.spec.cpus, row.spec.memory_bytes, row.spec.pids) == (2, 64 * MIB, 100)
        await change(house, record, memory_bytes=None, pids=None, cpus=None)
        assert sandbox["limits"] == {"memory_bytes": None, "pids": 2048, "cpus": None}


async def test_what_is_set_on_a_stopped_one_waits_for_its_start(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        await change(house, record, memory_bytes=64 * MIB, restart="always")
        assert "update" not in house.keeper.calls
        await house.manager.lifecycle.start(record, Operation("start"))
        assert house.keeper.plans[record.id]["cgroup"]["memory_bytes"] == 64 * MIB
        assert record.spec.restart == "always"


async def test_less_memory_than_is_in_use_is_refused_with_the_figure(
    tmp_path: Path, held: list[int]
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        held[0] = 100 * MIB
        with pytest.raises(Conflict, match="uses 100 MiB") as refusal:
            await change(house, record, memory_bytes=64 * MIB, pids=10)
        assert "memory=126m" in refusal.value.hint
        assert "update" not in house.keeper.calls
        assert record.spec.pids is None


@pytest.mark.parametrize("where", ["update", "row"])
async def test_a_failure_leaves_the_old_limits(
    tmp_path: Path, held: list[int], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house, pids=10)
        if where == "update":
            house.failing.names.add("update")
            failure: type[Exception] = RuntimeFailed
        else:
            failure = NoSpace

            def full(*_: Any) -> Any:
                raise NoSpace("the disk is full")

            monkeypatch.setattr(house.store, "update_instance", full)
        with pytest.raises(failure):
            await change(house, record, pids=20)
        assert record.spec.pids == 10
        assert record.facts["limits"]["pids"] == 10
        if where == "row":
            assert house.keeper.sandboxes[record.id]["limits"] == {"pids": 10}


async def test_after_a_crash_in_between_the_row_counts(tmp_path: Path, held: list[int]) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house, pids=10)
        house.keeper.sandboxes[record.id]["limits"] = {"pids": 20}  # and then the daemon died
        await house.manager.limits.reapply(record)
        assert house.keeper.sandboxes[record.id]["limits"]["pids"] == 10
        house.failing.names.add("update")
        await house.manager.limits.reapply(record)  # no reason not to adopt it


async def test_a_virtual_machine_says_what_waits_for_its_next_start(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(
            house, isolation=Isolation.VM, hardware="emulated", cpus=2, memory_bytes=256 * MIB
        )
        assert await change(house, record, cpus=1.5) == []
        limits = house.keeper.sandboxes[record.id]["limits"]
        assert limits == {"cpus": 1.5}
        (said,) = await change(house, record, cpus=4)
        assert "keeps its 2 virtual processors until its next start, then it has 4" in said
        assert "emulated hardware" in said
        assert limits == {"cpus": 2.0}
        said_both = await change(house, record, memory_bytes=512 * MIB)
        assert any("keeps its 256 MiB" in one and "512 MiB" in one for one in said_both)
        assert record.spec.memory_bytes == 512 * MIB
        assert record.facts["limits"]["memory_bytes"] == 256 * MIB  # in force
        await change(house, record, pids=50)
        assert house.machines.errands == [("limit", {"pids": 50})]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nothing to change"),
        ({"memory_bytes": 8 * MIB}, "too small for a virtual machine"),
    ],
)
async def test_what_could_not_be_asked_for_at_the_start(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house, isolation=Isolation.VM)
        with pytest.raises(InvalidInput, match=said):
            await change(house, record, **fields)


async def test_not_while_it_starts_or_stops_and_not_against_rm(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await started(house, auto_remove=True)
        with pytest.raises(Conflict, match="--rm"):
            await change(house, record, restart="always")
        record.change(state=State.STOPPING)
        with pytest.raises(IllegalState, match="cannot set"):
            await change(house, record, pids=5)


@pytest.mark.parametrize(
    ("raw", "held_bytes"),
    [
        ({"total_inactive_file": 30, "total_active_file": 20, "inactive_file": 1}, 50),  # v1
        ({"inactive_file": 60, "active_file": 10, "anon": 30}, 30),  # v2
        ({}, 100),
        ({"inactive_file": 500}, 0),
    ],
)
def test_cache_of_files_is_not_held(raw: dict[str, int], held_bytes: int) -> None:
    assert _held({"usage": {"usage": 100}, "raw": raw}) == held_bytes
