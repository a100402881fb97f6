"""A machine with an operating system of its own: what may be asked for, and its plan. Pure.

What the user wants of it is in the spec; which devices it was given is its ``Fitting``, chosen once
and kept beside it, so that an update of what is known about operating systems never changes a
machine that exists. The sandbox is that of every virtual machine.

Refuses whatever would need an agent inside to come true.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from twofold.errors import InvalidInput, TwofoldError, Unsupported
from twofold.hypervisor import bare, host_pci, machine, tpm
from twofold.hypervisor.bare import BareSpec, Drive, Firmware
from twofold.hypervisor.bare_devices import Hardware
from twofold.instance import attachments, kinds, seed, vm
from twofold.instance.collaborators import MachineParts
from twofold.instance.container import stdio_of
from twofold.instance.own_os_devices import NO_HOST_DEVICES, HostDevices
from twofold.instance.place import Allocation, Place, hostname_of
from twofold.model.image import Image, ImageKind
from twofold.model.instance import Hardware as Profile
from twofold.model.instance import InstanceSpec, Isolation
from twofold.runtime.plan import Cgroup, OpenFile, Process, Rootfs, SandboxPlan, Vm

DEFAULT_MEMORY_BYTES = 512 << 20
DEFAULT_VCPUS = 1
READY_TIMEOUT_S = 60.0

# What only our agent, or the kernel of a container, could make true: field → the option's name.
_OF_A_PAYLOAD = {
    "system": "--system",
    "command": "a command",
    "entrypoint": "--entrypoint",
    "env": "--env",
    "workdir": "--workdir",
    "volumes": "--volume",
    "pids": "--pids",
    "cap_add": "--cap-add",
    "cap_drop": "--cap-drop",
    "read_only": "--read-only",
    "tmpfs": "--tmpfs",
    "shm_bytes": "--shm-size",
    "ulimits": "--ulimit",
    "devices": "--device",
    "cold": "--cold",
}
_OF_A_MACHINE = {
    "disks": "--disk",
    "cdrom": "--cdrom",
    "floppy": "--floppy",
    "virtio_win": "--virtio-win",
    "boot": "--boot",
    "os": "--os",
    "firmware": "--firmware",
    "tpm": "--tpm",
    "host_devices": "--device usb:… or pci:…",
    "sound": "--sound",
    "ssh_keys": "--ssh-key",
    "user_data": "--user-data",
}


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """The devices of one machine, and in words why each was chosen. ``before``: the hardware to
    go back to. ``drivers``: those for virtio that its system was seen to have, in a trial.
    ``later``: the places of what was plugged in while it ran (``hypervisor/bare_places.py``)."""

    hardware: Hardware
    profile: str = "emulated"  # virtio where disk and network are
    firmware: str = "bios"
    tpm: bool = False
    os: str = ""  # its id in osinfo, "" where nobody knows
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    vcpus: int = DEFAULT_VCPUS
    reasons: dict[str, str] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    drivers: tuple[str, ...] = ()
    later: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fitting_from_dict(data: dict[str, Any]) -> Fitting:
    """Raises KeyError or TypeError for what is none of ours."""
    drivers = tuple(str(name) for name in data.get("drivers", ()))
    return Fitting(**{**data, "hardware": Hardware(**data["hardware"]), "drivers": drivers})


def settle(spec: InstanceSpec, image: Image) -> InstanceSpec:
    """``spec`` as it is meant for this kind of image. Raises InvalidInput, Unsupported."""
    if spec.image.startswith("/") and image.names:  # a file has become an image with a name
        spec = spec.model_copy(update={"image": image.names[0]})
    if image.kind is ImageKind.ROOT:
        for name, option in _OF_A_MACHINE.items():
            if name == "disks" and spec.isolation is Isolation.VM:
                continue  # the wall's to say
            if _said(spec, name):
                raise InvalidInput(
                    f"{option} is of a machine that boots an operating system of its own; the "
                    f"image {spec.image!r} is a file system",
                    hint=f"leave {option} out, or: twofold image import FILE.iso",
                )
        return spec.model_copy(update={"media": "root"})
    if "isolation" in spec.model_fields_set and spec.isolation is Isolation.CONTAINER:
        raise Unsupported(
            f"image {spec.image!r} is {kinds.in_words(image.kind)}: a container has the host's "
            "kernel and cannot boot it",
            hint="give it a machine of its own: --vm",
        )
    if spec.tty and all(word.startswith("TERM=") for word in spec.env):
        spec = spec.model_copy(update={"env": []})  # what a terminal's client says unasked
    for name, option in _OF_A_PAYLOAD.items():
        if _said(spec, name):
            raise InvalidInput(
                f"{option} cannot be had of {spec.image!r}: it boots an operating system of its "
                "own, in which no agent of Twofold runs",
                hint=f"a name? --name {spec.command[0]}"
                if name == "command" and spec.command and len(spec.command) == 1
                else f"leave {option} out, and set it up inside",
            )
    update: dict[str, Any] = {"media": image.kind.value, "isolation": Isolation.VM}
    if image.kind is ImageKind.CDROM:
        update["cdrom"] = [spec.image, *spec.cdrom]
    if image.kind is ImageKind.FLOPPY:
        if spec.floppy:
            raise InvalidInput(
                f"two floppy disks ({spec.image!r} and {spec.floppy!r}) for one drive",
                hint="name one of them; another goes in while it runs: twofold set --help",
            )
        update["floppy"] = spec.image
    return spec.model_copy(update=update)


def fitted(spec: InstanceSpec, facts: dict[str, Any]) -> InstanceSpec:
    """``spec`` with the hardware that was chosen where the user said nothing."""
    if spec.media == "root":
        return spec
    return spec.model_copy(update={"hardware": Profile(facts["hardware"])})


def _said(spec: InstanceSpec, name: str) -> bool:
    return bool(
        getattr(spec, name)
        != InstanceSpec.model_fields[name].get_default(call_default_factory=True)
    )


def check(spec: InstanceSpec) -> None:
    """What the machine's builder would refuse late, early."""
    if spec.memory_bytes is not None and spec.memory_bytes % (1 << 20):
        raise InvalidInput(
            f"{spec.memory_bytes} bytes of memory are no whole number of MiB", hint="--memory 512m"
        )
    machine.check_most_memory(spec.memory_bytes or 0)
    machine.check_processors("tcg", vm.virtual_cpus(spec))
    if len(set(spec.boot)) != len(spec.boot):
        raise InvalidInput(
            f"boot order {','.join(spec.boot)!r} names something twice",
            hint=f"--boot {','.join(dict.fromkeys(spec.boot))}",
        )
    seed.check(spec)
    if spec.tpm and not tpm.is_present():
        raise tpm.missing()
    for wish in spec.disks:
        if [bool(one) for one in (wish.size_bytes, wish.image, wish.device)].count(True) != 1 or (
            wish.removed
        ):
            raise InvalidInput(
                "a disk is a size, an image or a block device: exactly one", hint="--disk 64g"
            )


