"""A virtual machine as a plan: (wish, image, allocation, place, parts) → SandboxPlan. Pure.

The sandbox holds QEMU, not the payload: a read-only jail, no capabilities, the tap and the disks
by descriptor. The payload, its files and its shares are the guest's configuration, which the
agent applies. Refuses less memory than a kernel boots in.
"""

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from twofold.errors import InvalidInput
from twofold.hypervisor import machine, places, profiles
from twofold.image.manifest import spelled
from twofold.instance import attachments, privileges
from twofold.instance.collaborators import MachineParts
from twofold.instance.container import SYSCTLS, stdio_of
from twofold.instance.place import Allocation, ImageRoot, Place, files_of, hostname_of
from twofold.instance.process import main_process
from twofold.model.instance import Hardware, InstanceSpec, Volume
from twofold.runtime.plan import (
    Cgroup,
    Mount,
    Network,
    OpenFile,
    Process,
    Rootfs,
    SandboxPlan,
    Vm,
)

DEFAULT_MEMORY_BYTES = 512 << 20
DEFAULT_VCPUS = 1
QEMU_PIDS = 512
KVM_DEVICE = "c 10:232 rw"
JAIL_USER = "1000:1000"
# Locally administered, and in no instance's range: no frame ever carries it.
TEMPLATE_MAC = "02:54:46:ff:ff:fe"
# KVM itself may be nested in an emulated machine, where it is as slow as that.
READY_TIMEOUT_S = {"kvm": 180.0, "tcg": 180.0}
# Another processor is emulated, KVM or not; a template with systemd took 172 s on a busy host.
FOREIGN_READY_TIMEOUT_S = 400.0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What no two starts may share: the host's time and 32 random bytes."""

    time: float
    entropy: str


def this_moment() -> Moment:
    return Moment(time=time.time(), entropy=os.urandom(32).hex())


def check(spec: InstanceSpec) -> None:
    """Refuse early what the machine builder would refuse late."""
    profiles.get(spec.hardware.value, architecture(spec))
    machine.check_processors("tcg", virtual_cpus(spec))
    if spec.memory_bytes is not None:
        machine.check_memory(spec.memory_bytes, nested=spec.nested)
    for wish in spec.disks:
        if bool(wish.size_bytes) is wish.removed or wish.image or wish.device:
            raise InvalidInput(
                f"disk {wish.image or wish.device or ''!r}: a virtual machine that boots from a "
                "file system image can be given empty disks alone",
                hint="--disk 64g",
            )
    if spec.disks and not grows(spec):
        raise InvalidInput(
            f"{spec.hardware.value} hardware of {architecture(spec)} under a file system image has "
            "no place for more disks",
            hint="leave --disk out",
        )
    if spec.system and spec.pids is not None:
        raise InvalidInput(
            f"pids {spec.pids} cannot be set on the image's own init in a virtual machine: it "
            "counts its processes itself",
            hint="leave --pids out, and set TasksMax= in the image",
        )


def architecture(spec: InstanceSpec) -> str:
    """Of the machine that is made; on a host without machines of its own kind it is a PC."""
    return spelled(spec.arch) if spec.arch else "amd64"


def virtual_cpus(spec: InstanceSpec) -> int:
    """Processors the guest sees: what it was given time for, rounded up."""
    return math.ceil(spec.cpus) if spec.cpus else DEFAULT_VCPUS


def memory_bytes(spec: InstanceSpec) -> int:
    """Of the guest."""
    return spec.memory_bytes or DEFAULT_MEMORY_BYTES


