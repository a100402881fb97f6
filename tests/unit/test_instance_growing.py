"""More processors and memory while a machine runs: what is possible, and what the row has of it."""

from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.errors import GuestFailed, IllegalState, TwofoldError, Unsupported
from twofold.hypervisor import hotplug
from twofold.hypervisor.hotplug import Equipment
from twofold.instance import growing
from twofold.instance.growing import Growth
from twofold.instance.record import Record
from twofold.model.instance import InstanceChange, InstanceSpec, Isolation, State
from twofold.operations import Operation

MIB = 1 << 20


def machine(**fields: Any) -> Record:
    spec = InstanceSpec(image="x", isolation=Isolation.VM, **fields)
    made = Record(id="0" * 16, name="m", spec=spec, image_digest="", id_base=0)
    made.change(state=State.RUNNING)
    return made


@pytest.mark.parametrize(
    ("wish", "growth", "said"),
    [
        ({}, Growth(), ""),
        ({"cpus": 4}, Growth(vcpus=4), ""),
        ({"cpus": 1.5}, Growth(), ""),
        ({"cpus": 1}, Growth(), "processors cannot be taken out while it runs"),
        ({"cpus": 17}, Growth(), "at most 16"),
        ({"memory_bytes": 640 * MIB}, Growth(memory_bytes=640 * MIB), ""),
        ({"memory_bytes": 600 * MIB}, Growth(), "multiples of 128 MiB"),
        ({"memory_bytes": 256 * MIB}, Growth(), "memory cannot be taken out while it runs"),
        ({"memory_bytes": 65 << 30}, Growth(), "at most 64 GiB"),
        ({"hardware": "emulated", "cpus": 4}, Growth(), "emulated hardware cannot be given"),
    ],
)
def test_what_can_be_had_at_once(wish: dict[str, Any], growth: Growth, said: str) -> None:
    record = machine(cpus=2)
    spec = record.spec.model_validate({**record.spec.model_dump(), **wish})
    found, later = growing.possible(record, spec)
    assert found == growth
    assert (said in later[0]) if said else not later


def test_a_machine_that_stands_still_gets_nothing() -> None:
    record = machine()
    record.change(state=State.PAUSED)
    found, later = growing.possible(record, record.spec.model_copy(update={"cpus": 4.0}))
    assert not found
    assert "its guest is paused" in later[0]


class FakeQemu:
    """As much of the hotplug room as the row depends on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vcpus, self.memory_bytes = 1, 512 * MIB
        self.failure: TwofoldError | None = None
        self.meanwhile: Any = lambda: None
        monkeypatch.setattr(hotplug, "look", self.look)
        monkeypatch.setattr(hotplug, "grow", self.grow)

    async def look(self, socket_path: str) -> Equipment:
        return Equipment(
            vcpus=self.vcpus,
            memory_bytes=self.memory_bytes,
            plugged_vcpus=self.vcpus - 1,
            plugged_bytes=self.memory_bytes - 512 * MIB,
        )

    async def grow(self, socket_path: str, *, vcpus: int, memory_bytes: int) -> Equipment:
        self.meanwhile()
        self.memory_bytes = max(memory_bytes, self.memory_bytes)
        if self.failure:
            raise self.failure
        self.vcpus = max(vcpus, self.vcpus)
        return await self.look(socket_path)


async def change(house: FakeHouse, record: Record, **fields: Any) -> None:
    await house.manager.limits.change(record, InstanceChange(**fields), Operation("change"))


async def started(house: FakeHouse) -> Record:
    spec = InstanceSpec(image="alpine", command=["sleep"], name="web", isolation=Isolation.VM)
    return await house.manager.creation.run(spec, Operation("run"))


async def test_the_row_says_it_before_it_is_plugged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = FakeQemu(monkeypatch)
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        room = house.keeper.plans[record.id]["cgroup"]["memory_bytes"]
        house.machines.answers["grow"] = {"cpus": 3, "memory_bytes": 1024 * MIB}
        seen = []
        qemu.meanwhile = lambda: seen.append(list(record.facts["hotplugged"]))
        await change(house, record, cpus=3, memory_bytes=1024 * MIB)
        assert seen == [["2 processors", "512 MiB of memory"]]
        assert record.facts["hotplugged"] == seen[0]
        assert record.facts["virtual_cpus"] == 3
        assert record.facts["limits"]["memory_bytes"] == 1024 * MIB
        limits = house.keeper.sandboxes[record.id]["limits"]
        assert limits["memory_bytes"] == room + 576 * MIB
        assert limits["cpus"] == 3.0
        with pytest.raises(Unsupported, match="2 processors, 512 MiB of memory"):
            await house.manager.forks.fork(record, Operation("fork"), count=1, pattern=None)
        await house.manager.restart(record, Operation("restart"), timeout_s=1)
        assert "hotplugged" not in record.facts
        assert record.facts["virtual_cpus"] == 3


@pytest.mark.parametrize("answer", [{}, {"cpus": 1, "memory_bytes": True}, {"cpus": -1}])
async def test_after_a_failure_the_row_has_what_qemu_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    qemu = FakeQemu(monkeypatch)
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        qemu.failure = IllegalState("QEMU refused a command")
        with pytest.raises(IllegalState):
            await change(house, record, cpus=3, memory_bytes=1024 * MIB)
        assert record.facts["hotplugged"] == ["512 MiB of memory"]
        assert record.facts["virtual_cpus"] == 1
        assert record.spec.memory_bytes is None  # not what was wanted: said by the error
        qemu.failure = None
        house.machines.answers["grow"] = answer
        with pytest.raises(GuestFailed):
            await change(house, record, cpus=3)
        assert record.facts["hotplugged"] == ["2 processors", "512 MiB of memory"]


async def test_a_kernel_that_takes_up_less_is_asked_as_long_as_it_gets_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeQemu(monkeypatch)
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        house.machines.answers["grow"] = {"cpus": 2, "memory_bytes": 0}
        with pytest.raises(GuestFailed, match="it has 2 processors"):
            await change(house, record, cpus=3)
        assert [what for what, _ in house.machines.errands] == ["grow", "grow"]


async def test_a_guest_that_says_it_gets_further_for_ever_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeQemu(monkeypatch)
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        asked = 0

        async def lie(run_dir: str, what: str, **words: Any) -> dict[str, int]:
            nonlocal asked
            asked += 1
            return {"cpus": 1, "memory_bytes": asked}

        monkeypatch.setattr(house.machines, "errand", lie)
        with pytest.raises(GuestFailed, match="does not take up"):
            await change(house, record, cpus=3)
        assert asked < 100


async def test_a_qemu_that_claims_more_than_was_asked_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forks would be given that much."""
    qemu = FakeQemu(monkeypatch)
    async with FakeHouse(tmp_path) as house:
        record = await started(house)
        house.machines.answers["grow"] = {"cpus": 3, "memory_bytes": 0}
        qemu.vcpus, qemu.memory_bytes = 200, 1 << 40
        await change(house, record, cpus=3)
        assert record.facts["virtual_cpus"] == 3
        assert growing.memory_of(record) == 512 * MIB
