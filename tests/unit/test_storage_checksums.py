"""A tree's checksum: tells every change of what a container has, and survives what one can make."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.instance import ownership
from twofold.storage import checksums


def of(path: Path) -> str:
    return checksums.of(str(path.parent), [path.name])[path.name]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "upper"
    (top / "etc/deep").mkdir(parents=True)
    (top / "etc/word").write_text("then")
    (top / "etc/same").hardlink_to(top / "etc/word")
    (top / "etc/other").write_text("then")
    (top / "link").symlink_to("etc/word")
    os.mkfifo(top / "fifo")
    os.mknod(top / "gone", stat.S_IFCHR, 0)  # as overlayfs remembers what was deleted
    with open(top / "sparse", "wb") as file:
        file.truncate(1 << 40)
    return top


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: (top / "etc/word").write_text("them"),
    "mode": lambda top: os.chmod(top / "etc/other", 0o4755),
    "mode of a directory": lambda top: os.chmod(top / "etc/deep", 0o700),
    "owner": lambda top: os.chown(top / "etc/other", 1, 0),
    "group": lambda top: os.chown(top / "link", 0, 1, follow_symlinks=False),
    "attribute": lambda top: os.setxattr(top / "etc", "trusted.overlay.opaque", b"y"),
    "device": lambda top: (os.unlink(top / "gone"), os.mknod(top / "gone", stat.S_IFCHR, 1)),
    "link": lambda top: (os.unlink(top / "link"), (top / "link").symlink_to("etc/ward")),
    "name": lambda top: os.rename(top / "etc/other", top / "etc/others"),
    "place": lambda top: os.rename(top / "etc/other", top / "etc/deep/other"),
    "gone": lambda top: os.unlink(top / "fifo"),
    "new": lambda top: os.mkdir(top / "new"),
    "hard link": lambda top: (
        os.unlink(top / "etc/same"),
        (top / "etc/same").write_text("then"),
    ),
    "size": lambda top: os.truncate(top / "sparse", (1 << 40) - 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_told(tree: Path, what: str) -> None:
    before = of(tree)
    assert of(tree) == before
    CHANGES[what](tree)
    assert of(tree) != before
    assert checksums.damaged(str(tree.parent), {"upper": before}) == ["upper"]


def test_a_copy_has_the_same_whenever_it_was_made(tree: Path, tmp_path: Path) -> None:
    ownership.copy_tree(str(tree), f"{tmp_path}/copy")
    os.utime(tmp_path / "copy/etc", (1, 1))
    assert of(tmp_path / "copy") == of(tree)


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    """Deeper than calls may nest, and than a path may be long."""
    here = os.open(tmp_path, os.O_RDONLY)
    for name in ["upper", *["d" * 40] * (sys.getrecursionlimit() + 200)]:
        os.mkdir(name, dir_fd=here)
        deeper = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    before = of(tmp_path / "upper")
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert of(tmp_path / "upper") != before
    subprocess.run(["rm", "-rf", tmp_path / "upper"], check=True)


def test_what_cannot_be_read_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "data.img").write_text("then")
    written = checksums.of(str(tmp_path), ["data.img"])
    assert checksums.damaged(str(tmp_path), written) == []
    (tmp_path / "data.img").unlink()
    assert checksums.damaged(str(tmp_path), written) == ["data.img"]