def vm_plan(
    spec: InstanceSpec,
    image: ImageRoot,
    allocation: Allocation,
    place: Place,
    *,
    parts: MachineParts,
    moment: Moment,
    birth: str = "boot",
    facts: dict[str, Any] | None = None,
    burned_in_mac: str = TEMPLATE_MAC,
) -> SandboxPlan:
    """The whole sandbox of one virtual machine. ``birth`` and its template's ``facts``: see
    ``machine.MachineSpec``."""
    hostname = hostname_of(allocation.name, spec.hostname)
    memory = memory_bytes(spec)
    built = machine.build(
        machine.MachineSpec(
            instance_id=allocation.id,
            hardware=spec.hardware.value,
            accelerator=parts.accelerator,
            vcpus=virtual_cpus(spec),
            memory_bytes=memory,
            root_disk=parts.disk,
            data_disk=f"{place.directory}/data.img",
            mac=_mac_of_card(place, birth, burned_in_mac),
            disks=tuple((n, disk_file(place.directory, n)) for n in attachments.disk_numbers(spec)),
            shares=_shares(spec),
            birth=birth,
            system=spec.system,
            nested=spec.nested,
            tsc_khz=parts.tsc_khz,
            architecture=architecture(spec),
        )
    )
    console = OpenFile(name="console", path=f"{place.directory}/console.log", access="append")
    return SandboxPlan(
        instance_id=allocation.id,
        kind="vm",
        id_base=allocation.id_base,
        hostname=hostname,
        rootfs=Rootfs(lower=(parts.jail,), idmap_lower=False),
        mounts=_mounts(spec, parts),
        cgroup=Cgroup(
            path=place.cgroup,
            cpus=spec.cpus,
            memory_bytes=_group_memory(memory, built.overhead_bytes, birth),
            pids=QEMU_PIDS,
            devices=device_rules(parts.accelerator),
        ),
        process=qemu_process(built.argv, tty=spec.tty),
        network=place.network,
        stdio=stdio_of(spec, place),
        run_dir=place.run_dir,
        vm=Vm(
            argv=built.argv,
            open_files=(*built.open_files, console),
            guest=_guest(
                spec,
                image,
                place,
                hostname=hostname,
                moment=moment,
                card=_mac_of_card(place, birth, burned_in_mac),
            ),
            ready_timeout_s=(
                READY_TIMEOUT_S[parts.accelerator]
                if architecture(spec) == "amd64"
                else FOREIGN_READY_TIMEOUT_S
            ),
            vnet_header=spec.hardware is Hardware.VIRTIO,
            discard=spec.auto_remove,
            birth=birth,
            given=() if birth == "boot" else ("ram", "state"),
            facts=facts or {},
            doors=doors(spec.hardware.value),
        ),
    )


def _shares(spec: InstanceSpec) -> tuple[machine.Share, ...]:
    return tuple(
        machine.Share(tag=places.share_tag(number), read_only=volume.read_only)
        for number, volume in enumerate(spec.volumes)
    )


def doors(hardware: str) -> tuple[str, ...]:
    """The sockets that users may come to: every machine has a serial line, not each a screen."""
    return ("serial", "vnc") if profiles.get(hardware).has_screen else ("serial",)


def _group_memory(memory: int, overhead: int, birth: str) -> int:
    """Of the sandbox. A fork is charged twice for a page that its template never used: for its own
    copy, and, when it is the first to ask for it, for the page that appears in the template's file.
    """
    shared = 0 if birth in ("boot", "template") else memory
    return memory + shared + overhead + memory // 8


def device_rules(accelerator: str) -> tuple[str, ...]:
    """What QEMU's control group lets through beside the standard devices."""
    return (KVM_DEVICE,) if accelerator == "kvm" else ()


def qemu_process(argv: tuple[str, ...], *, tty: bool) -> Process:
    return Process(
        argv=argv,
        env=("PATH=/usr/bin:/bin",),
        user=JAIL_USER,
        tty=tty,
        init=False,
        capabilities=(),
        seccomp="qemu",
        rlimits={"nofile": (2048, 2048), "core": (0, 0)},
    )


