"""Descriptors that are not ours, each served by a thread of its own.

Stdin, stdout and stderr of a client are open file descriptions shared with a shell and who knows
whom: setting them non-blocking would change them for everybody, and after a poll another reader
may have taken the bytes. So each is read or written by one thread that may block; a stalled client
stalls nothing but its own stream, whose credit then runs out. A thread owns its descriptor and
closes it when it ends: one that is stuck in a read cannot be hurt by a close.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

_READ_BYTES = 65536
_STACK_BYTES = 262144

threading.stack_size(_STACK_BYTES)


class Intake:
    """Reads a descriptor as far as credit reaches and hands the bytes to ``emit``.

    ``emit(b"")`` says end of file. Both are called in the thread.
    """

    def __init__(self, fd: int, emit: Callable[[bytes], None], *, credit: int) -> None:
        self._fd, self._emit = fd, emit
        self._credit = self._most = credit
        self._changed = threading.Condition()
        self._stopped = False
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._started = False

    def start(self) -> None:
        self._started = True
        threading.Thread(target=self._run, daemon=True).start()

    def grant(self, count: int) -> None:
        """More may be read; never more than it began with, whatever a guest says."""
        with self._changed:
            self._credit = min(self._credit + count, self._most)
            self._changed.notify()

    def stop(self) -> None:
        """Read no more. A read under way is left to end by itself."""
        if not self._started:
            self._close()
            return
        with self._changed:
            if not self._stopped:
                self._stopped = True
                self._changed.notify()
                if self._stop_fd >= 0:
                    os.eventfd_write(self._stop_fd, 1)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        try:
            while True:
                with self._changed:
                    while self._credit <= 0 and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        return
                    credit = self._credit
                poll.poll()
                if self._stopped:
                    return
                try:
                    data = os.read(self._fd, min(_READ_BYTES, credit))
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""  # a terminal that has gone away: as good as its end
                with self._changed:
                    if self._stopped:
                        return
                    self._credit -= len(data)
                self._emit(data)
                if not data:
                    return
        finally:
            self._close()

    def _close(self) -> None:
        with self._changed:
            os.close(self._fd)
            os.close(self._stop_fd)
            self._fd = self._stop_fd = -1
            self._stopped = True


class Outlet:
    """Writes what it is given to a descriptor; with descriptor -1 it swallows everything.

    ``wrote(n)`` is called for every n bytes that are off our hands, ``gone()`` once when the
    reader has gone, ``done()`` once when everything was written after ``finish`` (or swallowed).
    All three may be called in the thread. ``put`` refuses (False) more than ``window`` bytes.
    """

    def __init__(
        self,
        fd: int,
        *,
        window: int,
        wrote: Callable[[int], None],
        gone: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._fd, self._room = fd, window
        self._wrote, self._gone, self._done = wrote, gone, done
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread = False
        self._ending = self._ended = False

    @property
    def finished(self) -> bool:
        return self._ended

    def put(self, data: bytes) -> bool:
        with self._changed:
            if self._ending:
                return True
            if len(data) > self._room:
                return False
            if self._fd >= 0:
                self._room -= len(data)
                self._queue.append(data)
                self._start()
                return True
        self._wrote(len(data))
        return True

    def finish(self) -> None:
        """Nothing more comes: close the descriptor when the rest is written."""
        with self._changed:
            if self._ending:
                return
            self._ending = True
            if self._thread:
                self._changed.notify()
                return
            self._end()
        self._done()

    def abandon(self) -> None:
        """Drop what waits. A write under way is left to end by itself."""
        with self._changed:
            self._queue.clear()
        self.finish()

    def _start(self) -> None:
        if self._thread:
            self._changed.notify()
        else:
            self._thread = True
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._ending:
                    self._changed.wait()
                if not self._queue:
                    self._end()
                    break
                data = self._queue.popleft()
            alive = self._write(data)
            with self._changed:
                self._room += len(data)
            self._wrote(len(data))
            if not alive:
                self._swallow()
                return
        self._done()

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody else made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True

    def _swallow(self) -> None:
        """The reader has gone. From here on bytes are taken off the stream and dropped."""
        with self._changed:
            waiting = sum(len(data) for data in self._queue)
            self._queue.clear()
            self._room += waiting
            os.close(self._fd)
            self._fd = -1
            self._thread = False
            ending = self._ending
            if ending:
                self._ended = True
        if waiting:
            self._wrote(waiting)
        self._gone()
        if ending:
            self._done()

    def _end(self) -> None:
        self._ended = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
