"""What lies in the drives of a machine with its own system: changed whole, or not at all."""

import os
from pathlib import Path

import pytest
from fake_house import IMAGE, FakeHouse

from twofold.instance import own_os, own_os_files
from twofold.instance.facts import write_facts
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
