"""Resolve paths inside a root that somebody hostile may have furnished: openat2(2).

What is missing is made one component at a time below a descriptor that was reached the same way,
so whoever renames or links in the meantime can move the result about inside the root, never out.
"""

import ctypes
import errno
import os
import stat
import struct

from twofold.linux.libc import path_bytes, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# The kernel gives up (EAGAIN) when a rename or a mount anywhere crosses a ".." of ours.
_ATTEMPTS = 64
_LINK_LIMIT = 40  # as the kernel's own
_O_PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def openat2(dir_fd: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` below ``dir_fd``; with RESOLVE_IN_ROOT symlinks and ``..`` stay below it."""
    how = ctypes.create_string_buffer(
        struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS), 24
    )
    name = path_bytes(path)
    for attempt in range(_ATTEMPTS):
        try:
            return syscall("openat2", dir_fd, name, how, 24)
        except BlockingIOError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def open_in_root(
    root_fd: int, path: str | bytes, flags: int, *, mode: int = 0, follow: bool = True
) -> int:
    """Open ``path`` as a process whose root is ``root_fd`` would; it can never lead outside.

    With ``follow=False`` a symlink anywhere on the way is refused (ELOOP).
    """
    relative = os.fsencode(path).lstrip(b"/") or b"."
    resolve = RESOLVE_IN_ROOT if follow else RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
    return openat2(root_fd, relative, flags, mode=mode, resolve=resolve)


def make_directories(root_fd: int, path: str, *, mode: int = 0o755, follow: bool = True) -> int:
    """Open the directory ``path`` inside the root, making what is missing. O_PATH descriptor.

    A symlink whose target is missing gets its target made, inside the root.
    """
    try:
        return open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY, follow=follow)
    except FileNotFoundError:
        pass
    try:
        return _make_last(root_fd, path, mode=mode, follow=follow)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        # More than one is missing, or the last is a symlink to nowhere.
        return _Walk(root_fd, follow=follow).make(path, mode=mode, directory=True)


def make_file(root_fd: int, path: str, *, mode: int = 0o644, follow: bool = True) -> int:
    """Open what is at ``path`` inside the root, an empty file when nothing is. O_PATH."""
    try:
        return open_in_root(root_fd, path, os.O_PATH, follow=follow)
    except FileNotFoundError:
        return _Walk(root_fd, follow=follow).make(path, mode=mode, directory=False)


def _make_last(root_fd: int, path: str, *, mode: int, follow: bool) -> int:
    """The usual case: only the last directory is missing."""
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    parent = open_in_root(root_fd, above, os.O_PATH | os.O_DIRECTORY, follow=follow)
    try:
        os.mkdir(name, mode, dir_fd=parent)
        return os.open(name, _O_PATH_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        os.close(parent)


class _Walk:
    """Walks down from a root with one descriptor per level, so that ``..`` needs no path."""

    def __init__(self, root_fd: int, *, follow: bool) -> None:
        self._stack = [open_in_root(root_fd, "/", os.O_PATH | os.O_DIRECTORY)]
        self._follow = follow

    def make(self, path: str, *, mode: int, directory: bool) -> int:
        try:
            self._descend(path, mode=mode, directory=directory)
            return self._stack.pop()
        finally:
            for fd in self._stack:
                os.close(fd)

    def _descend(self, path: str, *, mode: int, directory: bool) -> None:
        parts = path.split("/")[::-1]
        links = 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(self._stack) > 1:
                    os.close(self._stack.pop())
                continue
            last_file = not directory and not any(name not in ("", ".") for name in parts)
            fd = self._enter(part, mode=mode if last_file or not parts else 0o755, file=last_file)
            kind = os.fstat(fd).st_mode
            if not stat.S_ISLNK(kind):
                self._stack.append(fd)
                if not last_file and not stat.S_ISDIR(kind):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                continue
            try:
                links += 1
                if links > _LINK_LIMIT or not self._follow:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)
            if target.startswith("/"):
                while len(self._stack) > 1:
                    os.close(self._stack.pop())
            parts.extend(target.split("/")[::-1])

    def _enter(self, name: str, *, mode: int, file: bool) -> int:
        """Open one component (a symlink itself, too) below the level reached, made if missing."""
        here = self._stack[-1]
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_ATTEMPTS):
            try:
                return os.open(name, flags, dir_fd=here)
            except FileNotFoundError:
                pass
            try:
                if file:
                    create = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    os.close(os.open(name, create, mode, dir_fd=here))
                else:
                    os.mkdir(name, mode, dir_fd=here)
            except FileExistsError:
                pass  # somebody else was quicker: look again
        raise OSError(errno.EAGAIN, "it appears and disappears again and again", name)
