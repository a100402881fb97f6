"""Mounts by descriptor: the mount API of Linux 5.2 and later, plus pivot_root and umount.

A mount is made detached (a descriptor), given its attributes, and only then put in place on a
descriptor, so that no path is looked up twice and nothing can be swapped in between.
"""

import ctypes
import os
import struct

from twofold.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    path_bytes,
    syscall,
)

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MNT_DETACH = 2

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

ATTR_RDONLY = 0x01
ATTR_NOSUID = 0x02
ATTR_NODEV = 0x04
ATTR_NOEXEC = 0x08
ATTR_NOATIME = 0x10
ATTR_STRICTATIME = 0x20
ATTR_IDMAP = 0x100000

ATTRIBUTES = {
    "ro": ATTR_RDONLY,
    "nosuid": ATTR_NOSUID,
    "nodev": ATTR_NODEV,
    "noexec": ATTR_NOEXEC,
    "noatime": ATTR_NOATIME,
    "strictatime": ATTR_STRICTATIME,
}


def mount(source: str, target: str, *, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2), for propagation changes and remounts by path."""
    syscall(
        "mount",
        path_bytes(source) or None,
        path_bytes(target),
        path_bytes(fstype) or None,
        flags,
        path_bytes(data) or None,
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    syscall("umount2", path_bytes(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    syscall("pivot_root", path_bytes(new_root), path_bytes(put_old))


def open_tree(path: str, *, dir_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """Clone the mount at ``path`` (``""`` with a descriptor: that file) as a detached tree."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall("open_tree", dir_fd, path_bytes(path), flags)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Put a detached mount onto the file or directory open at ``target_fd``."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    syscall("move_mount", mount_fd, b"", target_fd, b"", flags)


def new_filesystem(fstype: str, options: dict[str, str | None], *, attributes: int = 0) -> int:
    """A new file system as a detached mount. An option with value None is a flag."""
    fs_fd = syscall("fsopen", path_bytes(fstype), FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            if value is None:
                syscall("fsconfig", fs_fd, FSCONFIG_SET_FLAG, path_bytes(key), None, 0)
            else:
                syscall(
                    "fsconfig", fs_fd, FSCONFIG_SET_STRING, path_bytes(key), path_bytes(value), 0
                )
        syscall("fsconfig", fs_fd, FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall("fsmount", fs_fd, FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        detail = _filesystem_log(fs_fd)
        if detail:
            raise OSError(error.errno, f"{fstype}: {error.strerror} ({detail})") from error
        raise
    finally:
        os.close(fs_fd)


def _filesystem_log(fs_fd: int) -> str:
    """What the file system itself said about the failure; empty where it said nothing."""
    try:
        return os.read(fs_fd, 4096).decode("utf-8", "replace").strip().removeprefix("e ")
    except OSError:
        return ""


def set_attributes(
    mount_fd: int, attributes: int, *, userns_fd: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on a detached or attached mount; ``userns_fd`` goes with ATTR_IDMAP."""
    structure = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, userns_fd), 32)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", mount_fd, b"", flags, structure, 32)
