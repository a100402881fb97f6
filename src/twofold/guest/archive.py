"""A path as a tar stream, out of and into the root this process stands in.

Used by the agent (in the guest) and by the container runtime (after it joined the container and
its root), so the process already sees nothing but the instance's own files. Ids are numbers: no
NSS, whose libraries would be the image's. Neither ``tar_out`` nor ``tar_in`` leaves its directory,
whatever links the archive or the directory holds, or gets meanwhile. Streams: memory does not grow
with the size of a file.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from twofold.errors import InvalidInput, NoSpace, NotFound, RuntimeFailed
from twofold.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from typing import IO, Any

_BLOCK_BYTES = 262144
_HEADER_LIMIT_BYTES = 1 << 20
_OPEN_DIRECTORIES = 32
_NAME_LIMIT = 4095
# At what is something else each time it is opened. Who swaps it in a loop and who looks can fall
# into step: of 286,000 entries 26 took more than 8 looks, one 64.
_LOOKS = 1000
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_IDS_NOT_HERE = (errno.EPERM, errno.EINVAL, errno.EOVERFLOW)

# Without these tarfile looks names up through NSS, in the image's own libraries.
tarfile.pwd = None  # type: ignore[attr-defined]
tarfile.grp = None  # type: ignore[attr-defined]


def tar_out(path: str, fd: int) -> None:
    """Write ``path`` to ``fd``: a directory as a tree rooted at its basename, else one entry.

    A symlink at the end is archived as such unless the path ends in ``/``. Sockets are left out.
    Raises NotFound, InvalidInput, RuntimeFailed.
    """
    name = os.path.basename(os.path.normpath(path)) or "."
    links: dict[tuple[int, int], str] = {}
    try:
        _add(path if path != "" else "/", "." if name == "/" else name, fd, links)
        _write_all(fd, bytes(2 * tarfile.BLOCKSIZE))
    except FileNotFoundError as error:
        raise NotFound(f"{path!r} is not there", hint="check the path inside") from error
    except NotADirectoryError as error:
        raise InvalidInput(f"{path!r}: {error.strerror}", hint="check the path inside") from error
    except OSError as error:
        raise RuntimeFailed(f"reading {path!r}: {error.strerror}") from error


class _Level:
    """A directory on the way down: its name in the archive and what is left to do in it.

    ``fd`` is -1 while it is closed, for a deep tree must not use up the descriptors; ``identity``
    (device, inode) then tells whether the way back up leads to it.
    """

    __slots__ = ("fd", "identity", "left", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.identity = _identity(fd)
        self.left = sorted(os.listdir(fd), reverse=True)


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _add(path: str, name: str, fd: int, links: dict[tuple[int, int], str]) -> None:
    """Only the path as it was given is resolved as such. Below it every name is looked up in the
    directory that is open, so whoever swaps a directory for a link meanwhile leads nowhere."""
    levels: list[_Level] = []
    try:
        _add_entry(levels, path, name, fd, links)
        while levels:
            level = levels[-1]
            if not level.left:
                _ascend(levels)
                continue
            entry = level.left.pop()
            try:
                _add_entry(levels, entry, f"{level.name}/{entry}", fd, links)
            except FileNotFoundError:
                pass  # it went away between listing and looking: it is simply not in the archive
    finally:
        for level in levels:
            if level.fd >= 0:
                os.close(level.fd)


def _add_entry(
    levels: list[_Level], path: str, name: str, fd: int, links: dict[tuple[int, int], str]
) -> None:
    """Write one entry; of a directory the header, and put it on ``levels``."""
    if len(name) > _NAME_LIMIT:  # what no system call takes; it also bounds how deep this goes
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    parent = levels[-1].fd if levels else None
    for _ in range(_LOOKS):
        info = os.lstat(path, dir_fd=parent)
        kind = stat.S_IFMT(info.st_mode)
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            opened = _open_same(path, parent, kind)
            if opened < 0:
                continue
            if kind == stat.S_IFDIR:
                _descend(levels, name, opened, fd)
                return
            try:
                _add_file(opened, name, fd, links)
            finally:
                os.close(opened)
        elif kind != stat.S_IFSOCK:
            header = _header(name, info)
            if kind == stat.S_IFLNK:
                try:
                    header.linkname = os.readlink(path, dir_fd=parent)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    continue  # no link any more
            _write_header(fd, header)
        return
    raise OSError(errno.ESTALE, f"{name!r} is swapped for something else again and again")


def _open_same(path: str, parent: int | None, kind: int) -> int:
    """Open the file or directory that was just seen; -1 when by now it is something else."""
    # O_NONBLOCK: were it swapped for a FIFO now, opening it would wait for a writer for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if kind == stat.S_IFDIR:
        flags |= os.O_DIRECTORY
    try:
        opened = os.open(path, flags, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return -1
        raise
    if stat.S_IFMT(os.fstat(opened).st_mode) == kind:
        return opened
    os.close(opened)
    return -1


def _descend(levels: list[_Level], name: str, opened: int, fd: int) -> None:
    try:
        level = _Level(name, opened)
        _write_header(fd, _header(name, os.fstat(opened)))
    except BaseException:
        os.close(opened)
        raise
    levels.append(level)
    if len(levels) > _OPEN_DIRECTORIES:
        far = levels[-1 - _OPEN_DIRECTORIES]
        os.close(far.fd)
        far.fd = -1


def _ascend(levels: list[_Level]) -> None:
    done = levels.pop()
    try:
        if levels and levels[-1].fd < 0:
            above = levels[-1]
            above.fd = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=done.fd)
            if _identity(above.fd) != above.identity:
                raise OSError(errno.ESTALE, f"{done.name!r} was moved elsewhere meanwhile")
    finally:
        os.close(done.fd)


def _header(name: str, info: os.stat_result) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(info.st_mode)
    header.uid, header.gid, header.mtime = info.st_uid, info.st_gid, int(info.st_mtime)
    kinds = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
        stat.S_IFREG: tarfile.REGTYPE,
    }
    header.type = kinds[stat.S_IFMT(info.st_mode)]
    if header.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        header.devmajor, header.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return header


def _write_header(fd: int, header: tarfile.TarInfo) -> None:
    _write_all(fd, header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _add_file(source: int, name: str, fd: int, links: dict[tuple[int, int], str]) -> None:
    info = os.fstat(source)
    header = _header(name, info)
    if info.st_nlink > 1:
        first = links.setdefault((info.st_dev, info.st_ino), name)
        if first != name:
            header.type, header.linkname = tarfile.LNKTYPE, first
            _write_header(fd, header)
            return
    header.size = info.st_size
    _write_header(fd, header)
    _copy_exactly(source, fd, info.st_size)
    _write_all(fd, bytes(-info.st_size % tarfile.BLOCKSIZE))


def _copy_exactly(source: int, target: int, size: int) -> None:
    """The size is in the header already: a file that shrinks meanwhile is filled with zeros."""
    left = size
    while left:
        try:
            count = os.sendfile(target, source, None, min(left, 1 << 20))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            data = os.read(source, min(left, _BLOCK_BYTES))
            _write_all(target, data)
            count = len(data)
        if count == 0:
            break
        left -= count
    while left:
        count = min(left, _BLOCK_BYTES)
        _write_all(target, bytes(count))
        left -= count


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _BoundedInfo(tarfile.TarInfo):
    """Refuses a header record of absurd size: tarfile reads those into memory whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        plain = (*tarfile.REGULAR_TYPES, *tarfile.SUPPORTED_TYPES)
        if self.type not in plain and self.size > _HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"header record of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *_: Any) -> Any:
        """A map of holes is read into memory whole, however long it is."""
        raise tarfile.ReadError("sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def tar_in(path: str, fd: int) -> None:
    """Unpack the stream at ``fd`` into the directory ``path``, which must be there.

    Entries with ``..`` or through a link that leads out of ``path`` are refused; what was unpacked
    before stays. Raises NotFound, InvalidInput, NoSpace, RuntimeFailed.
    """
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"directory {path!r} is not there", hint="make it first") from error
    except OSError as error:
        raise InvalidInput(f"{path!r}: {error.strerror}", hint="name a directory") from error
    member_name = ""
    try:
        with os.fdopen(os.dup(fd), "rb", buffering=0) as stream:
            archive = tarfile.open(
                fileobj=stream, mode="r|", bufsize=_BLOCK_BYTES, tarinfo=_BoundedInfo
            )
            times: list[tuple[str, int]] = []
            while (member := archive.next()) is not None:
                member_name = member.name
                _extract(archive, member, root, times)
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            while os.read(fd, _BLOCK_BYTES):
                pass  # the padding after the end: the writer must not meet a closed pipe
        for name, mtime in reversed(times):
            _set_directory_time(root, name, mtime)
    except tarfile.TarError as error:
        raise InvalidInput(f"not a tar stream: {error}", hint="send an uncompressed tar") from error
    except OSError as error:
        sentence = f"unpacking {member_name!r} into {path!r}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(sentence, hint="twofold rm what is not needed, here or inside") from error
        raise RuntimeFailed(sentence) from error
    finally:
        os.close(root)


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidInput(f"archive entry {name!r} leads out of the directory")
    return parts


