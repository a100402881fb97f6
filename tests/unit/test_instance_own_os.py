"""What may be asked of a machine with an operating system of its own, and what it is given."""

from dataclasses import replace
from typing import Any

import pytest

from twofold.errors import InvalidInput, TwofoldError, Unsupported
from twofold.hypervisor import bare_devices
from twofold.instance import own_os, own_os_hardware
from twofold.instance.own_os import Fitting
from twofold.instance.place import Allocation, Place
from twofold.instance.walls import word_of
from twofold.model.image import Image, ImageConfig, ImageKind
from twofold.model.instance import InstanceSpec
from twofold.runtime import plan


def image(kind: str) -> Image:
    return Image(
        digest="sha256:1",
        names=["thing:latest"],
        kind=ImageKind(kind),
        architecture="unknown",
        created_at="2026-01-01T00:00:00Z",
        size_bytes=1,
        layers=[],
        config=ImageConfig(),
        source="test",
    )


def settled(kind: str, **wish: Any) -> InstanceSpec:
    return own_os.settle(InstanceSpec(image="thing", **wish), image(kind))


def test_a_disk_gets_the_vm_wall_and_emulated_hardware_unless_something_was_said() -> None:
    spec = settled("disk")
    assert (spec.media, spec.isolation.value) == ("disk", "vm")
    assert word_of(spec) == "own-os"
    fitting, _ = own_os_hardware.choose(spec, image("disk"))
    assert fitting.profile == "emulated"
    assert fitting.hardware == bare_devices.UNKNOWN
    assert own_os.fitted(spec, own_os_hardware.facts(fitting)).hardware.value == "emulated"
    asked = settled("disk", hardware="virtio")
    assert own_os_hardware.choose(asked, image("disk"))[0].hardware.disk_bus == "virtio-blk"
    assert word_of(settled("root", isolation="vm")) == "vm"


def test_what_it_is_made_from_lies_in_its_drive() -> None:
    assert settled("cdrom", cdrom=["drivers"]).cdrom == ["thing", "drivers"]
    assert settled("floppy").floppy == "thing"


@pytest.mark.parametrize(
    ("kind", "wish", "word"),
    [
        ("disk", {"isolation": "container"}, "container"),
        ("disk", {"command": ["sh"]}, "a command"),
        ("disk", {"system": True}, "--system"),
        ("cdrom", {"volumes": [{"source": "/a", "target": "/b"}]}, "--volume"),
        ("floppy", {"env": ["A=b"]}, "--env"),
        ("floppy", {"floppy": "other"}, "two floppy disks"),
        ("disk", {"pids": 5}, "--pids"),
        ("root", {"disks": [{"size_bytes": 1 << 30}]}, "--disk"),
        ("root", {"firmware": "uefi"}, "--firmware"),
        ("root", {"cdrom": ["x"]}, "--cdrom"),
    ],
)
def test_refuses_what_only_an_agent_could_do_and_names_it(
    kind: str, wish: dict[str, Any], word: str
) -> None:
    with pytest.raises(TwofoldError, match=word) as caught:
        settled(kind, **wish)
    assert isinstance(caught.value, InvalidInput | Unsupported)
    assert caught.value.hint


def test_a_terminal_brings_a_variable_that_nobody_asked_for() -> None:
    assert settled("disk", tty=True, env=["TERM=xterm"]).env == []
    with pytest.raises(InvalidInput):
        settled("disk", env=["TERM=xterm"])


