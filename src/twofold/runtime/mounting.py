"""Build a container's root from a plan and make it ``/``: the container's half of the mounts.

Three steps, between which the caller does what must happen there:

    build    root attached, mounts, devices, links     (then hooks that run before the pivot)
    enter    pivot_root, or move and chroot, or chroot alone          (then sysctls, console)
    seal     masked and read-only paths, read-only mounts, read-only root

Everything is put in place by descriptor; targets are resolved inside the root (``openat2``), so a
symlink in an image or a shared volume leads nowhere else. This module decides nothing: the plan
says what. ``prepare`` (in ``mount_sources``) is the runtime's half and comes first.
"""

from __future__ import annotations

import errno
import os

from twofold.errors import RuntimeFailed, TwofoldError
from twofold.linux import labels, openat2
from twofold.linux import mount as lm
from twofold.record import dataclass, field
from twofold.runtime import (
    copy_up,
    covers,
    devices,
    mount_cgroup,
    mount_legacy,
    mount_sources,
    mount_targets,
)
from twofold.runtime.mount_plan import CgroupView, FilesystemPlan, Mount, own_options
from twofold.runtime.mount_sources import Prepared as Prepared
from twofold.runtime.mount_sources import prepare as prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Their superblock is the kernel's or must be writable first: read-only is a matter of the mount.
_READ_ONLY_BY_MOUNT = mount_targets.KERNEL_KINDS | {"tmpfs", "ramfs"}


@dataclass(kw_only=True)
class Built:
    """A root that is being furnished. ``root_fd`` stays good before and after ``enter``."""

    root_fd: int
    over_root: bool = False  # attached over the old root, not where the host keeps it
    covers: covers.Covers | None = None
    readonly_later: list[int] = field(default_factory=list)

    def close(self) -> None:
        for fd in (self.root_fd, *self.readonly_later):
            os.close(fd)
        if self.covers is not None:
            self.covers.close()


def build(plan: FilesystemPlan, prepared: Prepared, *, cgroups: CgroupView | None = None) -> Built:
    """Put everything in place below the root; closes ``prepared``. The pivot is still to come."""
    if not plan.mount_namespace:
        built = Built(root_fd=os.dup(prepared.root_fd))
        prepared.close()
        return built
    if not plan.shared_namespace:
        lm.mount("", "/", flags=lm.MS_REC | lm.MS_SLAVE)
    built = Built(root_fd=os.dup(prepared.root_fd))
    umask = os.umask(0)
    try:
        built.over_root = _attach_root(plan, built.root_fd)
        for index, mount in enumerate(plan.mounts):
            _in_words(
                mount.name, mount.target, _place, built, plan, mount, index, prepared, cgroups
            )
        _in_words("default devices", "/dev", _furnish_dev, built, plan, prepared)
        if plan.masked_paths:
            built.covers = covers.Covers(covers.open_null())
    except RuntimeFailed as error:
        built.close()
        if not error.hint and isinstance(error.__cause__, PermissionError):
            raise RuntimeFailed(error.message, hint=_owner_hint(plan, prepared)) from error
        raise
    except BaseException:
        built.close()
        raise
    finally:
        os.umask(umask)
        prepared.close()
    return built


def _owner_hint(plan: FilesystemPlan, prepared: Prepared) -> str:
    """Root of a user namespace may change only what one of its own ids owns."""
    owner = os.fstat(prepared.root_fd).st_uid
    if not plan.user_namespace or owner == os.geteuid():
        return ""
    return (
        f"the root {plan.root!r} does not belong to root of the user namespace: chown -R it to "
        "that id of the host, or have in it every place that something is mounted on"
    )


def _attach_root(plan: FilesystemPlan, root_fd: int) -> bool:
    """Attach where the host keeps it, which is where hooks look for it; else over the old root.

    Returns whether it was the latter, which is not for a namespace that others live in.
    """
    over_root = False
    try:
        target = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:  # root of a user namespace may not pass there
        if plan.shared_namespace:
            raise RuntimeFailed(
                f"root {plan.root!r} is out of reach in the namespace to be joined: "
                f"{error.strerror}",
                hint="join a mount namespace that shows the bundle",
            ) from error
        target = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        over_root = True
    try:
        if plan.shared_namespace and _is_shared(target):
            raise RuntimeFailed(
                f"root {plan.root!r} lies on a shared mount of the namespace to be joined: "
                "the container's mounts would appear in other namespaces, too",
                hint="mount --make-rprivate / in that namespace, or let the container have its own",
            )
        lm.move_mount(root_fd, target)
    finally:
        os.close(target)
    return over_root


