"""QEMU's command line for a virtual machine that boots an OCI image. Pure: strings in, strings out.

The machine's devices are those of a *hardware* profile (``profiles.py``). Files are never named:
QEMU gets descriptors, as ``{fd:NAME}`` placeholders that the monitor fills in, so nothing on this
command line can point it at another file. Paths are those inside QEMU's jail.

Refuses values that QEMU's option syntax would read as more options; runs nothing.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from twofold.errors import InvalidInput
from twofold.hypervisor import places, profiles, targets
from twofold.hypervisor.options import option, plain
from twofold.runtime.plan import OpenFile

QEMU = targets.AMD64.qemu
BOOT_DIR = "/boot"  # the kernel bundle's directory, bound read-only into the jail
SHARE_DIR = "/shares"  # a bind per share, at SHARE_DIR/TAG

_MIB = 1 << 20
# What QEMU itself may need on top of the guest's memory: translated code, device state, stacks.
TCG_CODE_BYTES = 256 * _MIB
HYPERVISOR_BYTES = 96 * _MIB
MINIMUM_MEMORY_BYTES = 128 * _MIB
MOST_MEMORY_BYTES = 16 << 40
MINIMUM_NESTED_BYTES = 144 * _MIB  # KVM's modules come in the initrd
# Sockets and slots that a machine has free, for what it is given while it runs.
MOST_VCPUS = 16
MEMORY_SLOTS = 16
MOST_ADDED_BYTES = 64 << 30

# Security modules that a program confines itself with, or that need no policy. AppArmor, TOMOYO and
# the like stand in the way of every open and exec for a policy that only an init would load.
_LSM_WITHOUT_POLICY = "landlock,lockdown,yama"

BIRTHS = ("boot", "template", "fork", "copy", "resume")
# What of a command line a saved state depends on, and the NIC's own address, which it brings.
_SHAPING = ("-machine", "-accel", "-cpu", "-smp", "-m", "-device", "-netdev", "-global")

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")


@dataclass(frozen=True, kw_only=True)
class Share:
    """A host directory that the jail holds at ``/shares/TAG``."""

    tag: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """``accelerator`` is ``tcg`` or ``kvm``: the caller asks the probe. ``mac`` empty: no NIC.

    ``kernel_arguments`` are appended to the kernel's command line as ``key=value``. ``birth`` is

    ``boot``      its memory is its own
    ``template``  its memory is the file ``{fd:ram}``, to be frozen and forked from
    ``fork``      it wakes up as the template did: copy-on-write over ``{fd:ram}``
    ``copy``      the same, of a machine that was running and has an identity to be renewed
    ``resume``    the same, of a machine that was put to sleep and stays who it is
    """

    instance_id: str
    hardware: str  # virtio | emulated
    accelerator: str
    vcpus: int
    memory_bytes: int
    root_disk: str  # erofs of the image's merged layers
    data_disk: str  # raw, ext4
    mac: str = ""
    disks: tuple[tuple[int, str], ...] = ()  # further ones: number and file, raw
    shares: tuple[Share, ...] = ()
    kernel_arguments: dict[str, str] = field(default_factory=dict)
    birth: str = "boot"
    system: bool = False  # the image's own init will run
    nested: bool = False  # the guest's processor has virtualisation of its own
    tsc_khz: int = 0  # of the host, which an emulated guest counts by; 0: unknown
    architecture: str = "amd64"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan's ``Vm`` takes. ``overhead_bytes``: for the cgroup, on top of guest memory."""

    argv: tuple[str, ...]
    open_files: tuple[OpenFile, ...]
    overhead_bytes: int


def build(spec: MachineSpec) -> Machine:
    """The command line. Raises InvalidInput when a value is out of range or unsafe."""
    profile = profiles.get(spec.hardware, spec.architecture)
    target = targets.get(spec.architecture)
    _check(spec)
    argv = [
        target.qemu,
        *confinement(
            spec.instance_id,
            "-no-reboot",
            # Device state that was saved alone has no section on the machine that it is of.
            *("-global", "migration.send-configuration=off"),
        ),
        *_processor_and_memory(spec, profile, target),
        *control(),
        *_birth(spec),
        *(("-vnc", "none") if profile.has_screen else ()),
        *_disk_backends(spec),
        *profile.console(),
        *profile.agent(tuple(share.tag for share in spec.shares)),
        *profile.disks(),
        *profile.bridge(),
        *_more_disks(spec),
        *(profile.network(spec.mac) if spec.mac else ()),
        *(profile.shares(tuple((s.tag, s.read_only) for s in spec.shares), SHARE_DIR)),
        *profile.extras(),
        *("-kernel", f"{BOOT_DIR}/vmlinux"),
        *("-initrd", f"{BOOT_DIR}/{profiles.initrd_name(spec.hardware, nested=spec.nested)}"),
        *("-append", kernel_command_line(spec)),
    ]
    return Machine(
        argv=tuple(argv),
        open_files=(
            OpenFile(name="root", path=spec.root_disk, access="r"),
            OpenFile(name="data", path=spec.data_disk, access="rw"),
            *(OpenFile(name=f"disk{n}", path=path, access="rw") for n, path in spec.disks),
        ),
        overhead_bytes=HYPERVISOR_BYTES + (TCG_CODE_BYTES if spec.accelerator == "tcg" else 0),
    )


