"""Is this VHDX file a whole disk by itself, and does it make sense?

Refuses a differencing disk, one whose log was not played back, and tables beyond the file. The
format: Microsoft's [MS-VHDX]. Checksums are left to QEMU, which checks them too.
"""

import struct
from array import array
from dataclasses import dataclass

from twofold.image.disks import header as headers
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.model.progress import Progress

_HEADERS = (64 << 10, 128 << 10)
_REGIONS = (192 << 10, 256 << 10)
_MAX_REGIONS, _MAX_ITEMS = 64, 128
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 1 << 20, 256 << 20
_MAX_BAT_ENTRIES = 32 << 20
_HAS_PARENT = 2
_FULLY_PRESENT = 6


def _guid(text: str) -> bytes:
    """As it lies on the disk: the first three groups little-endian."""
    a, b, c, d, e = text.split("-")
    return b"".join(bytes.fromhex(part)[::-1] for part in (a, b, c)) + bytes.fromhex(d + e)


_BAT = _guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA = _guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_PARAMETERS = _guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_SIZE = _guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_SECTOR = _guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PARENT = _guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")


@dataclass(frozen=True, kw_only=True)
class _Region:
    offset: int
    length: int


def inspect(source: Source, progress: Progress) -> Header:
    """Raises InvalidInput with the reason for the refusal."""
    if source.at(0, 8, "VHDX identifier") != b"vhdxfile":
        raise source.refuse("it is no VHDX file", hint="--format says what it is")
    _require_clean(source)
    regions = _regions(source)
    items = _items(source, regions[_METADATA])
    if _PARENT in items:
        raise _differencing(source)
    block_bytes, flags = struct.unpack("<II", _item(source, items, _PARAMETERS, 8))
    (size_bytes,) = struct.unpack("<Q", _item(source, items, _SIZE, 8))
    (sector_bytes,) = struct.unpack("<I", _item(source, items, _SECTOR, 4))
    if flags & _HAS_PARENT:
        raise _differencing(source)
    headers.check_size(source, size_bytes)
    if sector_bytes != 512:
        raise source.refuse(f"its sectors have {sector_bytes} bytes; 512 are taken")
    if not _MIN_BLOCK_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & (block_bytes - 1):
        raise source.refuse(f"its blocks would have {block_bytes} bytes")
    return Header(
        size_bytes=size_bytes,
        data_bytes=_walk(source, regions[_BAT], size_bytes, block_bytes, progress),
    )


def _require_clean(source: Source) -> None:
    """The current header is the valid one with the higher number."""
    best, log = -1, bytes(16)
    for offset in _HEADERS:
        raw = source.at(offset, 80, "VHDX header")
        signature, _, sequence = struct.unpack_from("<4sIQ", raw)
        if signature == b"head" and sequence > best:
            best, log = sequence, raw[48:64]
            (version,) = struct.unpack_from("<H", raw, 66)
    if best < 0:
        raise source.refuse("it has no VHDX header")
    if version != 1:
        raise source.refuse(f"its VHDX version {version} is not known; 1 is taken")
    if any(log):
        raise source.refuse(
            "its log holds writes that never reached the disk",
            hint=f"shut down what uses it, or: qemu-img check -r all {source.shown}",
        )


def _regions(source: Source) -> dict[bytes, _Region]:
    for offset in _REGIONS:
        signature, _, count = struct.unpack("<4sII", source.at(offset, 12, "region table"))
        if signature != b"regi":
            continue
        if count > _MAX_REGIONS:
            raise source.refuse(f"its region table would have {count} entries")
        found = {}
        raw = source.at(offset + 16, count * 32, "region table")
        for start in range(0, len(raw), 32):
            guid, at, length, required = struct.unpack_from("<16sQII", raw, start)
            if guid in (_BAT, _METADATA):
                headers.require_within(source, at, length, "region")
                if guid in found:
                    raise source.refuse("its region table names a region twice")
                found[guid] = _Region(offset=at, length=length)
            elif required & 1:
                raise source.refuse("it needs a region that is not known")
        if len(found) != 2:
            raise source.refuse("its region table is not complete")
        return found
    raise source.refuse("it has no region table")


def _items(source: Source, region: _Region) -> dict[bytes, _Region]:
    raw = source.at(region.offset, 32, "metadata table")
    signature, _, count = struct.unpack_from("<8sHH", raw)
    if signature != b"metadata" or count > _MAX_ITEMS:
        raise source.refuse(f"its metadata table is none, or has {count} entries")
    found = {}
    raw = source.at(region.offset + 32, count * 32, "metadata table")
    for start in range(0, len(raw), 32):
        guid, at, length = struct.unpack_from("<16sII", raw, start)
        if at + length > region.length or guid in found:
            raise source.refuse("its metadata table makes no sense")
        found[guid] = _Region(offset=region.offset + at, length=length)
    return found


def _item(source: Source, items: dict[bytes, _Region], guid: bytes, length: int) -> bytes:
    if guid not in items or items[guid].length < length:
        raise source.refuse("its metadata is not complete")
    return source.at(items[guid].offset, length, "metadata")


def _walk(
    source: Source, bat: _Region, size_bytes: int, block_bytes: int, progress: Progress
) -> int:
    blocks = -(-size_bytes // block_bytes)
    # One entry of the table in so many is for a bitmap that only differencing disks have.
    ratio = (512 << 23) // block_bytes
    entries = blocks + (blocks - 1) // ratio
    if entries > _MAX_BAT_ENTRIES or entries * 8 > bat.length:
        raise source.refuse(
            f"its block table has {bat.length} bytes where {entries * 8} are needed"
        )
    # One byte for each place in the file where a block has room: what does not overlap another
    # has a place of its own, so a small file is not followed for long nor remembered in much.
    places = source.size_bytes // block_bytes + 1
    if places > _MAX_BAT_ENTRIES:
        raise source.refuse(f"the file has {source.size_bytes} bytes, more than any disk needs")
    taken = bytearray(places)
    count = 0
    for piece in headers.table(
        source, bat.offset, entries, code="Q", big_endian=False, what="block table"
    ):
        progress(None, "looking at its block table")
        present = array("Q", (entry >> 20 << 20 for entry in piece if entry & 7 == _FULLY_PRESENT))
        if present:
            headers.require_within(source, max(present), block_bytes, "block")
        for offset in present:
            if taken[offset // block_bytes]:
                raise source.refuse("two of its blocks are the same or overlap")
            taken[offset // block_bytes] = 1
        count += len(present)
    return count * block_bytes


def _differencing(source: Source) -> Exception:
    return source.refuse(
        "it is only the difference to another disk (differencing)",
        hint="Hyper-V merges it: Merge-VHD; or Convert-VHD FILE WHOLE.vhdx",
    )
