"""What stands between any instance and its host, in words: what both walls have. Pure.

A sentence is *verified* when the witness (``witness.py``) has seen the same on the living
processes, *planned* when there is none to look at, and *differs*, with a warning, when the two
disagree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twofold.instance.record import Record
from twofold.instance.witness import NAMESPACES, Witness
from twofold.model.exposure import Barrier, Basis
from twofold.runtime.plan import Mount, SandboxPlan
from twofold.runtime.seccomp import Reach

NAMESPACE_WORDS = {
    "user": "users",
    "mnt": "mounts",
    "pid": "processes",
    "net": "network",
    "ipc": "queues and shared memory",
    "uts": "host name",
    "cgroup": "control groups",
}
STANDARD_DEVICES = frozenset(
    ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"]
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a description is made of. ``witness`` is None where nothing runs."""

    record: Record
    plan: SandboxPlan
    witness: Witness | None
    host_kernel: str
    reach: Reach
    bridge: str
    linked: bool | None  # whether its cable is plugged into the bridge; None: not to be seen
    kernel_paths: frozenset[str]  # of those the plan covers: what this kernel has at all
    apparmor: bool
    selinux: bool
    limits_seen: dict[str, Any] | None  # cpus, memory_bytes, pids as the kernel has them


def judge(
    topic: str,
    words: str,
    scene: Scene,
    holds: Callable[[Witness], bool],
    *,
    seen: Callable[[Witness], str] = lambda _: "",
    warning: bool = False,
    details: Any = None,
) -> Barrier:
    """A sentence with its basis; ``seen`` says what was found where it does not hold."""
    basis = Basis.PLANNED
    if scene.witness is not None:
        if holds(scene.witness):
            basis = Basis.VERIFIED
        else:
            basis, warning = Basis.DIFFERS, True
            words = f"planned: {words}; found: {seen(scene.witness) or 'something else'}"
    return Barrier(topic=topic, words=words, basis=basis, warning=warning, details=details)


def users(scene: Scene, who: str) -> Barrier:
    base = scene.plan.id_base
    return judge(
        "users",
        f"a user namespace: {who} is user {base} of the host, where {base} to {base + 65535} "
        "belong to this instance alone and own nothing else",
        scene,
        lambda seen: bool(seen.id_map) and all(_within(row, base) for row in seen.id_map),
        seen=lambda seen: f"map {seen.id_map}",
        details={"first": base, "count": 65536},
    )


def _within(row: tuple[int, int, int], base: int) -> bool:
    _, outside, count = row
    return base <= outside and outside + count <= base + 65536


def namespaces(scene: Scene) -> Barrier:
    return judge(
        "namespaces",
        "its own view of " + ", ".join(NAMESPACE_WORDS.values()),
        scene,
        lambda seen: seen.own_namespaces >= set(NAMESPACES),
        seen=lambda seen: f"only {', '.join(sorted(seen.own_namespaces)) or 'none'} of its own",
        details=list(NAMESPACES),
    )


def privileges_gained(scene: Scene) -> Barrier:
    if scene.plan.process.no_new_privs:
        return judge(
            "set-uid programs",
            "gain nothing: no_new_privs is set and cannot be unset",
            scene,
            lambda seen: all(one.no_new_privs for one in seen.processes),
            seen=lambda _: "a process without no_new_privs",
        )
    return judge(
        "set-uid programs",
        "work, within its own users and the capabilities above",
        scene,
        lambda seen: not seen.first.no_new_privs,
        seen=lambda _: "no_new_privs is set",
    )


