"""How fast the host's processor counts (its time-stamp counter), for guests that QEMU emulates.

QEMU's translator shows a guest the host's own counter, and the guest's kernel finds out at boot how
fast it is, with a timer. On a busy host it is interrupted meanwhile and may be wrong tenfold; its
clock is so for good then, and that of every fork. So it is told.

Measures and remembers. Refuses nothing: 0 means unknown, and the guest's kernel finds out itself.
"""

import ctypes
import functools
import mmap
import os
import platform
import time
from collections.abc import Callable

_RDTSC = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; shl rdx, 32; or rax, rdx; ret
_APART_S = 0.05
_READINGS = 20  # the least disturbed one counts
_SAME = 0.002  # measurements of one processor differ by a tenth of that


@functools.cache
def frequency_khz(kept: str) -> int:
    """Thousands of counts per second, 0 where that cannot be known.

    ``kept`` is a file with the last answer, which holds as long as the measurement agrees: whatever
    depends on the number (templates do) stays valid. Blocks for 50 ms the first time.
    """
    if platform.machine() != "x86_64":
        return 0
    try:
        measured = measure_khz()
    except OSError:  # memory that is code as well is forbidden here
        return 0
    last = _read(kept)
    if abs(last - measured) <= measured * _SAME:
        return last
    _write(kept, measured)
    return measured


def measure_khz() -> int:
    """Rounded to a megahertz. Raises OSError where code may not be made of data."""
    readable_code = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=readable_code) as memory:
        memory[: len(_RDTSC)] = _RDTSC
        anchor = ctypes.c_char.from_buffer(memory)
        # Keeps the interpreter's lock: no other thread comes between the two clocks.
        count = ctypes.PYFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
        try:
            first_ns, first = _reading(count)
            time.sleep(_APART_S)
            last_ns, last = _reading(count)
        finally:
            del anchor  # or the memory could not be given back
    return round((last - first) / (last_ns - first_ns) * 1e3) * 1000


def _reading(count: Callable[[], int]) -> tuple[int, int]:
    """(nanoseconds, counts) of one moment."""
    readings = []
    for _ in range(_READINGS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counted = count()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        readings.append((after - before, (before + after) // 2, counted))
    _, nanoseconds, counted = min(readings)
    return nanoseconds, counted


def _read(path: str) -> int:
    try:
        with open(path, encoding="ascii") as stream:
            return int(stream.read(32))
    except (OSError, ValueError):
        return 0


def _write(path: str, khz: int) -> None:
    """What cannot be kept is measured again."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(f"{path}.new", "w", encoding="ascii") as stream:
            stream.write(f"{khz}\n")
        os.replace(f"{path}.new", path)
    except OSError:
        pass
