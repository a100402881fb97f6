"""Places for unfinished work, removed whatever happens, and writes that are whole or absent."""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.errors import NoSpace, TwofoldError
from twofold.linux.openat2 import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

# A file in a working directory that names one more directory of the same work, in a place that
# is on another file system or open to others.
ELSEWHERE = "elsewhere"
ELSEWHERE_PREFIX = "twofold-build."
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """The kernel's refusal of a write in the words of the error tree."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left to {what}",
                hint="what could go: twofold image list; twofold list --all",
            ) from error
        raise TwofoldError(f"cannot {what}: {error}") from error


@contextmanager
def locked(path: str, operation: int) -> Iterator[bool]:
    """flock(2) on ``path``; yields whether it was got (always, unless LOCK_NB is asked for).

    Each call opens the file anew, so threads exclude one another as processes do, and the kernel
    releases the lock of a process that dies.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, operation)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def make(parent: str) -> tuple[str, int]:
    """A new directory below ``parent`` and a descriptor whose lock marks it as alive."""
    path = os.path.join(parent, secrets.token_hex(8))
    os.mkdir(path, 0o700)
    fd = os.open(path, _DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return path, fd


def remove_stale(parent: str) -> None:
    """Remove what killed processes left below ``parent``. The caller excludes ``make``."""
    for entry in list(os.scandir(parent)):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            continue
        fd = os.open(entry.path, _DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_elsewhere(entry.path)
            remove_tree(entry.path)
        except BlockingIOError:
            pass  # its maker lives
        finally:
            os.close(fd)


def _remove_elsewhere(place: str) -> None:
    try:
        with open(os.path.join(place, ELSEWHERE), encoding="utf-8") as file:
            path = file.read(4096)
    except OSError:
        return
    if os.path.basename(path).startswith(ELSEWHERE_PREFIX) and os.path.lexists(path):
        if os.lstat(path).st_uid == os.geteuid():  # nobody else's of the same name
            remove_tree(path)


def remove_tree(path: str) -> None:
    """Remove a directory of any depth and shape, following nothing.

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


def write_atomically(path: str, data: bytes, *, spool: str) -> None:
    """Replace ``path``: after a crash it holds the old content or the new. ``spool`` is on the
    same file system."""
    draft = os.path.join(spool, secrets.token_hex(8))
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, path)
    except BaseException:
        if os.path.exists(draft):
            os.unlink(draft)
        raise
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make a rename in this directory survive a power cut."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