def _is_shared(fd: int) -> bool:
    """Whether what is mounted below the place at ``fd`` is sent on to peers."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        wanted = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith(f"{wanted} "):
                return " shared:" in line.partition(" - ")[0]
    return True


def _place(
    built: Built,
    plan: FilesystemPlan,
    mount: Mount,
    index: int,
    prepared: Prepared,
    cgroups: CgroupView | None,
) -> None:
    options = mount.options
    if options.remount or not (options.bind or mount.kind):
        _change(built, mount)
        return
    source_fd = prepared.binds.get(index, -1)
    target, existed = _target(built, mount, source_fd)
    try:
        if options.bind:
            fd = os.dup(source_fd)
            lm.move_mount(fd, target)
        elif mount.kind in ("cgroup", "cgroup2"):
            view = cgroups or CgroupView(mounts={}, groups={})
            fd = mount_cgroup.place(mount, target, view, prepared.cgroups[index])
        else:
            fd = _new(built, mount, target, existed=existed)
    finally:
        os.close(target)
    try:
        _propagate(fd, mount)
    finally:
        os.close(fd)


def _propagate(fd: int, mount: Mount) -> None:
    for flag, recursive in mount.options.propagation:
        lm.set_attributes(fd, 0, propagation=flag, recursive=recursive)


def _target(built: Built, mount: Mount, source_fd: int) -> tuple[int, bool]:
    """The place of a mount, and whether it was there before."""

    def opened(*, make: bool) -> int:
        return mount_targets.open_target(
            built.root_fd, mount.target, kind=mount.kind, source_fd=source_fd, make=make
        )

    if mount.kind == "tmpfs":
        try:
            return opened(make=False), True
        except FileNotFoundError:
            return opened(make=True), False
    return opened(make=True), True


def _change(built: Built, mount: Mount) -> None:
    """``remount`` or propagation of what is mounted at the target already."""
    options = mount.options
    fd = openat2.open_in_root(built.root_fd, mount.target, os.O_PATH)
    try:
        if options.remount and not options.bind and (options.superblock or options.data):
            lm.reconfigure(fd, own_options(options))
        mount_sources.change_attributes(fd, mount, keep_locked=False)
        _propagate(fd, mount)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RuntimeFailed(
            f"{mount.name}: what is at {mount.target!r} cannot be changed like this: {error}",
            hint="an entry with neither a type nor bind changes an earlier one at the same place",
        ) from error
    finally:
        os.close(fd)


def _new(built: Built, mount: Mount, target: int, *, existed: bool) -> int:
    """A new file system on the target. A tmpfs takes the mode of the directory it covers."""
    options = mount.options
    attributes = (options.recursive_attributes & ~options.clear) | options.attributes
    # Later mounts and the devices need places made in it first.
    later = options.read_only and (
        mount.kind == "tmpfs" or mount_targets.normal(mount.target) == "/dev"
    )
    if later:
        attributes &= ~lm.ATTR_RDONLY
    own = {"source": mount.source or mount.kind, **own_options(options)}
    if options.read_only and mount.kind not in _READ_ONLY_BY_MOUNT:
        own["ro"] = None
    if mount.kind == "tmpfs" and existed and "mode" not in own:
        own["mode"] = f"{os.fstat(target).st_mode & 0o7777:04o}"
    if mount_legacy.is_needed(options, own):
        fd = mount_legacy.new_filesystem(
            mount.kind, options, own, attributes=attributes, place_fd=target
        )
    else:
        fd = lm.new_filesystem(mount.kind, own, attributes=attributes)
    try:
        if options.copy_up:
            copy_up.fill(target, fd)
        if mount.label:
            labels.set_selinux_of_file(mount.label, fd)
        lm.move_mount(fd, target)
        if later:
            built.readonly_later.append(os.dup(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _furnish_dev(built: Built, plan: FilesystemPlan, prepared: Prepared) -> None:
    """Default devices and links, then the document's; nothing where ``/dev`` is the host's."""
    if any(mount_targets.normal(m.target) == "/dev" and m.options.bind for m in plan.mounts):
        return
    made = {device.path for device in plan.devices}
    dev_fd = devices.open_dev(built.root_fd)
    try:
        if plan.user_namespace:
            devices.show_defaults(dev_fd, but=made)
        else:
            devices.make_defaults(dev_fd, but=made)
        devices.make_links(dev_fd)
    finally:
        os.close(dev_fd)
    for index, device in enumerate(plan.devices):
        if device.path != "/dev/ptmx":  # a link to the container's own devpts, always
            host_fd = prepared.devices.get(index, -1)
            _in_words(device.name, device.path, devices.make, built.root_fd, device, host_fd)


def enter(plan: FilesystemPlan, built: Built, *, pivot: bool = True) -> None:
    """Make the root ``/`` of this process and, by pivot_root(2), of its mount namespace.

    Without ``pivot`` it is moved over the old root and entered by chroot(2): for hosts that run
    from an initial ramdisk, whose root cannot be pivoted away.
    """
    os.fchdir(built.root_fd)
    if not plan.mount_namespace or plan.shared_namespace:
        os.chroot(".")
    elif pivot:
        lm.pivot_root(".", ".")
        lm.umount(".")
    else:
        if not built.over_root:
            _move_over_root(built.root_fd)
        os.chroot(".")
    os.chdir("/")
    flag, recursive = plan.propagation
    if flag and plan.mount_namespace:
        lm.set_attributes(built.root_fd, 0, propagation=flag, recursive=recursive)


def _move_over_root(root_fd: int) -> None:
    old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lm.move_mount(root_fd, old_root)
    finally:
        os.close(old_root)


def seal(plan: FilesystemPlan, built: Built) -> None:
    """Hide and write-protect; the last step, after sysctls were written. Closes ``built``."""
    try:
        for path in plan.masked_paths:
            if built.covers is not None:
                _in_words("linux.maskedPaths", path, built.covers.mask, built.root_fd, path)
        for path in plan.readonly_paths:
            _in_words("linux.readonlyPaths", path, covers.make_readonly, built.root_fd, path)
        for fd in built.readonly_later:
            lm.set_attributes(fd, lm.ATTR_RDONLY)
        if plan.read_only:
            lm.set_attributes(built.root_fd, lm.ATTR_RDONLY)
    finally:
        built.close()


def _in_words(name: str, path: str, step: Callable[..., None], *arguments: object) -> None:
    """Run ``step``; a failure becomes a sentence that names the entry."""
    try:
        step(*arguments)
    except TwofoldError as error:
        if error.message.startswith(name):
            raise
        said = f"{name}: {error.message}"
        raise type(error)(said, hint=error.hint, details=error.details) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise RuntimeFailed(f"{name}: {path!r} cannot be set up: {reason}") from error
