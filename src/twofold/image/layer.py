"""The directory that a layer's entries become, filled through descriptors only.

A parent directory is opened by openat2(2) below the layer's root; a symlink on the way is
followed as if that root were ``/``, never out of it. The last component is never followed.
Whiteouts become what overlayfs reads: a 0:0 character device, and ``trusted.overlay.opaque`` on a
directory; they hide what lower layers hold, never what this layer itself holds.

Refuses: ``..`` in any name, ids above 65535 (they would fall outside an instance's range), hard
links to what this layer does not hold, whiteouts that name nothing, attributes that steer
overlayfs, and more bytes or entries than the limits allow, before writing them.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from twofold.errors import InvalidInput, NoSpace
from twofold.image.tarstream import Entry, Kind, TarStream, shown
from twofold.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

MAX_ID = 65535
OPAQUE = "trusted.overlay.opaque"
WHITEOUT_DEVICE = os.makedev(0, 0)
_PREFIX = b".wh."
_META_PREFIX = b".wh..wh."  # bookkeeping of aufs, except for the opaque mark
_OPAQUE_MARK = b".wh..wh..opq"
_KNOWN_XATTRS = (
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
)
_MAX_XATTR_BYTES = 64 << 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PARENT = os.O_RDONLY | os.O_DIRECTORY  # a symlink to a directory will do, inside the layer
_RECHECK_BYTES = 256 << 20
_TIME_WIDTH = 20  # a directory's time in the spool: a signed decimal of this width


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one layer may cost. ``reserve_bytes`` stays free on the file system in any case."""

    size_bytes: int = 64 << 30
    entries: int = 2_000_000
    reserve_bytes: int = 512 << 20


