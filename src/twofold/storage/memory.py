"""The memory of a virtual machine: a file that is kept sparse, a memfd that nobody can write to.

A guest's memory is mapped privately by the QEMU that goes on with it, but QEMU opens it for reading
and writing: a sealed memfd allows that and still lets nobody change what others start from. Blocks.
"""

import errno
import fcntl
import hashlib
import os

from twofold.storage.disk import sparse_copy

_CHUNK_BYTES = 4 << 20
_ZERO = bytes(_CHUNK_BYTES)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal(fd: int) -> None:
    """From now on nobody can write to the memfd; nothing may map it shared and writable."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def load(path: str, name: str) -> int:
    """A sealed memfd with the content of the file, holes kept. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sparse_copy(source, fd)
        finally:
            os.close(source)
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def extents(fd: int) -> list[tuple[int, int]]:
    """(start, end) of the file's data; what lies between are holes."""
    size, at, found = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def write_sparse(source: int, path: str) -> None:
    """A new file with what ``source`` holds, on the disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, os.fstat(source).st_size)
        for start, end in extents(source):
            while start < end:
                block = os.pread(source, min(_CHUNK_BYTES, end - start), start)
                start += os.pwrite(fd, block, start)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def checksum(path: str) -> str:
    """SHA-256 of size, and of place and content of every block that is not zero throughout."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        feed(digest, fd)
    finally:
        os.close(fd)
    return digest.hexdigest()


def feed(digest: "hashlib._Hash", fd: int) -> None:
    """What ``checksum`` is of. Raises OSError."""
    digest.update(b"%d" % os.fstat(fd).st_size)
    at = 0
    for start, end in extents(fd):
        at = max(at, start - start % _CHUNK_BYTES)
        while at < end:
            block = os.pread(fd, _CHUNK_BYTES, at)
            if block != _ZERO[: len(block)]:
                digest.update(b"@%d:" % at)
                digest.update(block)
            at += _CHUNK_BYTES
