"""Devices of the host for a machine: found in trees as sysfs has them, and refused with a way out.

USB and PCI cannot be had where the tests run: the trees are directories, made as the kernel's are.
"""

import os
from pathlib import Path

import pytest

from twofold.errors import Conflict, InvalidInput, NotFound, TwofoldError, Unsupported
from twofold.hypervisor import host_disk, host_pci, host_usb
from twofold.hypervisor.host_pci import PciDevice
from twofold.instance import own_os, own_os_devices, privileges
from twofold.instance.own_os_devices import HostDevices
from twofold.instance.vm import qemu_process
from twofold.model.instance import InstanceSpec


class Tree:
    """A host's /sys, /proc and /dev."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.write("proc/swaps", "Filename Type Size Used Priority\n")

    def write(self, path: str, content: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def link(self, path: str, target: str) -> None:
        """``target`` is a place in this tree."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        (self.root / target).mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(self.root / target, link.parent))

    def disk(
        self, name: str, number: str, *, on: str = "sys/devices/virtual", parts: int = 0
    ) -> None:
        folder = f"{on}/block/{name}"
        self.write(f"{folder}/dev", f"{number}\n")
        (self.root / folder / "holders").mkdir()
        self.link(f"sys/class/block/{name}", folder)
        major, minor = number.split(":")
        for part in range(1, parts + 1):
            self.write(f"{folder}/{name}{part}/dev", f"{major}:{int(minor) + part}\n")
            self.write(f"{folder}/{name}{part}/partition", f"{part}\n")
            (self.root / f"{folder}/{name}{part}/holders").mkdir()
            self.link(f"sys/class/block/{name}{part}", f"{folder}/{name}{part}")

    def usb(self, name: str, kind: str, place: str, *, product: str = "", hub: bool = False) -> str:
        folder = f"sys/devices/pci0000:00/usb1/{name}"
        vendor, _, number = kind.partition(":")
        bus, _, device = place.partition(".")
        for word, content in (
            ("idVendor", vendor),
            ("idProduct", number),
            ("busnum", bus),
            ("devnum", device),
            ("product", product),
            ("bDeviceClass", "09" if hub else "00"),
        ):
            self.write(f"{folder}/{word}", f"{content}\n")
        (self.root / f"{folder}/{name}:1.0").mkdir()
        self.link(f"sys/bus/usb/devices/{name}", folder)
        self.link(f"sys/bus/usb/devices/{name}:1.0", f"{folder}/{name}:1.0")
        return folder

    def pci(self, address: str, *, group: str = "", driver: str = "", kind: str = "0x0300") -> str:
        folder = f"sys/devices/pci0000:00/{address}"
        self.write(f"{folder}/class", f"{kind}00\n")
        self.link(f"sys/bus/pci/devices/{address}", folder)
        if group:
            self.link(f"{folder}/iommu_group", f"sys/kernel/iommu_groups/{group}")
            self.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", folder)
        if driver:
            self.link(f"{folder}/driver", f"sys/bus/pci/drivers/{driver}")
        return folder

    def use_of(self, name: str) -> TwofoldError | None:
        return host_disk.use_of(
            name, f"/dev/{name}", sys=f"{self.root}/sys", proc=f"{self.root}/proc"
        )

    def find_usb(self, address: str) -> host_usb.UsbDevice:
        return host_usb.find(address, sys=f"{self.root}/sys", proc=f"{self.root}/proc")

    def find_pci(self, address: str) -> PciDevice:
        return host_pci.find(
            address, sys=f"{self.root}/sys", dev=f"{self.root}/dev", proc=f"{self.root}/proc"
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# -- disks ----------------------------------------------------------------------------------------


def test_every_use_of_a_disk_is_found(tree: Tree) -> None:
    tree.disk("sda", "8:0", parts=2)
    tree.disk("sdb", "8:16", parts=1)
    tree.disk("sdc", "8:32")
    assert tree.use_of("sdb") is tree.use_of("sdc") is None
    for name in ("sda", "sda1"):  # the root: by a partition of it, and by itself
        refusal = tree.use_of(name)
        assert isinstance(refusal, Conflict)
        assert "mounted at '/'" in refusal.message
        assert refusal.hint.startswith("lsblk"), "nobody shall be told to unmount his root"
    assert tree.use_of("sda2") is None
    tree.write("proc/swaps", "Filename Type Size\n/dev/sdb1 partition 1024 0 -2\n")
    refusal = tree.use_of("sdb")
    assert refusal is not None
    assert refusal.hint == "swapoff /dev/sdb1"
    (tree.root / "sys/class/block/sdc/holders/dm-0").mkdir()
    refusal = tree.use_of("sdc")
    assert refusal is not None
    assert "part of dm-0" in refusal.message


def test_a_btrfs_is_found_by_its_source(tree: Tree) -> None:
    tree.disk("sdd", "8:48")
    tree.write("proc/self/mountinfo", "30 1 0:41 / /data rw shared:1 - btrfs /dev/sdd rw\n")
    refusal = tree.use_of("sdd")
    assert refusal is not None
    assert refusal.hint == "umount /data"


def test_what_is_no_block_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("/dev/null", "/dev/none-of-that-name", str(tmp_path / "file")):
        with pytest.raises(InvalidInput, match="block device") as refused:
            host_disk.check(path)
        assert refused.value.hint == "lsblk"


# -- USB ------------------------------------------------------------------------------------------


def test_a_usb_device_is_found_by_kind_and_by_place(tree: Tree) -> None:
    tree.usb("1-1", "046d:c31c", "1.4", product="Keyboard\x1b[2J")
    tree.usb("1-2", "1d6b:0002", "1.1", hub=True)
    found = tree.find_usb("046d:c31c")
    assert found == tree.find_usb("1.4")
    assert (found.node, found.title) == ("/dev/bus/usb/001/004", "Keyboard[2J")
    with pytest.raises(NotFound, match=r"046d:c31c \(1\.4\)$"):
        tree.find_usb("046d:0000")
    with pytest.raises(InvalidInput, match="is a hub"):
        tree.find_usb("1.1")
    with pytest.raises(InvalidInput, match="neither"):
        tree.find_usb("046d")


def test_two_alike_are_told_apart_by_place(tree: Tree) -> None:
    tree.usb("1-1", "0781:5567", "1.4")
    tree.usb("1-2", "0781:5567", "1.7")
    with pytest.raises(Conflict) as refused:
        tree.find_usb("0781:5567")
    assert refused.value.hint == "--device usb:1.4 or --device usb:1.7"
    assert tree.find_usb("1.7").number == 7


def test_a_usb_device_that_the_host_uses_is_refused(tree: Tree) -> None:
    stick = tree.usb("1-1", "0781:5567", "1.4")
    tree.disk("sdb", "8:16", on=f"{stick}/1-1:1.0/host6/target6:0:0/6:0:0:0", parts=1)
    assert tree.find_usb("1.4").kind == "0781:5567"  # the host's driver lets go of it
    tree.write("proc/self/mountinfo", "30 1 8:17 / /media rw - vfat /dev/sdb1 rw\n")
    with pytest.raises(Conflict, match="mounted at '/media'") as refused:
        tree.find_usb("1.4")
    assert refused.value.hint == "umount /media"
    card = tree.usb("1-2", "0b95:1790", "1.5")
    tree.write(f"{card}/1-2:1.0/net/eth7/operstate", "up\n")
    with pytest.raises(Conflict) as refused:
        tree.find_usb("1.5")
    assert refused.value.hint == "ip link set eth7 down"
    reader = tree.usb("1-3", "08e6:3437", "1.6")
    tree.link(f"{reader}/1-3:1.0/driver", "sys/bus/usb/drivers/usbfs")
    with pytest.raises(Conflict, match="in use by a program"):
        tree.find_usb("1.6")


# -- PCI ------------------------------------------------------------------------------------------


def test_a_pci_device_needs_an_iommu_and_vfio(tree: Tree) -> None:
    tree.pci("0000:00:1c.0", group="3", driver="pcieport", kind="0x0604")
    tree.pci("0000:01:00.0")
    with pytest.raises(NotFound):
        tree.find_pci("0000:09:00.0")
    with pytest.raises(InvalidInput, match="not like"):
        tree.find_pci("../../../etc")
    with pytest.raises(InvalidInput, match="bridge"):
        tree.find_pci("0000:00:1c.0")
    with pytest.raises(Unsupported, match="the IOMMU is off") as refused:
        tree.find_pci("0000:01:00.0")
    assert "intel_iommu=on" in refused.value.hint


def test_a_pci_device_and_its_group_are_vfios(tree: Tree) -> None:
    folder = tree.pci("0000:01:00.0", group="7", driver="nouveau")
    with pytest.raises(Conflict, match="driver 'nouveau'") as refused:
        tree.find_pci("0000:01:00.0")
    for word in ("driver_override", "driver/unbind", "drivers_probe"):
        assert word in refused.value.hint
    (tree.root / folder / "driver").unlink()
    tree.link(f"{folder}/driver", "sys/bus/pci/drivers/vfio-pci")
    tree.pci("0000:01:00.1", group="7", driver="snd_hda_intel", kind="0x0403")
    with pytest.raises(Conflict, match=r"group 7 with 0000:01:00\.1.*snd_hda_intel"):
        tree.find_pci("0000:01:00.0")
    (tree.root / "sys/devices/pci0000:00/0000:01:00.1/driver").unlink()
    with pytest.raises(Unsupported, match="does not open") as refused:
        tree.find_pci("0000:01:00.0")
    assert refused.value.hint == "modprobe -a vfio-pci vfio_iommu_type1"
    for node in ("vfio", "7"):
        tree.write(f"dev/vfio/{node}", "")
    assert tree.find_pci("0000:01:00.0") == PciDevice(address="0000:01:00.0", group="7")
    # A disk behind it (NVMe, say) that is mounted counts before anything of VFIO does.
    tree.disk("nvme0n1", "259:0", on=f"{folder}/nvme/nvme0")
    tree.write("proc/self/mountinfo", "30 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n")
    with pytest.raises(Conflict, match="mounted at '/srv'"):
        tree.find_pci("0000:01:00.0")


def test_what_qemu_sees_of_a_pci_device() -> None:
    cards = (
        PciDevice(address="0000:01:00.0", group="7"),
        PciDevice(address="0000:01:00.1", group="7"),
    )
    mounts = host_pci.mounts(cards)
    assert [(mount.kind, mount.target) for mount in mounts] == [
        ("node", "/dev/vfio/vfio"),
        ("node", "/dev/vfio/7"),
        ("tmpfs", "/run"),
        ("bind", "/run/0000:01:00.0"),
        ("bind", "/run/0000:01:00.1"),
    ]
    assert all("ro" in mount.options for mount in mounts if mount.kind == "bind")
    process = qemu_process(("qemu",), tty=False)
    given = HostDevices(pci=cards)
    assert given.confine(process, 1 << 30).rlimits["memlock"] == (2 << 30, 2 << 30)
    assert HostDevices().confine(process, 1 << 30) is process
    assert host_pci.mounts(()) == ()


# -- of either kind -------------------------------------------------------------------------------


def test_one_device_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_disk, "check", lambda path: "/dev/sdb")
    spec = InstanceSpec(
        image="x",
        disks=[{"device": "/dev/sdb"}, {"device": "/dev/disk/by-id/one"}],  # type: ignore[list-item]
    )
    with pytest.raises(InvalidInput, match="/dev/sdb is given twice"):
        own_os_devices.find(spec)
    spec = spec.model_copy(update={"disks": spec.disks[1:]})
    given = own_os_devices.find(spec)
    drives = given.in_place(own_os.drives(spec, "/i"))
    assert [one.path for one in drives if one.block_device] == ["/dev/sdb"]


def test_what_a_machine_has_of_the_host_is_said() -> None:
    spec = InstanceSpec.model_validate(
        {
            "image": "x",
            "disks": [{"device": "/dev/sdb"}],
            "host_devices": [
                {"bus": "usb", "address": "1.4"},
                {"bus": "pci", "address": "0000:01:00.0"},
            ],
        }
    )
    disk, usb, pci = privileges.weakened(spec)
    assert "/dev/sdb" in disk
    assert "--device usb:1.4" in usb
    assert "the IOMMU alone" in pci
