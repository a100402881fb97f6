"""Which programs of an image a template has in memory."""

import os
from pathlib import Path

from twofold.guest import programs


def put(path: Path, size: int, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    path.chmod(mode)
    return path


def chosen(tmp_path: Path, most_bytes: int = 1 << 20) -> list[str]:
    variable = f"{tmp_path}/none:{tmp_path}/sbin:{tmp_path}/bin"
    found = programs.choose(variable, most_bytes=most_bytes)
    return [os.path.basename(path) for _, path in found]


def test_the_smallest_come_first_until_it_is_enough(tmp_path: Path) -> None:
    for name, size in (("ls", 3000), ("true", 1000), ("cat", 2000), ("find", 4000)):
        put(tmp_path / "bin" / name, size)
    assert chosen(tmp_path) == ["true", "cat", "ls", "find"]
    assert chosen(tmp_path, most_bytes=6500) == ["true", "cat", "ls"]
    assert chosen(tmp_path, most_bytes=999) == []


def test_large_ones_and_what_is_no_program_are_left(tmp_path: Path) -> None:
    put(tmp_path / "bin" / "python3", 65537)
    put(tmp_path / "bin" / "notes", 100, mode=0o644)
    put(tmp_path / "bin" / "empty", 0)
    os.mkfifo(tmp_path / "bin" / "fifo", 0o755)
    (tmp_path / "bin" / "folder").mkdir()
    (tmp_path / "bin" / "dangling").symlink_to("nowhere")
    put(tmp_path / "bin" / "id", 65536)
    assert chosen(tmp_path) == ["id"]


def test_a_program_with_many_names_counts_once(tmp_path: Path) -> None:
    box = put(tmp_path / "bin" / "busybox", 1000)
    put(tmp_path / "sbin" / "init", 2000)
    for name in ("ls", "cat"):
        (tmp_path / "bin" / name).symlink_to("busybox")
        os.link(box, tmp_path / "sbin" / name)
    assert len(chosen(tmp_path, most_bytes=3000)) == 2