def _open_parent(root: int, parts: list[str]) -> int:
    """The directory of an entry, made where it is missing. No link leads out of ``root``."""
    current = os.dup(root)
    for depth in range(1, len(parts)):
        relative = "/".join(parts[:depth])
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            below = _open_beneath(root, relative, flags)
        except FileNotFoundError:
            os.mkdir(parts[depth - 1], 0o755, dir_fd=current)
            below = _open_beneath(root, relative, flags)
        finally:
            os.close(current)
        current = below
    return current


def _open_beneath(root: int, relative: str, flags: int) -> int:
    try:
        return openat2(root, relative, flags=flags, resolve=_BENEATH)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ELOOP):
            raise InvalidInput(
                f"archive entry below {relative!r} leads out of the directory through a link",
                hint="copy to the place that the link names",
            ) from error
        raise


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, times: list[tuple[str, int]]
) -> None:
    parts = _parts(member.name)
    if not parts:
        return  # "./": the directory itself is the caller's
    parent = _open_parent(root, parts)
    try:
        name = parts[-1]
        if member.isdir():
            _make_directory(parent, name, member)
            times.append(("/".join(parts), int(member.mtime)))
            return
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError as error:
            raise InvalidInput(
                f"{member.name!r} is a directory there and a file in the archive",
                hint="remove one of them first",
            ) from error
        if member.isreg():
            body = archive.extractfile(member)
            if body is not None:
                _make_file(parent, name, member, body)
            return
        if member.islnk():
            _make_hard_link(root, parent, name, member)
            return
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, stat.S_IMODE(member.mode), dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, stat.S_IMODE(member.mode) | kind, device, dir_fd=parent)
        _set_owner(parent, name, member)
    finally:
        os.close(parent)


