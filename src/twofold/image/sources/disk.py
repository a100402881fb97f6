"""Disks and install media from a file: looked at, brought into one raw sparse file, checksummed.

The header is read here, by strict and bounded code, before any foreign program opens the file; the
format found, or stated by the user, is pinned from then on. Refuses a disk that leans on another
file, an encrypted one, and one whose sizes make no sense.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from twofold.errors import Conflict, InvalidInput, NoSpace, NotFound
from twofold.image import names
from twofold.image.disks import content, detect, efi, iso9660, partitions, qcow2, vdi, vhdx, vmdk
from twofold.image.disks.content import Content
from twofold.image.disks.convert import convert
from twofold.image.disks.header import Header, check_size
from twofold.image.disks.record import DiskRecord
from twofold.image.disks.source import Source
from twofold.image.store import ORIGIN, ImageStore
from twofold.image.workspace import storage_errors
from twofold.model.image import DiskFacts, Image, ImageKind, PartitionTable
from twofold.model.progress import Progress

_INSPECTORS: dict[str, Callable[[Source, Progress], Header]] = {
    "qcow2": qcow2.inspect,
    "vmdk": vmdk.inspect,
    "vdi": vdi.inspect,
    "vhdx": vhdx.inspect,
}
_SECTOR_BYTES = 512
_MOST_SYSTEM_PARTITIONS = 4  # that are looked into


def recognise(fd: int, path: str) -> str:
    """One of ``detect.FORMATS`` when the file bears its mark, ``""`` when it bears none."""
    return detect.format_of(_source(fd, path))


def could_be_raw(fd: int, path: str) -> bool:
    return detect.could_be_raw(_source(fd, path), path)


def is_text(fd: int, path: str) -> bool:
    return detect.is_text(_source(fd, path))


def import_disk(
    store: ImageStore,
    fd: int,
    path: str,
    *,
    name: str | None,
    origin: str,
    disk_format: str,
    stated: bool,
    architecture: str,
    working: str,
    progress: Progress,
) -> Image:
    """Bring the disk in the open file into the store, within ``store.working()``. ``architecture``
    is what the user says of it, "" where its content is to tell.

    Raises InvalidInput, Unsupported, NoSpace, Conflict; the store is then unchanged.
    """
    source = _source(fd, path)
    if source.size_bytes == 0:
        raise source.refuse("it is empty", hint="give a disk image or install medium")
    kind = detect.kind_of(disk_format, source, stated=stated)
    name = name or _own_name(store, path, kind)
    draft = os.path.join(working, "disk.raw")
    with storage_errors(f"store the disk {source.shown!r}"):
        if disk_format in _INSPECTORS:
            found = _convert(source, disk_format, draft, progress)
        else:
            found = _copy(source, kind, draft, progress)
        facts = _facts(draft, source, kind, found, disk_format)
        facts = facts.model_copy(update={"stated_processor": architecture})
    created = datetime.fromtimestamp(max(0, int(os.fstat(fd).st_mtime)), UTC)
    return store.add_disk(
        DiskRecord(kind=kind, created_at=created.strftime("%Y-%m-%dT%H:%M:%SZ"), facts=facts),
        draft,
        found,
        name=name,
        source=f"{facts.format} {facts.file}",
        annotations={ORIGIN: origin},
    )


def _own_name(store: ImageStore, path: str, kind: ImageKind) -> str:
    """A name after the file's, unless that means something of another kind. Raises Conflict."""
    name = names.from_file_name(path)
    try:
        taken = store.resolve(name).kind is not kind
    except NotFound:
        taken = names.is_builtin(name)
    if taken:
        raise Conflict(
            f"the name {name!r}, after the file's, means something else than a {kind.value}",
            hint=f"twofold image import {path} ANOTHER-NAME",
        )
    return name


def _source(fd: int, path: str) -> Source:
    base = os.path.basename(path.rstrip("/"))
    return Source(fd, base.encode("utf-8", "backslashreplace").decode())


