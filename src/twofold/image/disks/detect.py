"""Which format a file has, by its own bytes: decided once, here, and pinned ever after.

QEMU is never asked to find out: what it finds, a guest could have written. A format that is known
but not taken gets a refusal that says how to convert it.
"""

from twofold.errors import Unsupported
from twofold.image.disks import iso9660, partitions
from twofold.image.disks.source import Source
from twofold.model.image import ImageKind

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "iso", "floppy")
_FLOPPY_KIB = (
    "160 180 320 360 640 720 800 820 830 1200 1440 1600 1640 1660 1680 1722 1743 1760 1840 1920 "
    "2880 3120 3200 3520 3840"
)
FLOPPY_SIZES = frozenset(int(kib) << 10 for kib in _FLOPPY_KIB.split())
_RAW_SUFFIXES = (".img", ".raw", ".ima", ".flp", ".vfd", ".dsk", ".fd", ".dd", ".hdd")
_AT_THE_START = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"vhdxfile", "vhdx"),
)
_FOREIGN_AT_THE_START = (
    (b"QED\0", "QED"),
    (b"conectix", "VHD"),
    (b"WithoutFreeSpace", "Parallels"),
    (b"WithouFreSpacExt", "Parallels"),
    (b"Bochs Virtual HD Image", "Bochs"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"#!/bin/sh\n#V2.0 Format", "cloop"),
)
_FOREIGN_AT_THE_END = ((b"conectix", "VHD"), (b"koly", "DMG"))
_VDI_MAGIC = b"\x7f\x10\xda\xbe"


def format_of(source: Source) -> str:
    """One of FORMATS by a mark that only it has, or ``""``. Raises Unsupported."""
    first = source.glance(0, 512)
    for magic, name in _AT_THE_START:
        if first.startswith(magic):
            return name
    if first.lstrip(b"\xef\xbb\xbf").startswith(b"# Disk DescriptorFile"):
        return "vmdk"
    if first[64:68] == _VDI_MAGIC:
        return "vdi"
    if iso9660.is_iso(source):
        return "iso"
    last = source.glance(source.size_bytes - 512, 512)
    for data, marks in ((first, _FOREIGN_AT_THE_START), (last, _FOREIGN_AT_THE_END)):
        for magic, name in marks:
            if data.startswith(magic):
                raise _foreign(source, name)
    return ""


def could_be_raw(source: Source, path: str) -> bool:
    """For a file without any mark: whether it is to be taken for the bytes of a disk."""
    return source.size_bytes % 512 == 0 and (
        partitions.has_boot_sector(source) or path.lower().endswith(_RAW_SUFFIXES)
    )


def is_text(source: Source) -> bool:
    """Whether it begins as a text does: nothing that holds a disk or an archive is one."""
    first = source.glance(0, 1024)
    try:
        words = first[: first.rfind(b"\n") + 1 or len(first)].decode()
    except UnicodeDecodeError:
        return False
    return bool(words) and all(letter.isprintable() or letter in "\t\n\r\f" for letter in words)


def kind_of(name: str, source: Source, *, stated: bool) -> ImageKind:
    """``stated``: the user said the format, so a floppy-sized raw file is a hard disk."""
    if name == "iso":
        return ImageKind.CDROM
    if name == "floppy" or (name == "raw" and not stated and source.size_bytes in FLOPPY_SIZES):
        return ImageKind.FLOPPY
    return ImageKind.DISK


def _foreign(source: Source, name: str) -> Unsupported:
    if name == "LUKS":
        return Unsupported(
            f"{source.shown!r} is encrypted (LUKS)",
            hint="decrypt it first, or --format raw when the guest is to decrypt it",
        )
    return Unsupported(
        f"{source.shown!r} is a disk in {name} format, which is not taken",
        hint=f"qemu-img convert -O qcow2 {source.shown} DISK.qcow2",
    )
