"""Carry a payload's output to its log and to whoever is attached, without ever blocking.

A reader that stops reading stops the payload (as a pipe would), never the keeper; one that goes
away is forgotten and the log goes on.
"""

import os
from collections.abc import Callable

from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import READ, WRITE, Loop

_BLOCK_BYTES = 65536


class Relay:
    """``source`` (owned, made non-blocking) to ``log`` and, optionally, to ``sink`` (owned)."""

    def __init__(
        self,
        loop: Loop,
        source: int,
        *,
        stream: str,
        log: LogWriter | None,
        sink: int = -1,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._loop, self._source, self._stream = loop, source, stream
        self._log, self._sink, self._on_end = log, sink, on_end
        self._pending = b""
        os.set_blocking(source, False)
        if sink >= 0:
            os.set_blocking(sink, False)
        loop.watch(source, READ, self._readable)

    @property
    def open(self) -> bool:
        return self._source >= 0

    def _readable(self, _: int) -> None:
        try:
            data = os.read(self._source, _BLOCK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a pty whose last slave closed says EIO
        if not data:
            self.close()
            return
        if self._log is not None:
            self._log.write(self._stream, data)
        if self._sink >= 0:
            self._pending = data
            self._flush()

    def _flush(self, _: int = 0) -> None:
        try:
            written = os.write(self._sink, self._pending)
        except BlockingIOError:
            written = 0
        except OSError:
            self._drop_sink()
            return
        self._pending = self._pending[written:]
        if self._pending:
            self._loop.unwatch(self._source)
            self._loop.watch(self._sink, WRITE, self._writable)

    def _writable(self, _: int) -> None:
        self._loop.unwatch(self._sink)
        self._flush()
        if not self._pending and self.open:
            self._loop.watch(self._source, READ, self._readable)

    def _drop_sink(self) -> None:
        self._loop.unwatch(self._sink)
        os.close(self._sink)
        self._sink, self._pending = -1, b""
        if self.open:
            self._loop.watch(self._source, READ, self._readable)

    def finish(self) -> None:
        """Every writer is dead: take what is still in the pipe, then close."""
        while self.open and not self._pending:
            try:
                data = os.read(self._source, _BLOCK_BYTES)
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            if self._log is not None:
                self._log.write(self._stream, data)
            if self._sink >= 0:
                self._pending = data
                self._flush()

    def close(self) -> None:
        if self._source >= 0:
            self._loop.unwatch(self._source)
            os.close(self._source)
            self._source = -1
        if self._sink >= 0:
            self._loop.unwatch(self._sink)
            os.close(self._sink)
            self._sink = -1
        if self._on_end is not None:
            callback, self._on_end = self._on_end, None
            callback()