def _copy(source: Source, kind: ImageKind, draft: str, progress: Progress) -> Content:
    """The file as it is: its bytes are the disk's."""
    check_size(source, -(-source.size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES)
    if kind is ImageKind.FLOPPY and source.size_bytes not in detect.FLOPPY_SIZES:
        raise source.refuse(
            f"no floppy disk has {source.size_bytes} bytes",
            hint="pad it to 1474560 bytes (truncate -s 1440K), or --format raw for a hard disk",
        )
    if kind is ImageKind.CDROM:
        iso9660.read(source)
    needed, free = os.fstat(source.fd).st_blocks * 512, free_bytes(os.path.dirname(draft))
    if min(needed, source.size_bytes) > free:
        raise _too_big(source, needed, free)
    target = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        sector = iso9660.SECTOR_BYTES if kind is ImageKind.CDROM else _SECTOR_BYTES
        size_bytes = -(-source.size_bytes // sector) * sector
        return content.copy(source.fd, target, size_bytes, progress=progress, what="copying")
    finally:
        os.close(target)


def _convert(source: Source, disk_format: str, draft: str, progress: Progress) -> Content:
    """Inspected here, then converted by a program that can reach nothing else."""
    header = _INSPECTORS[disk_format](source, progress)
    free = free_bytes(os.path.dirname(draft))
    # Compressed, it may become more: that shows on the way.
    needed = min(header.data_bytes, os.fstat(source.fd).st_blocks * 512)
    if needed > free:
        raise _too_big(source, needed, free)
    convert(source, draft, disk_format, header, allowed_bytes=free, progress=progress)
    fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return content.measure(fd, progress=progress, what="checking")
    finally:
        os.close(fd)


def _too_big(source: Source, needed_bytes: int, free: int) -> NoSpace:
    return NoSpace(
        f"{source.shown!r} has {needed_bytes} bytes of data, and {free} are free",
        hint="what could go: twofold image list; twofold list --all",
    )


def free_bytes(directory: str) -> int:
    """What an import may fill: a tenth of the free space is left to what runs."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize * 9 // 10


def _facts(
    draft: str, source: Source, kind: ImageKind, found: Content, disk_format: str
) -> DiskFacts:
    """Read from our own copy, which nobody can change any more."""
    fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        disk = Source(fd, source.shown)
        layout = partitions.read(disk)
        facts = DiskFacts(
            format="raw" if disk_format == "floppy" else disk_format,
            file=source.shown[:255],
            virtual_size_bytes=found.size_bytes,
            used_bytes=found.used_bytes,
            checksum=found.checksum,
            partition_table=layout.partition_table,
            boot_bios=layout.boot_bios,
            boot_uefi=layout.boot_uefi,
            processors=_processors(disk, layout.efi_at),
        )
        if kind is ImageKind.CDROM:
            volume = iso9660.read(disk)
            return facts.model_copy(
                update={
                    "boot_bios": volume.boot_bios,
                    "boot_uefi": volume.boot_uefi,
                    "processors": _processors(disk, (*volume.efi_at, *layout.efi_at)),
                    "volume_id": volume.volume_id,
                    "system_id": volume.system_id,
                    "publisher_id": volume.publisher_id,
                    "application_id": volume.application_id,
                    "volume_size_bytes": volume.size_bytes,
                }
            )
        if kind is ImageKind.FLOPPY:
            return facts.model_copy(
                update={
                    "partition_table": PartitionTable.NONE,
                    "boot_uefi": False,
                    "processors": [],
                }
            )
        return facts
    finally:
        os.close(fd)


def _processors(disk: Source, places: Sequence[int]) -> list[str]:
    found = (efi.processors(disk, at) for at in places[:_MOST_SYSTEM_PARTITIONS])
    return sorted(set().union(*found))


def check_format(name: str) -> str:
    """Raises InvalidInput unless it is one of ``detect.FORMATS``."""
    if name not in detect.FORMATS:
        raise InvalidInput(
            f"unknown disk format {name[:40]!r}", hint=f"one of {', '.join(detect.FORMATS)}"
        )
    return name
