"""Mounts by descriptor: the mount API of Linux 5.2 and later, plus pivot_root and umount.

A mount is made detached (a descriptor), given its attributes, and only then put in place on a
descriptor, so that no path is looked up twice and nothing can be swapped in between.
"""

import ctypes
import errno
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
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

MS_RDONLY = 1
MS_SYNCHRONOUS = 16
MS_DIRSYNC = 128
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_I_VERSION = 1 << 23
MS_LAZYTIME = 1 << 25

ATTR_RDONLY = 0x01
ATTR_NOSUID = 0x02
ATTR_NODEV = 0x04
ATTR_NOEXEC = 0x08
ATTR_RELATIME = 0x00
ATTR_NOATIME = 0x10
ATTR_STRICTATIME = 0x20
ATTR_ATIME_MASK = 0x70  # one choice of three; whoever changes it clears the whole field
ATTR_NODIRATIME = 0x80
ATTR_IDMAP = 0x100000
ATTR_NOSYMFOLLOW = 0x200000

# f_type of statfs(2)
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572


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
    try:
        fs_fd = syscall("fsopen", path_bytes(fstype), FSOPEN_CLOEXEC)
    except OSError as error:
        reason = "this kernel knows no such file system"
        if error.errno != errno.ENODEV:
            reason = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"type {fstype!r}: {reason}") from error
    try:
        _configure(fs_fd, options, FSCONFIG_CMD_CREATE)
        return syscall("fsmount", fs_fd, FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        raise _with_own_words(fs_fd, fstype, error) from error
    finally:
        os.close(fs_fd)


def reconfigure(mount_fd: int, options: dict[str, str | None]) -> None:
    """Change options of the file system (not of the mount) whose root is at ``mount_fd``."""
    flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH
    fs_fd = syscall("fspick", mount_fd, b"", flags)
    try:
        _configure(fs_fd, options, FSCONFIG_CMD_RECONFIGURE)
    except OSError as error:
        raise _with_own_words(fs_fd, "remount", error) from error
    finally:
        os.close(fs_fd)


def _configure(fs_fd: int, options: dict[str, str | None], command: int) -> None:
    for key, value in options.items():
        if value is None:
            syscall("fsconfig", fs_fd, FSCONFIG_SET_FLAG, path_bytes(key), None, 0)
        else:
            syscall("fsconfig", fs_fd, FSCONFIG_SET_STRING, path_bytes(key), path_bytes(value), 0)
    syscall("fsconfig", fs_fd, command, None, None, 0)


def _with_own_words(fs_fd: int, what: str, error: OSError) -> OSError:
    """The error with what the file system itself said about it, where it said something."""
    try:
        detail = os.read(fs_fd, 4096).decode("utf-8", "replace").strip().removeprefix("e ")
    except OSError:
        return error
    return OSError(error.errno, f"{what}: {error.strerror} ({detail})") if detail else error


def set_attributes(
    mount_fd: int,
    attributes: int,
    *,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on a detached or attached mount; ``userns_fd`` goes with ATTR_IDMAP.

    ``propagation`` is one of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 for as it is.
    """
    structure = ctypes.create_string_buffer(
        struct.pack("=QQQQ", attributes, clear, propagation, userns_fd), 32
    )
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", mount_fd, b"", flags, structure, 32)


def filesystem_type(fd: int) -> int:
    """The magic number of the file system on which ``fd`` lies (``f_type`` of statfs(2))."""
    buffer = ctypes.create_string_buffer(120)
    syscall("fstatfs", fd, buffer)
    return int(struct.unpack_from("=q", buffer)[0])