def jail_mounts(accelerator: str) -> tuple[Mount, ...]:
    """What every jailed QEMU sees beside its own files."""
    plain = ("nosuid", "nodev", "noexec")
    mounts = [
        Mount(
            kind="tmpfs",
            source="tmpfs",
            target="/dev",
            options=("nosuid", "noexec", "mode=0755", "size=65536"),
        ),
        # Of the processes in the sandbox alone: nothing of the host is QEMU's to know or to set.
        Mount(kind="proc", source="proc", target="/proc", options=(*plain, "subset=pid")),
        Mount(kind="tmpfs", source="tmpfs", target="/tmp", options=(*plain, "mode=1777")),
    ]
    if accelerator == "kvm":
        mounts.append(
            Mount(kind="node", source="/dev/kvm", target="/dev/kvm", options=("nosuid", "noexec"))
        )
    return tuple(mounts)


def _mounts(spec: InstanceSpec, parts: MachineParts) -> tuple[Mount, ...]:
    plain = ("nosuid", "nodev", "noexec")
    mounts = [
        *jail_mounts(parts.accelerator),
        Mount(kind="bind", source=parts.boot, target="/boot", options=(*plain, "ro")),
    ]
    if spec.volumes or spec.hardware is Hardware.VIRTIO:
        mounts.append(
            Mount(
                kind="tmpfs",
                source="tmpfs",
                target=machine.SHARE_DIR,
                options=(*plain, "mode=0755", "size=65536"),
            )
        )
    mounts += [
        share_mount(volume, places.share_tag(number)) for number, volume in enumerate(spec.volumes)
    ]
    return tuple(mounts)


def share_mount(volume: Volume, tag: str) -> Mount:
    """A directory of the host in the jail, as QEMU's own user's."""
    mode = ("ro",) if volume.read_only else ()
    return Mount(
        kind="bind",
        source=volume.source,
        target=f"{machine.SHARE_DIR}/{tag}",
        options=("rbind", "nosuid", "nodev", *mode),
        idmap="owner",
    )


def grows(spec: InstanceSpec) -> bool:
    """Whether hardware can be plugged in while it runs."""
    return profiles.get(spec.hardware.value, architecture(spec)).grows


def disk_file(directory: str, number: int) -> str:
    return f"{directory}/disk-{number}.img"


def _mac_of_card(place: Place, birth: str, burned_in: str) -> str:
    """The address the card itself has; a fork begins with that of what it was forked from."""
    if place.network is None:
        return ""
    return place.network.mac if birth == "boot" else burned_in


def _guest(
    spec: InstanceSpec,
    image: ImageRoot,
    place: Place,
    *,
    hostname: str,
    moment: Moment,
    card: str,
) -> dict[str, Any]:
    """What the agent is told: see guest/configure.py for how it is applied."""
    return {
        "mode": "system" if spec.system else "application",
        "nested": spec.nested,
        "hostname": hostname,
        "network": network_words(place.network, card) if place.network else None,
        "files": files_of(hostname, place),
        "shares": [
            share_words(volume, places.share_tag(number))
            for number, volume in enumerate(spec.volumes)
        ],
        "process": asdict(main_process(spec, image.config, hostname)),
        "sysctls": dict(SYSCTLS),
        "pids": spec.pids,
        "tmpfs": [
            {"target": one.target, "options": privileges.tmpfs_options(one)} for one in spec.tmpfs
        ],
        "shm_bytes": spec.shm_bytes,
        "read_only": spec.read_only,
        "time": moment.time,
        "entropy": moment.entropy,
    }


def share_words(volume: Volume, tag: str) -> dict[str, Any]:
    return {"tag": tag, "target": volume.target, "read_only": volume.read_only}


def network_words(network: Network, card: str) -> dict[str, Any]:
    """``card``: the address that the card has when the guest first sees it."""
    return {
        "interface": network.interface,
        "mac": network.mac,
        "burned_in_mac": card,
        "address": network.address,
        "prefix": network.prefix,
        "gateway": network.gateway,
        "mtu": network.mtu,
    }
