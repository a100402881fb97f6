"""Is this qcow2 file a whole disk by itself, and does it make sense?

Reads the header with its extensions, the first-level table and all second-level tables. Refuses a
backing file, an external data file, encryption, features nobody knows, tables beyond the file or
shared, and sizes out of range. The format: QEMU's docs/interop/qcow2.txt.
"""

import struct
from array import array
from dataclasses import dataclass

from twofold.image.disks import header as headers
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.model.progress import Progress

_V2_LENGTH, _V3_LENGTH, _MAX_LENGTH = 72, 104, 4096
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_L1_BYTES = 8 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
_MAX_SNAPSHOTS = 1024
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_END, _ENCRYPTION, _DATA_FILE_NAME = 0, 0x0537BE77, 0x44415441
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_WHOLE = "make it whole where it is trusted: qemu-img convert -O qcow2 {} WHOLE.qcow2"


@dataclass(frozen=True, kw_only=True)
class _Fields:
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size_bytes: int
    crypt_method: int
    l1_count: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    refcount_order: int
    header_length: int
    compression: int

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended(self) -> bool:
        return bool(self.incompatible & _EXTENDED_L2)


def inspect(source: Source, progress: Progress) -> Header:
    """Raises InvalidInput with the reason for the refusal."""
    fields = _read(source)
    _require_whole(source, fields)
    _require_sane(source, fields)
    _check_extensions(source, fields)
    mapped = _walk(source, fields, progress)
    return Header(size_bytes=fields.size_bytes, data_bytes=mapped * fields.cluster_bytes)


def _read(source: Source) -> _Fields:
    first = source.at(0, _V2_LENGTH, "qcow2 header")
    (
        magic,
        version,
        backing_offset,
        backing_length,
        cluster_bits,
        size_bytes,
        crypt_method,
        l1_count,
        l1_offset,
        refcount_offset,
        refcount_clusters,
        snapshots,
        snapshots_offset,
    ) = struct.unpack(">4sIQIIQIIQQIIQ", first)
    if magic != b"QFI\xfb":
        raise source.refuse("it is no qcow2 file", hint="--format says what it is")
    if version not in (2, 3):
        raise source.refuse(
            f"it is qcow version {version}; 2 and 3 are taken",
            hint=f"qemu-img convert -O qcow2 {source.shown} NEWER.qcow2",
        )
    incompatible, order, length, compression = 0, 4, _V2_LENGTH, 0
    if version == 3:
        more = source.at(_V2_LENGTH, _V3_LENGTH - _V2_LENGTH, "qcow2 header")
        incompatible, _, _, order, length = struct.unpack(">QQQII", more)
        if length > _V3_LENGTH:
            compression = source.at(_V3_LENGTH, 1, "qcow2 header")[0]
    return _Fields(
        version=version,
        backing_offset=backing_offset,
        backing_length=backing_length,
        cluster_bits=cluster_bits,
        size_bytes=size_bytes,
        crypt_method=crypt_method,
        l1_count=l1_count,
        l1_offset=l1_offset,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        refcount_order=order,
        header_length=length,
        compression=compression,
    )


def _require_whole(source: Source, fields: _Fields) -> None:
    if fields.backing_offset or fields.backing_length:
        name = source.glance(fields.backing_offset, min(fields.backing_length, 1023))
        raise source.refuse(
            f"it is only the difference to another file, {headers.printable(name)!r}",
            hint=_WHOLE.format(source.shown),
        )
    if fields.incompatible & _DATA_FILE:
        raise source.refuse(
            "its data is in another file (data-file)", hint=_WHOLE.format(source.shown)
        )
    if fields.crypt_method:
        raise _encrypted(source)
    if fields.incompatible & _CORRUPT:
        raise source.refuse("it is marked as damaged", hint=f"qemu-img check -r all {source.shown}")
    if unknown := fields.incompatible & ~_KNOWN:
        raise source.refuse(f"it needs features that are not known (0x{unknown:x})")
    if fields.compression > 1 or bool(fields.compression) != bool(
        fields.incompatible & _COMPRESSION
    ):
        raise source.refuse(f"its compression type {fields.compression} is not known")


