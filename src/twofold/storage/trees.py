"""Directory trees that an instance or an image has filled with anything: walked, sized, removed.

Whoever owns a container may nest directories deeper than a path may be long and than calls may
nest, so nothing here recurses, joins paths or holds a descriptor per level. Follows no symlink,
opens nothing but directories. Blocks.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from typing import NamedTuple

from twofold.linux.openat2 import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UP = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Entry(NamedTuple):
    """``fd`` is the directory that ``name`` is in; open until the next entry is asked for."""

    fd: int
    name: str
    depth: int
    status: os.stat_result


def walk(path: str) -> Iterator[Entry]:
    """All that is below ``path``, a directory before what is in it, in the order of names. Nobody
    may move directories meanwhile. Raises OSError."""
    fd = os.open(path, _DIRECTORY)
    try:
        waiting = [_names(fd)]  # of each directory on the way down to ``fd``
        while True:
            while not waiting[-1]:
                waiting.pop()
                if not waiting:
                    return
                fd = _move(fd, "..", _UP)
            name = waiting[-1].pop()
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield Entry(fd, name, len(waiting), status)
            if stat.S_ISDIR(status.st_mode):
                fd = _move(fd, name, _DIRECTORY)
                waiting.append(_names(fd))
    finally:
        os.close(fd)


def _names(fd: int) -> list[str]:
    """The first in the order of names comes last, to be taken off the end."""
    return sorted(os.listdir(fd), reverse=True)


def _move(fd: int, name: str, flags: int) -> int:
    moved = os.open(name, flags, dir_fd=fd)
    os.close(fd)
    return moved


def size_bytes(path: str) -> int:
    """Blocks of all below it; what is shared with others counts in full. Raises OSError."""
    return sum(entry.status.st_blocks * 512 for entry in walk(path))


def remove(path: str) -> None:
    """Remove a directory of any depth and shape.

    Subdirectories are moved up to the top before they are emptied: no recursion, no path that
    grows too long, two descriptors at most. Nothing happens when it is not there. Stops with
    OSError at a mount, whose content is not of this tree: not even a bind mount is entered.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    token = secrets.token_hex(8)
    count = 0
    try:
        pending: list[str] = _empty(top)
        while pending:
            name = pending.pop()
            fd = openat2(top, name, _DIRECTORY, resolve=RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
            try:
                for child in _empty(fd):
                    count += 1
                    moved = f".{token}.{count}"
                    os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=top)
                    pending.append(moved)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(fd: int) -> list[str]:
    """Unlink all but the subdirectories, whose names are returned."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return directories


def discard(path: str) -> None:
    """``remove``, as far as it goes. Raises nothing: whoever sweeps finds the rest."""
    try:
        remove(path)
    except OSError:
        pass
