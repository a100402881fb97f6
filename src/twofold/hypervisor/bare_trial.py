"""A few virtio devices beside what a machine has, to see whether its system has drivers for them.

Nothing of the guest's hangs on them: the disk is a scratch file, the network card leads nowhere. A
driver that takes a device says so in the device's status, which QEMU tells; nothing inside has to
help. Firmware drives virtio disks, too: what it asks of them is known, and does not count.

Pure but for ``ask``. ``x-query-virtio-status`` is there since QEMU 7.2.
"""

from collections.abc import Iterable
from typing import Any

from twofold.errors import GuestFailed, IllegalState, Unsupported
from twofold.hypervisor import qmp

SCRATCH_BYTES = 64 << 20
FILE = "scratch"  # the name of its descriptor
_FDSET = 150

# What a driver is called in osinfo: the device that shows whether it is there.
DEVICES: dict[str, str] = {
    "block": f"virtio-blk-pci,drive={FILE},serial=twofold-trial",
    "net": "virtio-net-pci,netdev=nowhere,romfile=",
    "console": "virtio-serial-pci",
    "rng": "virtio-rng-pci",
    "balloon": "virtio-balloon-pci",
}
NEEDED = ("block", "net")

# All that SeaBIOS and OVMF ever ask of such a device. No system's driver is content with it: it
# asks at least for a way to be woken less often, or to say more in one request.
_FIRMWARES = frozenset(
    {
        *("VIRTIO_F_VERSION_1", "VIRTIO_F_IOMMU_PLATFORM"),
        *("VIRTIO_BLK_F_BLK_SIZE", "VIRTIO_BLK_F_SEG_MAX", "VIRTIO_BLK_F_SIZE_MAX"),
        *("VIRTIO_BLK_F_RO", "VIRTIO_BLK_F_FLUSH", "VIRTIO_BLK_F_TOPOLOGY"),
        *("VIRTIO_NET_F_MAC", "VIRTIO_NET_F_STATUS", "VIRTIO_NET_F_MTU"),
    }
)
_READY = "VIRTIO_CONFIG_S_DRIVER_OK"
_FAILED = frozenset({"VIRTIO_CONFIG_S_FAILED", "VIRTIO_CONFIG_S_NEEDS_RESET"})


def words() -> list[str]:
    """QEMU's words for all of them. ``{fd:scratch}`` is a file of ``SCRATCH_BYTES``."""
    node = f"driver=raw,node-name={FILE},read-only=off,file.driver=file,file.aio=threads"
    found = ["-add-fd", f"fd={{fd:{FILE}}},set={_FDSET},opaque={FILE}"]
    found += ["-blockdev", f"{node},file.filename=/dev/fdset/{_FDSET}"]
    found += ["-netdev", "hubport,id=nowhere,hubid=0"]
    for name, device in DEVICES.items():
        found += ["-device", f"{device},id=trial-{name}"]
    return found


def is_taken(status: Any) -> bool:
    """Whether a driver of the system's own works the device, by QEMU's answer. Never trusts it."""
    if not isinstance(status, dict):
        return False
    said = _names(status.get("status"), "statuses")
    if _READY not in said or said & _FAILED:
        return False
    features = status.get("guest-features")
    asked = _names(features, "transports") | _names(features, "dev-features")
    return bool(asked - _FIRMWARES)


def _names(found: Any, field: str) -> set[str]:
    """``NAME`` of each ``NAME: what it means``."""
    listed = found.get(field) if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return set()
    return {str(line).partition(":")[0] for line in listed}


async def ask(socket_path: str, names: Iterable[str]) -> set[str]:
    """Which of the devices are taken now. Raises Unavailable when the machine has ended."""
    taken = set()
    for name in names:
        path = f"/machine/peripheral/trial-{name}/virtio-backend"
        try:
            status = await qmp.execute(socket_path, "x-query-virtio-status", {"path": path})
        except IllegalState as error:
            if "has not been found" in error.message:
                raise Unsupported(
                    "this QEMU cannot tell which virtio devices a guest uses",
                    hint="QEMU 7.2 or newer can: qemu-system-x86_64 --version",
                ) from error
            raise GuestFailed(f"a device of the trial is not there: {error.message}") from error
        if is_taken(status):
            taken.add(name)
    return taken
