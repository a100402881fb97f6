"""Data disks of virtual machines: sparse raw files holding an empty ext4.

Formatting is done once per size, into a template; a new disk is a copy of the template's few
written blocks. The guest's writes make it grow. Knows nothing of instances; opens no image that a
guest has written to.
"""

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile

from twofold.errors import Conflict, InvalidInput, NoSpace, Unsupported

MINIMUM_BYTES = 64 << 20
MAXIMUM_BYTES = 16 << 40  # ext4 with 4 KiB blocks
_MIB = 1 << 20
MOST_EMPTY_BYTES = 64 << 40
_FICLONE = 0x40049409
_NO_CLONES = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
_COPY_CHUNK_BYTES = 64 * _MIB
_MKFS = "mkfs.ext4"


def empty(path: str, size_bytes: int) -> None:
    """The new file ``path``: sparse zeros, mode 0600. Raises InvalidInput, NoSpace."""
    if size_bytes > MOST_EMPTY_BYTES:
        raise InvalidInput(
            f"a disk of {size_bytes} bytes is larger than {MOST_EMPTY_BYTES >> 40} TiB",
            hint="--disk 64g",
        )
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, -(-size_bytes // 512) * 512)
        finally:
            os.close(handle)
    except OSError as error:
        raise NoSpace(f"cannot make disk {path!r}: {error.strerror}", hint="df -h") from error


def data_disk(path: str, size_bytes: int, cache_dir: str) -> None:
    """Make the new file ``path``: an empty ext4 of ``size_bytes`` (rounded up to a MiB), mode 0600.

    All or nothing. Raises Conflict when the path exists, InvalidInput for an absurd size, NoSpace.
    """
    if not MINIMUM_BYTES <= size_bytes <= MAXIMUM_BYTES:
        raise InvalidInput(
            f"disk size of {size_bytes} bytes is not between {MINIMUM_BYTES // _MIB} MiB "
            f"and {MAXIMUM_BYTES >> 40} TiB",
            hint="choose a size such as 16g",
        )
    size_bytes = -(-size_bytes // _MIB) * _MIB
    template = _template(size_bytes, cache_dir)
    try:
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(f"disk {path!r} exists already") from None
    try:
        with open(template, "rb", buffering=0) as source:
            sparse_copy(source.fileno(), target)
    except OSError as error:
        os.unlink(path)
        raise _no_space(path, error) from None
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(target)


def copy(source_path: str, target_path: str, *, durable: bool = False) -> None:
    """Replace ``target_path`` by a copy of a disk. All or nothing. Raises NoSpace.

    ``durable``: for a power cut, too. Without it the name may come to the disk before the content.
    """
    temporary = f"{target_path}.new"
    try:
        source = os.open(source_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            target = os.open(temporary, flags, 0o600)
            try:
                sparse_copy(source, target)
                if durable:
                    os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        os.rename(temporary, target_path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise _no_space(target_path, error) from None


def shares_blocks(directory: str) -> bool:
    """Whether a copy there costs neither time nor room, by making one. Raises OSError."""
    with (
        tempfile.TemporaryFile(dir=directory) as source,
        tempfile.TemporaryFile(dir=directory) as target,
    ):
        source.write(bytes(4096))
        source.flush()
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in _NO_CLONES:
                return False
            raise
    return True


def sparse_copy(source: int, target: int) -> None:
    """Copy a file's data and keep its holes; share the blocks where the file system can.

    ``target`` is empty. Raises OSError.
    """
    size = os.fstat(source).st_size
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NO_CLONES:
            raise
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, end)
        position = end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    position = start
    while position < end:
        wanted = min(end - position, _COPY_CHUNK_BYTES)
        try:
            copied = os.copy_file_range(source, target, wanted, position, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            copied = os.pwrite(target, os.pread(source, min(wanted, _MIB), position), position)
        if copied == 0:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        position += copied


def _template(size_bytes: int, cache_dir: str) -> str:
    path = f"{cache_dir}/data-{size_bytes // _MIB}m.ext4"
    if os.path.exists(path):
        return path
    if shutil.which(_MKFS) is None:
        raise Unsupported(
            f"{_MKFS!r} is not installed: virtual machines need it",
            hint="apt-get install e2fsprogs",
        )
    os.makedirs(cache_dir, mode=0o755, exist_ok=True)
    scratch_fd, scratch = tempfile.mkstemp(prefix=".data-", dir=cache_dir)
    try:
        os.ftruncate(scratch_fd, size_bytes)
        _format(scratch)
        # Two builders at once make equal templates; the last rename wins and nothing is lost.
        os.rename(scratch, path)
    except OSError as error:
        raise _no_space(path, error) from None
    finally:
        os.close(scratch_fd)
        if os.path.exists(scratch):
            os.unlink(scratch)
    return path


def _format(path: str) -> None:
    # A fresh sparse file reads as zeros: nothing is to be zeroed, now or by the guest later.
    prezeroed = "nodiscard,assume_storage_prezeroed=1"
    older = "nodiscard,lazy_itable_init=1,lazy_journal_init=1"  # e2fsprogs before 1.47
    for extended in (prezeroed, older):
        argv = [_MKFS, "-q", "-F", "-m", "0", "-L", "twofold-data", "-J", "size=16"]
        argv += ["-O", "^resize_inode"]  # 4 MB of notes for growing, which every copy would carry
        done = subprocess.run(
            [*argv, "-E", extended, path], capture_output=True, text=True, timeout=120
        )
        if done.returncode == 0:
            return
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, last)
    raise Unsupported(f"{_MKFS} failed: {last}", hint="apt-get install e2fsprogs")


def _no_space(path: str, error: OSError) -> NoSpace:
    hint = "df -h; twofold image list; twofold template rm --all"
    return NoSpace(f"cannot write disk {path!r}: {error.strerror}", hint=hint)
