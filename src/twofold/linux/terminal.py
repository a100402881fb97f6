"""Pseudo-terminals: opened from the devpts in reach, sized, made the controlling one."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

_TIOCSCTTY = 0x540E
_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441


def open_pair(ptmx: str = "/dev/ptmx") -> tuple[int, int, str]:
    """A new pty: (master, slave, the slave's path in its devpts). Refuses what is no ptmx."""
    master = os.open(ptmx, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_blocking(master, True)
        status = os.fstat(master)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(5, 2):
            raise OSError(errno.ENODEV, f"{ptmx} is not the pseudo-terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # By descriptor: a path could lead to another file than this pty's other end.
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        number = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))[0]
    except BaseException:
        os.close(master)
        raise
    return master, slave, f"/dev/pts/{number}"


def size(fd: int) -> tuple[int, int]:
    """(rows, columns)."""
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8)))
    return rows, columns


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("4H", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def take_size(master: int, rows: int, columns: int) -> None:
    """The size asked for, or else that of the caller's terminal, which is still descriptor 0:
    a program that asks at once must not be told 0 by 0."""
    if not (rows or columns) and os.isatty(0):
        rows, columns = size(0)
    if rows or columns:
        resize(master, rows, columns)


def make_controlling(fd: int) -> None:
    """Give the calling session leader this terminal."""
    fcntl.ioctl(fd, _TIOCSCTTY, 0)
