"""What a user adds to or takes from the default walls, and what each of that means. Pure.

Everything that weakens a wall is named by the user, one thing at a time; there is no word for
"all of it". ``weakened`` says each in a sentence, which ``show`` prints first. Refuses names the
kernel does not have, and what a wall does not have: behind the VM wall there is no system call
filter of ours inside the guest, and no device of the host.
"""

import os
import posixpath
import stat
from collections.abc import Sequence

from twofold.errors import InvalidInput
from twofold.linux import capabilities, limits
from twofold.model.instance import Device, InstanceSpec, Isolation, Tmpfs
from twofold.runtime.plan import Mount

ALL = "ALL"
# What is left to do with each capability by somebody who holds it over his own user namespace
# only. Where the kernel asks for it over the first user namespace, it is worth nothing there.
MEANING: dict[str, str] = {
    "CHOWN": "give files away, within its own ids",
    "DAC_OVERRIDE": "read and write any file of its own ids, whatever its mode",
    "DAC_READ_SEARCH": "read any file of its own ids",
    "FOWNER": "change modes and attributes of any file of its own ids",
    "FSETID": "keep set-id bits when a file changes",
    "KILL": "signal any process inside",
    "SETGID": "take any group of its own range",
    "SETUID": "take any user of its own range",
    "SETPCAP": "give up capabilities, and pass them on",
    "LINUX_IMMUTABLE": "nothing here: asked for over the host",
    "NET_BIND_SERVICE": "listen on ports below 1024 of its own network",
    "NET_BROADCAST": "nothing: unused by the kernel",
    "NET_ADMIN": "change its own interfaces, routes and firewall, and reach much of the kernel's "
    "network code",
    "NET_RAW": "send any packet from its own network; forged addresses are filtered on the bridge",
    "IPC_LOCK": "lock memory, within its limit",
    "IPC_OWNER": "use any System V IPC object inside",
    "SYS_MODULE": "nothing here: asked for over the host",
    "SYS_RAWIO": "nothing here: asked for over the host",
    "SYS_CHROOT": "chroot",
    "SYS_PTRACE": "trace any process inside",
    "SYS_PACCT": "nothing here: asked for over the host",
    "SYS_ADMIN": "mount, make namespaces, load eBPF where the host allows it: most of what the "
    "kernel has ever been attacked through",
    "SYS_BOOT": "end its own PID namespace by reboot(2)",
    "SYS_NICE": "nothing here: asked for over the host",
    "SYS_RESOURCE": "exceed quotas and limits that belong to its own namespaces",
    "SYS_TIME": "nothing here: asked for over the host",
    "SYS_TTY_CONFIG": "nothing here: asked for over the host",
    "MKNOD": "make device nodes, which do not open here",
    "LEASE": "take leases on files of its own ids",
    "AUDIT_WRITE": "write to the audit log where it is namespaced: nowhere yet",
    "AUDIT_CONTROL": "nothing here: asked for over the host",
    "SETFCAP": "give capabilities to files, worth something in its own namespace",
    "MAC_OVERRIDE": "nothing here: asked for over the host",
    "MAC_ADMIN": "nothing here: asked for over the host",
    "SYSLOG": "nothing here: asked for over the host",
    "WAKE_ALARM": "nothing here: asked for over the host",
    "BLOCK_SUSPEND": "nothing here: asked for over the host",
    "AUDIT_READ": "nothing here: asked for over the host",
    "PERFMON": "nothing here: asked for over the host",
    "BPF": "nothing here: asked for over the host",
    "CHECKPOINT_RESTORE": "choose process ids in its own PID namespace",
}


def capability(name: str) -> str:
    """``SYS_ADMIN`` from ``cap_sys_admin``. Raises InvalidInput with the nearest names."""
    plain = name.strip().upper().removeprefix("CAP_")
    if plain == ALL or plain in capabilities.NUMBER:
        return plain
    near = [known for known in capabilities.NAMES if plain and (plain in known or known in plain)]
    raise InvalidInput(
        f"capability {name[:40]!r} is not known",
        hint=f"perhaps {' or '.join(near[:3])}" if near else "man 7 capabilities",
    )


