"""Disk images made for the tests: good ones by qemu-img and xorriso, and what is wrong with others.

A malformed image is a good one with a few bytes changed: ``patched(data, (0x20, ">I", 1))``.
"""

import struct
import subprocess
from pathlib import Path

MIB = 1 << 20
Patch = tuple[int, str, int | bytes]


def content(size_bytes: int = 4 * MIB) -> bytes:
    """What the good disks hold: a boot sector, some data, zeros, and a last sector."""
    data = bytearray(size_bytes)
    data[510:512] = b"\x55\xaa"
    for start in range(MIB, MIB + 200_000, 8):
        data[start : start + 8] = (start * 2654435761 & (1 << 64) - 1).to_bytes(8, "big")
    data[-512:] = b"the end." * 64
    return bytes(data)


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=60)


def make(folder: Path, disk_format: str, *options: str) -> bytes:
    """The good disk in another format."""
    raw, made = folder / "good.raw", folder / "made"
    if not raw.exists():
        raw.write_bytes(content())
    qemu_img("convert", "-f", "raw", "-O", disk_format, *options, raw, made)
    return made.read_bytes()


def patched(data: bytes, *patches: Patch) -> bytes:
    changed = bytearray(data)
    for offset, form, value in patches:
        packed = value if isinstance(value, bytes) else struct.pack(form, value)
        changed[offset : offset + len(packed)] = packed
    return bytes(changed)


def iso(*, blocks: int = 20, catalog: int | None = None, sectors: int = 20) -> bytes:
    """The least that is an ISO 9660 disc; with a boot catalog for both kinds of firmware."""
    data = bytearray(2048 * sectors)
    primary = bytearray(2048)
    primary[:7] = b"\x01CD001\x01"
    primary[8:40] = b"LINUX".ljust(32)
    primary[40:72] = b"TEST_DISC".ljust(32)
    struct.pack_into("<I", primary, 80, blocks)
    struct.pack_into("<H", primary, 128, 2048)
    primary[318:446] = b"A PUBLISHER".ljust(128)
    primary[574:702] = b"AN APPLICATION".ljust(128)
    descriptors = [bytes(primary)]
    if catalog is not None:
        boot = b"\0CD001\x01EL TORITO SPECIFICATION".ljust(71, b"\0") + struct.pack("<I", catalog)
        descriptors.append(boot.ljust(2048, b"\0"))
    descriptors.append(b"\xffCD001\x01".ljust(2048, b"\0"))
    for number, descriptor in enumerate(descriptors, 16):
        data[number * 2048 : (number + 1) * 2048] = descriptor
    if catalog is not None and catalog < sectors:
        validation = bytearray(32)
        validation[0], validation[30:32] = 1, b"\x55\xaa"
        total = sum(struct.unpack("<16H", validation))
        struct.pack_into("<H", validation, 28, -total & 0xFFFF)
        entries = (
            bytes(validation),
            b"\x88".ljust(32, b"\0"),
            b"\x91\xef\x01\x00".ljust(32, b"\0"),
            b"\x88".ljust(32, b"\0"),
        )
        data[catalog * 2048 : catalog * 2048 + 128] = b"".join(entries)
    return bytes(data)
