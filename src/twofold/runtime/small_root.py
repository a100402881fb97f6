"""A root in memory that holds nothing but what is put into it: for a program of the host's that
handles a stranger's words, and for the process that turns into it."""

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from twofold.linux import mount
from twofold.record import dataclass

SAFE = mount.ATTR_NOSUID | mount.ATTR_NODEV
_SIZE = "256k"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """``tree`` is a file's detached mount, which is used up; ``attributes`` what it gets."""

    path: str
    tree: int
    attributes: int


def libraries(paths: Iterable[str]) -> list[Shown]:
    """The host's programs and libraries at their own paths, read-only."""
    return [
        Shown(
            path=path,
            tree=mount.open_tree(os.path.realpath(path)),
            attributes=SAFE | mount.ATTR_RDONLY,
        )
        for path in paths
    ]


def enter(
    place: str, shown: Iterable[Shown], *, texts: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Make it the caller's root, read-only; the caller has a mount namespace of its own.

    It is mounted on the directory ``place`` for a moment. ``texts`` are small files by their paths.
    Raises OSError.
    """
    root = mount.new_filesystem("tmpfs", {"mode": "0755", "size": _SIZE}, attributes=SAFE)
    place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    mount.move_mount(root, place_fd)
    os.chdir(place)
    for one in shown:
        mount.set_attributes(one.tree, one.attributes)
        _put(one.path, one.tree)
    for path, text in texts.items():
        fd = _create(path)
        try:
            os.write(fd, text.encode("ascii"))
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
    # The new root on top of the old one, which is then let go of.
    mount.pivot_root(".", ".")
    mount.umount(".")
    os.chdir("/")
    mount.set_attributes(root, SAFE | mount.ATTR_RDONLY)


def _put(path: str, tree: int) -> None:
    fd = _create(path)
    try:
        mount.move_mount(tree, fd)
    finally:
        os.close(fd)
        os.close(tree)


def _create(path: str) -> int:
    """A new file at ``path`` of the new root, which is the working directory."""
    inside = path.lstrip("/")
    os.makedirs(os.path.dirname(inside) or ".", 0o755, exist_ok=True)
    return os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
