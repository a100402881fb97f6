"""How a raw disk is divided and for which firmware it has something to boot.

Reads the first sectors and, of a GUID partition table, at most 128 KiB of entries. Whether a boot
loader works it cannot tell; it tells that there is one. Refuses nothing: a disk may hold anything.
"""

import struct
from dataclasses import dataclass

from twofold.image.disks.source import Source
from twofold.model.image import PartitionTable

_SECTOR_SIZES = (512, 4096)
_SIGNATURE = b"\x55\xaa"
_BOOT_CODE_BYTES = 440
_PROTECTIVE, _EFI_SYSTEM = 0xEE, 0xEF
# C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it lies on the disk.
_EFI_SYSTEM_GUID = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
_MAX_ENTRIES_BYTES = 128 << 10


@dataclass(frozen=True, kw_only=True)
class Layout:
    partition_table: PartitionTable
    boot_bios: bool
    boot_uefi: bool
    efi_at: tuple[int, ...] = ()  # where its EFI system partitions begin, in bytes


def has_boot_sector(source: Source) -> bool:
    return source.glance(510, 2) == _SIGNATURE


def read(source: Source) -> Layout:
    sector = source.glance(0, 512)
    if len(sector) < 512 or sector[510:] != _SIGNATURE:
        return Layout(partition_table=PartitionTable.NONE, boot_bios=False, boot_uefi=False)
    boots = any(sector[:_BOOT_CODE_BYTES])
    types = _mbr_types(sector)
    if _PROTECTIVE in types and (efi_at := _gpt_system_partitions(source)) is not None:
        return Layout(
            partition_table=PartitionTable.GPT,
            boot_bios=boots,
            boot_uefi=bool(efi_at),
            efi_at=efi_at,
        )
    return Layout(
        partition_table=PartitionTable.MBR if types else PartitionTable.NONE,
        boot_bios=boots,
        boot_uefi=_EFI_SYSTEM in types,
        efi_at=types.get(_EFI_SYSTEM, ()),
    )


def _mbr_types(sector: bytes) -> dict[int, tuple[int, ...]]:
    """The types of its partitions, and where those of each begin; none when it is the boot sector
    of a file system."""
    entries = [sector[start : start + 16] for start in range(446, 510, 16)]
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        return {}
    found: dict[int, tuple[int, ...]] = {}
    for entry in entries:
        first, sectors = struct.unpack_from("<II", entry, 8)
        if entry[4] and sectors > 0:
            found[entry[4]] = (*found.get(entry[4], ()), first * _SECTOR_SIZES[0])
    return found


def _gpt_system_partitions(source: Source) -> tuple[int, ...] | None:
    """Where its EFI system partitions begin; None when there is no such table."""
    for sector_bytes in _SECTOR_SIZES:
        header = source.glance(sector_bytes, 92)
        if len(header) == 92 and header[:8] == b"EFI PART":
            break
    else:
        return None
    entries_at, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if entry_bytes < 128 or entry_bytes > 4096 or entries_at * sector_bytes > source.size_bytes:
        return ()
    length = min(count * entry_bytes, _MAX_ENTRIES_BYTES)
    table = source.glance(entries_at * sector_bytes, length)
    return tuple(
        struct.unpack_from("<Q", table, start + 32)[0] * sector_bytes
        for start in range(0, len(table) - 39, entry_bytes)
        if table[start : start + 16] == _EFI_SYSTEM_GUID
    )
