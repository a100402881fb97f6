"""Capability sets of the calling process. Names are those of capabilities(7) without CAP_."""

import ctypes
import struct

from twofold.linux.libc import syscall
from twofold.linux.process import prctl

NAMES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]
NUMBER = {name: number for number, name in enumerate(NAMES)}

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_last: list[int] = []  # what ``last_capability`` has found


def mask_of(names: tuple[str, ...]) -> int:
    """The bit mask of ``names``; KeyError for a name the kernel documentation does not have."""
    mask = 0
    for name in names:
        mask |= 1 << NUMBER[name.upper().removeprefix("CAP_")]
    return mask


def last_capability() -> int:
    """The highest capability number this kernel knows. Asked once: it is an exception that says
    where they end, and whoever is forked from us need not meet it."""
    if not _last:
        number = len(NAMES) - 1
        while not _known(number):
            number -= 1
        while _known(number + 1):
            number += 1
        _last.append(number)
    return _last[0]


def _known(number: int) -> bool:
    try:
        prctl(_PR_CAPBSET_READ, number)
    except OSError:
        return False
    return True


def bounding_mask() -> int:
    """The bounding set of the calling thread."""
    mask = 0
    for number in range(last_capability() + 1):
        mask |= prctl(_PR_CAPBSET_READ, number) << number
    return mask


def drop_bounding(keep: int, last: int) -> None:
    """Drop every capability not in the mask ``keep`` from the bounding set."""
    for number in range(last + 1):
        if not keep >> number & 1:
            prctl(_PR_CAPBSET_DROP, number)


def clear_ambient() -> None:
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def set_capabilities(*, effective: int, permitted: int, inheritable: int = 0) -> None:
    """capset(2) on the calling thread; the masks hold one bit per capability number."""
    low = [value & 0xFFFFFFFF for value in (effective, permitted, inheritable)]
    high = [value >> 32 for value in (effective, permitted, inheritable)]
    syscall("capset", struct.pack("=Ii", _VERSION_3, 0), struct.pack("=6I", *low, *high))


def raise_ambient(mask: int) -> None:
    """Raise each capability of the mask, which must be permitted and inheritable."""
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def get_capabilities() -> tuple[int, int, int]:
    """capget(2) on the calling thread: (effective, permitted, inheritable)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    words = struct.unpack("=6I", data.raw)
    effective, permitted, inheritable = (words[i] | words[i + 3] << 32 for i in range(3))
    return effective, permitted, inheritable


def effective_mask() -> int:
    """The effective set of the calling thread."""
    return get_capabilities()[0]
