"""A container as a plan: (wish, image, allocation, place) → SandboxPlan. Pure.

The default profile is the one of ``docs/explanation/security.md``. Refuses volumes on places that
would unmask the kernel's own files. Executed by ``runtime/``.
"""

import posixpath

from twofold.errors import InvalidInput
from twofold.instance import masks, privileges
from twofold.instance.place import Allocation, ImageRoot, Place, files_of, hostname_of
from twofold.instance.process import main_process
from twofold.model.instance import InstanceSpec, Tmpfs, Volume
from twofold.runtime.plan import Cgroup, Mount, Rootfs, SandboxPlan, Stdio

PIDS = 2048
SHM_BYTES = 64 << 20

# ping without CAP_NET_RAW: every group inside may open an ICMP echo socket.
SYSCTLS = {"net.ipv4.ping_group_range": "0 65535"}
_RESERVED = ("/proc", "/sys", "/dev")


def container_plan(
    spec: InstanceSpec,
    image: ImageRoot,
    allocation: Allocation,
    place: Place,
    *,
    device_rules: tuple[str, ...] = (),
    masked: tuple[str, ...] = (),
) -> SandboxPlan:
    """The whole sandbox of one container. ``device_rules``: see ``privileges.device_rule``;
    ``masked``: what this host has besides ``masks.MASKED``."""
    hostname = hostname_of(allocation.name, spec.hostname)
    return SandboxPlan(
        instance_id=allocation.id,
        kind="container",
        id_base=allocation.id_base,
        hostname=hostname,
        rootfs=Rootfs(
            lower=image.layers,
            upper=f"{place.directory}/upper",
            work=f"{place.directory}/work",
            volatile=spec.auto_remove,
            read_only=spec.read_only,
        ),
        mounts=(
            *_kernel_mounts(system=spec.system, shm_bytes=spec.shm_bytes or SHM_BYTES),
            *privileges.device_mounts(spec),
            *_tmpfs_mounts(spec.tmpfs),
            *volume_mounts(spec.volumes),
        ),
        cgroup=Cgroup(
            path=place.cgroup,
            cpus=spec.cpus,
            memory_bytes=spec.memory_bytes,
            pids=spec.pids or PIDS,
            delegate=spec.system,
            devices=device_rules,
        ),
        process=main_process(spec, image.config, hostname),
        network=place.network,
        masked_paths=(*masks.MASKED, *masked),
        readonly_paths=masks.READ_ONLY,
        files=files_of(hostname, place),
        sysctls=SYSCTLS,
        stdio=stdio_of(spec, place),
        run_dir=place.run_dir,
    )


def stdio_of(spec: InstanceSpec, place: Place) -> Stdio:
    """A log is kept unless the instance vanishes with the command that looks at it."""
    keeps_log = not (spec.auto_remove and place.ticket)
    return Stdio(
        ticket=place.ticket,
        log_dir=place.log_dir if keeps_log else "",
        keep_stdin_open=spec.interactive and not place.ticket,
    )


def _kernel_mounts(*, system: bool, shm_bytes: int) -> tuple[Mount, ...]:
    strict = ("nosuid", "nodev", "noexec")
    cgroup_mode = "rw" if system else "ro"
    mounts = [
        Mount(kind="proc", source="proc", target="/proc", options=strict),
        Mount(kind="sysfs", source="sysfs", target="/sys", options=(*strict, "ro")),
        Mount(
            kind="cgroup",
            source="cgroup",
            target="/sys/fs/cgroup",
            options=(*strict, cgroup_mode),
        ),
        Mount(
            kind="tmpfs",
            source="tmpfs",
            target="/dev",
            options=("nosuid", "noexec", "mode=0755", f"size={SHM_BYTES}"),
        ),
        Mount(
            kind="devpts",
            source="devpts",
            target="/dev/pts",
            options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        Mount(
            kind="tmpfs",
            source="shm",
            target="/dev/shm",
            options=(*strict, "mode=1777", f"size={shm_bytes}"),
        ),
        Mount(kind="mqueue", source="mqueue", target="/dev/mqueue", options=strict),
    ]
    if system:
        plain = ("nosuid", "nodev")
        mounts += [
            Mount(kind="tmpfs", source="tmpfs", target="/run", options=(*plain, "mode=0755")),
            Mount(kind="tmpfs", source="tmpfs", target="/run/lock", options=(*plain, "mode=1777")),
            Mount(kind="tmpfs", source="tmpfs", target="/tmp", options=(*plain, "mode=1777")),
        ]
    return tuple(mounts)


def _tmpfs_mounts(wanted: list[Tmpfs]) -> tuple[Mount, ...]:
    return tuple(
        Mount(
            kind="tmpfs",
            source="tmpfs",
            target=tmpfs.target,
            options=privileges.tmpfs_options(tmpfs),
        )
        for tmpfs in wanted
    )


def volume_mounts(volumes: list[Volume]) -> tuple[Mount, ...]:
    """The user's directories, shown with the instance's own ids, never with devices or setuid."""
    mounts = []
    for volume in volumes:
        check_volume(volume)
        options = ("rbind", "nosuid", "nodev", *(("ro",) if volume.read_only else ()))
        mounts.append(
            Mount(
                kind="bind",
                source=volume.source,
                target=volume.target,
                options=options,
                idmap="range",
            )
        )
    return tuple(mounts)


def check_volume(volume: Volume) -> None:
    """Refuse what cannot work or would show the kernel's own files unmasked."""
    if not volume.source.startswith("/"):
        raise InvalidInput(
            f"volume source {volume.source!r} is not absolute", hint="-v /host/dir:/inside/dir"
        )
    check_target("volume", volume.target, hint="-v DIR:/data")


def check_target(what: str, path: str, *, hint: str) -> None:
    if not path.startswith("/"):
        raise InvalidInput(f"{what} target {path!r} is not absolute", hint=hint)
    if ".." in path.split("/"):
        raise InvalidInput(f"{what} target {path!r} has '..' in it", hint=hint)
    target = posixpath.normpath("/" + path.lstrip("/"))
    if target == "/":
        raise InvalidInput(f"a {what} cannot be mounted on '/'", hint=hint)
    for reserved in _RESERVED:
        if target == reserved or target.startswith(f"{reserved}/"):
            raise InvalidInput(
                f"a {what} cannot be mounted on {path!r}: {reserved} is the kernel's",
                hint=f"choose another target: {hint}",
            )
