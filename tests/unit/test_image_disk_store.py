"""Disks in the store: found by kind, named by content, noticed when damaged, collected."""

import os
from pathlib import Path

import pytest

from twofold.errors import Conflict, Corrupt, InvalidInput
from twofold.image.disks import content
from twofold.image.disks.content import PIECE_BYTES
from twofold.image.sources.file import import_file, origin_of
from twofold.image.store import ImageStore
from twofold.model.image import Image, ImageKind
from twofold.model.progress import silent

FLOPPY_BYTES = 1440 << 10


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def raw(tmp_path: Path, name: str, size_bytes: int, **pieces: bytes) -> Path:
    """A sparse file that bears a boot signature; ``at_123=b"x"`` writes at byte 123."""
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for place, data in {"at_510": b"\x55\xaa", **pieces}.items():
            file.seek(int(place.removeprefix("at_")))
            file.write(data)
    return path


def test_a_raw_disk_is_kept_sparse_and_read_only(store: ImageStore, tmp_path: Path) -> None:
    path = raw(tmp_path, "Big Disk.raw", 20 << 30, at_10737418240=b"in the middle")
    image = import_file(store, str(path))
    assert image.names == ["big-disk:latest"]
    assert (image.kind, image.layers, image.os) == (ImageKind.DISK, [], "unknown")
    assert image.disk is not None
    assert image.disk.virtual_size_bytes == 20 << 30
    assert image.disk.used_bytes == image.size_bytes == 2 * content.GRAIN_BYTES
    assert image.disk.file == "Big Disk.raw"
    status = os.stat(store.disk_file(image))
    assert status.st_mode & 0o777 == 0o400
    assert status.st_size == 20 << 30
    assert status.st_blocks * 512 < 1 << 20
    # Another store of the same directory, as the next daemon, sees the same.
    assert ImageStore(str(tmp_path / "images")).list() == store.list() == [image]


def test_zeros_written_out_and_holes_are_the_same_content(store, tmp_path: Path) -> None:
    hole = raw(tmp_path, "hole.img", 3 * PIECE_BYTES, at_9000000=b"data")
    full = tmp_path / "full.img"
    full.write_bytes(hole.read_bytes())
    sparse, dense = (import_file(store, str(path)) for path in (hole, full))
    assert sparse.disk is not None
    assert dense.disk is not None
    assert sparse.disk.checksum == dense.disk.checksum
    assert store.disk_file(sparse) == store.disk_file(dense)
    other = raw(tmp_path, "other.img", 3 * PIECE_BYTES, at_9000001=b"data")
    moved = import_file(store, str(other)).disk
    assert moved is not None
    assert moved.checksum != dense.disk.checksum


def test_a_disk_goes_with_its_last_image(store: ImageStore, tmp_path: Path) -> None:
    path = raw(tmp_path, "a.img", 1 << 20)
    first = import_file(store, str(path))
    os.utime(path, (1, 1))
    second = import_file(store, str(path), "b")
    assert first.digest != second.digest
    assert len(os.listdir(tmp_path / "images/disks")) == 2  # content and note, once
    store.remove("a", in_use={})
    assert os.path.exists(store.disk_file(second))
    store.remove("b", in_use={second.digest: ["guest"]}, force=True)
    assert os.path.exists(store.disk_file(second))
    store.collect([])
    for room in ("disks", "blobs/sha256", "tmp"):
        assert os.listdir(tmp_path / "images" / room) == []


def test_a_damaged_disk_is_noticed(store: ImageStore, tmp_path: Path) -> None:
    image = import_file(store, str(raw(tmp_path, "a.img", 1 << 20, at_700000=b"precious")))
    path = store.disk_file(image)
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(700000)
        file.write(b"poisoned")
    # The time tells; the next use reads all of it and refuses.
    with pytest.raises(Corrupt, match="damaged") as caught:
        store.disk_file(image)
    assert "twofold image import" in caught.value.hint
    # With its time put back only the full check can tell.
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    store.disk_file(image)
    with pytest.raises(Corrupt, match="damaged"):
        store.verify(image)
    # Imported again it is whole again.
    import_file(store, str(tmp_path / "a.img"))
    store.verify(image)


def test_a_cut_or_missing_disk_is_noticed(store: ImageStore, tmp_path: Path) -> None:
    image = import_file(store, str(raw(tmp_path, "a.img", 1 << 20)))
    path = store.disk_file(image)
    status = os.stat(path)
    os.truncate(path, 1 << 19)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    with pytest.raises(Corrupt, match="damaged"):
        store.disk_file(image)
    os.unlink(path)
    with pytest.raises(Corrupt, match="No such file"):
        store.disk_file(image)


def test_a_restored_backup_is_read_once_and_then_trusted(store, tmp_path: Path) -> None:
    image = import_file(store, str(raw(tmp_path, "a.img", 1 << 20)))
    os.utime(store.disk_file(image), (1, 1))
    path = store.disk_file(image)
    seen: list[str] = []
    store.disk_file(image, lambda fraction, message: seen.append(message))
    assert os.stat(path).st_mtime == 1
    assert not seen