def host_mounts(
    scene: Scene, mounts: list[Mount], *, shown: dict[str, str] | None = None
) -> Barrier:
    """Directories of the host that the instance sees. ``shown`` renames their targets."""
    if not mounts:
        words = "none"
        return judge("files of the host", words, scene, lambda _: True, details=[])
    parts, details = [], []
    for mount in mounts:
        mode = "read-only" if "ro" in mount.options else "writable"
        target = (shown or {}).get(mount.target, mount.target)
        parts.append(f"{mount.source} at {target}, {mode}")
        details.append({"source": mount.source, "target": target, "mode": mode})
    return judge(
        "files of the host",
        "; ".join(parts) + "; no set-uid program and no device in them works",
        scene,
        lambda seen: all(_is_mounted(mount, seen) for mount in mounts),
        seen=lambda seen: (
            "missing or writable: "
            + ", ".join(m.target for m in mounts if not _is_mounted(m, seen))
        ),
        details=details,
    )


def _is_mounted(mount: Mount, seen: Witness) -> bool:
    found = [one for one in seen.mounts if one.target == mount.target.rstrip("/")]
    return bool(found) and (found[-1].read_only or "ro" not in mount.options)


def network(scene: Scene) -> Barrier:
    net, spec = scene.plan.network, scene.record.spec
    if net is None:
        return judge(
            "network",
            "none: it reaches nothing but itself",
            scene,
            lambda seen: "net" in seen.own_namespaces,
            seen=lambda _: "the host's network",
        )
    words = (
        f"{net.address} on the bridge {scene.bridge}, behind NAT; frames with another address than "
        "its own are dropped; other instances and the host's services on the bridge can be reached"
    )
    open_ports = [
        f"{port.host_ip}:{port.host_port}/{port.protocol} → {port.guest_port}"
        for port in spec.ports
    ]
    if open_ports:
        words += f"; published: {', '.join(open_ports)}"
        if any(port.host_ip in ("0.0.0.0", "::") for port in spec.ports):
            words += " (0.0.0.0: to every network of the host)"
    else:
        words += "; nothing is published"
    barrier = judge(
        "network",
        words,
        scene,
        lambda seen: "net" in seen.own_namespaces and scene.linked is not False,
        seen=lambda _: "its cable is not on the bridge",
        details={"address": net.address, "bridge": scene.bridge, "published": open_ports},
    )
    if scene.linked is None and barrier.basis is Basis.VERIFIED:
        return barrier.model_copy(update={"basis": Basis.PLANNED})
    return barrier


def limits(scene: Scene) -> Barrier:
    wanted = scene.plan.cgroup
    if scene.record.facts.get("limits") and not scene.plan.vm:
        spec = scene.record.facts["limits"]
        cpus, memory = spec.get("cpus"), spec.get("memory_bytes")
    else:
        cpus, memory = wanted.cpus, wanted.memory_bytes
    parts = [
        f"{cpus:g} processors" if cpus else "all processors of the host",
        f"{memory >> 20} MiB of memory" if memory else "all memory of the host",
        f"{wanted.pids} processes" if wanted.pids else "any number of processes",
    ]
    words = ", ".join(parts)
    if scene.plan.vm:
        words = f"of QEMU with its guest: {words}"
    elif not memory or not cpus:
        words += " (set some with --cpus, --memory, or twofold set)"
    seen_limits = scene.limits_seen
    if scene.witness is None or seen_limits is None:
        return Barrier(topic="limits", words=words, basis=Basis.PLANNED)
    same = seen_limits.get("memory_bytes") == (memory and memory // 4096 * 4096)
    return judge(
        "limits",
        words,
        scene,
        lambda _: same,
        seen=lambda _: f"memory limit {seen_limits.get('memory_bytes')}",
        details=seen_limits,
    )


def labels(scene: Scene) -> Barrier:
    if not (scene.apparmor or scene.selinux):
        words = "none: neither AppArmor nor SELinux is active on this host"
        return Barrier(topic="security labels", words=words, basis=Basis.VERIFIED)
    active = "AppArmor" if scene.apparmor else "SELinux"
    label = scene.witness.label if scene.witness else ""
    if label:
        return Barrier(topic="security labels", words=f"{active}: {label}", basis=Basis.VERIFIED)
    basis = Basis.VERIFIED if scene.witness else Basis.PLANNED
    words = f"none, although {active} is active: Twofold brings no profile yet"
    return Barrier(topic="security labels", words=words, basis=basis)
