"""Where a machine with an operating system of its own has room for devices that come later. Pure.

The q35 board itself takes none while it runs: root ports wait there, in one slot that nothing else
had, so no other device moves. Slots of the pc board do, where the guest's ACPI tells it. A SCSI or
USB controller takes disks by itself. A device keeps its place at every later start: systems name a
network card by it. ``taken`` has the places that are in use, by the name of who is there: ``disk1``
or ``card``.

Refuses what has no place, by the name of the hardware in its way.
"""

from collections.abc import Mapping

from twofold.errors import Conflict, Unsupported
from twofold.hypervisor import places
from twofold.hypervisor.bare_devices import DISK_BUSES, NICS, Hardware
from twofold.hypervisor.places import Place

PORTS = 4
USB, SCSI = "usb", "scsi"
CARD = "card"
_SLOT_OF_PORTS = 0x1E  # the last before the board's own
_FIRST_SLOT = 0x1A  # of the pc board
# How many disks find a socket on the controller; a tablet has one of them.
_SOCKETS = {"uhci": 1, "xhci": 3}


def words(hardware: Hardware) -> list[str]:
    """Of the command line: the ports, empty or not."""
    if hardware.board != "q35":
        return []
    found = []
    for n in range(PORTS):
        where = f"addr={_SLOT_OF_PORTS:#x}.{n:#x}" + (",multifunction=on" if n == 0 else "")
        found += ["-device", f"pcie-root-port,id=later{n},bus=pcie.0,chassis={n + 1},{where}"]
    return found


def choose(hardware: Hardware, name: str, taken: Mapping[str, str]) -> str:
    """A free place for one more device. Raises Unsupported, Conflict."""
    word = _kind(hardware, name)
    if word == SCSI:
        return SCSI
    if word == USB:
        if sum(place == USB for place in taken.values()) >= _SOCKETS[hardware.usb]:
            raise _full(f"its {hardware.usb} controller has no socket left for another disk")
        return USB
    for n in range(PORTS):
        if f"port{n}" not in taken.values():
            return f"port{n}"
    raise _full(f"its {PORTS} places for what comes while it runs are in use")


def find(hardware: Hardware, name: str, taken: Mapping[str, str]) -> Place | None:
    """Where ``name`` is, for the command line and for taking it out. None: on the board for good,
    as what was there from the beginning, or because the place was one of other hardware."""
    device = _device(name)
    word = taken.get(name, "")
    if word.startswith("port") and _port_fits(hardware, name):
        return _at_port(hardware, device, int(word[4:]))
    if name == CARD:
        return None
    if word == USB and _uses_usb(hardware):
        return Place(device=device, bus="usb.0")
    return None


def removable(hardware: Hardware, name: str, taken: Mapping[str, str]) -> Place | None:
    """As ``find``, and also what lay from the beginning where devices come and go."""
    found = find(hardware, name, taken)
    if found is None and name != CARD and hardware.disk_bus == "virtio-scsi":
        found = Place(device=_device(name), bus="scsi.0")
    elif found is None and hardware.board == "pc" and _port_fits(hardware, name):
        found = Place(device=_device(name), bus="pci.0")
    return found


def driver(hardware: Hardware, name: str, place: Place) -> str:
    """QEMU's word for the device at this place."""
    if name == CARD:
        return NICS[hardware.nic].device
    return {"usb.0": "usb-storage", "scsi.0": "scsi-hd"}.get(place.bus, "virtio-blk-pci")


def _kind(hardware: Hardware, name: str) -> str:
    if name != CARD and hardware.disk_bus == "virtio-scsi":
        return SCSI
    if _port_fits(hardware, name):
        return "port"
    if name != CARD and _uses_usb(hardware):
        return USB
    if hardware.board == "pc" and not hardware.acpi and _speaks_pci(hardware, name):
        raise _refused("its board has no ACPI, which would tell the system of a new device")
    what = f"{hardware.nic} network card" if name == CARD else f"{hardware.disk_bus} disk"
    raise _refused(f"a {hardware.board} board takes no {what} while it runs")


def _port_fits(hardware: Hardware, name: str) -> bool:
    takes = hardware.board == "q35" or (hardware.board == "pc" and hardware.acpi)
    return takes and _speaks_pci(hardware, name)


def _speaks_pci(hardware: Hardware, name: str) -> bool:
    if name != CARD:
        return hardware.disk_bus == "virtio-blk"
    # A port of the q35 board is PCI Express.
    return hardware.board == "pc" or hardware.nic in ("virtio-net", "e1000e")


def _uses_usb(hardware: Hardware) -> bool:
    return not DISK_BUSES[hardware.disk_bus].virtio and hardware.usb in _SOCKETS


def _at_port(hardware: Hardware, device: str, n: int) -> Place:
    if hardware.board == "q35":
        return Place(device=device, bus=f"later{n}", address="0x0")
    return Place(device=device, bus="pci.0", address=f"{_FIRST_SLOT + n:#x}")


def _device(name: str) -> str:
    return places.card().device if name == CARD else f"dev-{name}"


def _refused(why: str) -> Unsupported:
    return Unsupported(f"nothing of that kind can be plugged in: {why}")


def _full(why: str) -> Conflict:
    return Conflict(f"nothing more can be plugged in: {why}")
