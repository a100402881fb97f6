"""For which processors a UEFI system partition holds a boot loader.

Firmware starts ``/EFI/BOOT/BOOTprocessor.EFI`` of a FAT file system: so the names in that directory
tell what the disk is for. Reads a boot sector, at most three directories of 64 KiB, and a few words
of the allocation table; what makes no sense is an empty answer. Refuses nothing, opens no file.
Layout: Microsoft's FAT specification of 2000; the names are the UEFI specification's (3.5.1.1).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from twofold.image.disks.source import Source

# As 8.3 names lie in a directory; what does not fit gets this alias from every system.
_LOADERS = {
    b"BOOTAA64EFI": "arm64",
    b"BOOTX64 EFI": "amd64",
    b"BOOTIA32EFI": "386",
    b"BOOTARM EFI": "arm",
    b"BOOTRI~1EFI": "riscv64",
}
_PATH = (b"EFI        ", b"BOOT       ")
_ENTRY_BYTES = 32
_DIRECTORY, _VOLUME = 0x10, 0x08
_MOST_BYTES = 64 << 10  # of one directory
_SECTOR_SIZES = (512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class _Fat:
    source: Source
    table_at: int
    root_at: int  # of FAT12 and FAT16; its length is ``root_bytes``
    root_bytes: int
    root_cluster: int  # of FAT32
    data_at: int
    cluster_bytes: int
    bits: int

    def next(self, cluster: int) -> int:
        """The one after it in the chain; 0 at its end, and for what is no chain."""
        raw = self.source.glance(self.table_at + cluster * self.bits // 8, 4)
        if len(raw) < 4:
            return 0
        (word,) = struct.unpack("<I", raw)
        if self.bits == 12 and cluster & 1:
            word >>= 4
        most = (1 << min(self.bits, 28)) - 1
        word &= most
        return word if 2 <= word < most - 8 else 0

    def directory(self, cluster: int) -> bytes:
        """Its entries; ``cluster`` 0 is the uppermost one."""
        if cluster == 0 and self.bits != 32:
            return self.source.glance(self.root_at, min(self.root_bytes, _MOST_BYTES))
        cluster = cluster or self.root_cluster
        found = b""
        while cluster >= 2 and len(found) < _MOST_BYTES:
            piece = self.source.glance(
                self.data_at + (cluster - 2) * self.cluster_bytes,
                min(self.cluster_bytes, _MOST_BYTES),
            )
            if not piece:  # beyond the end of the file: such a chain could be a ring
                break
            found += piece
            cluster = self.next(cluster)
        return found[:_MOST_BYTES]


def processors(source: Source, start: int) -> frozenset[str]:
    """Of the FAT file system at byte ``start``, in OCI's words."""
    fat = _open(source, start)
    if fat is None:
        return frozenset()
    cluster = 0
    for wanted in _PATH:
        for name, attributes, first in _entries(fat.directory(cluster)):
            if name == wanted and attributes & _DIRECTORY and first >= 2:
                cluster = first
                break
        else:
            return frozenset()
    return frozenset(
        _LOADERS[name]
        for name, attributes, _ in _entries(fat.directory(cluster))
        if name in _LOADERS and not attributes & _DIRECTORY
    )


def _entries(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, attributes, first cluster) of each."""
    for at in range(0, len(raw) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        entry = raw[at : at + _ENTRY_BYTES]
        if entry[0] == 0:
            return
        if entry[0] != 0xE5 and not entry[11] & _VOLUME:  # neither gone nor a piece of a long name
            high, low = struct.unpack_from("<H", entry, 20)[0], struct.unpack_from("<H", entry, 26)
            yield entry[:11], entry[11], high << 16 | low[0]


def _open(source: Source, start: int) -> _Fat | None:
    """None where there is no FAT."""
    boot = source.glance(start, 512)
    if len(boot) < 512 or boot[510:] != b"\x55\xaa":
        return None
    sector, per_cluster, reserved, tables, root_entries, short_total = struct.unpack_from(
        "<HBHBHH", boot, 11
    )
    (short_table,) = struct.unpack_from("<H", boot, 22)
    long_total, long_table = struct.unpack_from("<II", boot, 32)
    table, total = short_table or long_table, short_total or long_total
    if sector not in _SECTOR_SIZES or per_cluster.bit_count() != 1 or not reserved or not table:
        return None
    root_bytes = root_entries * _ENTRY_BYTES
    root_at = reserved + tables * table
    data = root_at + -(-root_bytes // sector)
    clusters = (total - data) // per_cluster
    if clusters < 1:
        return None
    bits = 32 if not short_table else 12 if clusters < 4085 else 16
    return _Fat(
        source=source,
        table_at=start + reserved * sector,
        root_at=start + root_at * sector,
        root_bytes=root_bytes,
        root_cluster=struct.unpack_from("<I", boot, 44)[0] if bits == 32 else 0,
        data_at=start + data * sector,
        cluster_bytes=per_cluster * sector,
        bits=bits,
    )
