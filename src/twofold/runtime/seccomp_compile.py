"""The BPF program of a profile, from a cache: libseccomp is loaded once per profile, not start.

The cache trusts only files of the caller in a directory of the caller (0700), checked on
descriptors, with a digest over key and program; anything else in it is as good as absent.
"""

from __future__ import annotations

import os
import stat
from _blake2 import blake2b  # hashlib loads OpenSSL: 4 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.runtime.seccomp_rules import Seccomp

_VERSION = b"1"  # of what seccomp_translate makes of the same rules
_MAGIC = b"twofold-bpf\n"
_DIGEST_BYTES = 32
_CACHE_LIMIT = 64
_SIZE_LIMIT_BYTES = 8 * 4096  # the kernel takes 4,096 instructions
_LIBRARIES = (
    f"/usr/lib/{os.uname().machine}-linux-gnu/libseccomp.so.2",
    "/usr/lib64/libseccomp.so.2",
    "/usr/lib/libseccomp.so.2",
    "/lib/libseccomp.so.2",
)


def compile(profile: Seccomp, cache_dir: str) -> bytes:  # noqa: A001
    """The BPF program of ``profile``, from the cache or compiled (and cached) now.

    Without a usable cache the program is compiled each time. Raises InvalidInput for what
    libseccomp refuses, Unsupported where it is not installed.
    """
    key = _key(profile)
    directory = _open_cache(cache_dir)
    if directory < 0:
        return _translate(profile)
    try:
        program = _read(directory, key)
        if not program:
            program = _translate(profile)
            _store(directory, key, program)
        return program
    finally:
        os.close(directory)


def _key(profile: Seccomp) -> bytes:
    """A digest of all that shapes the program; the flags and the listener do not."""
    shape = (
        profile.default_action,
        profile.bad_architecture,
        profile.architectures,
        profile.rules,
        os.uname().machine,
        _library_identity(),
    )
    return bytes(blake2b(_VERSION + repr(shape).encode(), digest_size=_DIGEST_BYTES).digest())


def _library_identity() -> tuple[int, int]:
    """A newer libseccomp knows more names: what an older one left out is compiled anew."""
    for path in _LIBRARIES:
        try:
            found = os.stat(path)
        except OSError:
            continue
        return found.st_mtime_ns, found.st_size
    return 0, 0


# The cache


def _open_cache(path: str) -> int:
    """The directory's descriptor, or -1 when it cannot be made or is not ours alone."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            os.makedirs(path, mode=0o700, exist_ok=True)
            fd = os.open(path, flags)
    except OSError:
        return -1
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        return -1
    return fd


def _read(directory: int, key: bytes) -> bytes:
    """The cached program, or nothing when there is none that can be trusted."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(_name(key), flags, dir_fd=directory)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid != os.geteuid()
            or found.st_mode & 0o022
            or found.st_size > len(_MAGIC) + _DIGEST_BYTES + _SIZE_LIMIT_BYTES
        ):
            return b""
        data = os.read(fd, found.st_size)
    finally:
        os.close(fd)
    program = data[len(_MAGIC) + _DIGEST_BYTES :]
    if not program or data != _sealed(key, program):
        return b""
    return program


def _store(directory: int, key: bytes, program: bytes) -> None:
    """Keep the program. A full or read-only disk costs time at the next start, nothing else."""
    name = _name(key)
    temporary = f"{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        entries = os.listdir(directory)
        if len(entries) >= _CACHE_LIMIT:
            for entry in entries:
                os.unlink(entry, dir_fd=directory)
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            os.write(fd, _sealed(key, program))
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        return


def _name(key: bytes) -> str:
    return f"{key.hex()}.bpf"


def _sealed(key: bytes, program: bytes) -> bytes:
    digest = blake2b(program, key=key, digest_size=_DIGEST_BYTES).digest()
    return _MAGIC + bytes(digest) + program


def _translate(profile: Seccomp) -> bytes:
    from twofold.runtime import seccomp_translate

    return seccomp_translate.translate(profile)
