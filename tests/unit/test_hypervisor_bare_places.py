"""Where what comes later goes, on which hardware, and that it is there again at the next start."""

from dataclasses import replace
from itertools import pairwise

import pytest

from twofold.errors import Conflict, Unsupported
from twofold.hypervisor import bare, bare_devices, bare_places
from twofold.hypervisor.bare import BareSpec, Drive
from twofold.hypervisor.bare_devices import UNKNOWN, VIRTIO, Hardware

AHCI = replace(UNKNOWN, board="q35", disk_bus="ahci", cdrom_bus="ahci", nic="e1000e")
WITH_USB = replace(AHCI, usb="xhci", inputs="usb-tablet")
SCSI = replace(VIRTIO, disk_bus="virtio-scsi")


def devices(hardware: Hardware, later: dict[str, str]) -> dict[str, str]:
    """The words of each device that has a name."""
    drives = tuple(Drive(kind="disk", path=f"/{n}", number=n) for n in (0, 1))
    spec = BareSpec(
        instance_id="3f2a9c0d1e4b5a67",
        accelerator="tcg",
        vcpus=1,
        memory_bytes=64 << 20,
        hardware=hardware,
        drives=drives,
        mac="02:54:46:00:00:05",
        later=later,
    )
    words = [word for option, word in pairwise(bare.build(spec).argv) if option == "-device"]
    return {word.split(",id=")[1].split(",")[0]: word for word in words if ",id=" in word}


@pytest.mark.parametrize(
    ("hardware", "name", "word", "on_the_command_line"),
    [
        (VIRTIO, "disk1", "port0", "virtio-blk-pci,id=dev-disk1,bus=later0,addr=0x0,"),
        (VIRTIO, "card", "port0", "virtio-net-pci,id=dev-net0,bus=later0,addr=0x0,"),
        (replace(VIRTIO, board="pc"), "disk1", "port0", "virtio-blk-pci,id=dev-disk1,bus=pci.0,"),
        (UNKNOWN, "card", "port0", "e1000,id=dev-net0,bus=pci.0,addr=0x1a,"),
        (AHCI, "card", "port0", "e1000e,id=dev-net0,bus=later0,addr=0x0,"),
        (WITH_USB, "disk1", "usb", "usb-storage,id=dev-disk1,bus=usb.0,"),
        (SCSI, "disk1", "scsi", "scsi-hd,bus=scsi.0,id=dev-disk1,"),
    ],
)
def test_what_came_later_is_there_after_every_start(
    hardware: Hardware, name: str, word: str, on_the_command_line: str
) -> None:
    assert bare_places.choose(hardware, name, {}) == word
    words = devices(hardware, {name: word})
    assert words["dev-net0" if name == "card" else "dev-disk1"].startswith(on_the_command_line)
    place = bare_places.removable(hardware, name, {name: word})
    assert place is not None
    assert on_the_command_line.startswith(bare_places.driver(hardware, name, place))
    moved = {one for one, text in words.items() if devices(hardware, {})[one] != text}
    assert moved <= {place.device}  # nothing else did


@pytest.mark.parametrize(
    ("hardware", "name", "why"),
    [
        (UNKNOWN, "disk1", "a pc board takes no ide disk"),
        (AHCI, "disk1", "a q35 board takes no ahci disk"),
        (replace(AHCI, nic="rtl8139"), "card", "takes no rtl8139 network card"),
        (replace(UNKNOWN, acpi=False), "card", "no ACPI"),
        (replace(VIRTIO, board="virt"), "disk1", "a virt board takes no virtio-blk disk"),
    ],
)
def test_what_has_no_place_is_refused_by_name(hardware: Hardware, name: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        bare_places.choose(hardware, name, {})


def test_the_places_are_few() -> None:
    taken: dict[str, str] = {}
    for number in range(1, 1 + bare_places.PORTS):
        taken[f"disk{number}"] = bare_places.choose(VIRTIO, f"disk{number}", taken)
    assert sorted(taken.values()) == ["port0", "port1", "port2", "port3"]
    with pytest.raises(Conflict, match="4 places"):
        bare_places.choose(VIRTIO, "card", taken)
    del taken["disk2"]
    assert bare_places.choose(VIRTIO, "card", taken) == "port1"
    usb = {f"disk{number}": "usb" for number in (1, 2, 3)}
    with pytest.raises(Conflict, match="no socket left"):
        bare_places.choose(WITH_USB, "disk4", usb)


def test_what_lies_on_the_q35_board_stays() -> None:
    assert bare_places.removable(VIRTIO, "disk0", {}) is None
    assert bare_places.removable(VIRTIO, "card", {}) is None
    assert bare_places.removable(UNKNOWN, "card", {}) is not None  # a pc board lets go of it
    assert bare_places.removable(UNKNOWN, "disk0", {}) is None


def test_a_place_of_other_hardware_is_none() -> None:
    """``set hardware=`` keeps it for the way back."""
    assert bare_places.find(AHCI, "disk1", {"disk1": "port0"}) is None
    assert bare_places.find(VIRTIO, "disk1", {"disk1": "usb"}) is None
    assert "dev-disk1" in devices(AHCI, {"disk1": "port0"})
    assert bare_devices.DISK_BUSES["ahci"].virtio is False
