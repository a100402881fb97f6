"""What is attached to a machine, how that differs from its start, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse

from twofold.errors import (
    Conflict,
    InvalidInput,
    NoSpace,
    NotFound,
    RuntimeFailed,
    TwofoldError,
    Unsupported,
)
from twofold.hypervisor import places
from twofold.hypervisor import plugging as hypervisor_plugging
from twofold.instance import attachments, own_os, plugging, vm
from twofold.instance.record import Record
from twofold.model.instance import DiskWish, InstanceSpec, Isolation, State, Volume
from twofold.model.plugging import PlugWish, UnplugWish
from twofold.operations import Operation

SIZE = 1 << 20


def machine(**fields: Any) -> Record:
    spec = InstanceSpec(**{"image": "x", "isolation": Isolation.VM, **fields})
    made = Record(id="0" * 16, name="m", spec=spec, image_digest="", id_base=0)
    facts = attachments.at_start(spec, card=False)
    made.change(state=State.RUNNING, facts=facts)
    return made


def test_disks_keep_their_numbers() -> None:
    spec = InstanceSpec(image="x", disks=[DiskWish(size_bytes=SIZE)] * 3)
    spec = spec.model_copy(update={"disks": attachments.without_disk(spec, 1)})
    assert attachments.disk_numbers(spec) == [0, 2]
    with pytest.raises(NotFound, match="there are: 0, 2"):
        attachments.without_disk(spec, 1)
    assert attachments.with_disk(spec, SIZE)[0] == 1
    spec = spec.model_copy(update={"disks": attachments.without_disk(spec, 2)})
    assert len(spec.disks) == 1  # no place is kept behind the last
    full = InstanceSpec(image="x", disks=[DiskWish(size_bytes=SIZE)] * places.MOST_DISKS)
    with pytest.raises(Conflict, match="at most 15"):
        attachments.with_disk(full, SIZE)


def test_what_differs_is_said_until_it_is_as_before() -> None:
    facts = machine(volumes=[Volume(source="/a", target="/a")]).facts
    assert attachments.in_words(facts) == []
    facts = attachments.changed(facts, disks=[0], card=True, shares={"/b": "v1"})
    assert facts["hotplugged"] == ["disk 0", "share /b", "no share /a", "a network card"]
    facts = attachments.changed(facts, disks=[], card=False, shares={"/a": "v0"})
    assert facts["hotplugged"] == []
    again = attachments.changed(facts, shares={"/a": "v3"})
    assert again["hotplugged"] == ["share /a"]  # the same directory, another device
    grown = {**facts, "grown": ["2 processors"], "plugging": {"words": "disk 0"}}
    assert attachments.in_words(grown) == ["2 processors", "disk 0, under way"]


def test_a_share_never_gets_the_place_of_one_that_may_be_read_only() -> None:
    record = machine(volumes=[Volume(source="/a", target="/a", read_only=True)])
    facts = attachments.changed(record.facts, shares={})
    assert attachments.free_tag(facts) == "v1"
    every = {f"/{tag}": tag for tag in places.share_tags()}
    with pytest.raises(Conflict, match="no place is left"):
        attachments.free_tag(attachments.changed(facts, shares=every))


def test_a_wish_follows_the_files(tmp_path: Path) -> None:
    record = machine(disks=[DiskWish(size_bytes=SIZE)])
    (tmp_path / "disk-2.img").write_bytes(bytes(2 * SIZE))
    (tmp_path / "disk-99.img").write_bytes(b"")
    found = attachments.as_files(record, str(tmp_path))
    assert attachments.disk_numbers(found) == [2]
    assert found.disks[2].size_bytes == 2 * SIZE
    record.change(spec=found)
    assert attachments.as_files(record, str(tmp_path)) is found


def test_disks_of_an_operating_systems_own_machine_are_counted_from_its_image(
    tmp_path: Path,
) -> None:
    disks = [DiskWish(device="/dev/sdx"), DiskWish(size_bytes=SIZE)]
    record = machine(media="disk", disks=disks)
    assert attachments.disk_numbers(record.spec) == [1, 2]
    number, wishes = attachments.with_disk(record.spec, SIZE)
    assert (number, len(wishes)) == (3, 3)
    with pytest.raises(Unsupported, match="disk 0 is the copy"):
        attachments.without_disk(record.spec, 0)
    (tmp_path / "disk-0.img").write_bytes(b"")
    (tmp_path / "disk-4.img").write_bytes(b"")
    found = attachments.as_files(record, str(tmp_path))
    assert attachments.disk_numbers(found) == [1, 4]
    assert found.disks[0].device == "/dev/sdx"
    drives = own_os.drives(found, "/i")
    assert [(one.number, one.path) for one in drives if one.kind == "disk"] == [
        (None, "/i/disk-0.img"),
        (1, "/dev/sdx"),
        (4, "/i/disk-4.img"),
    ]


@pytest.mark.parametrize(
    ("record", "refusal"),
    [
        (machine(hardware="emulated"), "emulated hardware of amd64"),
        (machine(arch="arm64"), "virtio hardware of arm64"),
        (
            Record(id="0", name="c", spec=InstanceSpec(image="x"), image_digest="", id_base=0),
            "cont",
        ),
    ],
)
def test_disks_need_a_place(record: Record, refusal: str) -> None:
    with pytest.raises(Unsupported, match=refusal):
        plugging._refuse_disks(record)


def test_what_an_older_daemon_started_has_no_place() -> None:
    record = machine()
    record.change(facts={})
    with pytest.raises(Unsupported, match="older"):
        plugging._refuse_no_place(record)


@pytest.mark.parametrize("wish", [{"image": "x"}, {"device": "/dev/sda"}, {}])
def test_a_machine_from_a_file_system_image_has_empty_disks_alone(wish: dict[str, str]) -> None:
    spec = InstanceSpec(image="x", isolation=Isolation.VM, disks=[DiskWish(**wish)])
    with pytest.raises(InvalidInput, match="empty disks alone"):
        vm.check(spec)


def test_each_device_has_a_slot_of_its_own() -> None:
    every = [places.card(), *(places.disk(n) for n in range(places.MOST_DISKS))]
    every += [places.share(tag) for tag in places.share_tags()]
    assert sorted(int(place.address, 16) for place in every) == list(range(1, 32))
    assert places.words(places.share("v20")) == "id=dev-share-v20"


def test_exactly_one_thing_at_a_time() -> None:
    for wishes in ((None, None), ("a", 1)):
        with pytest.raises(TwofoldError, match="exactly one"):
            plugging._exactly_one(*wishes)


async def test_what_could_not_be_written_down_is_not_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.run(spec, Operation("run"))
        before = record.facts

        async def full(*_: object) -> None:
            raise NoSpace("no space left for the database", hint="df -h")

        monkeypatch.setattr(house.store, "update_instance", full)
        wish = PlugWish(volume=Volume(source=str(tmp_path), target="/data"))
        with pytest.raises(NoSpace):
            await house.manager.plugging.plug(record, wish, Operation("plug"))
        assert record.facts == before
        assert "mount" not in house.keeper.calls


async def test_a_change_of_a_container_is_not_under_way_when_it_is_done(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.run(spec, Operation("run"))
        wish = PlugWish(volume=Volume(source=str(tmp_path), target="/data"))
        await house.manager.plugging.plug(record, wish, Operation("plug"))
        attachments.refuse_changed(record, "it cannot be forked")
        await house.manager.plugging.unplug(record, UnplugWish(volume="/data"), Operation("unplug"))
        attachments.refuse_changed(record, "it cannot be forked")
        assert house.keeper.calls.count("mount") == 2


@pytest.mark.parametrize("failures", [1, 2])
async def test_an_unmount_whose_process_was_killed_is_done_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        record = await house.manager.creation.run(spec, Operation("run"))
        wish = PlugWish(volume=Volume(source=str(tmp_path), target="/data"))
        await house.manager.plugging.plug(record, wish, Operation("plug"))
        killed = [RuntimeFailed("it ended before it was done")] * failures

        def mount(_: dict[str, Any]) -> dict[str, Any]:
            if killed:
                raise killed.pop()
            return {"ok": True}

        monkeypatch.setattr(house.keeper, "_mount", mount)
        take = UnplugWish(volume="/data")
        if failures == 2:
            with pytest.raises(RuntimeFailed):
                await house.manager.plugging.unplug(record, take, Operation("unplug"))
            assert [volume.target for volume in record.spec.volumes] == ["/data"]
        else:
            await house.manager.plugging.unplug(record, take, Operation("unplug"))
            assert record.spec.volumes == []
        assert "plugging" not in record.facts


async def test_what_the_guest_has_no_more_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unplugged(*_: object) -> None:
        return None

    async with FakeHouse(tmp_path) as house:
        house.machines.answers["plug"] = {"busy": False}
        monkeypatch.setattr(hypervisor_plugging, "unplug_share", unplugged)
        record = machine(volumes=[Volume(source="/a", target="/a")])
        house.keeper.sandboxes[record.id] = {"state": "running"}
        Path(house.paths.instance_dir(record.id)).mkdir()
        house.failing.names.add("mount")
        take = UnplugWish(volume="/a")
        with pytest.raises(RuntimeFailed, match="is out of 'm'") as caught:
            await house.manager.plugging.unplug(record, take, Operation("unplug"))
        assert "twofold show m" in caught.value.hint
        await house.manager.plugging.settle(record)
        assert record.facts["plugging"]["target"] == "/a"
        house.failing.names.clear()
        await house.manager.plugging.settle(record)
        assert record.spec.volumes == []
        assert "plugging" not in record.facts


async def test_what_a_guest_says_without_a_hint_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeFailed("volume at /there: Not a directory")

    async with FakeHouse(tmp_path) as house:
        monkeypatch.setattr(house.machines, "errand", refuse)
        with pytest.raises(RuntimeFailed) as caught:
            await house.manager.plugging._ask(machine(), do="share")
        assert caught.value.hint == "twofold logs --console m"
