"""``/sys/fs/cgroup`` as a container sees it: its own groups as roots, whatever the host has.

On a v2 host that is one file system. On v1 and hybrid hosts it is a tmpfs with one directory per
hierarchy, named as on the host (``cpu,cpuacct``), with a link per co-mounted controller, and
``unified`` for the v2 tree. With a cgroup namespace each is mounted anew; without one the
container's own group is bound there, since a new mount would show the host's whole tree. Where
the container has no group of its own, nothing is shown.
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.runtime.mount_plan import CgroupView, FilesystemPlan, Mount

_UNIFIED = "unified"
_SIZE = "64k"  # names only


def hierarchies(view: CgroupView) -> dict[str, tuple[str, ...]]:
    """Directory names and the controllers in each; the v2 tree is ``("",)``. Pure."""
    found: dict[str, tuple[str, ...]] = {}
    for controller, mountpoint in view.mounts.items():
        if controller in view.groups:
            name = os.path.basename(mountpoint) if controller else _UNIFIED
            found[name] = (*found.get(name, ()), controller)
    return found


def is_v2(view: CgroupView) -> bool:
    return set(view.mounts) == {""}


def prepare(plan: FilesystemPlan, mount: Mount, view: CgroupView | None) -> dict[str, int]:
    """The container's own groups as detached binds, where it has no cgroup namespace."""
    wanted = hierarchies(view) if view is not None else {}
    if mount.kind == "cgroup2" or (view is not None and is_v2(view)):
        wanted = {name: found for name, found in wanted.items() if found == ("",)}
        if not wanted:
            raise RuntimeFailed(
                f"{mount.name}: the container has no control group of its own to be shown",
                hint="remove the mount, or give the container a cgroupsPath on a v2 hierarchy",
            )
    binds: dict[str, int] = {}
    if plan.cgroup_namespace or view is None:
        return binds
    try:
        for name, controllers in wanted.items():
            fd = binds[name] = lm.open_tree(view.groups[controllers[0]])
            lm.set_attributes(fd, _attributes(mount), propagation=lm.MS_PRIVATE)
    except BaseException:
        for fd in binds.values():
            os.close(fd)
        raise
    return binds


def place(mount: Mount, target_fd: int, view: CgroupView, binds: dict[str, int]) -> int:
    """Mount the view on ``target_fd``; ``binds`` are those of ``prepare``. Returns its root."""
    if is_v2(view) or mount.kind == "cgroup2":
        fd = _one(mount, _UNIFIED, ("",), binds)
        lm.move_mount(fd, target_fd)
        return fd
    options: dict[str, str | None] = {"source": "cgroup", "mode": "0755", "size": _SIZE}
    attributes = _attributes(mount)
    root = lm.new_filesystem("tmpfs", options, attributes=attributes & ~lm.ATTR_RDONLY)
    try:
        lm.move_mount(root, target_fd)
        for name, controllers in hierarchies(view).items():
            os.mkdir(name, 0o755, dir_fd=root)
            place_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                fd = _one(mount, name, controllers, binds)
                lm.move_mount(fd, place_fd)
                os.close(fd)
            finally:
                os.close(place_fd)
            for controller in controllers:
                if controller and controller != name and not controller.startswith("name="):
                    os.symlink(name, controller, dir_fd=root)
        if attributes & lm.ATTR_RDONLY:
            lm.set_attributes(root, lm.ATTR_RDONLY)
    except BaseException:
        os.close(root)
        raise
    return root


def _one(mount: Mount, name: str, controllers: tuple[str, ...], binds: dict[str, int]) -> int:
    """One hierarchy, detached. The caller owns it."""
    if name in binds:
        return os.dup(binds[name])
    if controllers == ("",):
        kind, options = "cgroup2", {}
    else:
        kind, options = "cgroup", dict(_flag(controller) for controller in controllers)
    try:
        return lm.new_filesystem(
            kind, {"source": "cgroup", **options}, attributes=_attributes(mount)
        )
    except OSError as error:
        raise RuntimeFailed(
            f"{mount.name}: the control groups of {name!r} cannot be shown: {error.strerror}",
            hint="a mount of type cgroup needs the cgroup namespace or a group of its own",
        ) from error


def _flag(controller: str) -> tuple[str, str | None]:
    key, separator, value = controller.partition("=")
    return key, value if separator else None


def _attributes(mount: Mount) -> int:
    options = mount.options
    return (options.recursive_attributes & ~options.clear) | options.attributes
