"""How a process ended that is known by its pidfd, whoever its parent was.

A parent reaps; whoever is not the parent reads the status of a zombie from /proc, or, once it was
reaped, from the pidfd itself (Linux 6.15; the pidfd must have been opened while it lived).
"""

from __future__ import annotations

import fcntl
import os
import select
import struct

from twofold.linux.process import exit_code_of

_CLD_EXITED = 1
_INFO = struct.Struct("=QQ11Ii")  # struct pidfd_info as of Linux 6.15; we ask for its size only
_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(0xFF, 11, …)
_STAT_START_TIME, _STAT_EXIT_CODE = 22, 52  # numbers of proc(5), from one


def of_child(pidfd: int) -> tuple[int, int] | None:
    """(exit code, signal) of a child that is a zombie now, which it remains.

    None when it lives. Raises ChildProcessError when it is somebody else's child, or reaped.
    """
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if found is None:
        return None
    if found.si_code == _CLD_EXITED:
        return found.si_status, 0
    return 128 + found.si_status, found.si_status


def of_stranger(pid: int, pidfd: int) -> tuple[int, int] | None:
    """(exit code, signal) of a dead process that is not our child; None when nobody can tell."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    status = _of_zombie(pid)
    # A hang-up says that it was reaped: then the number may be somebody else's by now.
    if status is None or any(events & select.POLLHUP for _, events in poll.poll(0)):
        status = _of_reaped(pidfd)
    return None if status is None else exit_code_of(status)


def _of_zombie(pid: int) -> int | None:
    fields = _stat(pid)
    if not fields or fields[3 - 1] != "Z":
        return None
    return int(fields[_STAT_EXIT_CODE - 1])


def _of_reaped(pidfd: int) -> int | None:
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None  # before Linux 6.13
    mask, *_, status = _INFO.unpack(buffer)
    return int(status) if mask & _INFO_EXIT else None


def start_time(pid: int) -> int:
    """Clock ticks after boot at which ``pid`` began, which tells it from a later one; 0: gone."""
    fields = _stat(pid)
    return int(fields[_STAT_START_TIME - 1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat, the first two as they come; empty when there is no process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return []
    head, _, rest = text.rpartition(")")  # a name may hold spaces and brackets
    return [str(pid), head.partition("(")[2], *rest.split()]
