"""Take bytes from a payload so that a keeper killed at any instruction loses and doubles none.

Read into its own memory, bytes would be gone with it between the read and the write to the log.
So they are moved (splice) into a scratch pipe, and from there into a page, both of which the next
keeper inherits; what is under way is noted in the page. Every step is one system call or one byte:

    note (entry, stream, log size) · splice source → scratch · note length · scratch → page ·
    write to the log · note that the reader has it · nothing is under way

``recover`` looks how far it came. The log is then cut to the size noted and written again.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import termios

TAKE_BYTES = 65536
_HEADER_BYTES = 4096
# Native, so that a number is one store: no killed process leaves half of it.
_HEADER = struct.Struct("@QI16s128s")  # log size, length, stream, owner
_SIZE = struct.Struct("@Q")
_LENGTH = struct.Struct("@I")
_ACTIVE, _SHOWN, _AT = 0, 1, 8


class Recovered:
    """``shown``: the reader besides the log had it already."""

    __slots__ = ("data", "log_size", "owner", "shown", "stream")

    def __init__(self, owner: str, stream: str, log_size: int, data: bytes, shown: bool) -> None:
        self.owner, self.stream, self.log_size = owner, stream, log_size
        self.data, self.shown = data, shown


class Journal:
    """One for all relays: a keeper does one thing at a time. Made before the keeper is forked."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _HEADER_BYTES + TAKE_BYTES)  # shared with whom we fork
        self._body = memoryview(self._page)[_HEADER_BYTES:]
        self._body[:] = bytes(TAKE_BYTES)  # there before it is needed: a fault could be cut short
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, TAKE_BYTES)

    def take(self, source: int, limit: int, *, owner: str, stream: str, log_size: int) -> bytes:
        """Up to ``limit`` bytes of ``source``, b"" at its end. Raises BlockingIOError, OSError.

        ``done`` must follow when the bytes are where they belong.
        """
        _HEADER.pack_into(self._page, _AT, log_size, 0, stream.encode(), owner.encode())
        self._page[_SHOWN] = 0
        self._page[_ACTIVE] = 1
        try:
            count = os.splice(source, self._in, min(limit, TAKE_BYTES), flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            self._page[_ACTIVE] = 0
            if error.errno == errno.EINVAL:  # kernels before 5.11 cannot splice a terminal
                return os.read(source, limit)
            raise
        if count == 0:
            self._page[_ACTIVE] = 0
            return b""
        _LENGTH.pack_into(self._page, _AT + _SIZE.size, count)
        os.readv(self._out, [self._body[:count]])
        return bytes(self._body[:count])

    def writing_at(self, log_size: int) -> None:
        """The log is about to grow from this size, maybe in a new segment."""
        _SIZE.pack_into(self._page, _AT, log_size)

    def shown(self) -> None:
        self._page[_SHOWN] = 1

    def done(self) -> None:
        self._page[_ACTIVE] = 0

    def recover(self) -> Recovered | None:
        """What a killed keeper was carrying, None if nothing; the journal is then empty."""
        if not self._page[_ACTIVE]:
            return None
        log_size, count, stream, owner = _HEADER.unpack_from(self._page, _AT)
        in_pipe = _LENGTH.unpack(fcntl.ioctl(self._out, termios.FIONREAD, b"\0" * 4))[0]
        data = os.read(self._out, in_pipe) if in_pipe else bytes(self._body[:count])
        shown = bool(self._page[_SHOWN])
        self._page[_ACTIVE] = 0
        if not data:
            return None
        return Recovered(_text(owner), _text(stream), log_size, data, shown)

    def close(self) -> None:
        for fd in (self._out, self._in):
            os.close(fd)
        self._body.release()
        self._page.close()


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode()
