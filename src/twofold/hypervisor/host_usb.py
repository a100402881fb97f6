"""A USB device of the host for one machine alone: which node of /dev it is, and who uses it.

Named by what it is (``046d:c31c``: vendor and product, as lsusb prints) or by where it is
(``1.4``: bus and device number, new each time it is plugged in). QEMU gets its node open and takes
it away from the host's drivers; so what the host is using is refused. ``sys`` and ``proc`` are the
host's, or a test's directories. Changes nothing.
"""

import os
import re
from dataclasses import dataclass

from twofold.errors import Conflict, InvalidInput, NotFound, TwofoldError
from twofold.hypervisor import host_disk

_HUB = "09"
_BY_KIND = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})\Z")
_BY_PLACE = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\Z")


@dataclass(frozen=True, kw_only=True)
class UsbDevice:
    """``folder`` is its directory of sysfs; ``title`` what its maker calls it."""

    bus: int
    number: int
    kind: str  # VENDOR:PRODUCT
    title: str
    is_hub: bool
    folder: str

    @property
    def place(self) -> str:
        return f"{self.bus}.{self.number}"

    @property
    def node(self) -> str:
        return f"/dev/bus/usb/{self.bus:03}/{self.number:03}"


def devices(sys: str = "/sys") -> list[UsbDevice]:
    """All that is plugged in, hubs included."""
    base = f"{sys}/bus/usb/devices"
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    found = [_read(f"{base}/{name}") for name in names]
    return [one for one in found if one is not None]


def find(address: str, *, sys: str = "/sys", proc: str = "/proc") -> UsbDevice:
    """Raises NotFound, Conflict (in use, or several fit) and InvalidInput."""
    place = _BY_PLACE.match(address)
    if not place and not _BY_KIND.match(address):
        raise InvalidInput(
            f"USB device {address!r} is neither VENDOR:PRODUCT nor BUS.DEVICE",
            hint="--device usb:046d:c31c, or --device usb:1.4",
        )
    there = devices(sys)
    if place:
        wanted = (int(place.group(1)), int(place.group(2)))
        fitting = [one for one in there if (one.bus, one.number) == wanted]
    else:
        fitting = [one for one in there if one.kind == address]
    if not fitting:
        known = ", ".join(f"{one.kind} ({one.place})" for one in there if not one.is_hub)
        raise NotFound(
            f"no USB device {address!r} is plugged in; there are: {known or 'none'}", hint="lsusb"
        )
    if len(fitting) > 1:
        raise Conflict(
            f"{len(fitting)} USB devices are {address!r}",
            hint=" or ".join(f"--device usb:{one.place}" for one in fitting),
        )
    refusal = use_of(fitting[0], sys=sys, proc=proc)
    if refusal is not None:
        raise refusal
    return fitting[0]


def use_of(device: UsbDevice, *, sys: str = "/sys", proc: str = "/proc") -> TwofoldError | None:
    """Why it cannot be given away; None when it can."""
    shown = f"USB device {device.kind} ({device.title or device.place})"
    if device.is_hub:
        return InvalidInput(f"{shown} is a hub: what hangs on it can be given", hint="lsusb -t")
    for disk in host_disk.beneath(device.folder):
        used = host_disk.use_of(disk, f"/dev/{disk}", sys=sys, proc=proc)
        if used is not None:
            return Conflict(f"{shown} is in use: {used.message}", hint=used.hint)
    for name in sorted(os.listdir(device.folder)):
        interface = f"{device.folder}/{name}"
        driver = os.path.realpath(f"{interface}/driver")
        if ":" in name and os.path.basename(driver) == "usbfs":
            return Conflict(
                f"{shown} is in use by a program, or by another machine",
                hint=f"fuser -v {device.node}",
            )
        for card in _cards_up(interface):
            return Conflict(
                f"{shown} is the host's network card {card}, which is up",
                hint=f"ip link set {card} down",
            )
    return None


def _cards_up(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(f"{folder}/net"))
    except OSError:
        return []
    return [name for name in names if _word(f"{folder}/net/{name}/operstate") == "up"]


def _read(folder: str) -> UsbDevice | None:
    vendor, product = _word(f"{folder}/idVendor"), _word(f"{folder}/idProduct")
    bus, number = _word(f"{folder}/busnum"), _word(f"{folder}/devnum")
    if not (vendor and product and bus.isdecimal() and number.isdecimal()):
        return None  # an interface of a device, not a device
    words = (_word(f"{folder}/manufacturer"), _word(f"{folder}/product"))
    return UsbDevice(
        bus=int(bus),
        number=int(number),
        kind=f"{vendor}:{product}",
        title=" ".join(word for word in words if word),
        is_hub=_word(f"{folder}/bDeviceClass") == _HUB,
        folder=os.path.realpath(folder),
    )


def _word(path: str) -> str:
    """The content, printable: a device says of itself what it likes."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(256)
    except OSError:
        return ""
    return "".join(letter for letter in text.strip() if letter.isprintable())