def split_name(name: bytes) -> list[bytes]:
    """The components of a name inside the layer. Absolute names count from the layer's root."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidInput(f"the archive holds {shown(name)}, which leads out of the image")
    return parts


class Layer:
    """The directory being filled."""

    def __init__(self, target: str, *, trash: str, limits: Limits) -> None:
        self._root = os.open(target, _DIRECTORY)
        self._trash = os.open(trash, _DIRECTORY)
        self._limits = limits
        self._parent: tuple[bytes, int] | None = None
        self._trashed = 0
        self._stale = False  # something was replaced: the remembered parent may lie elsewhere now
        self._until_recheck = 0
        self._budget_bytes = 0
        # Directories' times are set last; two million of them do not belong in memory.
        self._times: BinaryIO = tempfile.TemporaryFile(dir=trash)
        self.size_bytes = 0
        self.entries = 0

    def __enter__(self) -> "Layer":
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parent()
        self._times.close()
        os.close(self._root)
        os.close(self._trash)

    def add(self, entry: Entry, tar: TarStream, tick: Callable[[], None]) -> None:
        parts = split_name(entry.name)
        self._account(entry)
        if entry.uid > MAX_ID or entry.gid > MAX_ID:
            raise InvalidInput(
                f"{shown(entry.name)} belongs to {entry.uid}:{entry.gid}; "
                f"ids above {MAX_ID} do not fit an instance's range",
                hint="change the owner in the image and build it again",
            )
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise InvalidInput(f"the archive's root is a {entry.kind}, not a directory")
            self._dress_directory(self._root, entry, b"")
            return
        if any(part.startswith(_META_PREFIX) and part != _OPAQUE_MARK for part in parts):
            return
        if any(part.startswith(_PREFIX) for part in parts[:-1]):
            raise InvalidInput(f"the archive holds {shown(entry.name)} below a whiteout")
        parent = self._open_parent(parts[:-1])
        name = parts[-1]
        if name == _OPAQUE_MARK:
            os.setxattr(parent, OPAQUE, b"y")
        elif name.startswith(_PREFIX):
            self._white_out(parent, name[len(_PREFIX) :], entry)
        else:
            self._create(parent, name, entry, tar, tick)

    def finish(self) -> None:
        """Set the times of the directories, which filling them has changed."""
        self._times.seek(0)
        while header := self._times.read(_TIME_WIDTH + 4):
            time_ns = int(header[:_TIME_WIDTH])
            path = self._times.read(int.from_bytes(header[_TIME_WIDTH:], "big"))
            try:
                fd = self._open_below(path or b".", _DIRECTORY)
            except OSError:
                continue  # a later entry put something else there
            try:
                os.utime(fd, ns=(time_ns, time_ns))
            finally:
                os.close(fd)

    # -- limits ----------------------------------------------------------------------------

    def _account(self, entry: Entry) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise NoSpace(f"the layer holds more than {self._limits.entries} files")
        # A sparse file counts in full: merging or copying it writes it out.
        self.size_bytes += entry.size_bytes
        if self.size_bytes > self._limits.size_bytes:
            raise NoSpace(
                f"the layer unpacks to more than {self._limits.size_bytes} bytes "
                f"(at {shown(entry.name)})"
            )
        cost = entry.size_bytes + 4096  # roughly: half a block lost, an inode, a name
        self._until_recheck -= cost
        self._budget_bytes -= cost
        if self._until_recheck < 0 or self._budget_bytes < 0:
            self._check_space(cost, entry)

    def _check_space(self, cost: int, entry: Entry) -> None:
        state = os.fstatvfs(self._root)
        free = state.f_bavail * state.f_frsize
        # A small file system keeps a small reserve.
        reserve = min(self._limits.reserve_bytes, state.f_blocks * state.f_frsize // 20)
        self._budget_bytes = free - reserve - cost
        self._until_recheck = _RECHECK_BYTES
        if self._budget_bytes < 0 or (state.f_files and state.f_favail < 1024):
            raise NoSpace(
                f"no space for the image: {shown(entry.name)} needs {entry.size_bytes} bytes, "
                f"{free} are free, of which {reserve} stay reserved",
                hint="what could go: twofold image list; twofold list --all",
            )

    # -- walking ---------------------------------------------------------------------------

    def _open_below(self, path: bytes, flags: int) -> int:
        """Open below the root, following no symlink, or else as if the root were ``/``."""
        try:
            return openat2(self._root, path, flags, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_IN_ROOT)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        for _ in range(32):
            try:
                fd = openat2(self._root, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_XDEV)
                break
            except BlockingIOError:  # a rename somewhere raced with ".." in a symlink
                continue
        else:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        try:
            # Raises ENAMETOOLONG: symlinks must not build a tree deeper than a path can be.
            os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            os.close(fd)
            raise
        return fd

    def _open_parent(self, parts: list[bytes]) -> int:
        """The directory that holds the next entry; missing ones are made, owned by root."""
        path = b"/".join(parts)
        if self._parent is not None and self._parent[0] == path and not self._stale:
            return self._parent[1]
        self._forget_parent()
        try:
            fd = self._open_below(path or b".", _PARENT)
        except (FileNotFoundError, NotADirectoryError):
            fd = self._make_parents(parts)
        self._parent = (path, fd)
        return fd

    def _make_parents(self, parts: list[bytes]) -> int:
        fd = os.dup(self._root)
        for index, part in enumerate(parts):
            try:
                found = self._open_below(b"/".join(parts[: index + 1]), _PARENT)
            except (FileNotFoundError, NotADirectoryError):
                try:
                    found = self._make_parent(fd, part)
                except BaseException:
                    os.close(fd)
                    raise
            os.close(fd)
            fd = found
        return fd

    def _make_parent(self, fd: int, part: bytes) -> int:
        there = _stat(fd, part)
        hidden = _is_whiteout(there)
        if there is not None and hidden:
            self._clear(fd, part, there)
        os.mkdir(part, 0o755, dir_fd=fd)  # EEXIST: a file or a dangling symlink is in the way
        found = os.open(part, _DIRECTORY, dir_fd=fd)
        os.fchmod(found, 0o755)
        if hidden:
            os.setxattr(found, OPAQUE, b"y")
        return found

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None
        self._stale = False

    # -- entries ---------------------------------------------------------------------------

    def _white_out(self, parent: int, name: bytes, entry: Entry) -> None:
        """Hide ``name`` of the layers below. What this layer itself holds there stays."""
        if name in (b"", b".", b".."):
            raise InvalidInput(
                f"the archive holds a whiteout that names nothing: {shown(entry.name)}"
            )
        there = _stat(parent, name)
        if there is None:
            os.mknod(name, stat.S_IFCHR, WHITEOUT_DEVICE, dir_fd=parent)
        elif stat.S_ISDIR(there.st_mode):
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                os.setxattr(fd, OPAQUE, b"y")
            finally:
                os.close(fd)

    def _create(
        self, parent: int, name: bytes, entry: Entry, tar: TarStream, tick: Callable[[], None]
    ) -> None:
        there = _stat(parent, name)
        if entry.kind is Kind.DIRECTORY:
            self._create_directory(parent, name, entry, there)
            return
        if entry.kind is Kind.HARDLINK:
            self._create_link(parent, name, entry)
            return
        if there is not None:
            self._clear(parent, name, there)
        if entry.kind is Kind.FILE:
            self._create_file(parent, name, entry, tar, tick)
            return
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            kind = {
                Kind.FIFO: stat.S_IFIFO,
                Kind.CHARACTER: stat.S_IFCHR,
                Kind.BLOCK: stat.S_IFBLK,
            }[entry.kind]
            os.mknod(name, kind, os.makedev(entry.major, entry.minor), dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            # Follows symlinks, but this name is the node just made in a directory only we hold.
            os.chmod(name, entry.mode, dir_fd=parent)
        for key, value in _accepted_xattrs(entry):
            if not key.startswith("user."):  # the kernel has those on files and directories only
                path = b"/proc/self/fd/%d/%s" % (parent, name)
                os.setxattr(path, key, value, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _create_directory(
        self, parent: int, name: bytes, entry: Entry, there: os.stat_result | None
    ) -> None:
        hidden = _is_whiteout(there)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            self._clear(parent, name, there)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            if hidden:
                os.setxattr(fd, OPAQUE, b"y")
            self._dress_directory(fd, entry, b"/".join(split_name(entry.name)))
        finally:
            os.close(fd)

    def _dress_directory(self, fd: int, entry: Entry, path: bytes) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in _accepted_xattrs(entry):
            os.setxattr(fd, key, value)
        self._times.write(b"%*d" % (_TIME_WIDTH, entry.mtime_ns) + len(path).to_bytes(4, "big"))
        self._times.write(path)

    def _create_file(
        self, parent: int, name: bytes, entry: Entry, tar: TarStream, tick: Callable[[], None]
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if entry.parts is None:
                for chunk in tar.data():
                    _write(fd, chunk)
                    tick()
            else:
                _write_sparse(fd, entry, tar, tick)
            os.fchown(fd, entry.uid, entry.gid)
            # After chown, which clears the set-id bits and security.capability.
            os.fchmod(fd, entry.mode)
            for key, value in _accepted_xattrs(entry):
                os.setxattr(fd, key, value)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _create_link(self, parent: int, name: bytes, entry: Entry) -> None:
        target = split_name(entry.link)
        if not target:
            raise InvalidInput(f"{shown(entry.name)} is a hard link to the root directory")
        source = self._open_below(b"/".join(target[:-1]) or b".", _PARENT)
        try:
            there = _stat(source, target[-1])
            if there is None or stat.S_ISDIR(there.st_mode) or _is_whiteout(there):
                raise InvalidInput(
                    f"{shown(entry.name)} is a hard link to {shown(entry.link)}, "
                    "which is no file of this layer"
                )
            old = _stat(parent, name)
            if old is not None:
                if (old.st_dev, old.st_ino) == (there.st_dev, there.st_ino):
                    return
                self._clear(parent, name, old)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _clear(self, parent: int, name: bytes, there: os.stat_result) -> None:
        """Make room for a later entry of the same name, as every unpacker does."""
        self._stale = True
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
        else:
            self._trashed += 1
            os.rename(name, b"%d" % self._trashed, src_dir_fd=parent, dst_dir_fd=self._trash)


def _stat(dir_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(there: os.stat_result | None) -> bool:
    return there is not None and stat.S_ISCHR(there.st_mode) and there.st_rdev == WHITEOUT_DEVICE


def _accepted_xattrs(entry: Entry) -> Iterator[tuple[str, bytes]]:
    """Capabilities, ACLs and users' own attributes.

    The rest is left out: ``trusted.*`` and ``user.overlay.*`` steer overlayfs, and labels of the
    machine where the image was made (SELinux, IMA) mean nothing here.
    """
    for key, value in entry.xattrs.items():
        known = key in _KNOWN_XATTRS or key.startswith("user.")
        if not known or key.startswith("user.overlay."):
            continue
        if len(value) > _MAX_XATTR_BYTES or "\0" in key:
            raise InvalidInput(f"{shown(entry.name)} has a bad attribute {key[:80]!r}")
        yield key, value


def _write(fd: int, data: bytes, at: int | None = None) -> None:
    view = memoryview(data)
    while view:
        done = os.write(fd, view) if at is None else os.pwrite(fd, view, at)
        view = view[done:]
        if at is not None:
            at += done


def _write_sparse(fd: int, entry: Entry, tar: TarStream, tick: Callable[[], None]) -> None:
    """Put each stored part where the map says; holes stay holes."""
    os.ftruncate(fd, entry.size_bytes)
    parts = iter(entry.parts or ())
    offset = left = 0
    for chunk in tar.data():
        tick()
        while chunk:
            while not left:
                offset, left = next(parts)  # the parts add up to the content: checked before
            piece = chunk[:left]
            _write(fd, piece, offset)
            offset += len(piece)
            left -= len(piece)
            chunk = chunk[len(piece) :]
