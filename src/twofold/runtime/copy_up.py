"""``tmpcopyup``: fill a new tmpfs with what the directory below it holds.

Works on descriptors only and follows no symlink. Copies directories, files, symlinks and FIFOs
with owner, mode, times and extended attributes. Refuses device nodes where they cannot be made.
"""

from __future__ import annotations

import errno
import os
import stat

_CHUNK_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_KEPT = (errno.ENOTSUP, errno.EPERM, errno.ENODATA)
_DEPTH_LIMIT = 256  # a descriptor pair per level


def fill(source_fd: int, target_fd: int) -> None:
    """Copy what is in the directory ``source_fd`` (O_PATH will do) into ``target_fd``."""
    source = os.open(".", _DIRECTORY, dir_fd=source_fd)
    try:
        target = os.open(".", _DIRECTORY, dir_fd=target_fd)
        try:
            _copy_entries(source, target, _DEPTH_LIMIT)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_entries(source: int, target: int, depth: int) -> None:
    if depth == 0:
        raise OSError(errno.ELOOP, f"directories nested deeper than {_DEPTH_LIMIT} levels")
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            _copy_directory(source, target, name, status, depth)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name, status)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            _set_times(name, status, target)
        elif kind != stat.S_IFSOCK:  # a socket without its server is nothing
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            _set_times(name, status, target)


def _copy_directory(
    source: int, target: int, name: str, status: os.stat_result, depth: int
) -> None:
    os.mkdir(name, 0o700, dir_fd=target)
    below = os.open(name, _DIRECTORY, dir_fd=source)
    try:
        copy = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            _copy_entries(below, copy, depth - 1)
            _set_facts(below, copy, status)
        finally:
            os.close(copy)
    finally:
        os.close(below)
    _set_times(name, status, target)


def _copy_file(source: int, target: int, name: str, status: os.stat_result) -> None:
    # Not blocking: a FIFO may have been put there since it was looked at.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    reader = os.open(name, flags, dir_fd=source)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writer = os.open(name, flags, 0o600, dir_fd=target)
        try:
            if stat.S_ISREG(os.fstat(reader).st_mode):
                while os.sendfile(writer, reader, None, _CHUNK_BYTES):
                    pass
            _set_facts(reader, writer, status)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    _set_times(name, status, target)


def _set_facts(source: int, copy: int, status: os.stat_result) -> None:
    os.fchown(copy, status.st_uid, status.st_gid)
    os.fchmod(copy, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(copy, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _NOT_KEPT:  # tmpfs has no user.* before Linux 6.6
                raise


def _set_times(name: str, status: os.stat_result, directory: int) -> None:
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