@pytest.mark.parametrize(
    "wish",
    [
        {"disks": [{}]},
        {"disks": [{"size_bytes": 1 << 30, "image": "x"}]},
        {"disks": [{"image": ""}]},
        {"boot": ["disk", "disk"]},
        {"memory_bytes": (64 << 20) + 1},
    ],
)
def test_check_refuses(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        own_os.check(settled("disk", **wish))


def test_a_boot_order_that_repeats_itself_is_mended_by_the_hint() -> None:
    with pytest.raises(InvalidInput) as caught:
        own_os.check(settled("disk", boot=["cdrom", "disk", "cdrom"]))
    assert caught.value.hint == "--boot cdrom,disk"


def test_drives_and_the_order_of_booting() -> None:
    spec = settled("disk", disks=[{"size_bytes": 1 << 30}, {"device": "/dev/sdb"}])
    found = [(drive.kind, drive.path, drive.block_device) for drive in own_os.drives(spec, "/i")]
    assert found == [
        ("disk", "/i/disk-0.img", False),
        ("disk", "/i/disk-1.img", False),
        ("disk", "/dev/sdb", True),
        ("cdrom", "", False),
    ]
    assert own_os.boot_order(spec) == ("disk", "cdrom", "floppy")
    assert own_os.boot_order(settled("floppy")) == ("floppy", "disk", "cdrom")
    assert own_os.boot_order(settled("cdrom", boot=["cdrom"])) == ("cdrom",)


def test_the_plan_is_a_machine_in_a_jail_with_no_kernel_of_ours() -> None:
    from test_instance_plans import PARTS

    place = Place(
        directory="/i/1",
        run_dir="/run/1",
        cgroup="twofold/1",
        network=plan.Network(
            host_link="tf0-5",
            mac="02:00:0a:d1:00:05",
            address="10.209.0.5",
            prefix=22,
            gateway="10.209.0.1",
        ),
    )
    fitting = Fitting(hardware=bare_devices.UNKNOWN, reasons={"nic": "most have drivers for it"})
    made = own_os.machine_plan(
        settled("floppy"),
        Allocation(id="1" * 16, name="dos", id_base=1 << 20),
        place,
        parts=PARTS,
        fitting=fitting,
    )
    assert made.kind == "vm"
    assert made.vm is not None
    assert made.vm.guest == {"mode": "machine", "agent": False}
    assert not made.vm.vnet_header  # an e1000 knows nothing of it
    assert "/boot" not in {mount.target for mount in made.mounts}
    assert {file.name: file.path for file in made.vm.open_files} == {
        "floppy0": "/i/1/floppy.img",
        "console": "/i/1/console.log",
    }
    assert made.process.capabilities == ()
    assert made.process.seccomp == "qemu"
    virtio = replace(fitting, hardware=bare_devices.VIRTIO)
    made = own_os.machine_plan(
        settled("disk"),
        Allocation(id="1" * 16, name="dos", id_base=1 << 20),
        place,
        parts=PARTS,
        fitting=virtio,
    )
    assert made.vm is not None
    assert made.vm.vnet_header


def test_a_fitting_survives_being_written_down() -> None:
    fitting = Fitting(hardware=bare_devices.VIRTIO, os="debian12", reasons={"a": "b"})
    assert own_os.fitting_from_dict(fitting.to_dict()) == fitting


def test_every_choice_has_its_rule_and_the_user_goes_first() -> None:
    fitting, _ = own_os_hardware.choose(settled("cdrom", os="win11", tpm=False), image("cdrom"))
    assert fitting.os == "win11"
    assert fitting.firmware.startswith("uefi")
    assert not fitting.tpm
    said = own_os_hardware.facts(fitting)["chosen"]
    assert "operating system win11: --os" in said
    assert "tpm no: asked for" in said
    assert any(line.startswith("disk ") for line in said)
    with pytest.raises(TwofoldError, match="win1l"):
        own_os_hardware.choose(settled("cdrom", os="win1l"), image("cdrom"))


def test_drivers_at_hand_are_used_where_virtio_was_asked_for_and_that_is_said() -> None:
    wish = {"os": "win11", "virtio_win": "drivers", "disks": [{"size_bytes": 64 << 30}]}
    plain, _ = own_os_hardware.choose(settled("cdrom", **wish), image("cdrom"))
    assert plain.hardware.disk_bus == "ahci"
    spec = settled("cdrom", hardware="virtio", **wish)
    asked, warnings = own_os_hardware.choose(spec, image("cdrom"))
    assert (asked.hardware.disk_bus, asked.hardware.nic) == ("virtio-blk", "virtio-net")
    assert asked.drivers == ()  # nobody has seen them work
    assert any("Load driver" in line for line in warnings)
    found = [(drive.kind, drive.path) for drive in own_os.drives(spec, "/i")]
    assert found[1:] == [("cdrom", "/i/cdrom-0.iso"), ("cdrom", "/i/virtio-win.iso")]
    assert own_os.virtio_win_drive(spec) == "cdrom1"


def test_drivers_that_were_seen_count_and_no_others() -> None:
    spec = settled("disk", hardware="virtio")
    seen = frozenset({"block", "net"})
    fitting, _ = own_os_hardware.choose(spec, image("disk"), drivers=seen)
    assert (fitting.hardware.disk_bus, fitting.hardware.nic) == ("virtio-blk", "virtio-net")
    assert not fitting.hardware.balloon
    assert fitting.drivers == ("block", "net")
    half, warnings = own_os_hardware.choose(spec, image("disk"), drivers=frozenset({"net"}))
    assert half.hardware.disk_bus == "ide"
    assert warnings
    before = replace(Fitting(hardware=bare_devices.UNKNOWN), profile="emulated").to_dict()
    said = own_os_hardware.facts(replace(fitting, before=before))
    assert "disk bus: ide → virtio-blk" in said["moved"]
    assert said["way_back"] == "hardware=emulated"
    assert len(said["gained"]) == 2
    assert "lost" not in said
    emulated = replace(Fitting(hardware=bare_devices.UNKNOWN), profile="emulated")
    back = own_os_hardware.facts(replace(emulated, before=fitting.to_dict()))
    assert "disk bus: virtio-blk → ide" in back["moved"]
    assert back["way_back"] == "hardware=virtio"
    assert back["lost"] == said["gained"]
    assert "gained" not in back
    assert {*said, *back} - {*own_os_hardware.facts(emulated)} <= own_os_hardware.PASSING_FACTS