def _make_directory(parent: int, name: str, member: tarfile.TarInfo) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        # A link to a directory counts as one where a tree is unpacked over another; its own
        # mode and owner stay as they are, as those of any directory that was there.
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent).st_mode):
            raise
        return
    _set_owner(parent, name, member)
    os.chmod(name, stat.S_IMODE(member.mode), dir_fd=parent)


def _make_file(parent: int, name: str, member: tarfile.TarInfo, body: IO[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        while block := body.read(_BLOCK_BYTES):
            _write_all(fd, block)
        try:
            os.fchown(fd, member.uid, member.gid)
        except OSError as error:
            if error.errno not in _IDS_NOT_HERE:
                raise
        os.fchmod(fd, stat.S_IMODE(member.mode))
        os.utime(fd, (int(member.mtime), int(member.mtime)))
    finally:
        os.close(fd)


def _make_hard_link(root: int, parent: int, name: str, member: tarfile.TarInfo) -> None:
    target = _parts(member.linkname)
    folder = _open_parent(root, target)
    try:
        os.link(target[-1], name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(folder)


def _set_owner(parent: int, name: str, member: tarfile.TarInfo) -> None:
    try:
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _IDS_NOT_HERE:
            raise


def _set_directory_time(root: int, relative: str, mtime: int) -> None:
    try:
        fd = openat2(root, relative, flags=os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
    except OSError:
        return
    try:
        os.utime(fd, (mtime, mtime))
    except OSError:
        pass
    finally:
        os.close(fd)