def is_machine(spec: InstanceSpec) -> bool:
    """Whether an init of the image's own is root over a kernel of its own."""
    return spec.system and spec.isolation is Isolation.VM


def left_to_a_machine(spec: InstanceSpec) -> tuple[str, ...] | None:
    """What its init holds, and with it everything inside; None: all that its kernel knows.

    The wall is the hypervisor. Root inside gets whatever the init has by asking it for a process
    (``systemd-run``), so less for ``exec`` alone would protect nothing and only break programs.
    """
    return granted(spec, capabilities.NAMES) if spec.cap_drop else None


def granted(spec: InstanceSpec, default: Sequence[str]) -> tuple[str, ...]:
    """The default set after ``--cap-drop`` and ``--cap-add``; what is named beats ALL."""
    added = {capability(name) for name in spec.cap_add}
    dropped = {capability(name) for name in spec.cap_drop}
    if both := (added & dropped):
        raise InvalidInput(f"capability {min(both)} is both added and dropped", hint="name it once")
    held = set() if ALL in dropped else set(default)
    if ALL in added:
        held |= set(capabilities.NAMES)
    held = (held - (dropped - {ALL})) | (added - {ALL})
    return tuple(name for name in capabilities.NAMES if name in held)


def resource_limits(
    spec: InstanceSpec, default: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    found = dict(default)
    for name, (soft, hard) in spec.ulimits.items():
        plain = name.lower().removeprefix("rlimit_")
        if plain.upper() not in limits.NUMBERS:
            known = ", ".join(sorted(one.lower() for one in limits.NUMBERS))
            raise InvalidInput(f"ulimit {name[:40]!r} is not known", hint=f"one of {known}")
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidInput(
                f"ulimit {plain}={soft}:{hard}: the soft limit is above the hard one",
                hint=f"--ulimit {plain}={hard}:{hard}",
            )
        found[plain] = (soft, hard)
    return found


def no_new_privileges(spec: InstanceSpec) -> bool:
    """On, but for an image's own init, which has set-uid programs of its own to run."""
    return (not spec.system) if spec.no_new_privileges is None else spec.no_new_privileges


def seccomp_profile(spec: InstanceSpec) -> str:
    """Whoever holds SYS_ADMIN gets the calls it is for, as an image's own init does."""
    if spec.seccomp == "unconfined":
        return ""
    return "system" if spec.system or "SYS_ADMIN" in granted(spec, ()) else "default"


def check(spec: InstanceSpec) -> None:
    """Refuse what neither wall could do, before anything is made."""
    granted(spec, ())
    resource_limits(spec, {})
    if spec.isolation.value == "vm":
        if spec.seccomp != "default":
            raise InvalidInput(
                "seccomp=unconfined is of a container: in a virtual machine the payload talks to "
                "a kernel of its own, and no filter stands there",
                hint="leave --security-opt seccomp=unconfined out",
            )
        if spec.devices:
            raise InvalidInput(
                f"device {spec.devices[0].path!r} of the host cannot be given to a virtual machine",
                hint="a container can have it, or share files with -v",
            )
    if spec.read_only and spec.system:
        raise InvalidInput(
            "a read-only root does not go with --system: an init may mount, and could undo it",
            hint="leave --read-only or --system out",
        )
    for device in spec.devices:
        device_rule(device)


def device_rule(device: Device) -> str:
    """``c 10:229 rw``. Raises InvalidInput for what is no device, or nobody inside could open."""
    path = posixpath.normpath(device.path)
    target = posixpath.normpath(device.target or path)
    if not path.startswith("/dev/") or not target.startswith("/dev/"):
        wrong = path if not path.startswith("/dev/") else target
        raise InvalidInput(f"device {wrong!r} is not below /dev", hint="--device /dev/fuse")
    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidInput(f"device {path!r}: {error.strerror}", hint="ls -l /dev") from None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
    if not kind:
        raise InvalidInput(f"{path!r} is not a device", hint="-v shares files and directories")
    needed = (4 if "r" in device.access else 0) | (2 if "w" in device.access else 0)
    if found.st_mode & needed != needed:
        raise InvalidInput(
            f"device {path!r} has mode {stat.S_IMODE(found.st_mode):04o}: root inside is nobody to "
            "it, and could not open it",
            hint=f"chmod o+{device.access.replace('m', '')} {path}, if everybody may use it",
        )
    return f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)} {device.access}"


