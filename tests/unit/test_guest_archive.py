"""Tar streams out of and into a directory: faithful, and never outside of it."""

import io
import os
import select
import stat
import subprocess
import tarfile
import threading
import time
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


class Halted:
    """``tar_out`` in the middle of its work: its pipe is full, for nobody reads yet."""

    def __init__(self, path: Path) -> None:
        self._read, self._write = os.pipe()
        self._failure: list[TwofoldError] = []
        self._thread = threading.Thread(target=self._produce, args=(str(path),))
        self._thread.start()
        while self._thread.is_alive() and select.select([], [self._write], [], 0)[1]:
            time.sleep(0.001)  # nothing tells when a writer begins to wait
        assert self._thread.is_alive(), "too little in it to fill a pipe"

    def _produce(self, path: str) -> None:
        try:
            tar_out(path, self._write)
        except TwofoldError as error:
            self._failure.append(error)
        finally:
            os.close(self._write)

    def go_on(self) -> tarfile.TarFile:
        with os.fdopen(self._read, "rb") as file:
            data = file.read()
        self._thread.join()
        if self._failure:
            raise self._failure[0]
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


def body_of(tar: tarfile.TarFile, name: str) -> bytes:
    body = tar.extractfile(name)
    assert body is not None
    return body.read()


@pytest.mark.parametrize("swapped", ["tree", "tree/dir"])
def test_a_directory_swapped_for_a_link_leads_nowhere(tmp_path: Path, swapped: str) -> None:
    (tmp_path / "tree/dir").mkdir(parents=True)
    (tmp_path / "tree/dir/0").write_bytes(bytes(1 << 20))
    (tmp_path / "tree/dir/secret").write_text("harmless")
    elsewhere = tmp_path / "elsewhere" / "dir" if swapped == "tree" else tmp_path / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / "secret").write_text("canary")
    halted = Halted(tmp_path / "tree")
    (tmp_path / swapped).rename(tmp_path / "gone")
    (tmp_path / swapped).symlink_to(tmp_path / "elsewhere")
    # The control: who goes by the path is led to what it must not have.
    assert (tmp_path / "tree/dir/secret").read_text() == "canary"
    with halted.go_on() as tar:
        assert tar.getnames() == ["tree", "tree/dir", "tree/dir/0", "tree/dir/secret"]
        assert body_of(tar, "tree/dir/secret") == b"harmless"


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_becomes_a_link_before_it_is_opened_is_archived_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = tmp_path / "tree/name"
    name.mkdir(parents=True)
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").write_text("canary")
    if kind == "file":
        name.rmdir()
        name.write_text("x")
    real = os.lstat

    def swap(path: str, **where: int) -> os.stat_result:
        info = real(path, **where)
        if path == "name" and not stat.S_ISLNK(info.st_mode):
            name.rename(tmp_path / "was")
            name.symlink_to(tmp_path / "canary")
        return info

    monkeypatch.setattr("twofold.guest.archive.os.lstat", swap)
    with collect(tmp_path / "tree") as tar:
        assert [(one.name, one.issym()) for one in tar] == [("tree", False), ("tree/name", True)]


def test_a_deep_tree_takes_few_descriptors_and_comes_whole(tmp_path: Path) -> None:
    level = tmp_path / "tree"
    for depth in range(400):
        level.mkdir()
        (level / "z").write_text(str(depth))
        level = level / "d"
    level.mkdir()
    (level / "big").write_bytes(bytes(1 << 20))
    before = len(os.listdir("/proc/self/fd"))
    halted = Halted(tmp_path / "tree")
    assert len(os.listdir("/proc/self/fd")) - before < 50
    with halted.go_on() as tar:
        names = tar.getnames()
        middle = f"tree{'/d' * 200}/z"
        assert body_of(tar, middle) == b"200"
    expected = [f"tree{'/d' * depth}" for depth in range(401)]
    expected += [f"{expected[-1]}/big"] + [f"{path}/z" for path in expected[-2::-1]]
    assert names == expected


def test_a_tree_that_moves_while_its_top_is_closed_is_not_followed_up(tmp_path: Path) -> None:
    deep = tmp_path / "tree" / Path(*["d"] * 60)
    deep.mkdir(parents=True)
    (deep / "big").write_bytes(bytes(1 << 20))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/z").write_text("canary")
    (tmp_path / "tree/d/d/z").write_text("harmless")
    halted = Halted(tmp_path / "tree")
    (tmp_path / "tree/d/d/d").rename(tmp_path / "secrets/d")
    with pytest.raises(RuntimeFailed, match="moved elsewhere"):
        halted.go_on()


def test_a_name_longer_than_any_path_is_refused(tmp_path: Path) -> None:
    """Deeper than a path can say, and so never in an archive: as deep as it likes, made by
    whoever is inside."""
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(25):
            os.mkdir("n" * 200, dir_fd=here)
            below = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with pytest.raises(RuntimeFailed, match="too long"):
            collect(tmp_path)
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", tmp_path / ("n" * 200)], check=True)


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
