"""Places for unfinished work, removed whatever happens, and writes that are whole or absent."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.errors import NoSpace, TwofoldError
from twofold.storage import trees

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
            trees.remove(entry.path)
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
            trees.remove(path)


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
