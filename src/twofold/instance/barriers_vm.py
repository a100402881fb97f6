"""What stands between a virtual machine and the host: the machine, and QEMU's own sandbox. Pure."""

from twofold.instance import barriers
from twofold.instance.barriers import STANDARD_DEVICES, Scene, judge
from twofold.model.exposure import Barrier, Basis
from twofold.runtime.idmap import COMPANION_USER

_NOT_THE_GUESTS = ("isa-serial",)
_ACCESS = {"r": "read-only", "rw": "writable", "exclusive": "writable, the host's own"}


def summary(scene: Scene) -> str:
    return (
        "a virtual machine: it has a kernel of its own, and the host's kernel is asked only by "
        "QEMU, which is itself confined"
    )


def describe(scene: Scene) -> list[Barrier]:
    plan = scene.plan
    shares = [mount for mount in plan.mounts if mount.idmap == "owner"]
    shown = {
        mount.target: volume.target
        for mount, volume in zip(shares, scene.record.spec.volumes, strict=False)
    }
    return [
        _kernel(scene),
        _machine(scene),
        _accelerator(scene),
        barriers.users(scene, "QEMU's user inside its sandbox"),
        _user(scene),
        barriers.namespaces(scene),
        _capabilities(scene),
        _system_calls(scene),
        barriers.privileges_gained(scene),
        _jail(scene),
        _disks(scene),
        *_companions(scene),
        barriers.host_mounts(scene, shares, shown=shown),
        barriers.network(scene),
        barriers.limits(scene),
        barriers.labels(scene),
    ]


def _kernel(scene: Scene) -> Barrier:
    release = str(scene.record.facts.get("kernel") or "") if scene.witness else ""
    said = f"Linux {release}, as it says itself" if release else "that of the kernel bundle"
    if scene.record.has_own_os:
        said = "that of the operating system on its disks, of which nothing is known here"
    return Barrier(
        topic="kernel",
        words=f"its own, {said}; the host runs Linux {scene.host_kernel}",
        basis=Basis.VERIFIED if release else Basis.PLANNED,
        details={"release": release, "shared": False, "host": scene.host_kernel},
    )


def _machine(scene: Scene) -> Barrier:
    assert scene.plan.vm is not None
    argv = scene.plan.vm.argv
    devices = [
        argv[index + 1].split(",", 1)[0] for index, word in enumerate(argv) if word == "-device"
    ]
    kinds = sorted(set(devices) - set(_NOT_THE_GUESTS))
    plugged = [str(word) for word in scene.record.facts.get("hotplugged") or []]
    others = (
        f"plugged in while it runs: {', '.join(plugged)}" if plugged else "no other is plugged in"
    )
    return Barrier(
        topic="machine",
        words=f"the guest can talk to these devices of QEMU: {', '.join(kinds)}, a serial port and "
        f"the chips of the board; {others}",
        basis=Basis.PLANNED,
        details=kinds,
    )


def _accelerator(scene: Scene) -> Barrier:
    assert scene.plan.vm is not None
    argv = scene.plan.vm.argv
    if argv[argv.index("-accel") + 1].startswith("kvm"):
        return Barrier(
            topic="processor",
            words="KVM: guest code runs on the processor, in guest mode",
            basis=Basis.PLANNED,
            details="kvm",
        )
    return Barrier(
        topic="processor",
        words="TCG: QEMU translates the guest's code, and QEMU's developers do not claim that to "
        "be a security boundary; count on the sandbox around it",
        basis=Basis.PLANNED,
        warning=True,
        details="tcg",
    )


def _user(scene: Scene) -> Barrier:
    base = scene.plan.id_base
    user = int(scene.plan.process.user.partition(":")[0] or 0)
    companions = scene.plan.vm.companions if scene.plan.vm else ()
    return judge(
        "QEMU's user",
        f"{base + user} of the host, of this instance alone; not root even in its sandbox",
        scene,
        lambda seen: all(
            process.uid == base + user
            for process in seen.processes
            if not (companions and process.uid == base + COMPANION_USER)
        ),
        seen=lambda seen: f"users {sorted({process.uid for process in seen.processes})}",
        details=base + user,
    )


def _capabilities(scene: Scene) -> Barrier:
    return judge(
        "QEMU's capabilities",
        "none",
        scene,
        lambda seen: all(process.effective | process.permitted == 0 for process in seen.processes),
        seen=lambda seen: hex(max(process.permitted for process in seen.processes)),
        details=[],
    )


def _system_calls(scene: Scene) -> Barrier:
    reach = scene.reach
    return judge(
        "QEMU's system calls",
        f"{reach.allowed} of {reach.known} reachable, fewer again by QEMU's own filter (no new "
        "programs, no other users, no resource control)",
        scene,
        lambda seen: (
            all(process.seccomp == 2 for process in seen.processes)
            and max(process.filters for process in seen.processes) >= 2
        ),
        seen=lambda seen: f"filters {[process.filters for process in seen.processes]}",
        details={"allowed": reach.allowed, "known": reach.known},
    )


def _jail(scene: Scene) -> Barrier:
    nodes = [mount.target for mount in scene.plan.mounts if mount.kind == "node"]
    known = STANDARD_DEVICES | {node.removeprefix("/dev/") for node in nodes}
    words = "a read-only copy of QEMU, its libraries and its firmware; "
    words += f"of the host's devices only {', '.join(nodes)}" if nodes else "no device of the host"
    return judge(
        "QEMU's files",
        words,
        scene,
        lambda seen: (
            set(seen.devices) <= known
            and any(mount.target == "/" and mount.read_only for mount in seen.mounts)
        ),
        seen=lambda seen: f"devices {', '.join(seen.devices)}",
        details=sorted(nodes),
    )


def _companions(scene: Scene) -> list[Barrier]:
    """A TPM: what its user holds is to be had neither by the guest nor by a QEMU it has taken."""
    assert scene.plan.vm is not None
    user = scene.plan.id_base + COMPANION_USER
    return [
        judge(
            f"{one.name.upper()}",
            f"swtpm, apart from QEMU: user {user} of the host, with processes, files and network "
            "(none) of its own; it sees the directory in which it keeps its seeds and keys, and "
            "QEMU sees of it one socket",
            scene,
            lambda seen: any(process.uid == user for process in seen.processes),
            seen=lambda _: (
                f"it does not run (twofold logs {scene.record.name}); the machine has "
                "none until its next start"
            ),
            details=[mount.source for mount in scene.plan.mounts if mount.idmap == "companion"],
        )
        for one in scene.plan.vm.companions
    ]


def _disks(scene: Scene) -> Barrier:
    assert scene.plan.vm is not None
    files = [
        f"{item.name} ({_ACCESS.get(item.access, item.access)})"
        for item in scene.plan.vm.open_files
    ]
    return Barrier(
        topic="QEMU's open files",
        words=f"handed over open, by no name it could change: {', '.join(files)}",
        basis=Basis.PLANNED,
        details=[item.path for item in scene.plan.vm.open_files],
    )
