"""QEMU's command line for a machine with an operating system of its own. Pure: strings only.

Nothing of ours runs in it: firmware, boot loader and OS are what the disks bring. The devices are
rows of ``bare_devices``. As in ``machine.py`` files are never named: QEMU gets descriptors, and
every format is said, never guessed. A guest that reboots does so; one that powers off ends QEMU.

Refuses models that do not go together and more disks than a bus takes; runs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from twofold.errors import InvalidInput
from twofold.hypervisor import (
    bare_devices,
    bare_places,
    bare_trial,
    host_pci,
    machine,
    places,
    targets,
)
from twofold.hypervisor.bare_devices import DISK_BUSES, NICS, DiskBus, Hardware
from twofold.hypervisor.options import option, plain
from twofold.runtime.plan import OpenFile

MINIMUM_MEMORY_BYTES = 4 << 20
_MIB = 1 << 20
_SCREEN_BYTES = 64 * _MIB  # the video card's memory and the picture of it
_TPM_BYTES = 32 * _MIB
_FLASH_BYTES = 128 * _MIB  # of the board virt: QEMU holds firmware and NVRAM in memory
_USB_FDSET = 200  # far from those of the drives
_BOOT = ("disk", "cdrom", "floppy", "network")
# Linux names a network card by its slot (enp0s16). Were that the next one free, other hardware
# would rename the card, and a system that was set up with the old name would be off the network.
_NIC_SLOT = "0x10"


@dataclass(frozen=True, kw_only=True)
class Drive:
    """``kind``: disk, cdrom, floppy or seed. ``path`` on the host; "" is a drive with nothing in
    it. A seed, a disc that tells the guest what to do, is a disk where disks are virtio: kernels
    made for that (Debian's for clouds) have drivers for no CD drive. ``number``: of a disk after
    one that was taken out; None is the next one."""

    kind: str
    path: str = ""
    number: int | None = None
    read_only: bool = False
    block_device: bool = False


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """``code`` and ``nvram`` empty: SeaBIOS. ``secure``: only QEMU's System Management Mode may
    write to the NVRAM."""

    code: str = ""
    nvram: str = ""
    secure: bool = False


@dataclass(frozen=True, kw_only=True)
class BareSpec:
    """``boot``: which kinds of drives are tried, in this order; no others are. ``mac`` empty: no
    network card. ``local_time``: the host's, ``2026-01-31T10:00:00``, for a clock that shows it;
    the jail has no time zones, so QEMU would take UTC for it. ``scratch``: a file, for a trial of
    virtio drivers; "" is none. ``later``: which devices came while it ran, and the places they
    were given (``bare_places``)."""

    instance_id: str
    accelerator: str
    vcpus: int
    memory_bytes: int
    hardware: Hardware = bare_devices.UNKNOWN
    firmware: Firmware = field(default_factory=Firmware)
    drives: tuple[Drive, ...] = ()
    boot: tuple[str, ...] = ("disk", "cdrom", "floppy")
    mac: str = ""
    nested: bool = False
    tpm: bool = False
    local_time: str = ""
    usb: tuple[str, ...] = ()  # nodes of host devices
    pci: tuple[str, ...] = ()  # addresses of host devices
    scratch: str = ""
    later: Mapping[str, str] = field(default_factory=dict)


def build(spec: BareSpec) -> machine.Machine:
    """The command line. Raises InvalidInput when a value is out of range or does not fit."""
    _check(spec)
    backends = [_Backend.of(drive, at) for at, drive in enumerate(_named(spec.drives), start=1)]
    argv = [
        target_of(spec.hardware).qemu,
        *machine.confinement(spec.instance_id, "-vnc", "none", *_sleep(spec.hardware.board)),
        *_processor_and_memory(spec),
        *machine.control(),
        # With it SeaBIOS of the q35 board does not even run the network card's ROM.
        *(() if "network" in spec.boot else ("-boot", "strict=on")),
        *_firmware(spec, first_set=len(backends) + 1),
        *(word for backend in backends for word in backend.words()),
        *_serial(spec.hardware.board),
        *_agent_port(spec.hardware),
        *bare_places.words(spec.hardware),
        *_drives(spec, backends),
        *_network(spec),
        *_surface(spec.hardware),
        *_usb_disks(spec, backends),
        *_sound(spec.hardware),
        *(_tpm(spec.hardware.board) if spec.tpm else ()),
        *_host_devices(spec),
        *(bare_trial.words() if spec.scratch else ()),
    ]
    files = [file for backend in backends for file in backend.files()]
    if spec.firmware.code:
        files.append(OpenFile(name="firmware", path=spec.firmware.code, access="r"))
        files.append(OpenFile(name="nvram", path=spec.firmware.nvram, access="rw"))
    if spec.scratch:
        files.append(OpenFile(name=bare_trial.FILE, path=spec.scratch, access="rw"))
    for at, node in enumerate(spec.usb):
        files.append(OpenFile(name=f"usb{at}", path=node, access="rw"))
    overhead = machine.HYPERVISOR_BYTES + _SCREEN_BYTES + (_TPM_BYTES if spec.tpm else 0)
    if spec.accelerator == "tcg":
        overhead += machine.TCG_CODE_BYTES
    if spec.hardware.board == "virt":
        overhead += _FLASH_BYTES
    return machine.Machine(argv=tuple(argv), open_files=tuple(files), overhead_bytes=overhead)


def target_of(hardware: Hardware) -> targets.Target:
    """Its processor, and the QEMU that emulates it."""
    return targets.ARM64 if hardware.board == "virt" else targets.AMD64


def drive_names(drives: tuple[Drive, ...]) -> tuple[str, ...]:
    """What QMP calls them: ``disk0``, ``cdrom0``, ``floppy0``; a drive's device is ``dev-NAME``."""
    return tuple(name for name, _ in _named(drives))


def _named(drives: tuple[Drive, ...]) -> list[tuple[str, Drive]]:
    seen: dict[str, int] = {}
    found = []
    for drive in drives:
        number = seen.get(drive.kind, 0) if drive.number is None else drive.number
        seen[drive.kind] = number + 1
        found.append((f"{drive.kind}{number}", drive))
    return found


@dataclass(frozen=True, kw_only=True)
class _Backend:
    name: str
    drive: Drive
    fdset: int

    @classmethod
    def of(cls, named: tuple[str, Drive], fdset: int) -> "_Backend":
        return cls(name=named[0], drive=named[1], fdset=fdset)

    @property
    def read_only(self) -> bool:
        return self.drive.read_only or self.drive.kind in ("cdrom", "seed")

    def files(self) -> list[OpenFile]:
        access = "r" if self.read_only else "exclusive" if self.drive.block_device else "rw"
        found = OpenFile(name=self.name, path=self.drive.path, access=access)
        return [found] if self.drive.path else []

    def words(self) -> list[str]:
        if not self.drive.path:
            return []
        node = node_of(self.name, block_device=self.drive.block_device, read_only=self.read_only)
        node += f",file.filename=/dev/fdset/{self.fdset}"
        return [
            *("-add-fd", f"fd={{fd:{self.name}}},set={self.fdset},opaque={self.name}"),
            *("-blockdev", node),
        ]


def node_of(name: str, *, block_device: bool = False, read_only: bool = False) -> str:
    """A block node without its file: raw, always (CVE-2010-2237). io_uring is denied to us."""
    driver = "host_device" if block_device else "file"
    node = f"driver=raw,node-name={name},read-only={'on' if read_only else 'off'}"
    node += f",file.driver={driver},file.aio=threads"
    # What the guest trims, or overwrites with zeros, goes back to the host.
    return node if read_only else node + ",discard=unmap,detect-zeroes=unmap,file.discard=unmap"


def _processor_and_memory(spec: BareSpec) -> list[str]:
    kvm = spec.accelerator == "kvm"
    tcg = f"tcg,thread=multi,tb-size={machine.TCG_CODE_BYTES // _MIB}"
    size = spec.memory_bytes // _MIB
    pc = spec.hardware.board != "virt"
    board = spec.hardware.board if pc else target_of(spec.hardware).board
    board += ",memory-backend=ram,dump-guest-core=off"
    board += "" if spec.hardware.acpi else ",acpi=off"
    board += "" if spec.hardware.hpet or not pc else ",hpet=off"
    if spec.firmware.code:
        board += ",pflash0=firmware,pflash1=nvram"
    if spec.firmware.secure and pc:
        board += ",smm=on"
    return [
        *("-machine", board),
        *("-accel", "kvm" if kvm else tcg),
        *("-cpu", _processor(spec, kvm=kvm)),
        *("-smp", f"{spec.vcpus},sockets=1,cores={spec.vcpus},threads=1"),
        *("-m", f"{size}M"),
        *("-object", f"memory-backend-ram,id=ram,size={size}M,merge=off"),
        *("-rtc", f"base={_clock(spec)}"),
    ]


def _processor(spec: BareSpec, *, kvm: bool) -> str:
    if spec.hardware.cpu == "baseline":
        return bare_devices.BASELINE_CPUS[spec.hardware.board]
    hints = bare_devices.HYPERV_HINTS if kvm and spec.hardware.hyperv else ()
    target = target_of(spec.hardware)
    return ",".join((machine.processor(kvm, nested=spec.nested, target=target), *hints))


def _clock(spec: BareSpec) -> str:
    if spec.hardware.clock == "localtime" and spec.local_time:
        return spec.local_time
    return spec.hardware.clock


def _sleep(board: str) -> list[str]:
    """No sleep states: a guest that fell asleep would look dead, and nothing would wake it."""
    if board == "virt":  # knows none
        return []
    chip = "ICH9-LPC" if board == "q35" else "PIIX4_PM"
    return [word for state in ("s3", "s4") for word in ("-global", f"{chip}.disable_{state}=1")]


def _firmware(spec: BareSpec, *, first_set: int) -> list[str]:
    firmware = spec.firmware
    if not firmware.code:
        return []
    words = []
    for at, (name, read_only) in enumerate((("firmware", "on"), ("nvram", "off")), first_set):
        words += ["-add-fd", f"fd={{fd:{name}}},set={at},opaque={name}"]
        node = f"driver=raw,node-name={name},read-only={read_only},file.driver=file"
        words += ["-blockdev", f"{node},file.filename=/dev/fdset/{at}"]
    if firmware.secure and spec.hardware.board == "q35":
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return words


def _serial(board: str) -> list[str]:
    device = ("-device", "isa-serial,chardev=serial,index=0")
    if board == "virt":  # which brings it
        device = ("-serial", "chardev:serial")
    return ["-chardev", "socket,id=serial,fd={fd:serial}", *device]


def _agent_port(hardware: Hardware) -> list[str]:
    if not hardware.agent_port:
        return []
    return [
        *("-chardev", "socket,id=agent,fd={fd:agent}"),
        *("-device", "virtio-serial-pci,id=ports,max_ports=2"),
        *("-device", "virtserialport,chardev=agent,id=guest-agent,name=org.qemu.guest_agent.0"),
    ]


def _drives(spec: BareSpec, backends: list[_Backend]) -> list[str]:
    hardware = spec.hardware
    order = _Order(spec.boot)
    words: list[str] = []
    used: dict[str, int] = {}
    if any(backend.drive.kind == "floppy" for backend in backends) and hardware.board == "q35":
        words += ["-device", "isa-fdc,id=fdc"]  # the pc board has one
    for bus in dict.fromkeys((hardware.disk_bus, hardware.cdrom_bus)):
        for controller in DISK_BUSES[bus].controllers[hardware.board]:
            words += ["-device", controller]
    for backend in backends:
        kind = backend.drive.kind
        place = bare_places.find(hardware, backend.name, spec.later)
        turn = order.next(kind)
        if place is not None:
            if place.bus != "usb.0":
                words += _disk_at(spec, backend, place, turn)
            continue
        if kind == "floppy":
            device = "floppy,bus=fdc.0" if hardware.board == "q35" else "floppy"
        else:
            if kind == "seed":
                kind = "disk" if DISK_BUSES[hardware.disk_bus].virtio else "cdrom"
            bus = hardware.disk_bus if kind == "disk" else hardware.cdrom_bus
            index = used.get(bus, 0)
            used[bus] = index + 1
            device = _on_bus(bus, DISK_BUSES[bus], kind, hardware.board, index)
        device += f",id=dev-{backend.name}"
        if backend.drive.path:
            device += f",drive={backend.name}"
        if kind == "disk":
            device += f",serial=twofold-{backend.name}"
        if kind == "floppy" and turn:  # a property of the controller, not of the drive
            words += ["-global", f"isa-fdc.bootindexA={turn}"]
        elif turn:
            device += f",bootindex={turn}"
        words += ["-device", device]
    return words


def _disk_at(spec: BareSpec, backend: _Backend, place: places.Place, turn: str) -> list[str]:
    """One that came later."""
    device = f"{bare_places.driver(spec.hardware, backend.name, place)},{places.words(place)}"
    device += f",drive={backend.name},serial=twofold-{backend.name}"
    return ["-device", device + (f",bootindex={turn}" if turn else "")]


def _usb_disks(spec: BareSpec, backends: list[_Backend]) -> list[str]:
    """After their controller. Firmware does not try them: they came to a system that boots."""
    words = []
    for backend in backends:
        place = bare_places.find(spec.hardware, backend.name, spec.later)
        if place is not None and place.bus == "usb.0":
            words += _disk_at(spec, backend, place, "")
    return words


def _on_bus(name: str, bus: DiskBus, kind: str, board: str, index: int) -> str:
    if index >= bus.room:
        raise InvalidInput(
            f"more than {bus.room} disks and CD drives: that is all that {name} takes",
            hint="leave a --disk or --cdrom out, or: --hardware virtio",
        )
    device = (bus.disk if kind == "disk" else bus.cdrom)[board]
    return device.format(index=index, channel=index // 2, unit=index % 2)


class _Order:
    """Hands out the boot index of each device, in the order of the kinds."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._first = {kind: 10 * at for at, kind in enumerate(kinds)}

    def next(self, kind: str) -> str:
        if kind not in self._first:
            return ""
        index = self._first[kind]
        self._first[kind] = index + 1
        return str(index)


def _network(spec: BareSpec) -> list[str]:
    if not spec.mac:
        return []
    nic = NICS[spec.hardware.nic]
    boots = "network" in spec.boot
    rom = boots and spec.hardware.board != "virt"  # the ROMs are for PCs
    place = bare_places.find(spec.hardware, bare_places.CARD, spec.later)
    place = place or replace(places.card(), bus="", address=_NIC_SLOT)
    device = f"{nic.device},{places.words(place)},netdev=net0,mac={spec.mac}"
    # An option ROM that nobody boots from costs time, and hides an iPXE of the user's own.
    device += f",romfile={nic.boot_rom if rom else ''}"
    if boots:
        device += f",bootindex={_Order(spec.boot).next('network')}"
    return [*("-netdev", f"tap,id={places.CARD_BACKEND},fd={{fd:tap}}"), *("-device", device)]


def _surface(hardware: Hardware) -> list[str]:
    """What a person would sit in front of, and what else a guest has drivers for."""
    devices = [bare_devices.VIDEOS[hardware.video][hardware.board]]
    if hardware.usb != "none":
        devices.append(bare_devices.USB_CONTROLLERS[hardware.usb])
    devices += bare_devices.KEYBOARDS.get(hardware.board, ())
    devices += bare_devices.INPUTS[hardware.inputs]
    if hardware.rng:
        devices.append("virtio-rng-pci")
    if hardware.balloon:  # and what the guest has freed is the host's again without being asked
        devices.append("virtio-balloon-pci,free-page-reporting=on")
    return [word for device in devices for word in ("-device", device)]


def _sound(hardware: Hardware) -> list[str]:
    """A card that plays into nothing: QEMU in its jail has no way to the host's loudspeakers."""
    devices = bare_devices.SOUND_CARDS[hardware.sound][hardware.board]
    if not devices:
        return []
    words = ["-audiodev", "none,id=sound"]
    return words + [word for device in devices for word in ("-device", device)]


def _tpm(board: str) -> list[str]:
    return [
        *("-chardev", "socket,id=tpm,fd={fd:tpm}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", f"{bare_devices.TPMS[board]},tpmdev=tpm0"),
    ]


def _host_devices(spec: BareSpec) -> list[str]:
    words = ["-device", "qemu-xhci,id=hostusb"] if spec.usb else []
    for at, fdset in enumerate(range(_USB_FDSET, _USB_FDSET + len(spec.usb))):
        words += ["-add-fd", f"fd={{fd:usb{at}}},set={fdset},opaque=usb{at}"]
        words += ["-device", f"usb-host,bus=hostusb.0,hostdevice=/dev/fdset/{fdset}"]
    for address in spec.pci:
        folder = f"{host_pci.FOLDERS}/{plain(address, 'PCI address')}"
        words += ["-device", option("vfio-pci", sysfsdev=folder)]
    return words


def _check(spec: BareSpec) -> None:
    bare_devices.check(spec.hardware)
    machine.check_processors(spec.accelerator, spec.vcpus)
    if spec.memory_bytes < MINIMUM_MEMORY_BYTES:
        raise InvalidInput(
            f"{spec.memory_bytes} bytes of memory: a virtual machine has at least "
            f"{MINIMUM_MEMORY_BYTES // _MIB} MiB",
            hint="--memory 512m",
        )
    machine.check_mac(spec.mac)
    for kind in spec.boot:
        if kind not in _BOOT:
            raise InvalidInput(
                f"cannot boot from {kind!r}: it is none of {', '.join(_BOOT)}", hint="--boot disk"
            )
    if spec.firmware.secure and spec.hardware.board == "pc":
        raise InvalidInput("Secure Boot needs the q35 board", hint="--firmware uefi")
    if spec.hardware.board == "virt":
        _check_virt(spec)
    check_boot(spec.boot, spec.hardware)
    if len([drive for drive in spec.drives if drive.kind == "floppy"]) > 1:
        raise InvalidInput("a machine has one floppy drive")
    for drive in spec.drives:
        if drive.kind not in ("disk", "cdrom", "floppy", "seed"):
            raise InvalidInput(f"drive {drive.kind!r} is none of disk, cdrom, floppy, seed")
        if drive.kind == "disk" and not drive.path:
            raise InvalidInput("a disk without a file")


def _check_virt(spec: BareSpec) -> None:
    if not spec.firmware.code:
        raise InvalidInput("an arm64 machine has no BIOS, but UEFI", hint="--firmware uefi")
    if spec.accelerator == "kvm" or spec.nested:
        raise InvalidInput("an arm64 machine is emulated: no KVM, not --nested either")
    if any(drive.kind == "floppy" for drive in spec.drives):
        raise InvalidInput("an arm64 machine has no floppy drive", hint="leave --floppy out")


def check_boot(order: Sequence[str], hardware: Hardware) -> None:
    """That the firmware finds all of it. Raises InvalidInput."""
    if hardware.board == "virt" and "network" in order and not NICS[hardware.nic].virtio:
        raise InvalidInput(
            f"the firmware of an arm64 machine cannot boot from an {hardware.nic}",
            hint="--hardware virtio, or leave network out of --boot",
        )