def shape_of(argv: tuple[str, ...]) -> list[str]:
    """The words of a command line on which the state of its devices depends."""
    shaping = [word for option, word in pairwise(argv) if option in _SHAPING]
    return [re.sub(r",mac=[0-9a-f:]+|\{fd:\w+\}", "", word) for word in shaping]


def kernel_command_line(spec: MachineSpec) -> str:
    """The guest kernel's arguments; the keys are explained in docs/contributing/guest-boot.md."""
    profile = profiles.get(spec.hardware, spec.architecture)
    words = [
        f"console={targets.get(spec.architecture).console}",
        "quiet",
        "loglevel=4",  # warnings and errors stay visible in the console log
        # A panic reboots at once and -no-reboot turns that into QEMU's exit: never a silent hang.
        "panic=-1",
        "net.ifnames=0",
        *([] if spec.system else [f"lsm={_LSM_WITHOUT_POLICY}"]),
        *_boot_time_flags(spec),
        # Memory that may come to lie above 4 GiB makes the kernel set 64 MiB aside for devices that
        # cannot reach there. Virtio devices can.
        *(["swiotlb=noforce"] if profile.grows else []),
        f"twofold.hardware={spec.hardware}",
        f"twofold.root=/dev/{profile.root_device}",
        f"twofold.data=/dev/{profile.data_device}",
        f"twofold.transport={profile.transport}",
        *(["twofold.net=1"] if spec.mac else []),
    ]
    for key, value in spec.kernel_arguments.items():
        words.append(f"{plain(key, 'kernel argument')}={plain(value, 'kernel argument')}")
    return " ".join(words)


def _boot_time_flags(spec: MachineSpec) -> list[str]:
    if spec.accelerator == "kvm":
        return ["cryptomgr.notests"]
    return [
        # Under TCG no guest instruction runs on the processor itself, so its speculation bugs are
        # out of the guest's reach: guards against them only cost. With KVM they stay on.
        "mitigations=off",
        "nokaslr",  # the vmlinux boots where it is linked; saves the relocation pass
        *(_pc_clock_flags(spec) if spec.architecture == "amd64" else []),
        "cryptomgr.notests",
    ]


def _pc_clock_flags(spec: MachineSpec) -> list[str]:
    return [
        # The emulated clock sources agree by construction; watching them costs 100 ms.
        "tsc=reliable",
        # Else the kernel measures it, and is interrupted meanwhile: see host_tsc.
        *([f"tsc_early_khz={spec.tsc_khz}"] if spec.tsc_khz else []),
        "no_timer_check",
    ]


def confinement(instance_id: str, *flags: str) -> list[str]:
    """What holds QEMU in, whatever it runs: nothing that was not asked for, no further programs."""
    return [
        *("-name", option(guest=plain(instance_id, "instance id"), **{"debug-threads": "on"})),
        *("-nodefaults", "-no-user-config"),
        *flags,
        *("-display", "none"),
        *(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ),
    ]


def _processor_and_memory(
    spec: MachineSpec, profile: profiles.Profile, target: targets.Target
) -> list[str]:
    kvm = spec.accelerator == "kvm"
    most = max(spec.vcpus, MOST_VCPUS) if profile.grows else spec.vcpus
    accelerator = "kvm" if kvm else f"tcg,thread=multi,tb-size={TCG_CODE_BYTES // _MIB}"
    memory_mib = spec.memory_bytes // _MIB
    return [
        *("-machine", f"{target.board},memory-backend=ram,dump-guest-core=off"),
        *("-accel", accelerator),
        *("-cpu", processor(kvm, nested=spec.nested, target=target)),
        *("-smp", f"{_free(spec.vcpus, most)},sockets=1,cores={most},threads=1"),
        *("-m", f"{memory_mib}M{_slots(memory_mib) if profile.grows else ''}"),
        *("-object", _memory(spec.birth, memory_mib)),
        *("-rtc", "base=utc"),
    ]


def _free(vcpus: int, most: int) -> str:
    return f"{vcpus},maxcpus={most}" if most > vcpus else str(vcpus)


def _slots(memory_mib: int) -> str:
    return f",slots={MEMORY_SLOTS},maxmem={memory_mib + MOST_ADDED_BYTES // _MIB}M"


def processor(kvm: bool, *, nested: bool, target: targets.Target = targets.AMD64) -> str:
    """Virtualisation within the guest is a large part of KVM, or of TCG: only on request."""
    if target is targets.ARM64:
        return target.cpu
    if kvm:
        return "host" if nested else "host,svm=off,vmx=off"
    return f"{target.cpu},svm={'on' if nested else 'off'}"


