"""What stands between a container and the host, in words. Pure."""

from twofold.instance import barriers, privileges
from twofold.instance.barriers import STANDARD_DEVICES, Scene, judge
from twofold.instance.witness import Witness
from twofold.linux import capabilities
from twofold.model.exposure import Barrier, Basis


def summary(scene: Scene) -> str:
    kind = "system container" if scene.record.spec.system else "container"
    return (
        f"a {kind}: it shares the kernel with the host, so the wall is what that kernel lets it "
        "ask for"
    )


def describe(scene: Scene) -> list[Barrier]:
    return [
        Barrier(
            topic="kernel",
            words=f"the host's own, Linux {scene.host_kernel}: a hole in it is a way out (--vm "
            "puts another kernel in between)",
            basis=Basis.VERIFIED,
            details={"release": scene.host_kernel, "shared": True},
        ),
        barriers.users(scene, "root inside"),
        barriers.namespaces(scene),
        _capabilities(scene),
        _system_calls(scene),
        barriers.privileges_gained(scene),
        _devices(scene),
        _root(scene),
        barriers.host_mounts(scene, [m for m in scene.plan.mounts if m.idmap]),
        _kernel_files(scene),
        barriers.network(scene),
        barriers.limits(scene),
        barriers.labels(scene),
    ]


def _capabilities(scene: Scene) -> Barrier:
    names = scene.plan.process.capabilities or ()
    mask = capabilities.mask_of(names) & ((2 << capabilities.last_capability()) - 1)
    if not names:
        words = "none at all"
    else:
        words = f"{len(names)} of {len(capabilities.NAMES)}, for root inside, over its own "
        words += "namespaces only: "
        words += "; ".join(f"{name} ({privileges.MEANING[name]})" for name in names)
    return judge(
        "capabilities",
        words,
        scene,
        lambda seen: all(one.bounding & ~mask == 0 for one in seen.processes),
        seen=lambda seen: _names(seen.first.bounding),
        details=list(names),
    )


def _names(mask: int) -> str:
    found = [name for number, name in enumerate(capabilities.NAMES) if mask >> number & 1]
    return ", ".join(found) or "none"


def _system_calls(scene: Scene) -> Barrier:
    reach, profile = scene.reach, scene.plan.process.seccomp
    if not profile:
        words = f"all {reach.known}: no filter (--security-opt seccomp=unconfined)"
        return judge(
            "system calls", words, scene, lambda seen: seen.first.seccomp == 0, warning=True
        )
    words = f"{reach.allowed} of {reach.known} reachable"
    if reach.by_argument:
        words += f", and {', '.join(reach.by_argument)} for harmless arguments"
    words += "; the others fail, and so do 32-bit and x32 calls"
    return judge(
        "system calls",
        words,
        scene,
        lambda seen: all(one.seccomp == 2 for one in seen.processes),
        seen=lambda seen: f"a process in seccomp mode {min(p.seccomp for p in seen.processes)}",
        details={"allowed": reach.allowed, "known": reach.known, "profile": profile},
    )


def _devices(scene: Scene) -> Barrier:
    asked = [mount.target for mount in privileges.device_mounts(scene.record.spec)]
    allowed = STANDARD_DEVICES | {path.rpartition("/")[2] for path in asked}
    words = "null, zero, full, random, urandom, tty and terminals of its own"
    if asked:
        words += f"; and of the host: {', '.join(asked)}"
    else:
        words += "; nothing that leads to hardware"
    return judge(
        "devices",
        words,
        scene,
        lambda seen: set(seen.devices) <= allowed,
        seen=lambda seen: f"also {', '.join(sorted(set(seen.devices) - allowed))}",
        warning=bool(asked),
        details=[*sorted(STANDARD_DEVICES), *asked],
    )


def _root(scene: Scene) -> Barrier:
    if scene.plan.rootfs.read_only:
        words = "the image, read-only; nothing can be written but to volumes and tmpfs"
    else:
        words = "the image, read-only, below a layer of its own for what it writes"
    return judge(
        "root",
        words,
        scene,
        lambda seen: any(
            mount.target == "/" and mount.kind == "overlay"
            and (mount.read_only or not scene.plan.rootfs.read_only)
            for mount in seen.mounts
        ),
        seen=lambda seen: ", ".join(
            f"{m.kind}{' read-only' if m.read_only else ''}" for m in seen.mounts if m.target == "/"
        ),
    )  # fmt: skip


def _kernel_files(scene: Scene) -> Barrier:
    masked, read_only = scene.plan.masked_paths, scene.plan.readonly_paths
    return judge(
        "kernel's files",
        f"{len(masked)} places of /proc and /sys that tell of the host are hidden, "
        f"{len(read_only)} and all of /sys are read-only",
        scene,
        lambda seen: not _uncovered(scene, seen),
        seen=lambda seen: f"open: {', '.join(_uncovered(scene, seen))}",
        details={"masked": list(masked), "read_only": list(read_only)},
    )


def _uncovered(scene: Scene, seen: Witness) -> list[str]:
    """Of the paths that this kernel has: those with nothing over them, or something writable."""
    mounts = {mount.target: mount for mount in seen.mounts}
    wanted = {*scene.plan.masked_paths, *scene.plan.readonly_paths} & scene.kernel_paths
    return [
        path
        for path in sorted({*wanted, "/sys"})
        if path not in mounts or not mounts[path].read_only
    ]
