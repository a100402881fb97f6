"""Hold the data disk's file system still while the host copies the disk.

Writers wait, everything written before is on the disk, and nothing more comes. It is never held
longer than the host asked for: by the one process that holds it, and when that was killed, by the
agent. A root without a data disk has nothing to hold.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time

from twofold.errors import GuestFailed
from twofold.guest.jsontext import dumps
from twofold.guest.lean import signal

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_DATA = "data"  # below the initrd's root, where boot.assemble_root has mounted the disk
_LONGEST_S = 300.0


def hold(initrd_fd: int, timeout_s: float) -> None:
    """Freeze, say so on stdout, and thaw when SIGTERM or the end of stdout's reader says so, or
    after ``timeout_s``. The last word tells whether it was held until then. Raises GuestFailed."""
    told = _watch_for_sigterm()
    fd = os.open(_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=initrd_fd)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
    except OSError as error:
        raise GuestFailed(f"the guest's file system cannot be frozen: {error.strerror}") from error
    held = False
    try:
        os.write(1, dumps({"frozen": True}) + b"\n")
        held = _wait(told, min(timeout_s, _LONGEST_S))
    finally:
        held = _thaw(fd) and held
    os.write(1, dumps({"held": held}) + b"\n")


def _watch_for_sigterm() -> int:
    """A descriptor that becomes readable with it. A handler that raises would come too late where
    the signal arrives just before poll begins to wait."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return read


def _wait(told: int, timeout_s: float) -> bool:
    """Whether the host has what it wanted; else its end has closed, or the time has passed."""
    poll = select.poll()
    poll.register(told, select.POLLIN)
    poll.register(1, select.POLLERR)
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        ready = [fd for fd, _ in poll.poll(left * 1000)]
        if ready:
            return told in ready
    return False


def thaw(initrd_fd: int) -> None:
    """Whoever held it: no longer. Does nothing when it is not held."""
    try:
        fd = os.open(_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=initrd_fd)
    except OSError:
        return
    try:
        _thaw(fd)
    finally:
        os.close(fd)


def _thaw(fd: int) -> bool:
    """Whether it was still frozen."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
