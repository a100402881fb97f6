"""The private root of a sandbox, in two halves.

``prepare`` runs in the keeper with the host's privileges: it makes what a user namespace may not
(overlays over idmapped layers, idmapped binds of host directories) as detached mounts.
``furnish`` runs in the sandbox's first process, as root of its own user namespace: it puts them in
place, mounts the kernel's file systems, masks what must not be seen and pivots.

Everything is put in place by descriptor. Targets are resolved inside the new root with openat2, so
a symlink in an image leads nowhere else. This module decides nothing: the plan says what.
"""

import os
import stat
from dataclasses import dataclass

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.linux import openat2
from twofold.runtime.plan import Mount, SandboxPlan

_DEVICES = {  # name: (major, minor)
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_KERNEL_FILESYSTEMS = frozenset(["proc", "sysfs", "cgroup", "devpts", "mqueue"])


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Detached mounts: the root, and the binds by their index in ``plan.mounts``."""

    root_fd: int
    binds: dict[int, int]

    def close(self) -> None:
        for fd in (self.root_fd, *self.binds.values()):
            os.close(fd)


def prepare(
    plan: SandboxPlan, *, range_fd: int, owner_fd: int, scratch_dir: str, cwd: str = "/"
) -> Prepared:
    """Make the root and the binds. ``scratch_dir`` is in the keeper's own mount namespace."""
    binds: dict[int, int] = {}
    root_fd = -1
    try:
        if plan.rootfs.upper:
            root_fd = _overlay(plan, range_fd, scratch_dir)
        else:
            root_fd = lm.open_tree(plan.rootfs.lower[0])
            lm.set_attributes(root_fd, lm.ATTR_RDONLY | lm.ATTR_NODEV | lm.ATTR_NOSUID)
        for index, mount in enumerate(plan.mounts):
            if mount.kind == "bind":
                userns_fd = {"range": range_fd, "owner": owner_fd}.get(mount.idmap, -1)
                binds[index] = _bind(mount, userns_fd)
    except BaseException:
        for fd in (root_fd, *binds.values()):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        os.chdir(cwd)
    return Prepared(root_fd=root_fd, binds=binds)


def _overlay(plan: SandboxPlan, range_fd: int, scratch_dir: str) -> int:
    """Overlay the layers, each seen through the instance's id range, below the upper directory.

    The layers are attached for a moment because kernels before 6.15 take only attached mounts as
    lower directories, under short relative names because fsconfig(2) cuts values at 256 bytes.
    """
    attached = []
    os.chdir(scratch_dir)
    try:
        for number, layer in enumerate(plan.rootfs.lower):
            layer_fd = lm.open_tree(layer)
            try:
                if plan.rootfs.idmap_lower:
                    lm.set_attributes(layer_fd, lm.ATTR_IDMAP, userns_fd=range_fd)
                os.makedirs(str(number), exist_ok=True)
                target_fd = os.open(str(number), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    lm.move_mount(layer_fd, target_fd)
                finally:
                    os.close(target_fd)
                attached.append(str(number))
            finally:
                os.close(layer_fd)
        options: dict[str, str | None] = {
            "source": "twofold",
            "lowerdir": ":".join(attached),
            "upperdir": plan.rootfs.upper,
            "workdir": plan.rootfs.work,
        }
        if plan.rootfs.volatile:
            _forget_volatile(plan.rootfs.work)
            options["volatile"] = None
        return lm.new_filesystem("overlay", options, attributes=lm.ATTR_NODEV)
    finally:
        for name in attached:
            lm.umount(name)


def _forget_volatile(work: str) -> None:
    """Take back the mark by which overlayfs refuses a volatile upper directory a second time.

    It guards against data that a crash lost; an upper directory of ours is volatile only when it
    is thrown away at the end, so a restart in between wants it as it is.
    """
    mark = f"{work}/work/incompat/volatile"
    try:
        os.unlink(f"{mark}/dirty")
        os.rmdir(mark)
    except FileNotFoundError:
        pass


def _bind(mount: Mount, userns_fd: int) -> int:
    try:
        fd = lm.open_tree(mount.source, recursive="rbind" in mount.options)
    except FileNotFoundError as error:
        raise RuntimeFailed(
            f"{mount.source!r} does not exist on the host",
            hint=f"make it first: mkdir -p {mount.source}",
        ) from error
    try:
        attributes, _ = _split_options(mount.options)
        if userns_fd >= 0:
            try:
                lm.set_attributes(fd, lm.ATTR_IDMAP | attributes, userns_fd=userns_fd)
                return fd
            except OSError as error:
                raise RuntimeFailed(
                    f"the file system of {mount.source!r} cannot be shown with other owners "
                    f"({error.strerror})",
                    hint="use a directory on ext4, xfs, btrfs or tmpfs",
                ) from error
        lm.set_attributes(fd, attributes, recursive="rbind" in mount.options)
        return fd
    except BaseException:
        os.close(fd)
        raise


def furnish(plan: SandboxPlan, prepared: Prepared, *, mountpoint: str, has_cgroup2: bool) -> None:
    """Build the root and make it ours; afterwards ``/`` is the sandbox's and nothing else is."""
    lm.mount("", "/", flags=lm.MS_REC | lm.MS_PRIVATE)
    target_fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    lm.move_mount(prepared.root_fd, target_fd)
    root_fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for index, mount in enumerate(plan.mounts):
        try:
            _place(mount, prepared.binds.get(index, -1), root_fd, has_cgroup2=has_cgroup2)
        except OSError as error:
            raise RuntimeFailed(
                f"cannot mount {mount.kind} {mount.source!r} on {mount.target!r}: {error}"
            ) from error
    for path, content in plan.files.items():
        _write_file(root_fd, path, content)
    for name, value in plan.sysctls.items():
        _write_sysctl(root_fd, name, value)
    for path in plan.masked_paths:
        _mask(root_fd, path)
    for path in plan.readonly_paths:
        _make_readonly(root_fd, path)
    os.fchdir(root_fd)
    lm.pivot_root(".", ".")
    lm.umount(".")
    os.chdir("/")
    for fd in (target_fd, root_fd):
        os.close(fd)
    prepared.close()


def _place(mount: Mount, bind_fd: int, root_fd: int, *, has_cgroup2: bool) -> None:
    if mount.kind == "bind":
        is_directory = stat.S_ISDIR(os.fstat(bind_fd).st_mode)
        target = _target(root_fd, mount.target, directory=is_directory)
        lm.move_mount(bind_fd, target)
        os.close(target)
        return
    attributes, options = _split_options(mount.options)
    kind = mount.kind
    if kind == "cgroup":
        if not has_cgroup2:
            return  # a pure v1 host: nothing that a payload could safely be shown
        kind, options = "cgroup2", {}
    if mount.kind in _KERNEL_FILESYSTEMS or mount.target == "/dev":
        _refuse_links(root_fd, mount.target)
    target = _target(root_fd, mount.target, directory=True)
    new_fd = lm.new_filesystem(kind, {"source": kind, **options}, attributes=attributes)
    lm.move_mount(new_fd, target)
    os.close(new_fd)
    os.close(target)
    if mount.target == "/dev":
        _devices(root_fd)


def _target(root_fd: int, path: str, *, directory: bool) -> int:
    """The place to mount on, made when it is not there."""
    if directory:
        return openat2.make_directories(root_fd, path)
    try:
        return openat2.open_in_root(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        os.close(openat2.make_directories(root_fd, os.path.dirname(path)))
        flags = os.O_CREAT | os.O_WRONLY
        os.close(openat2.open_in_root(root_fd, path, flags, mode=0o644))
        return openat2.open_in_root(root_fd, path, os.O_PATH)


def _refuse_links(root_fd: int, path: str) -> None:
    """A kernel file system on a symlink's target would unmask what lies at its usual place."""
    try:
        os.close(
            openat2.openat2(
                root_fd,
                path.lstrip("/"),
                os.O_PATH,
                resolve=openat2.RESOLVE_IN_ROOT | openat2.RESOLVE_NO_SYMLINKS,
            )
        )
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RuntimeFailed(
            f"{path!r} in the image is a symlink; the kernel's files cannot be mounted there",
            hint="use an image with a plain directory at that place",
        ) from error


def _devices(root_fd: int) -> None:
    """The standard nodes, as binds of the host's: a user namespace may not make devices."""
    dev_fd = openat2.open_in_root(root_fd, "/dev", os.O_PATH | os.O_DIRECTORY)
    for name, (major, minor) in _DEVICES.items():
        status = os.stat(f"/dev/{name}")
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(major, minor):
            raise RuntimeFailed(f"/dev/{name} of the host is not the device {major}:{minor}")
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev_fd))
        node_fd = lm.open_tree(f"/dev/{name}")
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev_fd)
        lm.move_mount(node_fd, target)
        os.close(node_fd)
        os.close(target)
    for name, points_to in _LINKS.items():
        os.symlink(points_to, name, dir_fd=dev_fd)
    os.close(dev_fd)