def _require_sane(source: Source, fields: _Fields) -> None:
    headers.check_size(source, fields.size_bytes)
    if not _MIN_CLUSTER_BITS <= fields.cluster_bits <= _MAX_CLUSTER_BITS:
        raise source.refuse(f"its clusters would have 2^{fields.cluster_bits} bytes")
    if fields.extended and fields.cluster_bits < 14:
        raise source.refuse("its clusters are too small for subclusters")
    if fields.refcount_order > 6:
        raise source.refuse(f"its reference counts would have 2^{fields.refcount_order} bits")
    if fields.version == 3 and (
        not _V3_LENGTH <= fields.header_length <= _MAX_LENGTH or fields.header_length % 8
    ):
        raise source.refuse(f"its header would have {fields.header_length} bytes")
    cluster = fields.cluster_bytes
    covered = cluster * (cluster // (16 if fields.extended else 8))
    needed = -(-fields.size_bytes // covered)
    if fields.l1_count * 8 > _MAX_L1_BYTES or fields.l1_count < needed:
        raise source.refuse(
            f"its first-level table has {fields.l1_count} entries where {needed} are needed"
        )
    if fields.refcount_clusters * cluster > _MAX_REFCOUNT_TABLE_BYTES:
        raise source.refuse(f"its refcount table would have {fields.refcount_clusters} clusters")
    if fields.snapshots > _MAX_SNAPSHOTS:
        raise source.refuse(f"it would hold {fields.snapshots} snapshots")
    for offset, length, what in (
        (fields.l1_offset, fields.l1_count * 8, "first-level table"),
        (fields.refcount_offset, fields.refcount_clusters * cluster, "refcount table"),
        (fields.snapshots_offset if fields.snapshots else 0, fields.snapshots * 40, "snapshot"),
    ):
        if offset % cluster:
            raise source.refuse(f"its {what} begins within a cluster, at byte {offset}")
        headers.require_within(source, offset, length, what)


def _check_extensions(source: Source, fields: _Fields) -> None:
    position, end = fields.header_length, min(fields.cluster_bytes, source.size_bytes)
    while position + 8 <= end:
        kind, length = struct.unpack(">II", source.at(position, 8, "header extension"))
        if kind == _END:
            return
        if position + 8 + length > end:
            raise source.refuse(f"a header extension of it would have {length} bytes")
        if kind == _ENCRYPTION:
            raise _encrypted(source)
        if kind == _DATA_FILE_NAME:
            name = headers.printable(source.at(position + 8, min(length, 200), "data file's name"))
            raise source.refuse(
                f"its data is in another file, {name!r}", hint=_WHOLE.format(source.shown)
            )
        position += 8 + -(-length // 8) * 8


def _encrypted(source: Source) -> Exception:
    return source.refuse(
        "it is encrypted",
        hint=f"decrypt it: qemu-img convert --image-opts … {source.shown} -O qcow2 PLAIN.qcow2",
    )


def _walk(source: Source, fields: _Fields, progress: Progress) -> int:
    """The number of clusters that hold data. Every table and cluster is within the file."""
    cluster = fields.cluster_bytes
    l2_offsets = []
    for piece in headers.table(
        source,
        fields.l1_offset,
        fields.l1_count,
        code="Q",
        big_endian=True,
        what="first-level table",
    ):
        l2_offsets += [offset for entry in piece if (offset := entry & _OFFSET_MASK)]
        headers.require_room(source, len(l2_offsets), cluster, "second-level table")
    headers.require_distinct(source, l2_offsets, "second-level table")
    mapped = 0
    for number, offset in enumerate(l2_offsets):
        if offset % cluster:
            raise source.refuse(f"a second-level table begins within a cluster, at byte {offset}")
        if number % 64 == 0:
            progress(number / len(l2_offsets), "looking at its tables")
        for piece in headers.table(
            source, offset, cluster // 8, code="Q", big_endian=True, what="second-level table"
        ):
            mapped += _check_clusters(source, fields, piece[::2] if fields.extended else piece)
    return mapped


def _check_clusters(source: Source, fields: _Fields, entries: "array[int]") -> int:
    if max(map(_COMPRESSED.__and__, entries)):
        offset_bits = 62 - (fields.cluster_bits - 8)
        packed = [entry & ((1 << offset_bits) - 1) for entry in entries if entry & _COMPRESSED]
        headers.require_within(source, max(packed), 1, "compressed cluster")
        entries = array("Q", [entry for entry in entries if not entry & _COMPRESSED])
    else:
        packed = []
    if not entries:
        return len(packed)
    # The last cluster of a file may be a short one: QEMU writes whole sectors only.
    headers.require_within(source, max(map(_OFFSET_MASK.__and__, entries)), 1, "cluster")
    return len(packed) + len(entries) - list(map(_OFFSET_MASK.__and__, entries)).count(0)
