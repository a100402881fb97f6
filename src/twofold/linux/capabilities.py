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
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def mask_of(names: tuple[str, ...]) -> int:
    """The bit mask of ``names``; KeyError for a name the kernel documentation does not have."""
    mask = 0
    for name in names:
        mask |= 1 << NUMBER[name.upper().removeprefix("CAP_")]
    return mask


def last_capability() -> int:
    """The highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def drop_bounding(keep: int, last: int) -> None:
    """Drop every capability not in the mask ``keep`` from the bounding set."""
    for number in range(last + 1):
        if not keep >> number & 1:
            prctl(_PR_CAPBSET_DROP, number)


def clear_ambient() -> None:
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def set_capabilities(*, effective: int, permitted: int, inheritable: int = 0) -> None:
    """capset(2) on the calling thread; the masks hold one bit per capability number."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    low = [value & 0xFFFFFFFF for value in (effective, permitted, inheritable)]
    high = [value >> 32 for value in (effective, permitted, inheritable)]
    data = ctypes.create_string_buffer(struct.pack("=6I", *low, *high), 24)
    syscall("capset", header, data)


def effective_mask() -> int:
    """The effective set of the calling process."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
