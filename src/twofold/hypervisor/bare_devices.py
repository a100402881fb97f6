"""What each kind of device is on QEMU's command line, for machines with an OS of their own.

One table per kind: a new model is one row. ``emulated`` is what operating systems brought drivers
for before there were virtual machines, ``virtio`` what is made for them. Pure data.
"""

from dataclasses import dataclass

from twofold.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class DiskBus:
    """``controllers`` are plugged in once; ``{index}`` counts disks and CD drives together.

    ``room`` is how many of them fit. A bus without CD drives leaves them to ``cdrom_bus``.
    """

    controllers: dict[str, tuple[str, ...]]  # by board
    disk: dict[str, str]  # by board; "" is not to be had
    cdrom: dict[str, str]
    room: int
    virtio: bool = False


_NO_CONTROLLER: dict[str, tuple[str, ...]] = {"pc": (), "q35": (), "virt": ()}
_AHCI = ("ich9-ahci,id=ahci",)

DISK_BUSES: dict[str, DiskBus] = {
    # The PIIX of the board: two channels with two devices each. The q35 board has no such chip.
    "ide": DiskBus(
        controllers={"pc": ()},
        disk={"pc": "ide-hd,bus=ide.{channel},unit={unit}"},
        cdrom={"pc": "ide-cd,bus=ide.{channel},unit={unit}"},
        room=4,
    ),
    # The ICH9 of the q35 board is one; a pc board gets one plugged in.
    "ahci": DiskBus(
        controllers={"pc": _AHCI, "q35": ()},
        disk={"pc": "ide-hd,bus=ahci.{index}", "q35": "ide-hd,bus=ide.{index}"},
        cdrom={"pc": "ide-cd,bus=ahci.{index}", "q35": "ide-cd,bus=ide.{index}"},
        room=6,
    ),
    # What arm64 servers have; the firmware of the board virt knows no AHCI.
    "nvme": DiskBus(controllers={"virt": ()}, disk={"virt": "nvme"}, cdrom={}, room=16),
    # A drive on a USB controller of its own.
    "usb": DiskBus(
        controllers={"virt": ("qemu-xhci,id=drives", "usb-bot,id=cd,bus=drives.0")},
        disk={},
        cdrom={"virt": "scsi-cd,bus=cd.0,lun={index}"},
        room=8,
    ),
    "virtio-blk": DiskBus(
        controllers=_NO_CONTROLLER,
        disk=dict.fromkeys(_NO_CONTROLLER, "virtio-blk-pci"),
        cdrom={},
        room=16,
        virtio=True,
    ),
    "virtio-scsi": DiskBus(
        controllers=dict.fromkeys(_NO_CONTROLLER, ("virtio-scsi-pci,id=scsi",)),
        disk=dict.fromkeys(_NO_CONTROLLER, "scsi-hd,bus=scsi.0"),
        cdrom=dict.fromkeys(_NO_CONTROLLER, "scsi-cd,bus=scsi.0"),
        room=16,
        virtio=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Nic:
    """``boot_rom`` is what boots from the network; without ``network`` in the order it is off."""

    device: str
    boot_rom: str
    virtio: bool = False


NICS: dict[str, Nic] = {
    "e1000": Nic(device="e1000", boot_rom="efi-e1000.rom"),
    "e1000e": Nic(device="e1000e", boot_rom="efi-e1000e.rom"),
    "rtl8139": Nic(device="rtl8139", boot_rom="efi-rtl8139.rom"),
    "ne2k_pci": Nic(device="ne2k_pci", boot_rom="efi-ne2k_pci.rom"),
    "pcnet": Nic(device="pcnet", boot_rom="efi-pcnet.rom"),
    "virtio-net": Nic(device="virtio-net-pci", boot_rom="efi-virtio.rom", virtio=True),
}

# By board. ramfb is a picture in memory that the firmware sets up: it needs no driver.
VIDEOS: dict[str, dict[str, str]] = {
    "std": {"pc": "VGA", "q35": "VGA"},
    "cirrus": {"pc": "cirrus-vga", "q35": "cirrus-vga"},
    "ramfb": {"virt": "ramfb"},
    "virtio": {"pc": "virtio-vga", "q35": "virtio-vga", "virt": "virtio-gpu-pci"},
}

USB_CONTROLLERS: dict[str, str] = {
    "none": "",
    "uhci": "piix3-usb-uhci,id=usb",
    "xhci": "qemu-xhci,id=usb",
}

# Beside the PS/2 keyboard and mouse of a PC's board. A tablet tells where the pointer is, so that a
# screen far away and the guest agree about it.
INPUTS: dict[str, tuple[str, ...]] = {
    "ps2": (),
    "usb-tablet": ("usb-tablet,bus=usb.0",),
    "virtio": ("virtio-keyboard-pci", "virtio-tablet-pci"),
}
# The board virt has none, and its firmware knows but USB.
KEYBOARDS: dict[str, tuple[str, ...]] = {"virt": ("usb-kbd,bus=usb.0",)}
# On which board, which devices; what is played goes nowhere.
SOUND_CARDS: dict[str, dict[str, tuple[str, ...]]] = {
    "none": _NO_CONTROLLER,
    "sb16": dict.fromkeys(("pc", "q35"), ("sb16,audiodev=sound",)),
    "ac97": dict.fromkeys(_NO_CONTROLLER, ("AC97,audiodev=sound",)),
    "hda": {
        "pc": ("intel-hda,id=hda", "hda-duplex,bus=hda.0,audiodev=sound"),
        **dict.fromkeys(
            ("q35", "virt"),
            ("ich9-intel-hda,id=hda", "hda-duplex,bus=hda.0,audiodev=sound"),
        ),
    },
}
# The plain x86-64 of 2003, or the first 64-bit Arm, for what stumbles over anything newer; else all
# that there is.
BASELINE_CPUS = {"pc": "qemu64,svm=off", "q35": "qemu64,svm=off", "virt": "cortex-a57"}
TPMS = {"pc": "tpm-crb", "q35": "tpm-crb", "virt": "tpm-tis-device"}
CPUS = ("full", "baseline")
# What Windows since Vista asks Hyper-V for and KVM has as well.
HYPERV_HINTS = ("hv-relaxed", "hv-vapic", "hv-spinlocks=0x1fff", "hv-time")
BOARDS = ("pc", "q35", "virt")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The models of one machine, each a word of a table above."""

    board: str = "pc"
    disk_bus: str = "ide"
    cdrom_bus: str = "ide"
    nic: str = "e1000"
    video: str = "std"
    usb: str = "none"
    inputs: str = "ps2"
    sound: str = "none"
    clock: str = "utc"  # utc | localtime
    cpu: str = "full"
    acpi: bool = True
    hpet: bool = True
    hyperv: bool = False  # hints to Windows, where KVM can give them
    rng: bool = False
    balloon: bool = False
    agent_port: bool = False  # a virtio serial port for qemu-guest-agent

    @property
    def vnet_header(self) -> bool:
        return NICS[self.nic].virtio


# What an operating system finds that nobody knows: the chips that most have had drivers for.
UNKNOWN = Hardware()
UNKNOWN_ARM64 = Hardware(
    board="virt",
    disk_bus="nvme",
    cdrom_bus="usb",
    nic="e1000e",
    video="ramfb",
    usb="xhci",
    inputs="usb-tablet",
    hpet=False,
)
VIRTIO = Hardware(
    board="q35",
    disk_bus="virtio-blk",
    cdrom_bus="ahci",
    nic="virtio-net",
    video="virtio",
    inputs="virtio",
    rng=True,
    balloon=True,
    agent_port=True,
)


def check(hardware: Hardware) -> None:
    """Every word is one of the tables, and the board takes it. Raises InvalidInput."""
    for word, known, what in (
        (hardware.board, BOARDS, "board"),
        (hardware.disk_bus, DISK_BUSES, "disk bus"),
        (hardware.cdrom_bus, DISK_BUSES, "CD-ROM bus"),
        (hardware.nic, NICS, "network card"),
        (hardware.video, VIDEOS, "video card"),
        (hardware.usb, USB_CONTROLLERS, "USB controller"),
        (hardware.inputs, INPUTS, "input device"),
        (hardware.sound, SOUND_CARDS, "sound card"),
        (hardware.cpu, CPUS, "processor"),
        (hardware.clock, ("utc", "localtime"), "clock"),
    ):
        if word not in known:
            raise InvalidInput(f"{what} {word!r} is none of {', '.join(known)}")
    if hardware.inputs == "usb-tablet" and hardware.usb == "none":
        raise InvalidInput("a usb-tablet needs a USB controller: uhci or xhci")
    for table, word, what in (
        (VIDEOS, hardware.video, "screen"),
        (SOUND_CARDS, hardware.sound, "sound card"),
    ):
        if hardware.board not in table[word]:
            raise InvalidInput(f"a {hardware.board} board has no {word} {what}")
    if hardware.board == "virt" and (hardware.inputs, hardware.usb) != ("usb-tablet", "xhci"):
        raise InvalidInput("a virt board has keyboard and pointer on USB (xhci) alone")
    if not DISK_BUSES[hardware.disk_bus].disk.get(hardware.board):
        raise InvalidInput(f"a {hardware.board} board has no {hardware.disk_bus} disks")
    if not DISK_BUSES[hardware.cdrom_bus].cdrom.get(hardware.board):
        raise InvalidInput(f"a {hardware.board} board has no {hardware.cdrom_bus} CD drives")
