"""What lies in the drives of a machine with its own system: changed whole, or not at all."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_house import IMAGE, FakeHouse

from twofold.errors import InvalidInput
from twofold.hypervisor import bare_devices
from twofold.instance import own_os, own_os_files, own_os_hardware
from twofold.instance.facts import write_facts
from twofold.instance.own_os import Fitting
from twofold.instance.own_os_changes import Refitting
from twofold.instance.own_os_wall import OwnOsWall
from twofold.instance.record import Record
from twofold.model.image import ImageKind
from twofold.model.instance import DiskWish, InstanceChange, InstanceSpec
from twofold.operations import Operation


async def machine(house: FakeHouse, disc: Path) -> tuple[Refitting, Record, Path]:
    """One with ``disc`` in its drive; it does not run."""

    class Wall(OwnOsWall):
        async def put_disc(self, name: str, path: str, operation: Operation) -> None:
            own_os_files.link_to(str(disc), path)

    rooms = house.manager.rooms
    spec = InstanceSpec(image="disc", name="m", media="cdrom", isolation="vm", cdrom=["disc"])
    record = Record(id="1" * 16, name="m", spec=spec, image_digest="sha256:1", id_base=0)
    directory = Path(house.paths.instance_dir(record.id))
    directory.mkdir()
    rooms.records.add(record)
    await rooms.records.store_new(record)
    own_os_files.link_to(str(disc), own_os.disc_file(str(directory), 0))
    write_facts(record, str(directory))
    wall = Wall(house.keeper, house.images, house.machines)
    return Refitting(rooms, wall, house.manager.lifecycle), record, directory


async def test_the_disc_that_is_in_the_drive_may_be_put_there_again(tmp_path: Path) -> None:
    """The two are then names of one file, which a rename leaves as they are."""
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"disc")
    async with FakeHouse(tmp_path) as house:
        refitting, record, directory = await machine(house, disc)
        for _ in range(2):
            await refitting.change(record, InstanceChange(cdrom="disc"), Operation("set"))
            assert sorted(os.listdir(directory)) == ["cdrom-0.iso", "spec.json"]
        assert disc.stat().st_nlink == 2


async def test_a_disc_leaves_only_after_the_record_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that names a disc which is gone could not be started again."""
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"disc")
    async with FakeHouse(tmp_path) as house:
        refitting, record, directory = await machine(house, disc)

        async def fails(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(house.manager.rooms.records, "save", fails)
            with pytest.raises(OSError, match="no space"):
                await refitting.change(record, InstanceChange(cdrom=""), Operation("set"))
        assert record.spec.cdrom == ["disc"]
        assert (directory / "cdrom-0.iso").read_bytes() == b"disc"
        await refitting.change(record, InstanceChange(cdrom=""), Operation("set"))
        assert record.spec.cdrom == [""]
        assert not (directory / "cdrom-0.iso").exists()


async def test_what_the_firmware_cannot_boot_from_is_refused_at_once(tmp_path: Path) -> None:
    """Of an arm64 machine: it has no driver for the card that most systems know."""
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"disc")
    emulated = Fitting(hardware=bare_devices.UNKNOWN_ARM64, firmware="uefi")
    virtio = replace(
        emulated,
        hardware=replace(emulated.hardware, nic="virtio-net"),
        profile="virtio",
        before=emulated.to_dict(),
    )
    async with FakeHouse(tmp_path) as house:
        refitting, record, directory = await machine(house, disc)
        Path(own_os.nvram_file(str(directory))).touch()

        async def change(**wish: Any) -> None:
            await refitting.change(record, InstanceChange(**wish), Operation("set"))

        own_os_files.write_fitting(str(directory), emulated)
        with pytest.raises(InvalidInput, match="cannot boot from an e1000") as caught:
            await change(boot=["disk", "network"])
        assert caught.value.hint == "--hardware virtio, or leave network out of --boot"
        assert record.spec.boot == []
        await change(boot=["disk"])
        own_os_files.write_fitting(str(directory), virtio)
        await change(boot=["network"])
        for kept in ({}, {"boot": ["network", "disk"]}):
            with pytest.raises(InvalidInput, match="cannot boot"):
                await change(hardware="emulated", **kept)
            assert own_os_files.read_fitting(str(directory)).profile == "virtio"
        await change(hardware="emulated", boot=None)
        with pytest.raises(InvalidInput, match="cannot boot"):
            await change(boot=["network"])
        await change(hardware="virtio", boot=["network"])
        assert record.spec.boot == ["network"]


async def test_such_a_machine_is_not_made_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        disc = IMAGE.model_copy(update={"kind": ImageKind.CDROM})
        chosen = Fitting(hardware=bare_devices.UNKNOWN_ARM64)
        monkeypatch.setattr(house.images, "find", lambda _: disc)
        monkeypatch.setattr(own_os_hardware, "choose", lambda *_: (chosen, ()))
        wish = InstanceSpec(image="alpine", boot=["network"])
        with pytest.raises(InvalidInput, match="cannot boot from an e1000"):
            await house.manager.creation.create(wish, Operation("create"))
        assert house.left() == []


async def test_a_new_machine_is_on_the_disk_before_it_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No power is cut here: what is seen is that the system is asked, with every file there."""
    asked: list[list[str]] = []

    def syncfs(fd: int) -> None:
        asked.append(sorted(os.listdir(fd)))

    monkeypatch.setattr(own_os_files, "syncfs", syncfs)
    async with FakeHouse(tmp_path) as house:
        disc = IMAGE.model_copy(update={"kind": ImageKind.CDROM})
        file = tmp_path / "disc.iso"
        file.write_bytes(b"disc")

        async def disk_file(*_: object) -> str:
            return str(file)

        monkeypatch.setattr(house.images, "find", lambda _: disc)
        monkeypatch.setattr(house.images, "disk_file", disk_file)
        wish = InstanceSpec(image="alpine", disks=[DiskWish(size_bytes=1 << 20)])
        await house.manager.creation.create(wish, Operation("create"))
        assert asked == [["cdrom-0.iso", "disk-0.img", "hardware.json", "logs", "spec.json"]]


def test_a_link_is_made_over_what_a_crash_left(tmp_path: Path) -> None:
    one, other, path = tmp_path / "one", tmp_path / "other", tmp_path / "cdrom-0.iso"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    os.link(one, f"{path}.new")
    for _ in range(2):
        own_os_files.link_to(str(other), str(path))
        assert path.samefile(other)
        assert not Path(f"{path}.new").exists()
