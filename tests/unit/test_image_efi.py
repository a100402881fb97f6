"""For which processors there is a boot loader: FAT file systems of every width, and broken ones."""

import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.image.disks import efi, partitions
from twofold.image.disks.source import Source
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore

_SECTOR = 512
_DIRECTORY = 0x10


def entry(name: str, cluster: int, attributes: int = _DIRECTORY) -> bytes:
    base, _, kind = name.partition(".")
    raw = f"{base:<8}{kind:<3}".encode() + bytes([attributes]) + bytes(14)
    return (raw[:20] + struct.pack("<H", cluster >> 16) + raw[22:26]).ljust(
        26, b"\0"
    ) + struct.pack("<HI", cluster & 0xFFFF, 1)


def fat(bits: int, *loaders: str, chain: int = 1, folder: str = "BOOT") -> bytearray:
    """EFI in the root, BOOT in it, and in that the loaders, ``chain`` clusters behind its first."""
    clusters = {12: 1000, 16: 5000, 32: 70000}[bits]
    table = -(-(clusters + 2) * bits // 8 // _SECTOR)
    root_entries = 0 if bits == 32 else 512
    data = 1 + table + root_entries * 32 // _SECTOR
    disk = bytearray((data + 40) * _SECTOR)  # the rest of it is beyond the end of the file
    total = data + clusters
    struct.pack_into("<HBHBHH", disk, 11, _SECTOR, 1, 1, 1, root_entries, 0)
    struct.pack_into("<H", disk, 22, 0 if bits == 32 else table)
    struct.pack_into("<II", disk, 32, total, table if bits == 32 else 0)
    struct.pack_into("<I", disk, 44, 2 if bits == 32 else 0)
    disk[510:512] = b"\x55\xaa"

    def put(cluster: int, *entries: bytes) -> None:
        at = (data + cluster - 2) * _SECTOR if cluster else (1 + table) * _SECTOR
        disk[at : at + 32 * len(entries)] = b"".join(entries)

    def link(cluster: int, following: int) -> None:
        at = _SECTOR + cluster * bits // 8
        word = int.from_bytes(disk[at : at + 4], "little")
        shift = 4 if bits == 12 and cluster & 1 else 0
        word |= following << shift
        disk[at : at + 4] = word.to_bytes(4, "little")

    put(2 if bits == 32 else 0, entry("LABEL", 0, 0x08), entry("EFI", 3))
    put(3, entry(".", 3), entry("OTHER", 9), entry(folder, 4))
    full = [entry(f"FILE{n}", 9, 0x20) for n in range(_SECTOR // 32)]
    last = 4
    for _ in range(chain):
        put(last, *full)
        link(last, last + 1)
        last += 1
    put(last, *(entry(name, 9, 0x20) for name in loaders))
    link(last, (1 << min(bits, 28)) - 1)
    return disk


def found(path: Path, data: bytes, start: int = 0) -> frozenset[str]:
    path.write_bytes(bytes(start) + data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return efi.processors(Source(fd, "it"), start)
    finally:
        os.close(fd)


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("chain", [0, 5])
def test_the_names_tell(bits: int, chain: int, tmp_path: Path) -> None:
    made = fat(bits, "BOOTAA64.EFI", "BOOTX64.EFI", "GRUB.CFG", "BOOTRI~1.EFI", chain=chain)
    assert found(tmp_path / "d", made, start=4096) == {"arm64", "amd64", "riscv64"}


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_nothing_where_there_is_no_loader(bits: int, tmp_path: Path) -> None:
    assert not found(tmp_path / "d", fat(bits, "GRUBAA64.EFI"))
    assert not found(tmp_path / "d", fat(bits, "BOOTAA64.EFI", folder="DEBIAN"))
    gone = fat(bits, "BOOTAA64.EFI", chain=0)
    gone[gone.index(b"BOOTAA64")] = 0xE5  # deleted
    assert not found(tmp_path / "d", gone)


def test_a_ring_and_a_cluster_far_away_come_to_an_end(tmp_path: Path) -> None:
    ring = fat(16, "BOOTAA64.EFI")
    struct.pack_into("<H", ring, _SECTOR + 4 * 2, 4)
    far = fat(32, "BOOTAA64.EFI")
    far[13] = 128
    for at in range(_SECTOR, _SECTOR + 64, 4):
        struct.pack_into("<I", far, at, 60000)
        struct.pack_into("<I", far, _SECTOR + 60000 * 4, 60000)
    begun = time.monotonic()
    assert not found(tmp_path / "d", ring)
    assert not found(tmp_path / "d", far)
    assert time.monotonic() - begun < 1


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from([12, 16, 32]),
    patches=st.lists(
        st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=6
    ),
)
def test_nothing_in_it_is_believed(
    bits: int, patches: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = fat(bits, "BOOTAA64.EFI")
    for at, data in patches:
        at = at % 64 if at < 1000 else at  # mostly the boot sector's fields
        made[at : at + len(data)] = data
    made[510:512] = b"\x55\xaa"
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    assert found(path, made) <= {"arm64"}


def gpt(file_system: bytes, at: int = 40) -> bytearray:
    disk = bytearray(at * _SECTOR) + file_system + bytearray(64 << 10)
    disk[446:462] = bytes([0, 0, 0, 0, 0xEE, 0, 0, 0]) + struct.pack("<II", 1, 0xFFFF)
    disk[510:512] = b"\x55\xaa"
    disk[512:520] = b"EFI PART"
    struct.pack_into("<QII", disk, 512 + 72, 2, 4, 128)
    disk[1024:1040] = partitions._EFI_SYSTEM_GUID
    struct.pack_into("<QQ", disk, 1024 + 32, at, at + 1000)
    return disk


def mbr(file_system: bytes, at: int = 40) -> bytearray:
    disk = gpt(file_system, at)
    disk[512:520] = bytes(8)
    disk[446:462] = bytes([0, 0, 0, 0, 0xEF, 0, 0, 0]) + struct.pack("<II", at, 0xFFFF)
    return disk


@pytest.mark.parametrize("table", [gpt, mbr])
def test_an_imported_disk_knows_its_processor(table: type[bytearray], tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path / "images"))
    path = tmp_path / "arm.img"
    path.write_bytes(table(fat(16, "BOOTAA64.EFI")))
    image = import_file(store, str(path))
    assert image.disk is not None
    assert (image.architecture, image.disk.processors) == ("arm64", ["arm64"])
    assert image.disk.boot_uefi
    path.write_bytes(table(fat(16, "BOOTAA64.EFI", "BOOTX64.EFI")))
    both = import_file(store, str(path), "both")
    assert both.architecture == "unknown"
    told = import_file(store, str(path), "told", architecture="arm64")
    assert (told.architecture, store.resolve("told").architecture) == ("arm64", "arm64")
