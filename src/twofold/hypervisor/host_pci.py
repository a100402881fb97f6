"""A PCI device of the host for one machine alone, by VFIO: whether that can be, and by which nodes.

Such a device reaches memory by itself, so it is given only behind an IOMMU, and only with the whole
group of devices that the IOMMU cannot tell apart. Twofold binds no drivers: taking a card from the
host is for its administrator to do, and the refusal says how. ``sys`` and ``dev`` are the host's,
or a test's directories. Changes nothing.
"""

import errno
import os
import re
from dataclasses import dataclass

from twofold.errors import Conflict, InvalidInput, NotFound, Unsupported
from twofold.hypervisor import host_disk
from twofold.runtime.plan import Mount

DRIVER = "vfio-pci"
FOLDERS = "/run"  # in QEMU's jail: where it finds a device's directory of sysfs, under its address
# With these bound, or none, the kernel takes a group's other members for harmless.
_HARMLESS = ("", DRIVER, "pci-stub", "pcieport", "vfio-platform")
_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_BRIDGE = "0x06"


@dataclass(frozen=True, kw_only=True)
class PciDevice:
    address: str
    group: str  # the number of its IOMMU group


def find(address: str, *, sys: str = "/sys", dev: str = "/dev", proc: str = "/proc") -> PciDevice:
    """Raises NotFound, Conflict (in use), Unsupported (no IOMMU, no VFIO) and InvalidInput."""
    folder = f"{sys}/bus/pci/devices/{address}"
    if not _ADDRESS.match(address):
        raise InvalidInput(f"PCI address {address!r} is not like 0000:01:00.0", hint="lspci -D")
    if not os.path.isdir(folder):
        raise NotFound(f"there is no PCI device {address!r}", hint="lspci -D")
    if _word(f"{folder}/class").startswith(_BRIDGE):
        raise InvalidInput(
            f"PCI device {address} is a bridge: what is behind it can be given", hint="lspci -tv"
        )
    if not os.path.exists(f"{folder}/iommu_group"):
        raise Unsupported(
            f"PCI device {address}: the IOMMU is off, without which it could read and write all "
            "of the host's memory",
            hint="switch on VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on (Intel)",
        )
    for disk in host_disk.beneath(os.path.realpath(folder)):
        used = host_disk.use_of(disk, f"/dev/{disk}", sys=sys, proc=proc)
        if used is not None:
            raise Conflict(f"PCI device {address} is in use: {used.message}", hint=used.hint)
    group = os.path.realpath(f"{folder}/iommu_group")
    _check_drivers(address, folder, group)
    _check_vfio(address, os.path.basename(group), dev)
    return PciDevice(address=address, group=os.path.basename(group))


def _check_drivers(address: str, folder: str, group: str) -> None:
    driver = _driver(folder)
    if driver != DRIVER:
        has = f"belongs to the host's driver {driver!r}" if driver else "has no driver"
        raise Conflict(
            f"PCI device {address} {has}; it can be given once {DRIVER} has it",
            hint=_binding(address, driver),
        )
    for other in sorted(os.listdir(f"{group}/devices")):
        found = _driver(f"{group}/devices/{other}")
        if found not in _HARMLESS:
            raise Conflict(
                f"PCI device {address} is in IOMMU group {os.path.basename(group)} with {other}, "
                f"which the host's driver {found!r} has: the group goes to one owner or to none",
                hint=_binding(other, found),
            )


def _check_vfio(address: str, group: str, dev: str) -> None:
    for node in (f"{dev}/vfio/vfio", f"{dev}/vfio/{group}"):
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(
                    f"PCI device {address} is in use: another machine has its IOMMU group {group}",
                    hint=f"fuser -v {node}",
                ) from error
            raise Unsupported(
                f"PCI device {address}: {node!r} does not open: {error.strerror}",
                hint="modprobe -a vfio-pci vfio_iommu_type1",
            ) from error


def mounts(devices: tuple[PciDevice, ...]) -> tuple[Mount, ...]:
    """What of the host QEMU sees for them: VFIO's nodes, and of sysfs each device's directory."""
    if not devices:
        return ()
    plain = ("nosuid", "nodev", "noexec")
    node = ("nosuid", "noexec")
    nodes = ["/dev/vfio/vfio", *(f"/dev/vfio/{group}" for group in _groups(devices))]
    return (
        *(Mount(kind="node", source=path, target=path, options=node) for path in nodes),
        Mount(
            kind="tmpfs",
            source="tmpfs",
            target=FOLDERS,
            options=(*plain, "mode=0755", "size=65536"),
        ),
        *(
            Mount(
                kind="bind",
                source=f"/sys/bus/pci/devices/{one.address}",
                target=f"{FOLDERS}/{one.address}",
                options=(*plain, "ro"),
            )
            for one in devices
        ),
    )


def device_rules(devices: tuple[PciDevice, ...], *, dev: str = "/dev") -> tuple[str, ...]:
    """What QEMU's control group lets through for them. Raises Unsupported."""
    rules = []
    for name in ("vfio", *_groups(devices)) if devices else ():
        try:
            number = os.stat(f"{dev}/vfio/{name}").st_rdev
        except OSError as error:
            raise Unsupported(
                f"{dev}/vfio/{name}: {error.strerror}", hint="modprobe vfio-pci"
            ) from error
        rules.append(f"c {os.major(number)}:{os.minor(number)} rw")
    return tuple(rules)


def _groups(devices: tuple[PciDevice, ...]) -> list[str]:
    return list(dict.fromkeys(one.group for one in devices))


def _binding(address: str, driver: str) -> str:
    """The commands that give a device to VFIO; they may be pasted."""
    folder = f"/sys/bus/pci/devices/{address}"
    unbind = f"echo {address} > {folder}/driver/unbind; " if driver else ""
    return (
        f"modprobe {DRIVER}; echo {DRIVER} > {folder}/driver_override; {unbind}"
        f"echo {address} > /sys/bus/pci/drivers_probe"
    )


def _driver(folder: str) -> str:
    path = f"{folder}/driver"
    return os.path.basename(os.path.realpath(path)) if os.path.islink(path) else ""


def _word(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return ""
