"""Data disks: sparse, formatted, all or nothing."""

import subprocess
from pathlib import Path

import pytest

from twofold.errors import Conflict, InvalidInput
from twofold.storage import disk

SIZE = 256 << 20


def test_a_disk_is_sparse_private_and_clean(tmp_path: Path) -> None:
    path = tmp_path / "data.img"
    disk.data_disk(str(path), SIZE - 5, str(tmp_path / "cache"))
    status = path.stat()
    assert (status.st_size, status.st_mode & 0o777) == (SIZE, 0o600)
    assert status.st_blocks * 512 < SIZE // 16
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)


def test_the_second_disk_is_a_copy_of_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    disk.data_disk(str(tmp_path / "one"), SIZE, cache)
    monkeypatch.setattr("subprocess.run", None)
    disk.data_disk(str(tmp_path / "two"), SIZE, cache)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_existing_disk_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "data.img"
    path.write_bytes(b"precious")
    with pytest.raises(Conflict):
        disk.data_disk(str(path), SIZE, str(tmp_path / "cache"))
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("size", [-1, 0, 1 << 20, 1 << 62])
def test_absurd_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidInput):
        disk.data_disk(str(tmp_path / "x"), size, str(tmp_path / "cache"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_copy_leaves_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "sparse_copy", fail)
    with pytest.raises(disk.NoSpace, match="No space left"):
        disk.data_disk(str(tmp_path / "x"), SIZE, str(tmp_path / "cache"))
    assert not (tmp_path / "x").exists()


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with open(source, "wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(10 << 20)
        stream.write(b"middle")
    with open(source, "rb") as read, open(target, "wb") as write:
        disk.sparse_copy(read.fileno(), write.fileno())
    assert source.read_bytes() == target.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


def test_whether_copies_share_blocks_is_what_cp_finds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    words = ["cp", "--reflink=always", tmp_path / "file", tmp_path / "copy"]
    clones = subprocess.run(words, capture_output=True).returncode == 0
    assert disk.shares_blocks(str(tmp_path)) is clones