def device_mounts(spec: InstanceSpec) -> tuple[Mount, ...]:
    return tuple(
        Mount(
            kind="bind",
            source=posixpath.normpath(device.path),
            target=posixpath.normpath(device.target or device.path),
            options=("nosuid", "noexec"),
        )
        for device in spec.devices
    )


def tmpfs_options(tmpfs: Tmpfs) -> tuple[str, ...]:
    options = ["nosuid", "nodev", f"mode={tmpfs.mode}"]
    if not tmpfs.executable:
        options.insert(2, "noexec")
    if tmpfs.size_bytes is not None:
        options.append(f"size={tmpfs.size_bytes}")
    return tuple(options)


def weakened(spec: InstanceSpec) -> list[str]:
    """One sentence for each thing by which this instance is less contained than by default."""
    container = spec.isolation.value == "container"
    where = "" if container else " over the guest's kernel"
    found = []
    added = [] if is_machine(spec) else [capability(name) for name in spec.cap_add]
    if ALL in added:
        found.append(f"holds every capability{where} (--cap-add ALL)")
    for name in added:
        if name != ALL:
            meaning = f": {MEANING[name]}" if container else ""
            found.append(f"holds {name}{where} (--cap-add {name}){meaning}")
    if spec.seccomp == "unconfined":
        found.append(
            "may make every system call of the host's kernel (--security-opt seccomp=unconfined)"
        )
    if spec.no_new_privileges is False and not spec.system:
        found.append(
            "may gain privileges through set-uid programs (--security-opt no-new-privileges=false)"
        )
    if spec.system and container:
        found.append(
            "runs an init of its own with SYS_ADMIN over its namespaces, and may mount (--system)"
        )
    found += [
        f"talks to the host's driver of {device.path} (--device {device.path})"
        for device in spec.devices
    ]
    found += [
        f"has the host's directory {volume.source} (-v {volume.source}:{volume.target})"
        for volume in spec.volumes
        if _is_sensitive(volume.source)
    ]
    return found + _given(spec)


def _given(spec: InstanceSpec) -> list[str]:
    """What of the host's hardware a machine has to itself."""
    found = [
        f"writes to the host's disk {disk.device} itself, which has no snapshots (--disk "
        f"{disk.device})"
        for disk in spec.disks
        if disk.device
    ]
    for device in spec.host_devices:
        words = {
            "usb": "and may change what that is, for the host too",
            "pci": "which reaches memory by itself; the IOMMU alone keeps it to the guest's",
        }[device.bus]
        found.append(
            f"has the host's {device.bus.upper()} device {device.address} to itself, {words} "
            f"(--device {device.bus}:{device.address})"
        )
    return found


_SENSITIVE = ("/", "/etc", "/root", "/boot", "/dev", "/proc", "/sys", "/run", "/var", "/usr")


def _is_sensitive(source: str) -> bool:
    """Directories from which the host itself can be taken over."""
    path = posixpath.normpath(source)
    sockets = ("docker.sock", "api.sock", "containerd.sock", "podman.sock", "keeper.sock")
    return path in _SENSITIVE or path.rpartition("/")[2] in sockets
