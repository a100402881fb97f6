"""A newc cpio archive as the kernel unpacks it into its first root. Writes; reads nothing.

Our own writer, because the entries are made up (no file on the host looks like them), owners are
always root, and the result has to be the same bytes for the same input.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file; ``path`` is relative. ``data`` is the content, or a symlink's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path=path, mode=stat.S_IFDIR | mode)


def regular(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | mode, data=data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path=path, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive. Parent directories are added; a path given twice is refused (ValueError)."""
    given = list(entries)
    paths = [entry.path for entry in given]
    if len(set(paths)) != len(paths):
        raise ValueError(f"cpio: path given twice: {sorted(paths)!r}")
    for path in paths:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path or not path:
            raise ValueError(f"cpio: path {path!r} is not a plain relative path")
    parents = {
        path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)
    }
    complete = [directory(path) for path in parents - set(paths)] + given
    # Parents sort before their children: the kernel makes no directories of its own accord.
    complete.sort(key=lambda entry: entry.path)
    blocks = [_record(entry, number) for number, entry in enumerate(complete, start=1)]
    blocks.append(_record(Entry(path="TRAILER!!!", mode=0), 0))
    result = b"".join(blocks)
    return result + bytes(-len(result) % 512)


def _record(entry: Entry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0
    )  # fmt: skip
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    head += bytes(-len(head) % 4)
    return head + entry.data + bytes(-len(entry.data) % 4)
