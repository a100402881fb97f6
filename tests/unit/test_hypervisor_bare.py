"""Command lines of machines with an OS of their own against golden files (``UPDATE_GOLDEN=1``)."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.hypervisor import bare, bare_devices
from twofold.hypervisor.bare import BareSpec, Drive, Firmware

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "qemu"
PLACE = "/var/lib/twofold/instances/3f2a9c0d1e4b5a67"
UNKNOWN = BareSpec(
    instance_id="3f2a9c0d1e4b5a67",
    accelerator="tcg",
    vcpus=1,
    memory_bytes=512 << 20,
    drives=(
        Drive(kind="disk", path=f"{PLACE}/disk-0.img"),
        Drive(kind="cdrom", path=f"{PLACE}/cdrom-0.iso"),
    ),
    mac="02:54:46:00:00:05",
)
ON_Q35 = replace(bare_devices.UNKNOWN, board="q35", disk_bus="ahci", cdrom_bus="ahci")
UEFI = Firmware(code="/usr/share/OVMF/OVMF_CODE_4M.fd", nvram=f"{PLACE}/nvram.fd")
AAVMF = Firmware(code="/usr/share/AAVMF/AAVMF_CODE.fd", nvram=f"{PLACE}/nvram.fd")
ARM64 = {"hardware": bare_devices.UNKNOWN_ARM64, "firmware": AAVMF}
ON_ARM64 = replace(UNKNOWN, hardware=bare_devices.UNKNOWN_ARM64, firmware=AAVMF)
CASES = {
    "own-arm64": ON_ARM64,
    "own-arm64-virtio": replace(
        ON_ARM64,
        hardware=replace(
            bare_devices.UNKNOWN_ARM64,
            disk_bus="virtio-blk",
            nic="virtio-net",
            video="virtio",
            rng=True,
            balloon=True,
            agent_port=True,
        ),
        vcpus=2,
        drives=(*UNKNOWN.drives, Drive(kind="seed", path=f"{PLACE}/seed.iso")),
        boot=("disk", "network"),
    ),
    "own-arm64-secure-boot-tpm": replace(
        ON_ARM64,
        hardware=replace(bare_devices.UNKNOWN_ARM64, sound="hda"),
        firmware=replace(AAVMF, secure=True),
        tpm=True,
    ),
    "own-unknown": UNKNOWN,
    "own-virtio": replace(UNKNOWN, hardware=bare_devices.VIRTIO, vcpus=2, accelerator="kvm"),
    "own-floppy-first": replace(
        UNKNOWN,
        drives=(Drive(kind="cdrom"), Drive(kind="floppy", path=f"{PLACE}/floppy.img")),
        boot=("floppy", "disk", "cdrom"),
        mac="",
        hardware=replace(bare_devices.UNKNOWN, cpu="baseline", clock="localtime", acpi=False),
        local_time="1995-08-24T12:00:00",
    ),
    "own-floppy-on-q35": replace(
        UNKNOWN,
        drives=(Drive(kind="floppy", path=f"{PLACE}/floppy.img"),),
        hardware=ON_Q35,
    ),
    "own-secure-boot-tpm": replace(
        UNKNOWN,
        hardware=replace(
            ON_Q35,
            nic="e1000e",
            usb="xhci",
            inputs="usb-tablet",
            sound="hda",
            hyperv=True,
        ),
        accelerator="kvm",
        firmware=replace(UEFI, secure=True),
        tpm=True,
    ),
    "own-seed": replace(
        UNKNOWN, drives=(*UNKNOWN.drives, Drive(kind="seed", path=f"{PLACE}/seed.iso"))
    ),
    "own-seed-virtio": replace(
        UNKNOWN,
        hardware=bare_devices.VIRTIO,
        drives=(UNKNOWN.drives[0], Drive(kind="seed", path=f"{PLACE}/seed.iso")),
    ),
    "own-from-the-network": replace(UNKNOWN, boot=("network",), firmware=UEFI),
    "own-trial": replace(UNKNOWN, scratch=f"{PLACE}/scratch.img"),
    "own-host-devices": replace(UNKNOWN, usb=("/dev/bus/usb/001/004",), pci=("0000:01:00.0",)),
    "own-host-disk": replace(
        UNKNOWN, drives=(Drive(kind="disk", path="/dev/sdb", block_device=True),)
    ),
}


def as_text(argv: tuple[str, ...]) -> str:
    text = argv[0]
    for word in argv[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return text + "\n"


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = as_text(bare.build(CASES[name]).argv)
    path = GOLDEN / f"{name}.args"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_files_are_descriptors_with_a_format_that_is_said(name: str) -> None:
    built = bare.build(CASES[name])
    words = " ".join(built.argv)
    for file in built.open_files:
        assert file.path not in words
        assert f"{{fd:{file.name}}}" in words
    for option, value in pairwise(built.argv):
        if option == "-blockdev":
            assert value.startswith("driver=raw,")


def test_it_may_reboot_and_nothing_is_on_it_that_was_not_asked_for() -> None:
    for spec in CASES.values():
        words = bare.build(spec).argv
        assert "-no-reboot" not in words
        assert {"-nodefaults", "-no-user-config", "-sandbox"} <= set(words)


def test_unknown_hardware_has_no_virtio_device() -> None:
    for unknown in (UNKNOWN, ON_ARM64):
        assert "virtio" not in " ".join(bare.build(unknown).argv)


def test_every_model_can_be_built_on_every_board_that_takes_it() -> None:
    for board in ("pc", "q35"):
        for bus, row in bare_devices.DISK_BUSES.items():
            for nic in bare_devices.NICS:
                hardware = replace(bare_devices.UNKNOWN, board=board, disk_bus=bus, nic=nic)
                hardware = replace(hardware, cdrom_bus="ahci")
                spec = replace(UNKNOWN, hardware=hardware)
                if row.disk.get(board):
                    bare.build(spec)
                else:
                    with pytest.raises(InvalidInput, match="board has no"):
                        bare.build(spec)


def test_other_hardware_leaves_the_network_card_in_its_slot() -> None:
    """A guest's name for it is made of the slot."""
    cards = [
        word
        for nic in bare_devices.NICS
        for hardware in (bare_devices.UNKNOWN, bare_devices.VIRTIO)
        for word in bare.build(replace(UNKNOWN, hardware=replace(hardware, nic=nic))).argv
        if "mac=" in word
    ]
    assert len(cards) == 2 * len(bare_devices.NICS)
    assert {card.split("addr=")[1].split(",")[0] for card in cards} == {"0x10"}


