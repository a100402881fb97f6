"""Decompressing a stream, told by its first bytes, with a stop for bombs.

gzip, xz and bzip2 by the standard library; zstd by the ``zstd`` program. Memory stays bounded
whatever the input claims. Refuses damaged input, and output that outgrows its input absurdly.
"""

import bz2
import hashlib
import lzma
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from twofold.errors import Corrupt, NoSpace, Unavailable
from twofold.image.tarstream import CHUNK_BYTES, Reader

# A real file system shrinks to a third or a tenth; only made-up data shrinks two hundredfold.
BOMB_RATIO = 200
BOMB_FLOOR_BYTES = 1 << 30
_XZ_MEMORY_BYTES = 256 << 20

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
}


def kind_of(start: bytes) -> str:
    """``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``""`` by the first six bytes."""
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


class HashingReader:
    """Passes a stream on, counting it and taking its SHA-256."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def read(self, size_bytes: int, /) -> bytes:
        data = self._reader.read(size_bytes)
        self._hash.update(data)
        self.size_bytes += len(data)
        return data

    def drain(self) -> None:
        while self.read(CHUNK_BYTES):
            pass

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Peeked:
    """A stream whose first bytes were looked at."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._start = b""
        while len(self._start) < 6 and (piece := reader.read(6 - len(self._start))):
            self._start += piece
        self.kind = kind_of(self._start)

    def read(self, size_bytes: int, /) -> bytes:
        if self._start:
            piece, self._start = self._start[:size_bytes], self._start[size_bytes:]
            return piece
        return self._reader.read(size_bytes)


class _Decoder(Protocol):
    eof: bool
    unused_data: bytes

    def decode(self, data: bytes) -> bytes: ...
    def wants_input(self) -> bool: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def decode(self, data: bytes) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, CHUNK_BYTES)

    def wants_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Buffered:
    """xz and bzip2: the standard library's two decoders share one interface."""

    def __init__(self, inner: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._inner = inner

    def decode(self, data: bytes) -> bytes:
        return self._inner.decompress(data, CHUNK_BYTES)

    def wants_input(self) -> bool:
        return self._inner.needs_input

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _decoder(kind: str) -> "_Gzip | _Buffered":
    if kind == "gzip":
        return _Gzip()
    if kind == "xz":
        return _Buffered(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES))
    return _Buffered(bz2.BZ2Decompressor())


class _Decompressed:
    """The members of a gzip, xz or bzip2 stream, one after the other."""

    def __init__(self, reader: Reader, kind: str) -> None:
        self._reader = reader
        self._kind = kind
        self._decoder = _decoder(kind)
        self._input = b""
        self._output = b""
        self._ended = False

    def read(self, size_bytes: int, /) -> bytes:
        while not self._output and not self._ended:
            self._output = self._step()
        piece, self._output = self._output[:size_bytes], self._output[size_bytes:]
        return piece

    def _step(self) -> bytes:
        if self._decoder.eof:
            return self._next_member()
        if self._decoder.wants_input() and not self._input:
            self._input = self._reader.read(CHUNK_BYTES)
            if not self._input:
                raise Corrupt(f"the {self._kind} stream is cut short")
        data, self._input = self._input, b""
        try:
            return self._decoder.decode(data)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise Corrupt(f"the {self._kind} stream is damaged: {error}") from error

    def _next_member(self) -> bytes:
        rest = self._decoder.unused_data + self._input
        while not (rest := rest.lstrip(b"\0")):  # padding after the last member is allowed
            rest = self._reader.read(CHUNK_BYTES)
            if not rest:
                self._ended = True
                return b""
        if len(rest) < 6:
            rest += self._reader.read(CHUNK_BYTES)
        if kind_of(rest) != self._kind:
            raise Corrupt(f"something that is not {self._kind} follows the {self._kind} stream")
        self._decoder, self._input = _decoder(self._kind), rest
        return b""


class _Zstd:
    """The ``zstd`` program between two pipes, fed by a thread of its own."""

    def __init__(self, reader: Reader) -> None:
        try:
            # Windows above 128 MiB, which would cost that much memory, are refused by default.
            self._process = subprocess.Popen(
                ["zstd", "--decompress", "--stdout", "--quiet"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise Unavailable(
                "the program 'zstd' is missing; this image is compressed with it",
                hint="apt install zstd",
            ) from error
        self._reader = reader
        self._failure: BaseException | None = None
        self._feeder = threading.Thread(target=self._feed, name="zstd-feeder", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while data := self._reader.read(CHUNK_BYTES):
                    pipe.write(data)
        except BrokenPipeError:
            pass  # zstd ended first and says why itself
        except BaseException as error:  # handed to the thread that reads
            self._failure = error

    def read(self, size_bytes: int, /) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        data = self._process.stdout.read(size_bytes)
        if data:
            return data
        self._feeder.join()
        if self._failure is not None:
            raise self._failure
        if self._process.wait() != 0:
            said = self._process.stderr.read(2000).decode("utf-8", "replace").strip()
            raise Corrupt(f"the zstd stream is damaged: {said.splitlines()[-1] if said else '?'}")
        return b""

    def close(self) -> None:
        self._process.kill()
        self._feeder.join()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


class _Guarded:
    """Stops a stream that grows out of all proportion to what was read."""

    def __init__(self, output: Reader, source: HashingReader) -> None:
        self._output = output
        self._source = source
        self._size_bytes = 0

    def read(self, size_bytes: int, /) -> bytes:
        data = self._output.read(size_bytes)
        self._size_bytes += len(data)
        allowed = max(BOMB_FLOOR_BYTES, BOMB_RATIO * self._source.size_bytes)
        if self._size_bytes > allowed:
            raise NoSpace(
                f"{self._source.size_bytes} compressed bytes unpack to more than {allowed}: "
                "a decompression bomb",
                hint="check where this file comes from",
            )
        return data


@contextmanager
def decompressed(source: HashingReader) -> Iterator[Reader]:
    """The plain stream inside ``source``, which is read as is when nothing compresses it."""
    peeked = _Peeked(source)
    if not peeked.kind:
        yield peeked
        return
    if peeked.kind != "zstd":
        yield _Guarded(_Decompressed(peeked, peeked.kind), source)
        return
    program = _Zstd(peeked)
    try:
        yield _Guarded(program, source)
    finally:
        program.close()
