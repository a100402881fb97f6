"""Which pages of another process are its own: proc_pid_pagemap(5) and its PAGEMAP_SCAN ioctl."""

import array
import ctypes
import errno
import fcntl
import os
import struct

_PAGE = os.sysconf("SC_PAGESIZE")
_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_REGIONS = 4096
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE = 1 << 63, 1 << 62, 1 << 61

Range = tuple[int, int]


def anonymous_ranges(pid: int, start: int, end: int) -> list[Range]:
    """Address ranges in [start, end) whose pages belong to ``pid`` alone (never touched, shared
    and file pages are left out). The process has to stand still. Raises OSError."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _scan(fd, start, end)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):  # before Linux 6.7
            raise
        return _read(fd, start, end)
    finally:
        os.close(fd)


def _scan(fd: int, start: int, end: int) -> list[Range]:
    regions = ctypes.create_string_buffer(_REGIONS * 24)
    found: list[Range] = []
    while start < end:
        # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return
        argument = bytearray(
            struct.pack(
                "=12Q",
                96,
                0,
                start,
                end,
                0,
                ctypes.addressof(regions),
                _REGIONS,
                0,
                _IS_FILE | _IS_ZERO,
                _IS_FILE | _IS_ZERO,
                _IS_PRESENT | _IS_SWAPPED,
                _IS_PRESENT,
            )
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
        for number in range(count):
            first, last, _ = struct.unpack_from("=3Q", regions, number * 24)
            _append(found, first, last)
        start = struct.unpack_from("=Q", argument, 32)[0]
    return found


def _read(fd: int, start: int, end: int) -> list[Range]:
    entries = array.array("Q")
    entries.frombytes(os.pread(fd, (end - start) // _PAGE * 8, start // _PAGE * 8))
    found: list[Range] = []
    for number, entry in enumerate(entries):
        if entry & (_ENTRY_PRESENT | _ENTRY_SWAPPED) and not entry & _ENTRY_FILE:
            at = start + number * _PAGE
            _append(found, at, at + _PAGE)
    return found


def _append(found: list[Range], first: int, last: int) -> None:
    """Neighbours become one range: return_mask splits what is present from what is swapped."""
    if found and found[-1][1] == first:
        found[-1] = (found[-1][0], last)
    else:
        found.append((first, last))
