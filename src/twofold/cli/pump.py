"""Bytes between one of the user's descriptors and one of the payload's, without blocking either.

Watches for the keys that detach. Decides nothing about sessions: ``cli/session.py`` polls.
"""

from __future__ import annotations

import os
import select

COPY_BYTES = 256 << 10
DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q, as in the field


class DetachKeysError(Exception):
    """The user typed the detach keys."""


class Pump:
    """Bytes from one descriptor to another. ``ours`` is the side that belongs to the user."""

    def __init__(
        self, source: int, sink: int, *, sink_is_ours: bool, detach_keys: bytes = b""
    ) -> None:
        self.source = source
        self.sink = sink
        self.sink_is_ours = sink_is_ours
        self.waiting = b""  # read but not yet taken by the payload
        self.ended = False  # the source has ended
        self.closed = False
        self.lost = ""  # why output could not be written
        self.reader_left = False  # whoever read our output has gone
        self._detach_keys = detach_keys
        self._held = b""
        # Ours may be shared with a shell, which would be surprised by O_NONBLOCK.
        os.set_blocking(source if sink_is_ours else sink, False)

    def read(self) -> None:
        try:
            data = os.read(self.source, COPY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the other side of a terminal is closed
        if not data:
            self.ended = True
        elif self._detach_keys:
            data = self._without_detach_keys(data)
        if self.sink_is_ours:
            self._write_all(data)
        else:
            self.waiting += data
            self.write()
        if self.ended and not self.waiting:
            self.close()

    def write(self) -> None:
        """Give the payload as much as it takes now."""
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.sink, self.waiting) :]
        except BlockingIOError:
            return
        except OSError:
            self.waiting, self.ended = b"", True  # it closed its stdin: nobody wants the rest
        if self.ended:
            self.close()

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.sink, view) :]
            except BlockingIOError:
                select.select([], [self.sink], [])  # somebody made our stdout non-blocking
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    self.reader_left = True
                else:
                    self.lost = str(error.strerror)
                self.ended = True
                self.close()
                return

    def _without_detach_keys(self, data: bytes) -> bytes:
        """What is typed before the keys is passed on; a part of them at the end is kept back."""
        data, keys = self._held + data, self._detach_keys
        before, found, _ = data.partition(keys)
        if found:
            self._held = b""
            self.waiting += before
            self.write()
            raise DetachKeysError
        held = next((size for size in range(len(keys) - 1, 0, -1) if data.endswith(keys[:size])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def close(self) -> None:
        """Close the payload's side; the user's own descriptors stay."""
        if not self.closed:
            self.closed = True
            theirs = self.source if self.sink_is_ours else self.sink
            try:
                os.close(theirs)
            except OSError:
                pass
