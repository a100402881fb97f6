"""Is this VMDK file a whole disk by itself, and does it make sense?

Two kinds are: monolithicSparse and streamOptimized, one file with its description inside. All
others name their extents as other files, which can be any file of this host; they are refused, and
so are parents, encryption and tables beyond the file.
"""

import re
import struct
from dataclasses import dataclass

from twofold.image.disks import header as headers
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.model.progress import Progress

_SECTOR_BYTES = 512
_AT_END = 0xFFFFFFFFFFFFFFFF
_MAX_DESCRIPTION_BYTES = 64 << 10
_MAX_DIRECTORY_ENTRIES = 4 << 20
_TYPES = ("monolithicsparse", "streamoptimized")
_SETTING = re.compile(r"\s*([\w.]{1,64})\s*=\s*\"?([^\"]*)\"?\s*\Z")
_EXTENT = re.compile(r"\s*(RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+\"([^\"]*)\")?.*\Z")
_COMPRESSED = 1 << 16
_WHOLE = "make it one file where it is trusted: qemu-img convert -O qcow2 {} WHOLE.qcow2"


@dataclass(frozen=True, kw_only=True)
class _Fields:
    version: int
    flags: int
    capacity: int
    grain: int
    description_at: int
    description_sectors: int
    entries_per_table: int
    directory_at: int
    check: bytes
    compression: int


def inspect(source: Source, progress: Progress) -> Header:
    """Raises InvalidInput with the reason for the refusal."""
    first = source.glance(0, _MAX_DESCRIPTION_BYTES)
    if not first.startswith(b"KDMV"):
        if first.startswith(b"COWD"):
            raise source.refuse("it is an ESX snapshot", hint=_WHOLE.format(source.shown))
        raise _only_a_description(source, first)
    fields = _read(source, 0)
    _require_sane(source, fields)
    _check_description(source, fields)
    if fields.directory_at == _AT_END:
        footer = _read(source, source.size_bytes - 2 * _SECTOR_BYTES)
        same = ("version", "flags", "capacity", "grain", "entries_per_table", "compression")
        if any(getattr(footer, name) != getattr(fields, name) for name in same):
            raise source.refuse("its footer says something else than its header")
        fields = footer
    data_bytes = _walk(source, fields, progress)
    return Header(size_bytes=fields.capacity * _SECTOR_BYTES, data_bytes=data_bytes)


def _read(source: Source, offset: int) -> _Fields:
    raw = source.at(offset, _SECTOR_BYTES, "VMDK header")
    magic, version, flags, capacity, grain, description_at, description_sectors = (
        struct.unpack_from("<4sIIQQQQ", raw)
    )
    if magic != b"KDMV":
        raise source.refuse("its VMDK footer is none", hint=headers.CUT_OFF)
    entries_per_table, _, directory_at = struct.unpack_from("<IQQ", raw, 44)
    (compression,) = struct.unpack_from("<H", raw, 77)
    return _Fields(
        version=version,
        flags=flags,
        capacity=capacity,
        grain=grain,
        description_at=description_at,
        description_sectors=description_sectors,
        entries_per_table=entries_per_table,
        directory_at=directory_at,
        check=raw[73:77],
        compression=compression,
    )


def _require_sane(source: Source, fields: _Fields) -> None:
    if fields.version not in (1, 2, 3):
        raise source.refuse(f"its VMDK version {fields.version} is not known; 1 to 3 are taken")
    if fields.check != b"\n \r\n":
        raise source.refuse("it was damaged by a transfer as text", hint=headers.CUT_OFF)
    headers.check_size(source, fields.capacity * _SECTOR_BYTES)
    if not 8 <= fields.grain <= 2048 or fields.grain & (fields.grain - 1):
        raise source.refuse(f"its grains would have {fields.grain} sectors")
    if fields.entries_per_table != 512:
        raise source.refuse(f"its grain tables would have {fields.entries_per_table} entries")
    if fields.compression > 1 or (fields.flags & _COMPRESSED and fields.compression != 1):
        raise source.refuse(f"its compression {fields.compression} is not known")


def _check_description(source: Source, fields: _Fields) -> None:
    length = fields.description_sectors * _SECTOR_BYTES
    if not 0 < length <= _MAX_DESCRIPTION_BYTES or not fields.description_at:
        raise source.refuse(f"its description would have {length} bytes")
    raw = source.at(fields.description_at * _SECTOR_BYTES, length, "description")
    settings, extents = _parse(raw)
    kind = settings.get("createtype", "")
    if kind.lower() not in _TYPES or len(extents) != 1 or extents[0][0] != "SPARSE":
        raise _in_pieces(source, kind, extents)
    if settings.get("parentcid", "ffffffff").lower() != "ffffffff":
        raise source.refuse(
            "it is only the difference to another disk", hint=_WHOLE.format(source.shown)
        )
    for name in settings:
        if name == "parentfilenamehint" or name.startswith("encryption"):
            raise source.refuse(
                f"it has a parent or is encrypted ({name})", hint=_WHOLE.format(source.shown)
            )


def _parse(raw: bytes) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(settings in lower case, extents as type and file name) of a description."""
    settings: dict[str, str] = {}
    extents = []
    for line in raw.split(b"\0", 1)[0].decode("utf-8", "replace").splitlines():
        if extent := _EXTENT.match(line):
            extents.append((extent.group(2).upper(), extent.group(3) or ""))
        elif setting := _SETTING.match(line):
            settings[setting.group(1).lower()] = setting.group(2)
    return settings, extents


def _only_a_description(source: Source, raw: bytes) -> Exception:
    settings, extents = _parse(raw)
    if "# Disk DescriptorFile" not in raw[:64].decode("utf-8", "replace"):
        return source.refuse("it is no VMDK file", hint="--format says what it is")
    return _in_pieces(source, settings.get("createtype", ""), extents)


def _in_pieces(source: Source, kind: str, extents: list[tuple[str, str]]) -> Exception:
    named = ", ".join(repr(name[:100]) for _, name in extents[:4]) or "none"
    return source.refuse(
        f"it is a VMDK of type {kind[:40]!r}, whose data is in other files: {named}",
        hint=_WHOLE.format(source.shown),
    )


def _walk(source: Source, fields: _Fields, progress: Progress) -> int:
    per_table = fields.entries_per_table * fields.grain
    count = -(-fields.capacity // per_table)
    if count > _MAX_DIRECTORY_ENTRIES:
        raise source.refuse(f"its grain directory would have {count} entries")
    tables: list[int] = []
    for piece in headers.table(
        source,
        fields.directory_at * _SECTOR_BYTES,
        count,
        code="I",
        big_endian=False,
        what="grain directory",
    ):
        tables += [entry for entry in piece if entry]
        headers.require_room(source, len(tables), fields.entries_per_table * 4, "grain table")
    headers.require_distinct(source, tables, "grain table")
    grains = 0
    for number, sector in enumerate(tables):
        if number % 256 == 0:
            progress(number / len(tables), "looking at its tables")
        for piece in headers.table(
            source,
            sector * _SECTOR_BYTES,
            fields.entries_per_table,
            code="I",
            big_endian=False,
            what="grain table",
        ):
            headers.require_within(source, max(piece) * _SECTOR_BYTES, 1, "grain")
            grains += len(piece) - piece.count(0)
    return grains * fields.grain * _SECTOR_BYTES
