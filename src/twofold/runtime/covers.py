"""What of a root is hidden, and what may only be read.

A file is hidden behind the null device, a directory behind an empty read-only tmpfs. The null
device is the host's, opened by descriptor and verified, never what an image calls ``/dev/null``;
it is mounted read-only, so that nobody inside can change the mode of the host's node.
"""

from __future__ import annotations

import os
import stat

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.linux import openat2

_QUIET = lm.ATTR_RDONLY | lm.ATTR_NOSUID | lm.ATTR_NOEXEC


def open_null() -> int:
    """The host's null device as a detached mount, ready to hide a file. Call before the pivot."""
    fd = lm.open_tree("/dev/null")
    try:
        if os.fstat(fd).st_rdev != os.makedev(1, 3) or not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise RuntimeFailed("/dev/null of the host is not the null device")
        lm.set_attributes(fd, _QUIET)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Covers:
    """Hides paths of one root. Owns the descriptor it is given; ``close`` it at the end."""

    def __init__(self, null_fd: int) -> None:
        self._covers = {False: null_fd}  # is a directory → cover
        self._used: set[bool] = set()

    def close(self) -> None:
        for fd in self._covers.values():
            os.close(fd)

    def mask(self, root_fd: int, path: str) -> None:
        """Hide ``path``; nothing to do where there is nothing."""
        target = _existing(root_fd, path)
        if target < 0:
            return
        try:
            is_directory = stat.S_ISDIR(os.fstat(target).st_mode)
            lm.move_mount(self._cover(is_directory), target)
            self._used.add(is_directory)
        finally:
            os.close(target)

    def _cover(self, is_directory: bool) -> int:
        if is_directory not in self._covers:
            self._covers[True] = lm.new_filesystem(
                "tmpfs",
                {"source": "tmpfs", "size": "4k", "mode": "0555"},
                attributes=_QUIET | lm.ATTR_NODEV,
            )
        if is_directory in self._used:
            # Attached already: hide the next one behind a clone of the same.
            clone = lm.open_tree("", dir_fd=self._covers[is_directory])
            os.close(self._covers[is_directory])
            self._covers[is_directory] = clone
        return self._covers[is_directory]


def make_readonly(root_fd: int, path: str) -> None:
    """Let ``path`` and all below it only be read; nothing to do where there is nothing."""
    target = _existing(root_fd, path)
    if target < 0:
        return
    try:
        copy = lm.open_tree("", dir_fd=target, recursive=True)
        try:
            lm.set_attributes(copy, lm.ATTR_RDONLY, recursive=True)
            lm.move_mount(copy, target)
        finally:
            os.close(copy)
    finally:
        os.close(target)


def _existing(root_fd: int, path: str) -> int:
    try:
        return openat2.open_in_root(root_fd, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return -1
