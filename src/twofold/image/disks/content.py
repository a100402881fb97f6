"""The bytes of a disk: copied sparsely, and the checksum that names them.

The checksum is a SHA-256 over a list: a first line with the size, then one line for each piece of
4 MiB that is not all zeros, with its number and its own SHA-256. So it depends on the content
alone, not on where the file has holes, and a terabyte of holes costs nothing.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from twofold.model.progress import Progress

PIECE_BYTES = 4 << 20
# What is looked at for zeros, and so the size of holes.
GRAIN_BYTES = 64 << 10
_FIRST_LINE = "twofold disk 1"
_ZEROS = bytes(PIECE_BYTES)


@dataclass(frozen=True, kw_only=True)
class Content:
    """``checksum`` is ``sha256:HEX``; ``used_bytes`` counts the grains that are not all zeros."""

    checksum: str
    size_bytes: int
    used_bytes: int


def copy(source: int, target: int, size_bytes: int, *, progress: Progress, what: str) -> Content:
    """Copy ``source`` into the empty file ``target``, zeros as holes, and tell its content.

    The copy has ``size_bytes``: what ``source`` lacks of it reads as zeros, what it has beyond is
    left out. Raises OSError.
    """
    os.ftruncate(target, size_bytes)
    return _walk(source, size_bytes, target=target, progress=progress, what=what)


def measure(fd: int, *, progress: Progress, what: str) -> Content:
    """The content of an open file. Raises OSError."""
    return _walk(fd, os.fstat(fd).st_size, target=None, progress=progress, what=what)


def _walk(
    source: int, size_bytes: int, *, target: int | None, progress: Progress, what: str
) -> Content:
    listing = hashlib.sha256(f"{_FIRST_LINE} {size_bytes}\n".encode())
    used = 0
    for number in _pieces(source, size_bytes):
        start = number * PIECE_BYTES
        progress(start / size_bytes, f"{what}: {start >> 20} of {size_bytes >> 20} MiB")
        length = min(PIECE_BYTES, size_bytes - start)
        data = _read(source, start, length)
        if data == _ZEROS[:length]:
            continue
        listing.update(f"{number} {hashlib.sha256(data).hexdigest()}\n".encode())
        view = memoryview(data)
        for offset in range(0, length, GRAIN_BYTES):
            grain = view[offset : offset + GRAIN_BYTES]
            if grain != _ZEROS[: len(grain)]:
                used += len(grain)
                if target is not None:
                    _write(target, grain, start + offset)
    return Content(checksum=f"sha256:{listing.hexdigest()}", size_bytes=size_bytes, used_bytes=used)


def _pieces(fd: int, size_bytes: int) -> Iterator[int]:
    """The numbers of the pieces that are not wholly in a hole, in order."""
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        first = max(start, position) // PIECE_BYTES
        last = (min(end, size_bytes) - 1) // PIECE_BYTES
        yield from range(first, last + 1)
        position = (last + 1) * PIECE_BYTES


def _read(fd: int, start: int, length: int) -> bytes:
    """Exactly ``length`` bytes; what the file does not have reads as zeros."""
    data = os.pread(fd, length, start)
    while len(data) < length:
        more = os.pread(fd, length - len(data), start + len(data))
        if not more:
            return data + bytes(length - len(data))
        data += more
    return data


def _write(fd: int, data: memoryview, start: int) -> None:
    while data:
        done = os.pwrite(fd, data, start)
        data, start = data[done:], start + done
