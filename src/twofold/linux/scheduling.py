"""Scheduling policy, I/O priority, processor affinity and personality of a process."""

import ctypes
import os
import struct

from twofold.linux.libc import syscall

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}

_IO_CLASS_SHIFT = 13
_IOPRIO_WHO_PROCESS = 1


def io_priority(kind: int, level: int) -> int:
    """A class (``IO_CLASSES``) and a level of 0 to 7 as the one number the kernel takes."""
    return kind << _IO_CLASS_SHIFT | level


def set_io_priority(value: int, pid: int = 0) -> None:
    syscall("ioprio_set", _IOPRIO_WHO_PROCESS, pid, value)


def set_scheduler(
    policy: int,
    *,
    pid: int = 0,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime_ns: int = 0,
    deadline_ns: int = 0,
    period_ns: int = 0,
) -> None:
    """sched_setattr(2)."""
    size = 48  # of the structure's first version: without utilisation clamps
    packed = struct.pack(
        "=IIQiIQQQ", size, policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns
    )
    syscall("sched_setattr", pid, ctypes.create_string_buffer(packed, size), 0)


def set_affinity(processors: tuple[int, ...], pid: int = 0) -> None:
    os.sched_setaffinity(pid, processors)


def set_personality(value: int) -> None:
    syscall("personality", value)
