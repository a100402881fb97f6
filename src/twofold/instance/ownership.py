"""A container's files for another container: copied as they are, then owned by other ids.

Owners, modes, times, hard links, device nodes (overlayfs' whiteouts) and extended attributes are
kept; blocks are shared where the file system can. Follows no symlink. Blocks.
"""

import os
import stat
import struct
import subprocess

from twofold.errors import NoSpace, RuntimeFailed
from twofold.storage import trees

_CAPABILITY = "security.capability"
_REVISION_3 = 0x03000000
_REVISION_MASK = 0xFF000000


def copy_tree(source: str, target: str) -> None:
    """``cp -a``, with reflinks. ``target`` does not exist. Raises NoSpace, RuntimeFailed."""
    # It dies with us: the next daemon cleans up where it would go on writing.
    with_us = ("setpriv", "--pdeathsig", "KILL")
    done = subprocess.run(
        [*with_us, "cp", "-a", "--reflink=auto", "--sparse=auto", "--", source, target],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"cp ended with {done.returncode}"])[-1]
        kind = NoSpace if "No space left" in last else RuntimeFailed
        raise kind(f"the files could not be copied: {last}", hint="df -h")


def shift(tree: str, by: int) -> None:
    """Add ``by`` to every owner and group below ``tree``, itself included."""
    if by:
        seen: set[int] = set()
        _shift(tree, by, seen)
        for entry in trees.walk(tree):
            _shift(entry.name, by, seen, dir_fd=entry.fd)


def _shift(name: str, by: int, seen: set[int], *, dir_fd: int | None = None) -> None:
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        if status.st_ino in seen:
            return
        seen.add(status.st_ino)
    regular = stat.S_ISREG(status.st_mode)
    path = name if dir_fd is None else f"/proc/self/fd/{dir_fd}/{name}"
    capability = _capability(path) if regular else b""
    os.chown(name, status.st_uid + by, status.st_gid + by, dir_fd=dir_fd, follow_symlinks=False)
    if regular and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)  # chown took these bits
    if capability:
        os.setxattr(path, _CAPABILITY, _moved(capability, by), follow_symlinks=False)


def _capability(path: str) -> bytes:
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError:
        return b""


def _moved(value: bytes, by: int) -> bytes:
    """A file capability says in which user namespace it holds: by the id of that one's root."""
    magic = struct.unpack_from("<I", value)[0]
    if magic & _REVISION_MASK != _REVISION_3 or len(value) != 24:
        return value
    return value[:20] + struct.pack("<I", struct.unpack_from("<I", value, 20)[0] + by)