def test_the_order_of_booting_is_the_order_of_the_words() -> None:
    def first(*order: str) -> str:
        words = bare.build(replace(UNKNOWN, boot=order)).argv
        return next(word for word in words if word.endswith("bootindex=0"))

    assert first("disk", "cdrom").startswith("ide-hd")
    assert first("cdrom", "disk").startswith("ide-cd")
    assert first("network").startswith("e1000")
    assert "bootindex" not in " ".join(
        word for word in bare.build(replace(UNKNOWN, boot=("cdrom",))).argv if "ide-hd" in word
    )


@pytest.mark.parametrize(
    "change",
    [
        {"accelerator": "kvm,x=y"},
        {"instance_id": "a,file=/etc/shadow"},
        {"memory_bytes": 1 << 20},
        {"vcpus": 0},
        {"vcpus": 256},
        {"mac": "02:54:46:00:00:05,romfile=/etc/shadow"},
        {"boot": ("disk", "tape")},
        {"pci": ("0000:01:00.0,x-no-mmap=on",)},
        {"hardware": replace(bare_devices.UNKNOWN, nic="e1000,x=y")},
        {"hardware": replace(bare_devices.UNKNOWN, board="q35")},
        {"hardware": replace(bare_devices.UNKNOWN, inputs="usb-tablet")},
        {"firmware": replace(UEFI, secure=True)},
        {"drives": (Drive(kind="disk"),)},
        {"drives": tuple(Drive(kind="disk", path=f"/d{n}") for n in range(5))},
        {"drives": (Drive(kind="tape", path="/t"),)},
        {"hardware": bare_devices.UNKNOWN_ARM64},  # without firmware
        {**ARM64, "accelerator": "kvm"},
        {**ARM64, "nested": True},
        {**ARM64, "boot": ("network",)},
        {**ARM64, "drives": (Drive(kind="floppy"),)},
        {**ARM64, "hardware": replace(bare_devices.UNKNOWN_ARM64, video="std")},
        {**ARM64, "hardware": replace(bare_devices.UNKNOWN_ARM64, sound="sb16")},
        {**ARM64, "hardware": replace(bare_devices.UNKNOWN_ARM64, inputs="ps2")},
        {**ARM64, "hardware": replace(bare_devices.UNKNOWN_ARM64, disk_bus="ahci")},
    ],
)
def test_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        bare.build(replace(UNKNOWN, **change))
