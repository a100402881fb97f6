"""A container's files for another container: copied as they are, then owned by other ids.

Owners, modes, times, hard links, device nodes (overlayfs' whiteouts) and extended attributes are
kept; blocks are shared where the file system can. Follows no symlink. Blocks.
"""

import errno
import os
import stat
import struct
import subprocess

from twofold.errors import NoSpace, RuntimeFailed, TwofoldError, Unsupported
from twofold.storage import trees

_CAPABILITY = "security.capability"
_REVISION_3 = 0x03000000
_REVISION_MASK = 0xFF000000
_TOO_LONG = os.strerror(errno.ENAMETOOLONG)
_SHOWN = 60


def copy_tree(source: str, target: str) -> None:
    """``cp -a``, with reflinks. ``target`` does not exist. Raises NoSpace, Unsupported,
    RuntimeFailed."""
    # It dies with us: the next daemon cleans up where it would go on writing.
    with_us = ("setpriv", "--pdeathsig", "KILL")
    done = subprocess.run(
        [*with_us, "cp", "-a", "--reflink=auto", "--sparse=auto", "--", source, target],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},  # its words are looked at
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"cp ended with {done.returncode}"]
        raise _no_copy(lines, source, target)


def _no_copy(lines: list[str], source: str, target: str) -> TwofoldError:
    """By what ``cp`` said, the first of which is the cause of the others."""
    if long := next((line for line in lines if line.endswith(_TOO_LONG)), ""):
        path = long.rpartition(f"{source}/" if f"{source}/" in long else f"{target}/")[2]
        return Unsupported(
            f"the files could not be copied: the path '/{path[:_SHOWN]}…' is too long, as a path "
            "may have 4,096 bytes with the directory of the host before it",
            hint="twofold shell NAME    # move the deepest directories further up, or delete them",
        )
    last = lines[-1]
    kind = NoSpace if "No space left" in last else RuntimeFailed
    return kind(
        f"the files could not be copied: {last}",
        hint="df -h" if kind is NoSpace else "journalctl -k -n 20; df -h",
    )


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
