"""Resolve paths inside a root that somebody hostile may have furnished: openat2(2)."""

import ctypes
import os
import struct

from twofold.linux.libc import path_bytes, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


def openat2(dir_fd: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` below ``dir_fd``; with RESOLVE_IN_ROOT symlinks and ``..`` stay below it."""
    how = ctypes.create_string_buffer(
        struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS), 24
    )
    return syscall("openat2", dir_fd, path_bytes(path), how, 24)


def open_in_root(root_fd: int, path: str | bytes, flags: int, *, mode: int = 0) -> int:
    """Open ``path`` as a process whose root is ``root_fd`` would; it can never lead outside."""
    relative = os.fsencode(path).lstrip(b"/") or b"."
    return openat2(root_fd, relative, flags, mode=mode, resolve=RESOLVE_IN_ROOT)


def make_directories(root_fd: int, path: str, *, mode: int = 0o755) -> int:
    """Open the directory ``path`` inside the root, making what is missing. O_PATH descriptor."""
    current = open_in_root(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
    reached = ""
    try:
        for part in path.strip("/").split("/"):
            if not part:
                continue
            reached = f"{reached}/{part}"
            try:
                found = open_in_root(root_fd, reached, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                os.mkdir(part, mode, dir_fd=current)
                found = open_in_root(root_fd, reached, os.O_PATH | os.O_DIRECTORY)
            os.close(current)
            current = found
    except BaseException:
        os.close(current)
        raise
    return current
