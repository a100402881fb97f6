"""Tar streams out of and into a directory: faithful, and never outside of it."""

import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.errors import InvalidInput, NotFound, RuntimeFailed, TwofoldError
from twofold.guest.archive import tar_in, tar_out


def pack(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            info.uid, info.gid = os.getuid(), os.getgid()
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def unpack(target: Path, stream: bytes) -> None:
    """Feed ``tar_in`` through a pipe."""
    _through_pipe(lambda fd: tar_in(str(target), fd), stream)


def _through_pipe(consume: Callable[[int], None], stream: bytes) -> None:
    read, write = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(write, "wb") as file:
                file.write(stream)
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        consume(read)
    finally:
        os.close(read)
        feeder.join()


def collect(path: Path | str) -> tarfile.TarFile:
    read, write = os.pipe()
    failure: list[TwofoldError] = []

    def produce() -> None:
        try:
            tar_out(str(path), write)
        except TwofoldError as error:
            failure.append(error)
        finally:
            os.close(write)

    producer = threading.Thread(target=produce)
    producer.start()
    with os.fdopen(read, "rb") as file:
        data = file.read()
    producer.join()
    if failure:
        raise failure[0]
    return tarfile.open(fileobj=io.BytesIO(data))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    (tmp_path / "canary").write_text("untouched")
    return tmp_path / "target"


def canary_lives(target: Path) -> bool:
    outside = sorted(path.name for path in target.parent.iterdir())
    return outside == ["canary", "target"] and (target.parent / "canary").read_text() == "untouched"


def test_a_tree_comes_back_as_it_was(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "target" / "tree"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(300_001))
    (source / "deep/er/file").chmod(0o4751)
    (source / "link").symlink_to("deep/er/file")
    (source / "dangling").symlink_to("/nowhere")
    os.link(source / "deep/er/file", source / "same")
    os.mkfifo(source / "pipe")
    (source / ("long" * 60)).write_text("x")
    (source / "ünï").write_text("y")
    with collect(source) as tar:
        names = tar.getnames()
        assert names[0] == "tree"
        tar.fileobj.seek(0)  # type: ignore[union-attr]
        stream = tar.fileobj.read()  # type: ignore[union-attr]
    copy = target / "copy"
    copy.mkdir()
    unpack(copy, stream)
    twin = copy / "tree"
    assert (twin / "deep/er/file").read_bytes() == (source / "deep/er/file").read_bytes()
    assert stat.S_IMODE((twin / "deep/er/file").stat().st_mode) == 0o4751
    assert (twin / "deep/er/file").stat().st_mtime == int((source / "deep/er/file").stat().st_mtime)
    assert os.readlink(twin / "link") == "deep/er/file"
    assert os.readlink(twin / "dangling") == "/nowhere"
    assert (twin / "same").stat().st_ino == (twin / "deep/er/file").stat().st_ino
    assert stat.S_ISFIFO((twin / "pipe").lstat().st_mode)
    assert sorted(os.listdir(twin)) == sorted(os.listdir(source))


def test_one_file_is_one_entry_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with collect(tmp_path / "file") as tar:
        assert tar.getnames() == ["file"]


def test_a_symlink_is_copied_as_such_and_followed_before_a_slash(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("content")
    (tmp_path / "link").symlink_to("dir")
    with collect(tmp_path / "link") as tar:
        assert [(item.name, item.issym()) for item in tar] == [("link", True)]
    with collect(f"{tmp_path}/link/") as tar:
        assert tar.getnames() == ["link", "link/file"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="missing"):
        collect(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput):
        collect(tmp_path / "file/below")
    with pytest.raises(NotFound, match="missing"):
        unpack(tmp_path / "missing", b"")
    with pytest.raises(InvalidInput):
        unpack(tmp_path / "file", b"")


def test_a_file_that_shrinks_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    real = os.fstat

    def grown(fd: int) -> os.stat_result:
        values = list(real(fd))
        values[6] = 5000
        return os.stat_result(values)

    monkeypatch.setattr("twofold.guest.archive.os.fstat", grown)
    with collect(tmp_path / "file") as tar:
        body = tar.extractfile("file")
        assert body is not None
        assert body.read() == b"x" * 1000 + bytes(4000)


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "..", "a/.."])
def test_names_that_climb_are_refused(target: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="out of the directory"):
        unpack(target, pack((entry(name), b"x")))
    assert canary_lives(target)


def test_absolute_names_land_inside(target: Path) -> None:
    unpack(target, pack((entry("/etc/file"), b"x")))
    assert (target / "etc/file").read_text() == "x"


@pytest.mark.parametrize("link", ["..", "/", "../../..", "/tmp", "x/../.."])
def test_nothing_is_written_through_a_link_that_leads_out(target: Path, link: str) -> None:
    stream = pack((entry("door", tarfile.SYMTYPE, link), b""), (entry("door/canary"), b"bad"))
    with pytest.raises((InvalidInput, RuntimeFailed)):
        unpack(target, stream)
    assert canary_lives(target)


def test_a_link_over_which_a_file_comes_is_replaced_not_followed(target: Path) -> None:
    link = entry("door", tarfile.SYMTYPE, "../canary")
    unpack(target, pack((link, b""), (entry("door"), b"new")))
    assert (target / "door").read_text() == "new"
    assert canary_lives(target)


def test_links_that_stay_inside_are_followed(target: Path) -> None:
    (target / "usr/bin").mkdir(parents=True)
    (target / "bin").symlink_to("usr/bin")
    unpack(target, pack((entry("bin", tarfile.DIRTYPE), b""), (entry("bin/tool"), b"x")))
    assert (target / "usr/bin/tool").read_text() == "x"
    assert (target / "bin").is_symlink()


@pytest.mark.parametrize("link", ["../canary", "/etc/passwd", "door/canary"])
def test_hard_links_to_the_outside_are_refused(target: Path, link: str) -> None:
    (target / "door").symlink_to("..")
    with pytest.raises((InvalidInput, RuntimeFailed)):
        unpack(target, pack((entry("mine", tarfile.LNKTYPE, link), b"")))
    assert not (target / "mine").exists()


def test_a_file_does_not_replace_a_directory(target: Path) -> None:
    (target / "dir").mkdir()
    with pytest.raises(InvalidInput, match="directory"):
        unpack(target, pack((entry("dir"), b"x")))


def test_header_records_are_bounded(target: Path) -> None:
    """tarfile reads a PAX record whole: 8 GiB of it must not be asked for."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    with pytest.raises(InvalidInput, match="header record"):
        unpack(target, header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


@pytest.mark.parametrize("stream", [b"", b"not a tar" * 200, b"x"])
def test_what_is_no_tar_is_refused(target: Path, stream: bytes) -> None:
    with pytest.raises(InvalidInput, match="tar"):
        unpack(target, stream)
    assert os.listdir(target) == []


def test_a_cut_stream_is_an_error(target: Path) -> None:
    stream = pack((entry("file"), b"x" * 100_000))
    with pytest.raises(InvalidInput):
        unpack(target, stream[:50_000])


def test_padding_after_the_end_is_taken(target: Path) -> None:
    unpack(target, pack((entry("file"), b"x")) + bytes(1 << 20))
    assert (target / "file").read_text() == "x"