def test_a_root_file_system_has_no_disk(store: ImageStore, tmp_path: Path) -> None:
    image = Image.model_validate(
        {
            "digest": f"sha256:{'1' * 64}",
            "names": ["alpine:latest"],
            "architecture": "amd64",
            "created_at": "2026-01-01T00:00:00Z",
            "size_bytes": 1,
            "layers": [],
            "config": {},
            "source": "test",
        }
    )
    with pytest.raises(InvalidInput, match="root file system"):
        store.disk_file(image)


def test_a_layout_cannot_pose_as_a_disk(store: ImageStore) -> None:
    posing = (
        b'{"schemaVersion":2,"artifactType":"application/vnd.twofold.disk.v1","layers":[],'
        b'"config":{"digest":"sha256:%s","size":2}}' % (b"0" * 64)
    )
    with pytest.raises(InvalidInput, match="disk"):
        store.add(config_blob=b"{}", manifest_blob=posing, name="x", source="test")
    assert store.list() == []


def test_an_import_that_is_cancelled_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(fraction: float | None, message: str) -> None:
        if fraction and fraction > 0.5:
            raise StopError

    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(3 * PIECE_BYTES))
    with pytest.raises(StopError):
        import_file(store, str(path), None, stop, disk_format="raw")
    assert store.list() == []
    assert os.listdir(tmp_path / "images/disks") == os.listdir(tmp_path / "images/tmp") == []


def test_what_kind_a_file_is(store: ImageStore, tmp_path: Path) -> None:
    floppy = raw(tmp_path, "boot.flp", FLOPPY_BYTES)
    assert import_file(store, str(floppy)).kind is ImageKind.FLOPPY
    assert import_file(store, str(floppy), "b", disk_format="raw").kind is ImageKind.DISK
    plain = raw(tmp_path, "plain", 1 << 20, at_510=b"\0\0", at_600=b"no mark")
    with pytest.raises(InvalidInput) as caught:
        import_file(store, str(plain))
    assert "--format raw" in caught.value.hint
    assert import_file(store, str(plain), disk_format="raw").kind is ImageKind.DISK
    with pytest.raises(InvalidInput, match="no floppy disk has 1048576 bytes"):
        import_file(store, str(plain), "c", disk_format="floppy")
    with pytest.raises(InvalidInput, match="unknown disk format 'qcow9'"):
        import_file(store, str(plain), disk_format="qcow9")


def test_a_name_after_the_file_does_not_take_another_kinds(store, tmp_path: Path) -> None:
    disc = raw(tmp_path, "tool.img", FLOPPY_BYTES)
    import_file(store, str(disc))
    for name, stated in (("tool.img", "raw"), ("debian.img", None), ("debian-bookworm", None)):
        path = raw(tmp_path, name, 1 << 20)
        if name == "debian-bookworm":
            assert import_file(store, str(path)).names == ["debian-bookworm:latest"]
            continue
        with pytest.raises(Conflict, match="means something else than a disk") as caught:
            import_file(store, str(path), disk_format=stated)
        assert caught.value.hint == f"twofold image import {path} ANOTHER-NAME"
        assert import_file(store, str(path), "mine", disk_format=stated).names == ["mine:latest"]
    assert store.resolve("tool").kind is ImageKind.FLOPPY


def test_a_file_is_known_until_it_changes(store: ImageStore, tmp_path: Path) -> None:
    path = raw(tmp_path, "a.img", 1 << 20)

    def known() -> Image | None:
        return store.imported_from(origin_of(str(path), os.stat(path)))

    assert known() is None
    image = import_file(store, str(path))
    found = known()
    assert found is not None
    assert found.digest == image.digest
    os.utime(path)
    assert known() is None
    store.remove("a", in_use={})
    import_file(store, str(path))
    store.remove("a", in_use={})
    assert known() is None


def test_an_odd_size_is_filled_up_to_a_sector(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    image = import_file(store, str(path), disk_format="raw")
    with open(store.disk_file(image), "rb") as file:
        assert file.read() == b"x" * 1000 + bytes(24)


def test_the_checksum_is_as_documented(tmp_path: Path) -> None:
    """By hand: what an independent reader of the format would compute."""
    import hashlib

    data = bytes(PIECE_BYTES) + b"a" * PIECE_BYTES + b"b" * 10
    path = tmp_path / "x"
    path.write_bytes(data)
    pieces = (b"a" * PIECE_BYTES, b"b" * 10)
    lines = [f"twofold disk 1 {len(data)}"]
    lines += [f"{n} {hashlib.sha256(piece).hexdigest()}" for n, piece in enumerate(pieces, 1)]
    listing = "".join(f"{line}\n" for line in lines).encode()
    with path.open("rb") as file:
        found = content.measure(file.fileno(), progress=silent, what="")
    assert found.checksum == f"sha256:{hashlib.sha256(listing).hexdigest()}"
