"""Load a ready-made seccomp filter (an array of BPF instructions) into the calling thread."""

import ctypes
import errno
import struct

from twofold.linux.libc import syscall

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
NEW_LISTENER = 1 << 3
WAIT_KILLABLE_RECV = 1 << 5  # the kernel takes it with NEW_LISTENER only
TSYNC = 1 << 0
TSYNC_ESRCH = 1 << 4

_SET_MODE_FILTER = 1


def load_filter(program: bytes, flags: int = 0) -> int:
    """Install ``program``; needs no_new_privs or CAP_SYS_ADMIN in the current user namespace.

    Returns the listener's descriptor (close-on-exec) when ``flags`` hold NEW_LISTENER, else -1.
    """
    if flags & NEW_LISTENER and flags & TSYNC:
        flags |= TSYNC_ESRCH  # both want the call's return value; this tells them apart
    instructions = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(instructions)), 16
    )
    result = syscall("seccomp", _SET_MODE_FILTER, flags, header)
    return result if flags & NEW_LISTENER else -1


def supported_flags() -> list[str]:
    """The names in FLAGS that this kernel takes."""
    return [name for name, flag in FLAGS.items() if _takes(flag)]


def _takes(flag: int) -> bool:
    # The flags are looked at before the program: a null program says EFAULT for flags it knows.
    if flag == WAIT_KILLABLE_RECV:
        flag |= NEW_LISTENER
    try:
        syscall("seccomp", _SET_MODE_FILTER, flag, None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True


def copy_descriptor(pidfd: int, number: int) -> int:
    """pidfd_getfd(2): a copy, close-on-exec, of a descriptor of another process."""
    return syscall("pidfd_getfd", pidfd, number, 0)
