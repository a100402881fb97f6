"""What an optical disc says about itself: the primary volume descriptor and the boot catalog.

Reads at most 66 sectors, each at a place that is checked first. ``root_names`` looks at the one
directory that a disc always has; nothing here looks at files.
Layout: ECMA-119 (ISO 9660) and the El Torito specification 1.0.
"""

import struct
from dataclasses import dataclass

from twofold.image.disks.source import Source

SECTOR_BYTES = 2048
_FIRST_DESCRIPTOR = 16
_MAX_DESCRIPTORS = 64
_BOOT_RECORD, _PRIMARY, _END = 0, 1, 255
_EL_TORITO = b"EL TORITO SPECIFICATION"
_ENTRY_BYTES = 32
_RECORD_BYTES = 33  # of a directory, without the name
_MAX_DIRECTORY_BYTES = 64 << 10
_X86, _EFI = 0x00, 0xEF
_BOOTABLE = 0x88


@dataclass(frozen=True, kw_only=True)
class Volume:
    volume_id: str
    system_id: str
    publisher_id: str
    application_id: str
    size_bytes: int
    boot_bios: bool
    boot_uefi: bool
    efi_at: tuple[int, ...]  # where the images that UEFI boots begin, in bytes
    root: tuple[int, int]  # of the uppermost directory: its first sector, its length in bytes


def is_iso(source: Source) -> bool:
    return source.glance(_FIRST_DESCRIPTOR * SECTOR_BYTES + 1, 5) == b"CD001"


def read(source: Source) -> Volume:
    """Raises InvalidInput for a disc that is cut off or makes no sense."""
    primary = catalog_sector = None
    for number in range(_MAX_DESCRIPTORS):
        offset = (_FIRST_DESCRIPTOR + number) * SECTOR_BYTES
        sector = source.at(offset, SECTOR_BYTES, "volume descriptor")
        if sector[1:6] != b"CD001":
            raise source.refuse(f"its volume descriptor {number} is none")
        if sector[0] == _END:
            break
        if sector[0] == _PRIMARY and primary is None:
            primary = sector
        if sector[0] == _BOOT_RECORD and sector[7:39].rstrip(b"\0 ") == _EL_TORITO:
            (catalog_sector,) = struct.unpack_from("<I", sector, 71)
    else:
        raise source.refuse(f"it has more than {_MAX_DESCRIPTORS} volume descriptors")
    if primary is None:
        raise source.refuse("it has no primary volume descriptor")
    platforms = {} if catalog_sector is None else _platforms(source, catalog_sector)
    (block_bytes,) = struct.unpack_from("<H", primary, 128)
    (blocks,) = struct.unpack_from("<I", primary, 80)
    if block_bytes != SECTOR_BYTES:
        raise source.refuse(f"its blocks have {block_bytes} bytes; 2048 are possible")
    size_bytes = blocks * SECTOR_BYTES
    if size_bytes > source.size_bytes:
        raise source.refuse(
            f"its volume has {size_bytes} bytes, the file only {source.size_bytes}",
            hint="it is cut off: copy or download it again, and compare its checksum",
        )
    return Volume(
        volume_id=_text(primary[40:72]),
        system_id=_text(primary[8:40]),
        publisher_id=_text(primary[318:446]),
        application_id=_text(primary[574:702]),
        size_bytes=size_bytes,
        boot_bios=_X86 in platforms,
        boot_uefi=_EFI in platforms,
        efi_at=platforms.get(_EFI, ()),
        root=(struct.unpack_from("<I", primary, 158)[0], struct.unpack_from("<I", primary, 166)[0]),
    )


def root_names(source: Source) -> frozenset[str]:
    """The names in its uppermost directory, in small letters and without a version; only the first
    64 KiB of it count. Raises InvalidInput as ``read`` does."""
    sector, size_bytes = read(source).root
    directory = source.glance(sector * SECTOR_BYTES, min(size_bytes, _MAX_DIRECTORY_BYTES))
    names = set()
    at = 0
    while at + _RECORD_BYTES <= len(directory):
        record_bytes = directory[at]
        if record_bytes < _RECORD_BYTES:  # the rest of this sector is empty
            at = (at // SECTOR_BYTES + 1) * SECTOR_BYTES
            continue
        name = directory[at + _RECORD_BYTES : at + _RECORD_BYTES + directory[at + 32]]
        names.add(_text(name.partition(b";")[0]).lower())
        at += record_bytes
    return frozenset(names)


def _platforms(source: Source, sector: int) -> dict[int, tuple[int, ...]]:
    """For which firmware the catalog has something to boot, and where that begins; nothing when it
    is no catalog."""
    offset = sector * SECTOR_BYTES
    if offset + SECTOR_BYTES > source.size_bytes:
        raise source.refuse("its boot catalog is beyond the end of the file")
    catalog = source.at(offset, SECTOR_BYTES, "boot catalog")
    entries = [
        catalog[start : start + _ENTRY_BYTES] for start in range(0, SECTOR_BYTES, _ENTRY_BYTES)
    ]
    validation, default, *rest = entries
    words = struct.unpack("<16H", validation)
    if validation[0] != 1 or validation[30:] != b"\x55\xaa" or sum(words) & 0xFFFF:
        return {}
    found: dict[int, tuple[int, ...]] = {}
    if default[0] == _BOOTABLE:
        found[validation[1]] = (_place(default),)
    platform = -1
    for entry in rest:
        if entry[0] in (0x90, 0x91):
            platform = entry[1]
        elif entry[0] == _BOOTABLE and platform >= 0:
            found[platform] = (*found.get(platform, ()), _place(entry))
        elif entry[0] == 0 and platform < 0:
            break
    return found


def _place(entry: bytes) -> int:
    return int.from_bytes(entry[8:12], "little") * SECTOR_BYTES


def _text(raw: bytes) -> str:
    """As strict discs write it; anything else than printable ASCII becomes a question mark."""
    shown = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw.rstrip(b"\0 "))
    return shown.strip()
