"""The runtime's half of the mounts: what needs the host's privileges, as detached mounts.

Sources of binds are opened here because root of a user namespace may not reach them, and idmapped
here because only the host's root may. Propagation from the host is cut or made one-way here, as a
copy of the host's mount namespace would have it.
"""

from __future__ import annotations

import os

from twofold.errors import InvalidInput, RuntimeFailed, Unsupported
from twofold.linux import mount as lm
from twofold.record import dataclass, field
from twofold.runtime import devices, idmap, mount_cgroup, mount_locks
from twofold.runtime.mount_plan import CgroupView, FilesystemPlan, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


@dataclass(kw_only=True)
class Prepared:
    """Detached mounts: the root, binds and devices by their index in the plan, control groups
    by directory name (per index of their mount)."""

    root_fd: int = -1
    binds: dict[int, int] = field(default_factory=dict)
    devices: dict[int, int] = field(default_factory=dict)
    cgroups: dict[int, dict[str, int]] = field(default_factory=dict)

    def descriptors(self) -> list[int]:
        """All of them in the order of ``layout``, to be sent over a socket (253 at a time)."""
        return list(self._all())

    def layout(self) -> dict[str, Any]:
        """What the descriptors are, as JSON."""
        return {
            "binds": list(self.binds),
            "devices": list(self.devices),
            "cgroups": [[index, list(names)] for index, names in self.cgroups.items()],
        }

    @classmethod
    def received(cls, layout: dict[str, Any], fds: Sequence[int]) -> Prepared:
        """Put together what ``descriptors`` and ``layout`` took apart."""
        rest = iter(fds)
        return cls(
            root_fd=next(rest),
            binds={index: next(rest) for index in layout["binds"]},
            devices={index: next(rest) for index in layout["devices"]},
            cgroups={
                index: {name: next(rest) for name in names} for index, names in layout["cgroups"]
            },
        )

    def _all(self) -> Iterator[int]:
        yield self.root_fd
        yield from self.binds.values()
        yield from self.devices.values()
        for binds in self.cgroups.values():
            yield from binds.values()

    def close(self) -> None:
        for fd in self._all():
            if fd >= 0:
                os.close(fd)
        self.root_fd = -1
        self.binds, self.devices, self.cgroups = {}, {}, {}


def prepare(
    plan: FilesystemPlan, *, userns_fd: int = -1, cgroups: CgroupView | None = None
) -> Prepared:
    """Open everything that ``mounting.build`` puts in place.

    ``userns_fd`` is the container's user namespace, for mounts that say ``idmap`` without
    mappings of their own. Nothing stays open after a failure.
    """
    prepared = Prepared()
    try:
        if not plan.mount_namespace:
            prepared.root_fd = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return prepared
        prepared.root_fd = _open_root(plan)
        for index, mount in enumerate(plan.mounts):
            if mount.options.remount:
                continue
            if mount.options.bind:
                prepared.binds[index] = _bind(plan, mount, userns_fd)
            elif mount.kind in ("cgroup", "cgroup2"):
                prepared.cgroups[index] = mount_cgroup.prepare(plan, mount, cgroups)
        if plan.lock_binds:
            mount_locks.lock(prepared.binds)
        if plan.user_namespace:
            for index, device in enumerate(plan.devices):
                if device.kind != "p":
                    prepared.devices[index] = devices.open_host_node(
                        device.path, device.kind, device.major, device.minor
                    )
    except BaseException:
        prepared.close()
        raise
    return prepared


def _open_root(plan: FilesystemPlan) -> int:
    try:
        fd = lm.open_tree(plan.root, recursive=True)
    except OSError as error:
        raise RuntimeFailed(f"root {plan.root!r} cannot be opened: {error.strerror}") from error
    # pivot_root(2) refuses a shared root; what was asked for is applied after it.
    flag = plan.propagation[0]
    private = flag in (lm.MS_PRIVATE, lm.MS_UNBINDABLE)
    lm.set_attributes(fd, 0, propagation=lm.MS_PRIVATE if private else lm.MS_SLAVE, recursive=True)
    return fd


