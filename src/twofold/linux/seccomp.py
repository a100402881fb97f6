"""Load a ready-made seccomp filter (an array of BPF instructions) into the calling thread."""

import ctypes
import struct

from twofold.linux.libc import syscall

_SECCOMP_SET_MODE_FILTER = 1


def load_filter(program: bytes) -> None:
    """Install ``program``; needs no_new_privs or CAP_SYS_ADMIN in the current user namespace."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(instructions)), 16
    )
    syscall("seccomp", _SECCOMP_SET_MODE_FILTER, 0, header)
