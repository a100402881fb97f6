"""The agent's port on virtio hardware: virtio-serial.

One call of the kernel's driver moves 32 KiB out and one page in; readv and writev repeat it inside
the kernel, so that the interpreter, slow under emulation, is asked once per quarter megabyte.
"""

from __future__ import annotations

import os
import select
import time

from twofold.guest import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PIECE_BYTES = 32768  # what the kernel's virtio-serial driver takes in one call
_PIECES = 16
_PAGE_BYTES = 4096  # what it gives in one call


class VirtioPort:
    """A virtio-serial port. One call of readv or writev moves many of the driver's small units."""

    window = 262144
    by_network = False

    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer = bytearray(64 * _PAGE_BYTES)
        view = memoryview(self._buffer)
        self._view = view
        self._pages = [view[at : at + _PAGE_BYTES] for at in range(0, len(view), _PAGE_BYTES)]
        self.wait_for_host()

    def read(self) -> memoryview | None:
        """What is there; None when nothing is, empty when the host's end is closed."""
        try:
            return self._view[: os.readv(self.fd, self._pages)]
        except BlockingIOError:
            return None

    def write(self, frames: Iterable[protocol.Body], offset: int) -> int:
        """Write from the front of ``frames``. Raises BlockingIOError when the host reads slowly."""
        pieces: list[memoryview] = []
        for frame in frames:
            view = memoryview(frame)
            while offset < len(view) and len(pieces) < _PIECES:
                pieces.append(view[offset : offset + _PIECE_BYTES])
                offset += _PIECE_BYTES
            offset = 0
            if len(pieces) == _PIECES:
                break
        return os.writev(self.fd, pieces)

    def dial(self, share: int) -> int:
        """Shares have a virtio device of their own."""
        return -1

    def wait_for_host(self) -> None:
        """Block until the host's end is open: before that reads say "closed", writes are lost."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while any(events & select.POLLHUP for _, events in poll.poll(1000)):
            time.sleep(0.005)
