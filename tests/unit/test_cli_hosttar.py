"""Tar streams of untrusted guests: whatever they hold, nothing outside the target changes."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twofold.cli import hosttar
from twofold.errors import Corrupt, InvalidInput, TwofoldError

SECRET = b"canary"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target that must be the same afterwards."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "canary").write_bytes(SECRET)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["canary"]
    assert (folder / "canary").read_bytes() == SECRET
    assert (folder / "canary").stat().st_nlink == 1


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def entry(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    """An entry below the top ``.``, unless its name says otherwise."""
    info = tarfile.TarInfo(name if name.startswith(("/", ".", "src")) else f"./{name}")
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info


def archive(*entries: tarfile.TarInfo, data: bytes = b"x") -> hosttar.PieceReader:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in entries:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return reader(buffer.getvalue())


def reader(data: bytes, size: int = 1000) -> hosttar.PieceReader:
    return hosttar.PieceReader(iter([data[i : i + size] for i in range(0, len(data), size)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda out: [entry("../outside/x")],
        lambda out: [entry("d/../../outside/x")],
        lambda out: [entry(f"{out}/x")],
        lambda out: [entry("..", tarfile.DIRTYPE), entry("../outside/x")],
        lambda out: [entry("l", tarfile.SYMTYPE, linkname=str(out)), entry("l/x")],
        lambda out: [entry("l", tarfile.SYMTYPE, linkname="../outside"), entry("l/x")],
        lambda out: [
            entry("a", tarfile.SYMTYPE, linkname="b"),
            entry("b", tarfile.SYMTYPE, linkname="../outside"),
            entry("a/x"),
        ],
        lambda out: [
            entry("l", tarfile.SYMTYPE, linkname=str(out)),
            entry("l", tarfile.DIRTYPE),
            entry("l/x"),
        ],
        lambda out: [entry("h", tarfile.LNKTYPE, linkname=f"{out}/canary"), entry("h")],
        lambda out: [entry("h", tarfile.LNKTYPE, linkname="../outside/canary"), entry("h")],
        lambda out: [
            entry("l", tarfile.SYMTYPE, linkname=str(out)),
            entry("h", tarfile.LNKTYPE, linkname="./l/canary"),
        ],
        lambda out: [
            entry("l", tarfile.SYMTYPE, linkname=f"{out}/canary"),
            entry("h", tarfile.LNKTYPE, linkname="./l"),
        ],
    ],
)
def test_escapes_are_refused(
    make: Callable[[Path], list[tarfile.TarInfo]], target: Path, outside: Path
) -> None:
    with pytest.raises(TwofoldError):
        hosttar.unpack(archive(*make(outside), data=b"evil"), str(target), rename=".")


def test_a_link_is_replaced_not_followed(target: Path, outside: Path) -> None:
    link = entry("l", tarfile.SYMTYPE, linkname=str(outside / "canary"))
    hosttar.unpack(archive(link, entry("l"), data=b"evil"), str(target), rename=".")
    assert not (target / "l").is_symlink()
    assert (target / "l").read_bytes() == b"evil"


def test_a_link_that_was_there_is_not_followed_either(target: Path, outside: Path) -> None:
    (target / "d").symlink_to(outside)
    with pytest.raises(Corrupt, match="link or a file here"):
        hosttar.unpack(archive(entry("d/x")), str(target), rename=".")
    with pytest.raises(InvalidInput):
        hosttar.unpack(archive(entry("d", tarfile.DIRTYPE)), str(target), rename=".")


def test_special_files_and_privilege_stay_out(target: Path) -> None:
    left_out = hosttar.unpack(
        archive(
            entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("pipe", tarfile.FIFOTYPE),
            entry("su", mode=0o6755),
            entry("d", tarfile.DIRTYPE, mode=0o7777),
        ),
        str(target),
        rename=".",
    )
    assert left_out == 3
    assert sorted(os.listdir(target)) == ["d", "su"]
    assert (target / "su").stat().st_mode & 0o7777 == 0o755
    assert (target / "d").stat().st_mode & 0o7777 == 0o777


def test_a_read_only_directory_is_filled_first(target: Path) -> None:
    hosttar.unpack(
        archive(entry("d", tarfile.DIRTYPE, mode=0o555), entry("d/x")), str(target), rename="."
    )
    assert (target / "d/x").read_bytes() == b"x"
    assert (target / "d").stat().st_mode & 0o777 == 0o555


def test_renaming_the_top(target: Path) -> None:
    tree = [
        entry("src", tarfile.DIRTYPE),
        entry("src/a"),
        entry("src/b", tarfile.LNKTYPE, linkname="src/a"),
    ]
    hosttar.unpack(archive(*tree), str(target), rename="new")
    hosttar.unpack(archive(*tree), str(target), rename=".")
    assert sorted(os.listdir(target)) == ["a", "b", "new"]
    for folder in (target, target / "new"):
        assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino


def test_a_file_does_not_replace_a_directory(target: Path) -> None:
    (target / "x").mkdir()
    with pytest.raises(InvalidInput, match="is a directory here"):
        hosttar.unpack(archive(entry("x")), str(target), rename=".")


@pytest.mark.parametrize(
    "data",
    [
        b"not a tar at all" * 100,
        b"\x00" * 100,
        b"",
        bytes(range(256)) * 8,
    ],
)
def test_broken_streams_end_cleanly(data: bytes, target: Path) -> None:
    try:
        hosttar.unpack(reader(data), str(target), rename=".")
    except Corrupt:
        pass
    assert not os.listdir(target)


def test_a_cut_stream_is_an_error(target: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        info = entry("x", size=5000)
        tar.addfile(info, io.BytesIO(bytes(5000)))
    with pytest.raises(Corrupt):
        hosttar.unpack(reader(whole.getvalue()[:3000]), str(target), rename=".")


def test_an_absurd_header_record_is_refused(target: Path) -> None:
    info = entry("x", tarfile.XHDTYPE, size=1 << 30)
    with pytest.raises(Corrupt, match="header record"):
        hosttar.unpack(reader(info.tobuf() + bytes(10240)), str(target), rename=".")
    with pytest.raises(Corrupt, match="header record"):
        hosttar.Peeked(reader(info.tobuf() + bytes(10240)))


def test_peeking_consumes_nothing(target: Path) -> None:
    long_name = "d" * 150 + "é"
    for kind, expected in ((tarfile.DIRTYPE, True), (tarfile.REGTYPE, False)):
        peeked = hosttar.Peeked(archive(entry(long_name, kind)))
        assert peeked.is_directory is expected
        hosttar.unpack(peeked, str(target), rename="got" + str(expected))
    assert sorted(os.listdir(target)) == ["gotFalse", "gotTrue"]


def test_pack_and_unpack_are_inverse(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/big").write_bytes(os.urandom(700_000))
    (source / "empty").touch()
    (source / "link").symlink_to("sub/big")
    os.link(source / "empty", source / "twin")
    (source / ("n" * 200)).write_text("long")
    os.mkfifo(source / "pipe")
    os.chmod(source / "empty", 0o600)
    stream = hosttar.PieceReader(hosttar.pack(str(source), "copy"))
    hosttar.unpack(stream, str(target), rename="copy")
    copy = target / "copy"
    assert sorted(os.listdir(copy)) == sorted(set(os.listdir(source)) - {"pipe"})
    assert (copy / "sub/big").read_bytes() == (source / "sub/big").read_bytes()
    assert os.readlink(copy / "link") == "sub/big"
    assert (copy / "empty").stat().st_ino == (copy / "twin").stat().st_ino
    assert (copy / "empty").stat().st_mode & 0o777 == 0o600
    assert int((copy / "sub").stat().st_mtime) == int((source / "sub").stat().st_mtime)


def test_pack_without_a_top(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    data = b"".join(hosttar.pack(f"{tmp_path}/.", ""))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a"]


def test_pack_follows_a_link_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path, kind in (("link", tarfile.SYMTYPE), ("link/", tarfile.DIRTYPE)):
        data = b"".join(hosttar.pack(f"{tmp_path}/{path}", "x"))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getmember("x").type == kind


def test_the_sender_does_not_choose_the_name(target: Path) -> None:
    """Asked for one file, to be put into a directory that holds other things."""
    (target / ".bashrc").write_bytes(b"mine")
    for name in (".bashrc", ".ssh/authorized_keys", "./.bashrc"):
        stream = archive(tarfile.TarInfo(name), data=b"evil")
        hosttar.unpack(stream, str(target), rename="hosts")
        assert sorted(os.listdir(target)) == [".bashrc", "hosts"]
        assert (target / ".bashrc").read_bytes() == b"mine"
        shutil.rmtree(target / "hosts", ignore_errors=True)
        (target / "hosts").unlink(missing_ok=True)


def sparse_member() -> bytes:
    """A pax header that calls its file sparse, and a map that claims no end of holes."""
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    info = tarfile.TarInfo("src")
    info.size = 1 << 33
    info.pax_headers = pax
    return info.tobuf(tarfile.PAX_FORMAT) + b"999999999\n" + b"0\n1\n" * 100


def test_no_map_of_holes_is_read(target: Path) -> None:
    with pytest.raises(Corrupt, match="sparse"):
        hosttar.unpack(reader(sparse_member()), str(target), rename="x")


def test_header_records_without_end_are_refused() -> None:
    record = entry("src", tarfile.XHDTYPE, size=512)

    def pieces() -> Iterator[bytes]:
        while True:
            yield record.tobuf() + b"11 path=x1\n".ljust(512, b"\0")

    with pytest.raises(Corrupt, match="without end"):
        hosttar.Peeked(hosttar.PieceReader(pieces()))


def test_a_name_longer_than_a_path_is_refused(target: Path) -> None:
    with pytest.raises(Corrupt, match="name of"):
        hosttar.unpack(archive(entry("a/" * 3000 + "x")), str(target), rename=".")
    assert not os.listdir(target)
