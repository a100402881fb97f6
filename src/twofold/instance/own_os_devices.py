"""Devices of the host that a machine with an operating system of its own gets to itself.

Looked for, and looked at, before the machine is made and again before each start: what is in use is
refused with what to do about it. What comes of it is part of the plan.
"""

from dataclasses import dataclass, replace

from twofold.errors import InvalidInput
from twofold.hypervisor import host_disk, host_pci, host_usb
from twofold.hypervisor.bare import Drive
from twofold.hypervisor.host_pci import PciDevice
from twofold.model.instance import InstanceSpec
from twofold.runtime.plan import Process

# VFIO pins all of the guest's memory, and what the devices themselves have of it.
_PINNED_BESIDES_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class HostDevices:
    """``usb``: the nodes. ``disks``: what the user called each block device → its own path.
    ``device_rules``: what the control group lets through for ``pci``."""

    usb: tuple[str, ...] = ()
    pci: tuple[PciDevice, ...] = ()
    disks: tuple[tuple[str, str], ...] = ()
    device_rules: tuple[str, ...] = ()

    def in_place(self, drives: tuple[Drive, ...]) -> tuple[Drive, ...]:
        """The drives, with the path that was looked at in place of a link that may change."""
        paths = dict(self.disks)
        return tuple(
            replace(one, path=paths.get(one.path, one.path)) if one.block_device else one
            for one in drives
        )

    def confine(self, process: Process, memory_bytes: int) -> Process:
        """QEMU's process, which may lock as much memory as VFIO wants."""
        if not self.pci:
            return process
        most = memory_bytes + _PINNED_BESIDES_BYTES
        return replace(process, rlimits={**process.rlimits, "memlock": (most, most)})


NO_HOST_DEVICES = HostDevices()


def find(spec: InstanceSpec) -> HostDevices:
    """Those that ``spec`` names, free to be given. Raises InvalidInput, NotFound, Conflict,
    Unsupported. Blocks."""
    disks = [(wish.device, host_disk.check(wish.device)) for wish in spec.disks if wish.device]
    _refuse_twice([real for _, real in disks], "disk")
    usb, pci = (
        [device.address for device in spec.host_devices if device.bus == bus]
        for bus in ("usb", "pci")
    )
    nodes = [host_usb.find(address).node for address in usb]
    _refuse_twice(nodes, "device")
    _refuse_twice(pci, "device")
    cards = tuple(host_pci.find(address) for address in pci)
    return HostDevices(
        usb=tuple(nodes),
        pci=cards,
        disks=tuple(disks),
        device_rules=host_pci.device_rules(cards),
    )


def _refuse_twice(names: list[str], option: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"{name} is given twice", hint=f"leave one --{option} out")