def _bind(plan: FilesystemPlan, mount: Mount, userns_fd: int) -> int:
    options = mount.options
    try:
        fd = lm.open_tree(mount.source, recursive=options.recursive)
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{mount.name}.source is {mount.source!r}: it does not exist on the host",
            hint=f"make it first: mkdir -p {mount.source}",
        ) from error
    except OSError as error:
        raise RuntimeFailed(
            f"{mount.name}.source is {mount.source!r}: cannot be bound: {error.strerror}"
        ) from error
    try:
        propagation = _received(plan)
        if propagation:
            lm.set_attributes(fd, 0, propagation=propagation, recursive=options.recursive)
        change_attributes(fd, mount, keep_locked=plan.user_namespace)
        if options.idmap:
            _map_ids(fd, mount, userns_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _received(plan: FilesystemPlan) -> int:
    """How a clone of a host's mount hears of the host: as in a copied mount namespace.

    A peer of the host's mount could carry the container's own mounts back; it stays one only
    where the document asks for a shared root and the container's root is the host's.
    """
    flag = plan.propagation[0]
    if flag == lm.MS_SHARED and not plan.user_namespace:
        return 0
    return lm.MS_PRIVATE if flag in (lm.MS_PRIVATE, lm.MS_UNBINDABLE) else lm.MS_SLAVE


def change_attributes(fd: int, mount: Mount, *, keep_locked: bool) -> None:
    """Apply what the options say, first to the tree and then to its top.

    With ``keep_locked`` nothing that the host's mount had is taken away: in a user namespace the
    kernel itself would lock read-only, nosuid and the like, and this runs with more rights. Where
    the kernel does lock them, because we are in a user namespace ourselves, they stay, too.
    """
    options = mount.options
    clearable = lm.ATTR_ATIME_MASK | lm.ATTR_NOSYMFOLLOW  # these it does not lock
    if keep_locked and options.clear & options.recursive_attributes:
        # An exception at the top from what we set ourselves for the whole tree.
        clearable |= options.recursive_attributes & ~_of_the_source(fd)
    for attributes, clear, recursive in (
        (options.recursive_attributes, options.recursive_clear, True),
        (options.attributes, options.clear, False),
    ):
        if not attributes | clear:
            continue
        if keep_locked:
            clear &= clearable
        try:
            lm.set_attributes(fd, attributes, clear=clear, recursive=recursive)
        except PermissionError:
            kept = attributes & ~lm.ATTR_ATIME_MASK
            lm.set_attributes(fd, kept, recursive=recursive)


def _of_the_source(fd: int) -> int:
    """Attributes that the mount at ``fd`` has, those of them that a user namespace locks."""
    flags = os.fstatvfs(fd).f_flag
    pairs = (
        (os.ST_RDONLY, lm.ATTR_RDONLY),
        (os.ST_NOSUID, lm.ATTR_NOSUID),
        (os.ST_NODEV, lm.ATTR_NODEV),
        (os.ST_NOEXEC, lm.ATTR_NOEXEC),
    )
    return sum(attribute for flag, attribute in pairs if flags & flag)


def _map_ids(fd: int, mount: Mount, userns_fd: int) -> None:
    own_fd = -1
    if mount.uid_map or mount.gid_map:
        own_fd = userns_fd = idmap.make_namespace(mount.uid_map, mount.gid_map)
    try:
        recursive = mount.options.idmap == "ridmap"
        lm.set_attributes(fd, lm.ATTR_IDMAP, userns_fd=userns_fd, recursive=recursive)
    except OSError as error:
        raise Unsupported(
            f"{mount.name}: the file system of {mount.source!r} cannot be shown with other "
            f"owners ({error.strerror})",
            hint="use a directory on ext4, xfs or btrfs, or on a tmpfs from Linux 6.3 on",
        ) from error
    finally:
        if own_fd >= 0:
            os.close(own_fd)
