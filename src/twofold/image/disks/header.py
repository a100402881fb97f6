"""What the inspectors of the container formats share: their verdict, and walks over tables.

A table is read in bounded pieces and looked at by C loops, because a disk of a terabyte has
millions of entries. Every offset in it must lie within the file: QEMU would read zeros beyond its
end, and a disk that was cut off would be taken for a good one.
"""

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from twofold.image.disks.source import Source

MAX_SIZE_BYTES = 16 << 40
_PIECE_BYTES = 4 << 20
CUT_OFF = "it is cut off: copy or download it again, and compare its checksum"


@dataclass(frozen=True, kw_only=True)
class Header:
    """``data_bytes`` is what the disk's allocated parts come to, at most."""

    size_bytes: int
    data_bytes: int


def check_size(source: Source, size_bytes: int) -> int:
    """The size of the disk that the guest will see."""
    if size_bytes > MAX_SIZE_BYTES:
        raise source.refuse(
            f"the disk would have {size_bytes} bytes; at most {MAX_SIZE_BYTES >> 40} TiB are taken"
        )
    if size_bytes < 512:
        raise source.refuse(f"a disk of {size_bytes} bytes is none")
    return size_bytes


def table(
    source: Source, offset: int, count: int, *, code: str, big_endian: bool, what: str
) -> Iterator["array[int]"]:
    """``count`` numbers (``code`` as in ``array``) that begin at ``offset``, some at a time."""
    each = array(code).itemsize
    if offset < 0 or offset + count * each > source.size_bytes:
        raise source.refuse(
            f"its {what} would be at byte {offset} and have {count * each} bytes, "
            f"and the file has {source.size_bytes}",
            hint=CUT_OFF,
        )
    for start in range(0, count * each, _PIECE_BYTES):
        length = min(_PIECE_BYTES, count * each - start)
        numbers = array(code, source.at(offset + start, length, what))
        if big_endian != (sys.byteorder == "big"):
            numbers.byteswap()
        yield numbers


def require_distinct(source: Source, offsets: list[int], what: str) -> None:
    """Tables that are one and the same make a small file look like an endless disk."""
    if len(set(offsets)) != len(offsets):
        raise source.refuse(f"two of its {what}s are the same")


def require_room(source: Source, count: int, each_bytes: int, what: str) -> None:
    """Whether so many can lie side by side in the file: told before all of them are remembered."""
    if count * each_bytes > source.size_bytes:
        raise source.refuse(
            f"it would have {count} or more {what}s of {each_bytes} bytes each, "
            f"and the file has {source.size_bytes}",
            hint=CUT_OFF,
        )


def require_within(source: Source, offset: int, length: int, what: str) -> None:
    if offset < 0 or offset + length > source.size_bytes:
        raise source.refuse(
            f"a {what} of it would be at byte {offset}, and the file has {source.size_bytes}",
            hint=CUT_OFF,
        )


def printable(raw: bytes) -> str:
    """A name out of the file, for an error."""
    return raw[:200].decode("utf-8", "replace")
