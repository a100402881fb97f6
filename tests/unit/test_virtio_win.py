"""A disc is known for the one with Windows' drivers by what it says, whatever it says."""

import random
import struct
from pathlib import Path

import pytest
from disk_images import iso
from test_instance_own_os import image

from twofold.errors import InvalidInput
from twofold.image.disks import iso9660
from twofold.image.disks.source import Source
from twofold.instance import virtio_win
from twofold.model.image import DiskFacts, Image

ROOT = 19  # a sector that the least of discs has left


def disc(path: Path, directory: bytes, *, length: int | None = None, at: int = ROOT) -> Path:
    data = bytearray(iso())
    length = len(directory) if length is None else length
    struct.pack_into("<I", data, 16 * 2048 + 158, at)
    struct.pack_into("<I", data, 16 * 2048 + 166, length)
    data[ROOT * 2048 : ROOT * 2048 + len(directory)] = directory
    path.write_bytes(data)
    return path


def entry(name: bytes) -> bytes:
    record = bytearray(33 + len(name) + (len(name) + 1) % 2)
    record[0], record[32] = len(record), len(name)
    record[33 : 33 + len(name)] = name
    return bytes(record)


def names(path: Path) -> frozenset[str]:
    with path.open("rb") as file:
        return iso9660.root_names(Source(file.fileno(), "disc"))


def of_volume(name: str) -> Image:
    facts = DiskFacts(
        format="iso", file="a", checksum="", virtual_size_bytes=1, used_bytes=1, volume_id=name
    )
    return image("cdrom").model_copy(update={"disk": facts})


def test_names_are_read_across_sectors_and_without_their_version(tmp_path: Path) -> None:
    first = b"".join(map(entry, (b"\0", b"\1", b"NETKVM", b"README.TXT;1"))).ljust(2048, b"\0")
    path = disc(tmp_path / "a.iso", first + entry(b"VIOSTOR"))
    assert {"netkvm", "readme.txt", "viostor"} <= names(path)
    virtio_win.check(of_volume("virtio-win-0.1.271"), "a", str(path))
    with pytest.raises(InvalidInput, match="volume is called 'CCCOMA_X64FRE'"):
        virtio_win.check(of_volume("CCCOMA_X64FRE"), "a", str(path))
    other = disc(tmp_path / "b.iso", first)
    with pytest.raises(InvalidInput, match="no folder 'viostor'"):
        virtio_win.check(of_volume("virtio-win-1"), "b", str(other))


@pytest.mark.parametrize(
    ("length", "at"), [(0xFFFFFFFF, ROOT), (0xFFFFFFFF, 0xFFFFFFFF), (0, ROOT), (5, ROOT), (34, 99)]
)
def test_a_directory_that_is_none(tmp_path: Path, length: int, at: int) -> None:
    path = disc(tmp_path / "a.iso", entry(b"VIOSTOR"), length=length, at=at)
    assert len(names(path)) <= 1


def test_wild_directories_end(tmp_path: Path) -> None:
    wild = random.Random(5)
    for _ in range(50):
        path = disc(tmp_path / "a.iso", wild.randbytes(2048), length=1 << 31)
        assert "viostor" not in names(path)
