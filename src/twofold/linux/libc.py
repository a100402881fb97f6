"""The door itself: one handle on libc, one way to turn errno into an exception.

Everything in ``linux/`` is a thin typed wrapper on a system call; it holds no policy. Only
``ctypes``, ``os`` and friends are imported, because the keeper forks with all of this in memory.
"""

import ctypes
import os

# PyDLL keeps the interpreter lock during the call: nothing here blocks, and clone3 must not let
# another thread run between the fork and the child's first instruction.
_LIBC = ctypes.PyDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

_NUMBERS_COMMON = {  # since Linux 5.0 new calls have one number on every architecture
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
_NUMBERS_X86_64 = {
    "pivot_root": 155,
    "sethostname": 170,
    "setdomainname": 171,
    "capget": 125,
    "capset": 126,
    "prctl": 157,
    "keyctl": 250,
    "personality": 135,
    "fstatfs": 138,
    "ioprio_set": 251,
    "prlimit64": 302,
    "syncfs": 306,
    "setns": 308,
    "sched_setattr": 314,
    "seccomp": 317,
    "unshare": 272,
    "mount": 165,
    "umount2": 166,
    "finit_module": 313,
    "reboot": 169,
    "bpf": 321,
}
_NUMBERS_GENERIC = {  # arm64, riscv64
    "pivot_root": 41,
    "sethostname": 161,
    "setdomainname": 162,
    "capget": 90,
    "capset": 91,
    "prctl": 167,
    "keyctl": 219,
    "personality": 92,
    "fstatfs": 44,
    "ioprio_set": 30,
    "prlimit64": 261,
    "syncfs": 267,
    "setns": 268,
    "sched_setattr": 274,
    "seccomp": 277,
    "unshare": 97,
    "mount": 40,
    "umount2": 39,
    "finit_module": 273,
    "reboot": 142,
    "bpf": 280,
}
NUMBERS = _NUMBERS_COMMON | (
    _NUMBERS_X86_64 if os.uname().machine == "x86_64" else _NUMBERS_GENERIC
)

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000


def syscall(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make the call. Raises OSError(errno, "NAME: reason"); returns the call's value."""
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_LIBC.syscall(ctypes.c_long(NUMBERS[name]), *converted))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def path_bytes(path: str | bytes) -> bytes:
    """A path as the kernel takes it; a NUL inside is refused rather than cutting the path short."""
    data = os.fsencode(path)
    if b"\0" in data:
        raise ValueError(f"path {path!r} holds a NUL byte")
    return data