def boot_order(spec: InstanceSpec) -> tuple[str, ...]:
    """An empty disk fails to boot and the installer comes next; once it has installed, the disk
    does. What was made from a floppy boots that first, as such systems expect."""
    if spec.boot:
        return tuple(spec.boot)
    if spec.media == "floppy":
        return ("floppy", "disk", "cdrom")
    return ("disk", "cdrom", "floppy")


def drives(spec: InstanceSpec, directory: str) -> tuple[Drive, ...]:
    """Its drives, and the file behind each. There is a CD drive always, a disc in it or not."""
    found: list[Drive] = []
    if spec.media == "disk":
        found.append(Drive(kind="disk", path=disk_file(directory, 0)))
    for number, wish in attachments.numbered(spec):
        path = wish.device or disk_file(directory, number)
        drive = Drive(kind="disk", path=path, block_device=bool(wish.device), number=number)
        found.append(drive)
    for at, name in enumerate(spec.cdrom or [""]):
        found.append(Drive(kind="cdrom", path=disc_file(directory, at) if name else ""))
    if spec.virtio_win is not None:
        path = virtio_win_file(directory) if spec.virtio_win else ""
        found.append(Drive(kind="cdrom", path=path))
    if seed.wanted(spec):
        found.append(Drive(kind="seed", path=seed_file(directory)))
    if spec.floppy is not None:
        found.append(Drive(kind="floppy", path=floppy_file(directory) if spec.floppy else ""))
    return tuple(found)


def disk_file(directory: str, number: int) -> str:
    return f"{directory}/disk-{number}.img"


def disc_file(directory: str, number: int) -> str:
    return f"{directory}/cdrom-{number}.iso"


def virtio_win_file(directory: str) -> str:
    return f"{directory}/virtio-win.iso"


def virtio_win_drive(spec: InstanceSpec) -> str:
    """What QEMU calls its drive: the one after the discs."""
    return f"cdrom{len(spec.cdrom or [''])}"


def floppy_file(directory: str) -> str:
    return f"{directory}/floppy.img"


def seed_file(directory: str) -> str:
    return f"{directory}/seed.iso"


def nvram_file(directory: str) -> str:
    return f"{directory}/nvram.fd"


def tpm_directory(directory: str) -> str:
    """What its TPM keeps over a restart."""
    return f"{directory}/tpm"


