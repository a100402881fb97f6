"""Unpacking one layer: a hostile stream becomes a directory, and touches nothing else.

This is the pipeline: the blob as stored, its digest, decompression, the plain stream's digest,
tar headers, and ``layer.Layer`` which creates the files. Refuses what its stages refuse.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofold.errors import Corrupt, InvalidInput, NoSpace, TwofoldError, Unsupported
from twofold.image.compression import HashingReader, decompressed
from twofold.image.layer import Layer, Limits
from twofold.image.tarstream import Entry, Reader, TarStream, shown
from twofold.model.progress import Progress

_TICK_S = 0.2
# The rest of the machine is to blame, not the archive.
_HOST_ERRORS = (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """``diff_id`` is the digest of the plain tar stream, ``blob_digest`` of the stream as read."""

    diff_id: str
    blob_digest: str
    blob_size_bytes: int
    stream_size_bytes: int
    size_bytes: int
    entries: int


def unpack(
    source: Reader,
    target: str,
    *,
    trash: str,
    progress: Progress,
    limits: Limits | None = None,
    total_bytes: int | None = None,
) -> Unpacked:
    """Unpack the (compressed or plain) tar stream ``source`` into the empty directory ``target``.

    ``trash`` is a directory on the same file system for what the archive itself replaces; the
    caller removes it, and ``target`` too when this raises. ``total_bytes`` is the length of
    ``source`` where known. The caller compares the digests.
    """
    blob = HashingReader(source)
    with decompressed(blob) as plain:
        stream = HashingReader(plain)
        tar = TarStream(stream)
        with Layer(target, trash=trash, limits=limits or Limits()) as layer:
            ticker = _Ticker(progress, blob, total_bytes)
            for entry in tar:
                with _explained(entry):
                    layer.add(entry, tar, ticker.tick)
                ticker.tick()
            layer.finish()
            tar.drain()
        blob.drain()
    return Unpacked(
        diff_id=stream.digest,
        blob_digest=blob.digest,
        blob_size_bytes=blob.size_bytes,
        stream_size_bytes=stream.size_bytes,
        size_bytes=layer.size_bytes,
        entries=layer.entries,
    )


def require_digest(actual: str, expected: str, what: str) -> None:
    if actual != expected:
        raise Corrupt(
            f"{what} does not match its digest: expected {expected}, got {actual}",
            hint="fetch or export the image again",
        )


class _Ticker:
    """Tells the progress a few times a second, so that a cancel is noticed soon."""

    def __init__(self, progress: Progress, blob: HashingReader, total_bytes: int | None) -> None:
        self._progress = progress
        self._blob = blob
        self._total_bytes = total_bytes
        self._next = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TICK_S
        done = self._blob.size_bytes
        fraction = min(done / self._total_bytes, 1.0) if self._total_bytes else None
        self._progress(fraction, f"unpacking: {done >> 20} MiB read")


@contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    """The kernel's refusal in the words of the error tree."""
    try:
        yield
    except OSError as error:
        name = shown(entry.name)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left while unpacking {name}", hint="twofold image list"
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            raise Unsupported(
                f"this host does not permit a {entry.kind} like {name}: {error.strerror}",
                hint="run the daemon as root on a file system with extended attributes",
            ) from error
        if error.errno in _HOST_ERRORS:
            raise TwofoldError(f"cannot unpack {name}: {error.strerror}") from error
        raise InvalidInput(
            f"the archive holds {name}, which cannot be: {error.strerror}"
        ) from error
