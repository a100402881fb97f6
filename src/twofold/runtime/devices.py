"""Device nodes and the links of ``/dev`` in a container's root.

Where nodes can be made they are made; in a user namespace they cannot, and the host's nodes are
shown instead, each verified by type and numbers on the descriptor that is then mounted.
"""

from __future__ import annotations

import errno
import os
import stat

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.linux import openat2
from twofold.runtime.mount_plan import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

DEFAULTS = {  # name: (major, minor)
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_FORMATS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def open_dev(root_fd: int) -> int:
    """``/dev`` of the root, made when missing. Refuses a symlink: nodes would go astray."""
    try:
        return openat2.make_directories(root_fd, "/dev", follow=False)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise RuntimeFailed(
            "/dev in the root is not a plain directory; no devices can be made there",
            hint="use an image with a plain /dev, or mount a tmpfs on it",
        ) from error


def show_defaults(dev_fd: int, *, but: Container[str] = ()) -> None:
    """The default nodes as binds of the host's: for a ``/dev`` in a user namespace.

    ``but`` are paths that somebody else sees to.
    """
    for name, numbers in DEFAULTS.items():
        if f"/dev/{name}" in but:
            continue
        node_fd = open_host_node(f"/dev/{name}", "c", *numbers)
        try:
            _attach(node_fd, dev_fd, name)
        finally:
            os.close(node_fd)


def make_defaults(dev_fd: int, *, but: Container[str] = ()) -> None:
    """The default nodes made anew, each the container's own. The caller's umask must be 0."""
    for name, (major, minor) in DEFAULTS.items():
        path = f"/dev/{name}"
        if path not in but:
            device = Device(name="linux.devices", path=path, kind="c", major=major, minor=minor)
            _make_node(dev_fd, name, device)


def open_host_node(path: str, kind: str, major: int, minor: int) -> int:
    """The host's node as a detached mount. Refuses anything but the device that was asked for."""
    try:
        fd = lm.open_tree(path)
    except OSError as error:
        raise RuntimeFailed(
            f"device {path!r} cannot be shown: {error.strerror}",
            hint="a user namespace may not make device nodes; the host must have this one",
        ) from error
    status = os.fstat(fd)
    if stat.S_IFMT(status.st_mode) != _FORMATS[kind] or (
        kind != "p" and status.st_rdev != os.makedev(major, minor)
    ):
        os.close(fd)
        raise RuntimeFailed(f"{path} of the host is not the device {kind} {major}:{minor}")
    return fd


def make_links(dev_fd: int, *, ptmx: bool = True) -> None:
    """The links every program expects. What is there under such a name already stays."""
    for name, points_to in LINKS.items():
        try:
            os.symlink(points_to, name, dir_fd=dev_fd)
        except FileExistsError:
            pass
    if ptmx:
        # The image's own would open terminals of somebody else's devpts.
        try:
            os.unlink("ptmx", dir_fd=dev_fd)
        except FileNotFoundError:
            pass
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev_fd)


def make(root_fd: int, device: Device, host_fd: int = -1) -> None:
    """Make one device, or show the host's (``host_fd``, see ``open_host_node``) in its place.

    A node that is there already must be the same device. The caller's umask must be 0. Raises
    RuntimeFailed, OSError.
    """
    directory, name = os.path.split(device.path.rstrip("/"))
    if directory == "/dev":
        parent = open_dev(root_fd)
    else:
        parent = openat2.make_directories(root_fd, directory)
    try:
        if lm.filesystem_type(parent) == lm.PROC_SUPER_MAGIC:
            raise RuntimeFailed(f"{device.name}: no device can be made in {directory!r}")
        if host_fd >= 0:
            _attach(host_fd, parent, name)
        else:
            _make_node(parent, name, device)
    finally:
        os.close(parent)


def _make_node(parent: int, name: str, device: Device) -> None:
    number = os.makedev(device.major, device.minor) if device.kind != "p" else 0
    try:
        os.mknod(name, _FORMATS[device.kind] | device.mode, number, dir_fd=parent)
    except FileExistsError:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(found.st_mode) != _FORMATS[device.kind] or found.st_rdev != number:
            raise RuntimeFailed(
                f"{device.name}: {device.path!r} exists in the root and is not "
                f"{device.kind} {device.major}:{device.minor}",
                hint="remove the file from the root, or choose another path",
            ) from None
        return  # as it is: whoever made it had reasons for its mode
    except PermissionError:
        # We are in a user namespace ourselves, or were left without CAP_MKNOD.
        node_fd = open_host_node(device.path, device.kind, device.major, device.minor)
        try:
            _attach(node_fd, parent, name)
        finally:
            os.close(node_fd)
        return
    if (device.uid, device.gid) != (0, 0):
        os.chown(name, device.uid, device.gid, dir_fd=parent, follow_symlinks=False)


def _attach(node_fd: int, parent: int, name: str) -> None:
    """Mount a node over a file of that name, made when missing; a symlink is refused."""
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o666, dir_fd=parent))
    except FileExistsError:
        pass
    target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_ISLNK(os.fstat(target).st_mode):
            raise RuntimeFailed(f"{name!r} in the root's /dev is a symlink, not a device")
        lm.move_mount(node_fd, target)
    finally:
        os.close(target)


def bind_console(slave_fd: int, root_fd: int = -1) -> None:
    """Show the terminal open at ``slave_fd`` as /dev/console of the root (by default ours)."""
    here = root_fd if root_fd >= 0 else os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        dev_fd = open_dev(here)
        try:
            node_fd = lm.open_tree("", dir_fd=slave_fd)
            try:
                _attach(node_fd, dev_fd, "console")
            finally:
                os.close(node_fd)
        finally:
            os.close(dev_fd)
    finally:
        if here != root_fd:
            os.close(here)