def virtual_cpus(spec: InstanceSpec, fitting: Fitting) -> int:
    return math.ceil(spec.cpus) if spec.cpus else fitting.vcpus


def memory_bytes(spec: InstanceSpec, fitting: Fitting) -> int:
    return spec.memory_bytes or fitting.memory_bytes


def machine_plan(
    spec: InstanceSpec,
    allocation: Allocation,
    place: Place,
    *,
    parts: MachineParts,
    fitting: Fitting,
    code: str = "",
    local_time: str = "",
    scratch: str = "",
    given: HostDevices = NO_HOST_DEVICES,
) -> SandboxPlan:
    """The whole sandbox. ``code``: the UEFI firmware's file, where ``fitting`` says UEFI.
    ``local_time``: the host's, for guests whose clock shows it. ``scratch``: see ``BareSpec``.
    ``given``: devices of the host."""
    memory = memory_bytes(spec, fitting)
    uefi = fitting.firmware != "bios"
    built = bare.build(
        BareSpec(
            instance_id=allocation.id,
            accelerator=parts.accelerator,
            vcpus=virtual_cpus(spec, fitting),
            memory_bytes=memory,
            nested=spec.nested,
            hardware=fitting.hardware,
            firmware=Firmware(
                code=code,
                nvram=nvram_file(place.directory),
                secure=fitting.firmware == "uefi-secure",
            )
            if uefi
            else Firmware(),
            drives=given.in_place(drives(spec, place.directory)),
            boot=boot_order(spec),
            mac=place.network.mac if place.network else "",
            tpm=fitting.tpm,
            local_time=local_time,
            scratch=scratch,
            later=fitting.later,
            usb=given.usb,
            pci=tuple(one.address for one in given.pci),
        )
    )
    console = OpenFile(name="console", path=f"{place.directory}/console.log", access="append")
    return SandboxPlan(
        instance_id=allocation.id,
        kind="vm",
        id_base=allocation.id_base,
        hostname=hostname_of(allocation.name, spec.hostname),
        rootfs=Rootfs(lower=(parts.jail,), idmap_lower=False),
        mounts=(
            *vm.jail_mounts(parts.accelerator),
            *(tpm.mounts(parts.jail, tpm_directory(place.directory)) if fitting.tpm else ()),
            *host_pci.mounts(given.pci),
        ),
        cgroup=Cgroup(
            path=place.cgroup,
            cpus=spec.cpus,
            memory_bytes=memory + built.overhead_bytes + memory // 8,
            pids=vm.QEMU_PIDS,
            devices=(*vm.device_rules(parts.accelerator), *given.device_rules),
        ),
        process=given.confine(vm.qemu_process(built.argv, tty=spec.tty), memory),
        network=place.network,
        stdio=stdio_of(spec, place),
        run_dir=place.run_dir,
        vm=Vm(
            argv=built.argv,
            open_files=(*built.open_files, console),
            guest={"mode": "machine", "agent": fitting.hardware.agent_port},
            ready_timeout_s=READY_TIMEOUT_S,
            doors=("serial", "vnc"),
            vnet_header=fitting.hardware.vnet_header,
            companions=(tpm.companion(),) if fitting.tpm else (),
        ),
    )


def no_agent(name: str, verb: str, *, why: str = "", hint: str = "") -> TwofoldError:
    """Why a verb that needs somebody inside cannot work, and what would."""
    return Unsupported(
        f"cannot {verb} {name!r}: it runs an operating system of its own, with no agent of "
        f"Twofold in it, and {why or 'no qemu-guest-agent answers'}",
        hint=hint or f"twofold screen {name}; or install qemu-guest-agent inside",
        details={"name": name, "missing": "agent"},
    )


def no_twofold(name: str, verb: str, *, hint: str) -> TwofoldError:
    """Of what qemu-guest-agent could not do either."""
    return Unsupported(
        f"cannot {verb} {name!r}: it runs an operating system of its own, and that needs Twofold's "
        "own agent, which comes with the kernel of virtual machines made of OCI images alone",
        hint=hint,
        details={"name": name, "missing": "agent"},
    )


def agent_process(
    command: Sequence[str],
    *,
    env: Sequence[str],
    workdir: str | None,
    user: str | None,
    tty: bool,
) -> Process:
    """What qemu-guest-agent is to run. "" are its own directory and user."""
    if not command or not command[0]:
        raise InvalidInput("no command to execute", hint="twofold exec NAME COMMAND")
    return Process(
        argv=tuple(command),
        env=tuple(word for word in env if "=" in word),
        cwd=workdir or "",
        user=user or "",
        tty=tty,
        init=False,
        seccomp="",
    )