def _memory(birth: str, memory_mib: int) -> str:
    # Never merged with another guest's equal pages: write timing would tell what those hold.
    size = f"id=ram,size={memory_mib}M,merge=off"
    if birth == "boot":
        return f"memory-backend-ram,{size}"
    # Opened by this path for reading and writing: a template is a sealed memfd, which lets a fork
    # open it so and still lets nobody write to it.
    share = "on" if birth == "template" else "off"
    return f"memory-backend-file,{size},share={share},mem-path=/proc/self/fd/{{fd:ram}}"


def _birth(spec: MachineSpec) -> list[str]:
    return ["-incoming", "defer"] if spec.birth in ("fork", "copy", "resume") else []


def control() -> list[str]:
    """QMP on a socket the sandbox bound, and on one to the monitor itself; nothing listens on TCP
    and there is no HMP. The screen's VNC server has no socket either: ``monitor_screen.py``."""
    return [
        *("-chardev", "socket,id=qmp,fd={fd:qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=inner,fd={fd:inner}"),
        *("-mon", "chardev=inner,mode=control"),
    ]


def _disk_backends(spec: MachineSpec) -> list[str]:
    """The disks by descriptor and by explicit driver: a format is never guessed (CVE-2010-2237).

    io_uring is denied to the sandbox, hence threads.
    """
    common = "driver=raw,node-name={name},read-only={ro},file.driver=file,file.aio=threads"
    arguments = []
    nodes = [("root", True), ("data", False), *((f"disk{n}", False) for n, _ in spec.disks)]
    for number, (name, read_only) in enumerate(nodes, start=1):
        arguments += ["-add-fd", f"fd={{fd:{name}}},set={number},opaque={name}"]
        node = common.format(name=name, ro="on" if read_only else "off")
        node += f",file.filename=/dev/fdset/{number}"
        # Trimmed blocks go back to the host. Flushes reach the disk: the data must survive.
        node += "" if read_only else ",discard=unmap,file.discard=unmap"
        arguments += ["-blockdev", node]
    return arguments


def _more_disks(spec: MachineSpec) -> list[str]:
    devices = (
        f"virtio-blk-pci,{places.words(places.disk(n))},drive=disk{n},serial={disk_serial(n)}"
        for n, _ in spec.disks
    )
    return [word for device in devices for word in ("-device", device)]


def disk_serial(number: int) -> str:
    """By which a guest finds it: /dev/disk/by-id/virtio-SERIAL, where there is udev."""
    return f"twofold-disk{number}"


def check_mac(mac: str) -> None:
    if mac and not _MAC.match(mac):
        raise InvalidInput(f"MAC address {mac!r} is not six pairs of lower-case hex digits")


def check_processors(accelerator: str, vcpus: int) -> None:
    if accelerator not in ("tcg", "kvm"):
        raise InvalidInput(f"accelerator {accelerator!r} is neither tcg nor kvm")
    if not 1 <= vcpus <= 255:
        raise InvalidInput(f"{vcpus} virtual CPUs: a virtual machine has 1 to 255", hint="--cpus 1")


def check_memory(memory_bytes: int, *, nested: bool) -> None:
    """Refuses less than a kernel boots in, and more than any host has."""
    least = MINIMUM_NESTED_BYTES if nested else MINIMUM_MEMORY_BYTES
    if memory_bytes < least:
        raise InvalidInput(
            f"memory {memory_bytes // _MIB} MiB is too small for a virtual machine: its kernel "
            f"needs {least // _MIB} MiB{' with --nested' if nested else ''}",
            hint=f"--memory {least // _MIB}m",
        )
    check_most_memory(memory_bytes)


def check_most_memory(memory_bytes: int) -> None:
    if memory_bytes > MOST_MEMORY_BYTES:
        raise InvalidInput(
            f"memory {memory_bytes >> 30} GiB is more than a virtual machine can have: "
            f"{MOST_MEMORY_BYTES >> 40} TiB",
            hint="--memory 2g",
        )


def _check(spec: MachineSpec) -> None:
    if spec.birth not in BIRTHS:
        raise InvalidInput(f"birth {spec.birth!r} is none of {', '.join(BIRTHS)}")
    check_processors(spec.accelerator, spec.vcpus)
    check_memory(spec.memory_bytes, nested=spec.nested)
    if spec.architecture != "amd64" and (spec.accelerator == "kvm" or spec.nested):
        raise InvalidInput(f"a machine of architecture {spec.architecture!r} is emulated: no KVM")
    check_mac(spec.mac)
    for number, _ in spec.disks:
        if not 0 <= number < places.MOST_DISKS:
            raise InvalidInput(
                f"disk {number}: a virtual machine has at most {places.MOST_DISKS} more disks",
                hint="leave a --disk out",
            )
    tags = [share.tag for share in spec.shares]
    if len(set(tags)) != len(tags):
        raise InvalidInput(f"share tags are not distinct: {tags!r}")
    for tag in tags:
        if len(tag) > 31:  # the limit of virtio-9p
            raise InvalidInput(f"share tag {tag!r} is longer than 31 characters")
        plain(tag, "share tag")
