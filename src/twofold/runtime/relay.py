"""Carry a payload's output to its log and to who looks at it, without ever blocking.

source ──► log                exactly once, also when the keeper is killed (``journal``)
       ├─► the reader         who started it: as with a pipe, a reader that stops reading stops
       │                      the payload; one that goes away is forgotten and the log goes on
       └─► viewers            who attached later: one that is slow misses bytes, which are
                              counted, and neither the payload nor others notice
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios

from twofold.runtime.journal import TAKE_BYTES, Journal
from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
else:
    import _socket as socket

_PAGE_BYTES = 4096
_SOCKET_BYTES = 32768  # a writable unix socket takes at least that
_VIEW_BYTES = 1 << 20  # what a viewer may be behind; taken only by one that is
_LAST_BYTES = 1 << 20


def _waiting(pipe: int) -> int:
    """How many bytes are in it."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


class Reader:
    """The descriptor of who started the payload. ``pending`` stays empty until the very end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = b""
        self._is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        os.set_blocking(fd, False)

    def room(self) -> int:
        """How much can surely be written now."""
        if self.pending:
            return 0
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            return 0
        if not self._is_pipe:
            return _SOCKET_BYTES
        return _PAGE_BYTES if _waiting(self.fd) else TAKE_BYTES

    def write(self, data: bytes) -> None:
        """Raises OSError when nobody reads any more."""
        try:
            written = os.write(self.fd, data)
        except BlockingIOError:
            written = 0
        self.pending = data[written:]


class Viewer:
    """One stream of somebody who attached. What it did not read in time is skipped, and ``lost``
    hears how much that was when it reads again, or at the end."""

    def __init__(self, fd: int, lost: Callable[[int], None]) -> None:
        self.fd, self._lost = fd, lost
        self._skipped = 0
        self._is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        os.set_blocking(fd, False)
        if self._is_pipe:
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _VIEW_BYTES)
            except OSError:
                pass  # it is behind sooner then

    def show(self, data: bytes) -> None:
        written = 0
        # Once behind it stays so until it has read a good part: one gap instead of many.
        if not (self._skipped and self._is_pipe and _waiting(self.fd) > _VIEW_BYTES // 2):
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                pass
            except OSError:
                return  # gone: its connection at the door says so
        self._skipped += len(data) - written
        if written == len(data):
            self._report()

    def _report(self) -> None:
        skipped, self._skipped = self._skipped, 0
        if skipped:
            self._lost(skipped)

    def close(self) -> None:
        self._report()
        os.close(self.fd)


class Relay:
    """``source`` (owned, made non-blocking) to ``log``, ``reader`` (a descriptor, owned) and
    ``viewers``, a list that may change. ``owner`` is the name of the deposit it belongs to."""

    def __init__(
        self,
        loop: Loop,
        journal: Journal,
        source: int,
        *,
        owner: str,
        stream: str,
        log: LogWriter | None,
        reader: int = -1,
        viewers: list[Viewer] | None = None,
    ) -> None:
        self._loop, self._journal, self.source = loop, journal, source
        self.owner, self.stream = owner, stream
        self._log = log
        self.reader = Reader(reader) if reader >= 0 else None
        self.viewers = viewers if viewers is not None else []
        os.set_blocking(source, False)
        loop.watch(source, READ, self._readable)

    @property
    def open(self) -> bool:
        return self.source >= 0

    def _readable(self, _: int) -> None:
        limit = TAKE_BYTES
        if self.reader is not None:
            limit = self.reader.room()
            if limit == 0:
                self._loop.unwatch(self.source)
                self._loop.watch(self.reader.fd, WRITE, self._reader_writable)
                return
        self._carry(limit)

    def _carry(self, limit: int) -> int:
        """Take and hand on up to ``limit`` bytes; how many there were."""
        try:
            data = self._journal.take(
                self.source,
                limit,
                owner=self.owner,
                stream=self.stream,
                log_size=self._log.size if self._log is not None else 0,
            )
        except BlockingIOError:
            return 0
        except OSError:
            data = b""  # a pty whose last slave closed says EIO
        if not data:
            self._end()
            return 0
        self._hand_on(data, shown=False)
        self._journal.done()
        return len(data)

    def _hand_on(self, data: bytes, *, shown: bool) -> None:
        if self._log is not None:
            self._log.write(self.stream, data, writing_at=self._journal.writing_at)
        if not shown:
            if self.reader is not None:
                self._show(self.reader, self.reader.pending + data)
            for viewer in self.viewers:
                viewer.show(data)
        self._journal.shown()

    def recovered(self, data: bytes, log_size: int, *, shown: bool) -> None:
        """Hand on what the keeper before us had under way."""
        if self._log is not None:
            self._log.cut(log_size)
        self._hand_on(data, shown=shown)

    def _show(self, reader: Reader, data: bytes) -> None:
        try:
            reader.write(data)
        except OSError:
            self._drop_reader()

    def _reader_writable(self, _: int) -> None:
        reader = self.reader
        assert reader is not None
        if reader.pending:
            self._show(reader, reader.pending)
            if reader.pending:
                return
        if not self.open:
            self._drop_reader()
            return
        self._loop.unwatch(reader.fd)
        self._loop.watch(self.source, READ, self._readable)

    def _drop_reader(self) -> None:
        reader, self.reader = self.reader, None
        if reader is None:
            return
        self._loop.unwatch(reader.fd)
        os.close(reader.fd)
        if self.open and self.source not in self._loop:
            self._loop.watch(self.source, READ, self._readable)

    def finish(self) -> None:
        """The payload is dead: what is in the pipe now goes to the log at once, and to a slow
        reader as it comes. What others, who still hold the pipe, write later is not waited for."""
        left = _LAST_BYTES
        if self.open and stat.S_ISFIFO(os.fstat(self.source).st_mode):
            left = _waiting(self.source)
        while self.open and left > 0:
            count = self._carry(min(left, TAKE_BYTES))
            if count == 0:
                break
            left -= count
        self._end()

    def _end(self) -> None:
        if self.source >= 0:
            self._loop.unwatch(self.source)
            os.close(self.source)
            self.source = -1
        if self.reader is not None:
            if self.reader.pending:
                self._loop.watch(self.reader.fd, WRITE, self._reader_writable)
            else:
                self._drop_reader()


class Typing:
    """What is typed on ``source``, a stream socket, goes to ``terminal``. Both are owned.

    Bytes are taken off the socket only when the terminal has them: a killed keeper loses none.
    """

    def __init__(
        self, loop: Loop, source: int, terminal: int, *, ended: Callable[[], None] | None = None
    ) -> None:
        self._loop, self._terminal = loop, terminal
        self._socket = socket.socket(fileno=source)
        self._socket.setblocking(False)
        self._ended = ended
        os.set_blocking(terminal, False)
        loop.watch(source, READ, self._readable)

    def _readable(self, _: int) -> None:
        try:
            data = self._socket.recv(_PAGE_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            written = os.write(self._terminal, data)
        except BlockingIOError:
            self._loop.unwatch(self._socket.fileno())
            self._loop.watch(self._terminal, WRITE, self._writable)
            return
        except OSError:
            self.close()
            return
        self._socket.recv(written)

    def _writable(self, _: int) -> None:
        self._loop.unwatch(self._terminal)
        self._loop.watch(self._socket.fileno(), READ, self._readable)

    def descriptors(self) -> tuple[int, int]:
        return self._socket.fileno(), self._terminal

    @property
    def open(self) -> bool:
        return self._terminal >= 0

    def close(self) -> None:
        if self._terminal < 0:
            return
        self._loop.unwatch(self._socket.fileno())
        self._loop.unwatch(self._terminal)
        self._socket.close()
        os.close(self._terminal)
        self._terminal = -1
        if self._ended is not None:
            self._ended()
