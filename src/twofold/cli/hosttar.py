"""Tar streams at the host's end of ``twofold cp``.

``unpack`` takes what an untrusted guest sent: names with ``..``, absolute names, entries below a
link, hard links out of the tree, device nodes, setuid bits and absurd headers cannot touch
anything outside the target. Every directory is opened by descriptor without following links, so
neither the stream nor somebody who swaps files meanwhile can redirect a write.
``pack`` reads the host's files the same way. Neither holds a file in memory.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from twofold.cli import output
from twofold.errors import Corrupt, InvalidInput, NoSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

BLOCK_BYTES = 256 << 10
MAX_RECORD_BYTES = 1 << 20
# As long as a path may be; each part of it may become a directory.
MAX_NAME_BYTES = 4096
# Of the records before the first entry: long names and attributes, of which a few are enough.
_MAX_PEEKED_BYTES = 4 << 20
_MAX_WARNINGS = 10
# A private type to mean "directory, but only ever look": never follow, never wait for a FIFO.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Info(tarfile.TarInfo):
    """tarfile reads long names and pax records into memory whole: refuse absurd ones."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        plain = (*tarfile.REGULAR_TYPES, *tarfile.SUPPORTED_TYPES)
        if self.type not in plain or self.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            if self.size > MAX_RECORD_BYTES:
                raise tarfile.ReadError(f"header record of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *_: Any) -> Any:
        """A map of holes is read into memory whole, however long it is. We never send one."""
        raise tarfile.ReadError("sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class PieceReader:
    """The pieces of a reply as a file that tarfile can read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def finish(self) -> None:
        """Read to the end: only then it is known that the sender had no failure."""
        self._rest = b""
        for _ in self._pieces:
            pass


class Peeked(PieceReader):
    """A stream whose first header has been looked at and not consumed."""

    def __init__(self, stream: PieceReader) -> None:
        super().__init__(iter(()))
        self._stream = stream
        self.is_directory = self._first_type() == tarfile.DIRTYPE

    def _first_type(self) -> bytes:
        """The type of the first entry that is not a record about the next one."""
        offset = 0
        while True:
            while len(self._rest) < offset + tarfile.BLOCKSIZE:
                piece = self._stream.read(tarfile.BLOCKSIZE)
                if not piece:
                    return b""
                self._rest += piece
            header = self._rest[offset : offset + tarfile.BLOCKSIZE]
            kind = header[156:157]
            if kind not in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                return kind
            digits = header[124:136].rstrip(b"\0 ")
            if not digits.isdigit() or int(digits, 8) > MAX_RECORD_BYTES:
                raise Corrupt(f"the instance sent a header record of size {digits!r}")
            size = int(digits, 8)
            offset += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))
            if offset > _MAX_PEEKED_BYTES:
                raise Corrupt("the instance sent header records without end")

    def read(self, size: int) -> bytes:
        if self._rest:
            return super().read(size)
        return self._stream.read(size)

    def finish(self) -> None:
        self._rest = b""
        self._stream.finish()


class _Reader:
    """Members of a stream, one after the other, with the stream's faults as our errors."""

    def __init__(self, stream: PieceReader) -> None:
        # Any: the stubs know neither the streaming mode nor that members may be let go.
        open_stream: Any = tarfile.open
        self._archive: Any = open_stream(
            fileobj=stream, mode="r|", bufsize=BLOCK_BYTES, tarinfo=_Info
        )

    def next(self) -> tarfile.TarInfo | None:
        member: tarfile.TarInfo | None = self._archive.next()
        self._archive.members = []  # it would keep them all
        return member

    def body(self, member: tarfile.TarInfo) -> IO[bytes]:
        body: IO[bytes] = self._archive.extractfile(member)
        return body


def unpack(stream: PieceReader, directory: str, *, rename: str, keep_ids: bool = False) -> int:
    """Unpack into ``directory``; returns how many entries were left out.

    Every entry lies below one top name. Whatever the sender calls it, it becomes ``rename``; ``.``
    puts what is below it right into ``directory``. Owners stay ours unless ``keep_ids``. Raises
    Corrupt for a hostile or broken stream; what was unpacked before stays.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = ""
    try:
        target = _Target(top, rename, keep_ids=keep_ids)
        reader = _Reader(stream)
        while (member := reader.next()) is not None:
            name = member.name
            target.take(reader, member)
        target.finish()
        stream.finish()
        return target.left_out
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise Corrupt(f"the instance sent a broken tar stream after {name!r}: {error}") from None
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else InvalidInput
        raise kind(f"writing {name!r} below {directory!r}: {error.strerror}") from None
    finally:
        os.close(top)


def copy_first_file(stream: PieceReader, descriptor: int) -> None:
    """Write the first entry, which must be a file, to ``descriptor`` (a pipe, a terminal …)."""
    try:
        reader = _Reader(stream)
        member = reader.next()
        if member is None or not member.isreg():
            raise InvalidInput("what is to be copied is not a file", hint="copy into a directory")
        _copy(reader.body(member), descriptor)
        stream.finish()
    except tarfile.TarError as error:
        raise Corrupt(f"the instance sent a broken tar stream: {error}") from None


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Corrupt(f"the instance sent an entry that leads out of the target: {name[:200]!r}")
    if len(name) > MAX_NAME_BYTES:
        raise Corrupt(f"the instance sent a name of {len(name)} characters: {name[:60]!r}")
    return parts


def _placed(name: str, rename: str) -> list[str]:
    """Where an entry goes, as path components below the target.

    The first component is the top's name, also where that is ``.``: what stands for it is ours to
    say, or the sender could choose any name there, as ``.bashrc`` in somebody's home directory.
    """
    parts = _parts(name)
    below = parts if name == "." or name.startswith("./") else parts[1:]
    return below if rename == "." else [rename, *below]


class _Target:
    """A directory that entries are put below."""

    def __init__(self, top: int, rename: str, *, keep_ids: bool) -> None:
        self._top = top
        self._rename = rename
        self._keep_ids = keep_ids
        self._modes: list[tuple[list[str], int, int]] = []  # of directories, set at the end
        self.left_out = 0
        assert rename == "." or _parts(rename) == [rename]

    def take(self, reader: _Reader, member: tarfile.TarInfo) -> None:
        parts = _placed(member.name, self._rename)
        if not parts:
            return
        parent = self._open(parts[:-1], make=True)
        try:
            if member.isdir():
                self._make_directory(parent, parts, member)
            elif member.isreg() and member.sparse is None:
                self._make_file(parent, parts[-1], member, reader.body(member))
            elif member.issym():
                _make_room(parent, parts[-1])
                os.symlink(member.linkname, parts[-1], dir_fd=parent)
            elif member.islnk():
                self._make_hard_link(parent, parts, member)
            else:
                self.left_out += 1
                if self.left_out <= _MAX_WARNINGS:
                    output.warn(f"left out {member.name!r}: a device, FIFO or other special file")
        finally:
            os.close(parent)

    def _open(self, parts: list[str], *, make: bool = False) -> int:
        """A directory below the target, opened step by step; no step may be a link."""
        current = os.dup(self._top)
        for depth, part in enumerate(parts):
            try:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=current)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o777, dir_fd=current)
                    below = os.open(part, _DIRECTORY, dir_fd=current)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise Corrupt(
                        f"an entry would be written through {'/'.join(parts[: depth + 1])!r}, "
                        "which is a link or a file here",
                        hint="copy into an empty directory",
                    ) from None
                raise
            finally:
                os.close(current)
            current = below
        return current

    def _make_directory(self, parent: int, parts: list[str], member: tarfile.TarInfo) -> None:
        try:
            # Ours alone until the end: a read-only directory could not be filled.
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            os.close(os.open(parts[-1], _DIRECTORY, dir_fd=parent))
            return  # it was there: its own mode stays
        self._own(parent, parts[-1], member)
        self._modes.append((parts, stat.S_IMODE(member.mode) & 0o777, int(member.mtime)))

    def _make_file(self, parent: int, name: str, member: tarfile.TarInfo, body: IO[bytes]) -> None:
        _make_room(parent, name)
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            _copy(body, descriptor)
            self._own(parent, name, member)
            # Never setuid: a program of the guest's making would run as root of the host.
            os.fchmod(descriptor, stat.S_IMODE(member.mode) & 0o777)
            _set_time(descriptor, int(member.mtime))
        finally:
            os.close(descriptor)

    def _make_hard_link(self, parent: int, parts: list[str], member: tarfile.TarInfo) -> None:
        linked = _placed(member.linkname, self._rename)
        if not linked:
            raise Corrupt(f"the instance sent a hard link to nothing: {member.name!r}")
        folder = self._open(linked[:-1])
        try:
            found = os.stat(linked[-1], dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt(f"the instance sent a hard link to no file: {member.name!r}")
            _make_room(parent, parts[-1])
            os.link(
                linked[-1], parts[-1], src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False
            )
        finally:
            os.close(folder)

    def _own(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        if self._keep_ids:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        """Modes and times of directories, the deepest first."""
        for parts, mode, mtime in reversed(self._modes):
            descriptor = self._open(parts)
            try:
                os.fchmod(descriptor, mode)
                _set_time(descriptor, mtime)
            finally:
                os.close(descriptor)


def _make_room(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise InvalidInput(
            f"{name!r} is a directory here and a file in the instance", hint="remove one of them"
        ) from None


def _set_time(descriptor: int, mtime: int) -> None:
    try:
        os.utime(descriptor, (mtime, mtime))
    except (OSError, OverflowError):
        pass


def _copy(body: IO[bytes], descriptor: int) -> None:
    while block := body.read(BLOCK_BYTES):
        view = memoryview(block)
        while view:
            view = view[os.write(descriptor, view) :]


def pack(path: str, name: str, *, keep_ids: bool = False) -> Iterator[bytes]:
    """``path`` of this host as a tar stream whose top entry is ``name``; "" for what is below it.

    A link at the end of ``path`` is followed when ``path`` ends in ``/`` or ``/.``, or copied as a
    link. Entries belong to root inside unless ``keep_ids``. Sockets are left out.
    """
    folder, base = os.path.split(path.rstrip("/") or "/")
    if path.endswith(("/", "/.")) or base in ("", ".", ".."):
        folder, base = os.path.realpath(path), "."
    parent = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _pack_entry(parent, base, name, {}, keep_ids)
    finally:
        os.close(parent)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _pack_entry(
    parent: int, base: str, name: str, links: dict[tuple[int, int], str], keep_ids: bool
) -> Iterator[bytes]:
    info = os.stat(base, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISREG(info.st_mode):
        yield from _pack_file(parent, base, name, links, keep_ids)
        return
    kinds = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    kind = kinds.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        output.warn(f"left out {name!r}: a device, FIFO, socket or other special file")
        return
    header = _header(name or ".", info, keep_ids)
    header.type = kind
    if kind == tarfile.SYMTYPE:
        header.linkname = os.readlink(base, dir_fd=parent)
    if name:
        yield _encoded(header)
    if kind == tarfile.DIRTYPE:
        inside = os.open(base, _DIRECTORY, dir_fd=parent)
        try:
            for entry in sorted(os.listdir(inside)):
                below = f"{name}/{entry}" if name else entry
                try:
                    yield from _pack_entry(inside, entry, below, links, keep_ids)
                except FileNotFoundError:
                    continue  # removed between listing and looking
        finally:
            os.close(inside)


def _pack_file(
    parent: int, base: str, name: str, links: dict[tuple[int, int], str], keep_ids: bool
) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source = os.open(base, flags, dir_fd=parent)
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode):
            return
        header = _header(name, info, keep_ids)
        if info.st_nlink > 1:
            first = links.setdefault((info.st_dev, info.st_ino), name)
            if first != name:
                header.type, header.linkname = tarfile.LNKTYPE, first
                yield _encoded(header)
                return
        header.size = info.st_size
        yield _encoded(header)
        left = info.st_size
        while left:
            block = os.read(source, min(left, BLOCK_BYTES))
            if not block:  # it shrank; the size is out already
                block = bytes(min(left, BLOCK_BYTES))
            left -= len(block)
            yield block
        yield bytes(-info.st_size % tarfile.BLOCKSIZE)
    finally:
        os.close(source)


def _header(name: str, info: os.stat_result, keep_ids: bool) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(info.st_mode)
    header.mtime = int(info.st_mtime)
    if keep_ids:
        header.uid, header.gid = info.st_uid, info.st_gid
    return header


def _encoded(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
