"""Making what is missing inside a root, whatever symlinks lie in it."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from twofold.linux import openat2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def where(fd: int, root: Path) -> str:
    """The place that a descriptor is open at, seen from the root; closes it."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert path.startswith(str(root))
    return path.removeprefix(str(root)) or "/"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("a", "/a"),
        ("/a/b/c", "/a/b/c"),
        ("//a/./b/", "/a/b"),
        ("/../../a", "/a"),
        ("/a/../b", "/b"),
        ("/link/x", "/target/x"),
        ("/up/x", "/etc/x"),
        ("/chain/x", "/target/x"),
        ("/nowhere", "/made/here"),
        ("/nowhere/x", "/made/here/x"),
        ("/turn/x", "/made/x"),
    ],
)
def test_directories_are_made_where_a_chrooted_process_would(
    root: Path, root_fd: int, path: str, expected: str
) -> None:
    (root / "target").mkdir()
    (root / "link").symlink_to("/target")
    (root / "up").symlink_to("../../../../etc")
    (root / "chain").symlink_to("link")
    (root / "nowhere").symlink_to("/made/here")
    (root / "turn").symlink_to("made/here/..")
    assert where(openat2.make_directories(root_fd, path), root) == expected
    assert (root / expected.lstrip("/")).is_dir()
    assert os.listdir(root.parent) == ["root"]


def test_files_are_made_too_and_what_is_there_is_kept(root: Path, root_fd: int) -> None:
    (root / "nowhere").symlink_to("/made/file")
    assert where(openat2.make_file(root_fd, "/nowhere"), root) == "/made/file"
    assert (root / "made/file").read_bytes() == b""
    (root / "made/file").write_text("kept")
    assert where(openat2.make_file(root_fd, "/nowhere"), root) == "/made/file"
    assert (root / "made/file").read_text() == "kept"
    assert where(openat2.make_file(root_fd, "/a/b/c"), root) == "/a/b/c"


@pytest.mark.parametrize("make", [openat2.make_directories, openat2.make_file])
@pytest.mark.parametrize(
    ("path", "number"),
    [("/loop/x", errno.ELOOP), ("/file/x", errno.ENOTDIR), ("/to-file/x", errno.ENOTDIR)],
)
def test_what_cannot_be_made_is_refused(
    root: Path, root_fd: int, make: type, path: str, number: int
) -> None:
    (root / "loop").symlink_to("loop")
    (root / "file").touch()
    (root / "to-file").symlink_to("file")
    before = sorted(os.listdir(root))
    with pytest.raises(OSError) as caught:
        make(root_fd, path)
    assert caught.value.errno == number
    assert sorted(os.listdir(root)) == before


@pytest.mark.parametrize("path", ["/link", "/link/x", "/link/x/y", "/nowhere", "/a/../link/x"])
def test_without_following_a_symlink_anywhere_is_refused(
    root: Path, root_fd: int, path: str
) -> None:
    (root / "target").mkdir()
    (root / "link").symlink_to("target")
    (root / "nowhere").symlink_to("absent")
    for make in (openat2.make_directories, openat2.make_file):
        with pytest.raises(OSError) as caught:
            os.close(make(root_fd, path, follow=False))
        assert caught.value.errno == errno.ELOOP
    assert os.listdir(root / "target") == []


def test_no_descriptor_is_lost(root: Path, root_fd: int) -> None:
    (root / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    os.close(openat2.make_directories(root_fd, "/a/b/c/../../d/e"))
    with pytest.raises(OSError):
        openat2.make_directories(root_fd, "/f/../loop/x/y")
    assert len(os.listdir("/proc/self/fd")) == before
