"""Whether files are still what was written: checksums of a disk, or of a container's whole tree.

A disk's is of what it holds and where, so holes cost nothing. A tree's is of every name, kind,
mode, owner, extended attribute and content; not of times, which reading may change, nor of SELinux
labels, which an administrator may renew. No device or FIFO is opened, no symlink followed. Nobody
may write to them meanwhile. Blocks.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from twofold.storage import memory, trees

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENEWABLE = ("security.selinux",)
_READERS = 2


def of(directory: str, names: Iterable[str]) -> dict[str, str]:
    """Of the disks and trees of these names. Raises OSError."""
    with ThreadPoolExecutor(_READERS) as pool:
        reading = {name: pool.submit(_checksum, f"{directory}/{name}") for name in names}
        return {name: one.result() for name, one in reading.items()}


def damaged(directory: str, written: Mapping[str, str]) -> list[str]:
    """Those that are not what ``written`` says; what cannot be read is not."""

    def is_damaged(name: str) -> bool:
        try:
            return _checksum(f"{directory}/{name}") != written[name]
        except OSError:
            return True

    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(written, pool.map(is_damaged, written), strict=True))
    return [name for name, is_bad in found.items() if is_bad]


def _checksum(path: str) -> str:
    return _of_tree(path) if os.path.isdir(path) else memory.checksum(path)


def _of_tree(path: str) -> str:
    digest = hashlib.sha256()
    seen: dict[int, int] = {}  # hard links: by inode, which one in the order of names
    for entry in trees.walk(path):
        digest.update(_facts(entry))
        status = entry.status
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_ino in seen:
            digest.update(b"=%d" % seen[status.st_ino])
            continue
        if status.st_nlink > 1:
            seen[status.st_ino] = len(seen)
        _feed_file(digest, entry.name, entry.fd)
    return digest.hexdigest()


def _facts(entry: trees.Entry) -> bytes:
    name, status = entry.name, entry.status
    said = [entry.depth, name, status.st_mode, status.st_uid, status.st_gid, status.st_rdev]
    if stat.S_ISLNK(status.st_mode):
        said.append(os.readlink(name, dir_fd=entry.fd))
    path = f"/proc/self/fd/{entry.fd}/{name}"
    for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
        if attribute not in _RENEWABLE:
            said += [attribute, os.getxattr(path, attribute, follow_symlinks=False)]
    return repr(said).encode()


def _feed_file(digest: "hashlib._Hash", name: str, fd: int) -> None:
    file = os.open(name, _FILE, dir_fd=fd)
    try:
        memory.feed(digest, file)
    finally:
        os.close(file)
