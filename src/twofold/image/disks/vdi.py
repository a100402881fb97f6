"""Is this VDI file a whole disk by itself, and does it make sense?

Refuses one that is the difference to a parent, and block maps that point beyond the file.
"""

import struct

from twofold.image.disks import header as headers
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.model.progress import Progress

_HEADER_BYTES = 512
_VERSION = 0x00010001
_DYNAMIC, _STATIC = 1, 2
_BLOCK_BYTES = 1 << 20
_NOT_THERE = 0xFFFFFFFE  # and 0xFFFFFFFF: zeros, or never written


def inspect(source: Source, progress: Progress) -> Header:
    """Raises InvalidInput with the reason for the refusal."""
    first = source.at(0, _HEADER_BYTES, "VDI header")
    magic, version, _, image_type = struct.unpack_from("<4sIII", first, 0x40)
    map_offset, data_offset = struct.unpack_from("<II", first, 0x154)
    (sector_bytes,) = struct.unpack_from("<I", first, 0x168)
    size_bytes, block_bytes, extra_bytes, blocks, allocated = struct.unpack_from(
        "<QIIII", first, 0x170
    )
    link, parent = first[0x1A8:0x1B8], first[0x1B8:0x1C8]
    if magic != b"\x7f\x10\xda\xbe":
        raise source.refuse("it is no VDI file", hint="--format says what it is")
    if version != _VERSION:
        raise source.refuse(f"its VDI version 0x{version:x} is not known; 1.1 is taken")
    if image_type not in (_DYNAMIC, _STATIC) or any(link) or any(parent):
        raise source.refuse(
            "it is only the difference to another disk",
            hint="VBoxManage clonemedium FILE WHOLE.vdi",
        )
    headers.check_size(source, size_bytes)
    if (sector_bytes, block_bytes, extra_bytes) != (512, _BLOCK_BYTES, 0):
        raise source.refuse(f"its blocks would have {block_bytes} + {extra_bytes} bytes")
    if blocks != -(-size_bytes // block_bytes) or allocated > blocks:
        raise source.refuse(f"it would have {blocks} blocks, {allocated} of them with data")
    if map_offset % 512 or data_offset % 512 or data_offset < map_offset + blocks * 4:
        raise source.refuse("its block map and its data overlap")
    mapped = 0
    for piece in headers.table(
        source, map_offset, blocks, code="I", big_endian=False, what="block map"
    ):
        progress(None, "looking at its block map")
        here = [entry for entry in piece if entry < _NOT_THERE]
        if here and max(here) >= allocated:
            raise source.refuse(f"its block map names block {max(here)} of {allocated}")
        mapped += len(here)
    if mapped > allocated:
        raise source.refuse("two entries of its block map are the same")
    headers.require_within(source, data_offset, allocated * block_bytes, "block")
    return Header(size_bytes=size_bytes, data_bytes=mapped * block_bytes)
