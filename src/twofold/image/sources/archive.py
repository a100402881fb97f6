"""Files inside an image archive, be it a directory or a tarball, without unpacking it.

Names are looked up, never walked: a link leads to another file of the same archive or nowhere.
"""

import errno
import os
import posixpath
import stat
from typing import Protocol

from twofold.errors import InvalidInput
from twofold.image.document import MAX_BYTES
from twofold.image.tarstream import Kind, TarStream, shown
from twofold.linux.openat2 import RESOLVE_BENEATH, openat2

_MAX_ENTRIES = 100_000
_MAX_LINKS = 8


class Section:
    """A stretch of an open file as a stream. Several may share one descriptor."""

    def __init__(self, fd: int, offset: int, size_bytes: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size_bytes
        self.size_bytes = size_bytes

    def read(self, size_bytes: int, /) -> bytes:
        data = os.pread(self._fd, min(size_bytes, self._end - self._at), self._at)
        self._at += len(data)
        return data

    def skip(self, size_bytes: int) -> None:
        self._at = min(self._at + size_bytes, self._end)

    def everything(self, what: str) -> bytes:
        """The whole content, when it is of the size of a JSON document."""
        if self.size_bytes > MAX_BYTES:
            raise InvalidInput(f"{what} has {self.size_bytes} bytes; at most {MAX_BYTES} are read")
        pieces = []
        while piece := self.read(self.size_bytes):
            pieces.append(piece)
        return b"".join(pieces)


class Archive(Protocol):
    def open(self, name: str) -> Section: ...
    def has(self, name: str) -> bool: ...
    def close(self) -> None: ...


class DirectoryArchive:
    """An image layout on disk. Symlinks are followed only while they stay inside it."""

    def __init__(self, path: str) -> None:
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._opened: list[int] = []

    def open(self, name: str) -> Section:
        try:
            # Not blocking: the name may be a fifo, which is refused below.
            fd = self._open(name)
        except OSError as error:
            why = "leads out of it" if error.errno == errno.EXDEV else error.strerror
            raise InvalidInput(f"{name!r} of the image layout: {why}") from error
        self._opened.append(fd)
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidInput(f"{name!r} of the image layout is not a file")
        return Section(fd, 0, state.st_size)

    def _open(self, name: str) -> int:
        for _ in range(32):
            try:
                return openat2(
                    self._root, name, os.O_RDONLY | os.O_NONBLOCK, resolve=RESOLVE_BENEATH
                )
            except BlockingIOError:  # a rename somewhere raced with ".." in a symlink
                continue
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def has(self, name: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{self._root}/{name}")

    def close(self) -> None:
        for fd in (*self._opened, self._root):
            os.close(fd)


class TarArchive:
    """A plain tarball, read in place. The caller owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        tar = TarStream(Section(fd, 0, os.fstat(fd).st_size))
        for count, entry in enumerate(tar):
            if count >= _MAX_ENTRIES:
                raise InvalidInput(f"the archive holds more than {_MAX_ENTRIES} files")
            name = clean_name(entry.name)
            if name in self._files or name in self._links:
                raise InvalidInput(f"the archive holds {shown(entry.name)} twice")
            if entry.kind is Kind.FILE and entry.parts is None:
                self._files[name] = (entry.data_offset, entry.stored_bytes)
            elif entry.kind is Kind.SYMLINK:  # Docker once stored equal layers so
                self._links[name] = posixpath.join(posixpath.dirname(name), _text(entry.link))
            elif entry.kind is Kind.HARDLINK:
                self._links[name] = _text(entry.link)

    def open(self, name: str) -> Section:
        found = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if found not in self._links:
                break
            found = posixpath.normpath(self._links[found])
        if found not in self._files:
            raise InvalidInput(f"the archive holds no file {name[:200]!r}")
        return Section(self._fd, *self._files[found])

    def has(self, name: str) -> bool:
        return name in self._files or name in self._links

    def close(self) -> None:
        """The descriptor belongs to the caller."""


def clean_name(name: bytes) -> str:
    return posixpath.normpath(_text(name).lstrip("/"))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
