"""Where in a container's root something may be mounted.

A target is resolved inside the root by descriptor and made when it is missing. Refused are the
root itself, places inside ``/proc`` but for the few files that stand-ins of the field replace, and
a ``/proc`` or ``/sys`` that would not be the kernel's: with either of them forged, whatever is
written there to confine the payload (labels, sysctls, masks) would confine nothing.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.linux import openat2

# Kernel file systems: on a symlink's target they would leave their usual place to somebody else.
KERNEL_KINDS = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"))
# What LXCFS and its like replace, and two that sandboxes have reason to.
PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"),
        *("net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"),
    )
)


def normal(target: str) -> str:
    """``target`` as an absolute path without ``.``, ``..`` and doubled slashes."""
    return posixpath.normpath("/" + target.lstrip("/"))


def why_not(target: str, kind: str, *, bind: bool) -> str:
    """Why nothing may be mounted at ``target``, as far as its name tells; empty when it may.

    Neither a kind nor a bind: what is mounted there is changed, and that is allowed anywhere.
    """
    place = normal(target)
    if not kind and not bind:
        return ""
    if place == "/":
        return "a mount there would hide the container's root"
    if place == "/proc" and not bind and kind != "proc":
        return "only the proc file system may be mounted there"
    if place == "/sys" and not bind and kind != "sysfs":
        return "only the sysfs file system may be mounted there"
    if place.startswith("/proc/") and place not in PROC_FILES:
        return "inside /proc only some files may be replaced (/proc/cpuinfo, /proc/meminfo …)"
    return ""


def open_target(
    root_fd: int, target: str, *, kind: str, source_fd: int = -1, make: bool = True
) -> int:
    """The place to mount on: an O_PATH descriptor that lies inside the root.

    ``source_fd`` is the detached mount of a bind (its type decides what is made). Raises
    RuntimeFailed for a forbidden place, OSError where it cannot be reached or made.
    """
    place = normal(target)
    reason = why_not(target, kind, bind=source_fd >= 0)
    if reason:
        raise RuntimeFailed(f"nothing can be mounted on {target!r}: {reason}")
    if source_fd >= 0 and place in ("/proc", "/sys"):
        _refuse_forged(place, source_fd)
    strict = kind in KERNEL_KINDS or place in ("/dev", "/proc", "/sys") or place in PROC_FILES
    fd = _open(root_fd, target, source_fd=source_fd, make=make, follow=not strict)
    if strict:
        return fd  # no symlink on the way: it is where its name says
    try:
        _check(root_fd, fd, target)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(root_fd: int, target: str, *, source_fd: int, make: bool, follow: bool) -> int:
    try:
        if not make:
            return openat2.open_in_root(root_fd, target, os.O_PATH, follow=follow)
        if source_fd < 0 or stat.S_ISDIR(os.fstat(source_fd).st_mode):
            return openat2.make_directories(root_fd, target, follow=follow)
        return openat2.make_file(root_fd, target, follow=follow)
    except OSError as error:
        if follow or error.errno != errno.ELOOP:
            raise
        raise RuntimeFailed(
            f"{target!r} in the root is reached through a symlink; "
            "the kernel's files cannot be mounted there",
            hint="use an image with a plain directory at that place",
        ) from error


def _check(root_fd: int, fd: int, target: str) -> None:
    """Refuse by where the descriptor really is what ``why_not`` refuses by name."""
    found, root = os.fstat(fd), os.fstat(root_fd)
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
        raise RuntimeFailed(
            f"nothing can be mounted on {target!r}: it leads to the container's root",
            hint="look for a symlink to / on the way",
        )
    if lm.filesystem_type(fd) == lm.PROC_SUPER_MAGIC:
        raise RuntimeFailed(
            f"nothing can be mounted on {target!r}: it leads into /proc",
            hint="look for a symlink into /proc on the way",
        )


def _refuse_forged(place: str, source_fd: int) -> None:
    wanted = lm.PROC_SUPER_MAGIC if place == "/proc" else lm.SYSFS_MAGIC
    root_inode = 1  # of both; a part of either is as forged as anything else
    if lm.filesystem_type(source_fd) != wanted or os.fstat(source_fd).st_ino != root_inode:
        kind = "proc" if place == "/proc" else "sysfs"
        raise RuntimeFailed(
            f"nothing but the {kind} file system can be mounted on {place!r}",
            hint=f"mount it with type {kind}, or choose another place",
        )
