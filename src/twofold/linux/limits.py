"""Resource limits of any process: prlimit(2), with the whole range of the kernel's numbers.

The standard library's ``resource`` cannot say a limit of 2**63 and more that is not infinity.
"""

from __future__ import annotations

import ctypes
import struct

from twofold.linux.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

INFINITY = 2**64 - 1
NUMBERS = {
    "CPU": 0,
    "FSIZE": 1,
    "DATA": 2,
    "STACK": 3,
    "CORE": 4,
    "RSS": 5,
    "NPROC": 6,
    "NOFILE": 7,
    "MEMLOCK": 8,
    "AS": 9,
    "LOCKS": 10,
    "SIGPENDING": 11,
    "MSGQUEUE": 12,
    "NICE": 13,
    "RTPRIO": 14,
    "RTTIME": 15,
}
NAMES = {number: name for name, number in NUMBERS.items()}


def get(number: int, pid: int = 0) -> tuple[int, int]:
    """(soft, hard) of the process, of the caller when ``pid`` is 0."""
    old = ctypes.create_string_buffer(16)
    syscall("prlimit64", pid, number, None, old)
    soft, hard = struct.unpack("=QQ", old.raw)
    return soft, hard


def set_both(number: int, soft: int, hard: int, pid: int = 0) -> None:
    new = ctypes.create_string_buffer(struct.pack("=QQ", soft, hard), 16)
    syscall("prlimit64", pid, number, new, None)


def lower(values: Mapping[str, int]) -> None:
    """Both limits of the caller, by name, to a value or to what it is allowed at most."""
    for name, value in values.items():
        number = NUMBERS[name]
        _, allowed = get(number)
        set_both(number, min(value, allowed), min(value, allowed))