def bind_console(slave_path: str) -> None:
    """Show the terminal at ``slave_path`` as /dev/console; called after the pivot."""
    os.close(os.open("/dev/console", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    node_fd = lm.open_tree(slave_path)
    target = os.open("/dev/console", os.O_PATH | os.O_CLOEXEC)
    lm.move_mount(node_fd, target)
    os.close(node_fd)
    os.close(target)


def _write_file(root_fd: int, path: str, content: str) -> None:
    """Put a file of ours in the root; a symlink there (to systemd-resolved's, say) is replaced."""
    parent = openat2.make_directories(root_fd, os.path.dirname(path))
    name = os.path.basename(path)
    try:
        try:
            existing = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISREG(existing.st_mode):
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o644, dir_fd=parent)
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def _write_sysctl(root_fd: int, name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    try:
        fd = openat2.open_in_root(root_fd, path, os.O_WRONLY)
    except OSError as error:
        raise RuntimeFailed(f"sysctl {name!r} cannot be set: {error.strerror}") from error
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _mask(root_fd: int, path: str) -> None:
    """Hide a file behind /dev/null, a directory behind an empty read-only tmpfs."""
    try:
        target = openat2.open_in_root(root_fd, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(os.fstat(target).st_mode):
        attributes = lm.ATTR_RDONLY | lm.ATTR_NOSUID | lm.ATTR_NODEV | lm.ATTR_NOEXEC
        cover = lm.new_filesystem("tmpfs", {"size": "0", "mode": "0555"}, attributes=attributes)
    else:
        cover = lm.open_tree("/dev/null")
        if os.fstat(cover).st_rdev != os.makedev(1, 3):
            raise RuntimeFailed("/dev/null of the host is not the null device")
    lm.move_mount(cover, target)
    os.close(cover)
    os.close(target)


def _make_readonly(root_fd: int, path: str) -> None:
    try:
        target = openat2.open_in_root(root_fd, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    copy = lm.open_tree("", dir_fd=target, recursive=True)
    lm.set_attributes(copy, lm.ATTR_RDONLY, recursive=True)
    lm.move_mount(copy, target)
    os.close(copy)
    os.close(target)


def _split_options(options: tuple[str, ...]) -> tuple[int, dict[str, str | None]]:
    """mount(8) options as attribute bits and as the file system's own."""
    attributes = 0
    own: dict[str, str | None] = {}
    for option in options:
        if option in lm.ATTRIBUTES:
            attributes |= lm.ATTRIBUTES[option]
        elif option not in ("rw", "bind", "rbind", "defaults"):
            key, separator, value = option.partition("=")
            own[key] = value if separator else None
    return attributes, own
